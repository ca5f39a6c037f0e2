"""The error for a primitive without a rule: its name, where it comes from, and why."""

import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

COMPARED = "of comparisons with the image only where(z > 0, z, a z) has bounds"
_WHY = {
    **dict.fromkeys(("gt", "ge", "lt", "le", "eq", "ne"), COMPARED),
    **dict.fromkeys(
        ("floor", "ceil", "round", "sign", "argmax", "argmin"), "it jumps as the image changes"
    ),
    "cond": "the image chooses the branch",
    "while": "the number of its turns is not known beforehand; that of a scan is",
}
_JAX = Path(jax.__file__).parent
_LIBRARIES = (
    Path(__file__).parents[1],  # odejax
    *{Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")},
)


class NoRule(ValueError):
    """No bounds are known for a primitive.

    It names the innermost line of the network that is of no library, and the line of a library
    that is called there; where no such line is known, the library's alone.

    - `equations`: that of the primitive, and those of the programs that it is within.
    """

    def __init__(self, equations: Sequence[Any], why: str | None = None):
        self.equations, self.why = equations, why
        name = equations[0].primitive.name
        why = why or _WHY.get(name)
        reason = "" if why is None else f": {why}"
        super().__init__(f"no bounds are known for the primitive {name}{self._place()}{reason}")

    def within(self, equation: Any) -> "NoRule":
        """The same of an equation within another one's program."""
        if equation is self.equations[0]:
            return self
        return NoRule([*self.equations, equation], self.why)

    def _place(self) -> str:
        frames = [f for equation in self.equations for f in _frames(equation)]
        frames = [f for f in frames if not Path(f.file_name).is_relative_to(_JAX)]
        if not frames:
            return ""
        line = next((f for f in frames if not _is_of_a_library(f)), frames[0])
        called = "" if line is frames[0] else f", which calls {_line(frames[0])}"
        return f" (at {_line(line)}{called})"


def _frames(equation: Any) -> Iterator[Any]:
    """The calls that wrote an equation, innermost first, up to the one that traces the network."""
    traceback = equation.source_info.traceback
    for frame in traceback.frames if traceback is not None else ():
        if Path(frame.file_name) == Path(__file__).with_name("walk.py"):
            return
        yield frame


def _is_of_a_library(frame: Any) -> bool:
    path = Path(frame.file_name)
    written = frame.file_name.startswith("<@")  # by a type checker
    return written or any(path.is_relative_to(library) for library in _LIBRARIES)


def _line(frame: Any) -> str:
    return f"{frame.file_name}:{frame.line_num}, in {frame.function_name}"
