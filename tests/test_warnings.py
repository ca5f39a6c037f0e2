"""Warnings point at the line that a user wrote."""

import inspect
from pathlib import Path

import pytest

import odejax
from odejax._warnings import warn


def test_a_warning_points_at_the_first_line_outside_of_the_library():
    source = "def shallow(warn): warn('text')\ndef deep(warn): shallow(warn)"
    library = {}
    exec(compile(source, str(Path(odejax.__file__).with_name("file.py")), "exec"), library)
    with pytest.warns(UserWarning, match="text") as seen:
        library["deep"](inspect.unwrap(warn))  # without the checks of tests
    assert [Path(one.filename) for one in seen] == [Path(__file__)]
    assert "warnings.warn(" not in "".join(
        path.read_text() for path in Path(odejax.__file__).parent.rglob("[!_]*.py")
    )
