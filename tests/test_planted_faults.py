"""The faults of `tests/planted_faults.py` keep up with the code."""

from collections import Counter

from planted_faults import FAULTS, ROOT


def test_every_fault_can_be_planted():
    """Its text is there once, and means something else afterwards."""
    for fault in FAULTS:
        assert (ROOT / "odejax" / fault.file).read_text().count(fault.old) == 1, fault
        assert fault.new != fault.old, fault
    assert [n for n, times in Counter(f.name for f in FAULTS).items() if times > 1] == []


def test_the_tests_that_should_see_them_exist():
    named = {test for fault in FAULTS for test in fault.tests}
    for test in sorted(named):
        file, _, function = test.partition("::")
        assert f"def {function}" in (ROOT / file).read_text(), test
