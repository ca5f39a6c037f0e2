"""Bad arguments, drawn at random: one sentence that names the value (see `fuzzing.py`)."""

import pytest
from fuzzing import drawn, outcome


@pytest.mark.usefixtures("unchecked")
def test_bad_arguments_end_in_one_sentence_that_names_the_value():
    wrong = {}
    for name, argument, call, value in drawn(400):
        end, said = outcome(call, argument, value)
        if end != "one sentence":
            wrong[f"{name}({argument}={str(value)[:40]!r})"] = f"{end}: {said}"
    assert wrong == {}
