"""Attacks and certificates as they are written on a command line: `PGD(40)`, `EOT(PGD(20), 10)`."""

import ast
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

from .. import attacks, certificates
from ..attacks import AutoAttack, RelativeStep, cross_entropy, dlr, margin_loss
from ..certificates.best import BY_NAME
from .command_line import UsageError


def public_classes(package: ModuleType, kind: type) -> dict[str, Callable]:
    """The classes of this kind that a package exports and that can be made.

    >>> from odejax.commands.written import public_classes
    >>> known = public_classes(odejax.attacks, odejax.attacks.AbstractAttack)
    >>> "PGD" in known, "AbstractAttack" in known, "AttackResult" in known
    (True, False, False)
    """
    return {
        name: value
        for name, value in sorted(vars(package).items(), key=lambda item: item[0].lower())
        if inspect.isclass(value) and issubclass(value, kind) and not inspect.isabstract(value)
    }


_SUITES = (AutoAttack.standard, AutoAttack.rand, AutoAttack.plus)
# What can be written, by name, and what makes it.
METHODS: dict[str, dict[str, Callable]] = {
    "attack": public_classes(attacks, attacks.AbstractAttack)
    | {f"AutoAttack.{one.__name__}": one for one in _SUITES},
    "certificate": BY_NAME | public_classes(certificates, certificates.AbstractCertificate),
}
# What can be written as an argument of an attack.
_ARGUMENTS = {"RelativeStep": RelativeStep}
_LOSSES = {loss.__name__: loss for loss in (cross_entropy, dlr, margin_loss)}


def methods(words: Sequence[str], kind: str) -> dict[str, Any]:
    """What the words say, by these words; {} for the one word "none".

    Only what `METHODS` names is called, with numbers, strings, None, True, False, losses and other
    such methods as arguments. Nothing else is evaluated.

    - `kind`: "attack" or "certificate".

    Raises `UsageError` for a word that is none of these, and for arguments that are refused.

    >>> from odejax.commands.written import methods
    >>> methods(("PGD(3)", "CarliniWagner"), "attack")["PGD(3)"].steps
    3
    """
    if "none" in words:
        if len(words) > 1:
            raise UsageError(f"none is written alone; got {' '.join(words)}")
        return {}
    return {word: _made(word, kind) for word in words}


def signature(name: str, make: Callable) -> str:
    """How it is written: its name, and its arguments if some must be given."""
    needed = [
        p.name for p in inspect.signature(make).parameters.values() if p.default is inspect._empty
    ]
    return f"{name}({', '.join(needed)})" if needed else name


def _made(word: str, kind: str) -> Any:
    known = METHODS[kind]
    try:
        node = _parsed(word)
        if isinstance(node, ast.Constant):
            raise SyntaxError
        if (name := _name(node.func if isinstance(node, ast.Call) else node)) not in known:
            accepted = ", ".join(signature(*one) for one in known.items())
            raise UsageError(f"unknown {kind} {name!r} in {word!r}; accepted: {accepted}")
        return _value(node, known | _ARGUMENTS)
    except UsageError:
        raise
    except KeyError as error:
        raise UsageError(f"unknown argument {error.args[0]!r} in {word!r}") from None
    except SyntaxError:
        example = {"attack": "PGD(40)", "certificate": "CROWN"}[kind]
        raise UsageError(f"{kind}s are written like {example}; got {word!r}") from None
    except (TypeError, ValueError) as error:
        raise UsageError(f"{kind} {word!r}: {error}") from None


def _parsed(word: str) -> ast.expr:
    # The hyphen of a name, as of CROWN-IBP, is no minus.
    return ast.parse(re.sub(r"(?<=[A-Za-z])-(?=[A-Za-z])", "__", word.strip()), mode="eval").body


def _name(node: ast.expr) -> str:
    match node:
        case ast.Name(id=name):
            return name.replace("__", "-")
        case ast.Attribute(value=ast.Name(id=of), attr=name) if not name.startswith("_"):
            return f"{of}.{name}"
    raise SyntaxError


def _value(node: ast.expr, known: Mapping[str, Callable]) -> Any:
    match node:
        case ast.Name(id=name) if name in _LOSSES:
            return _LOSSES[name]
        case ast.Name() | ast.Attribute():
            return _called(_name(node), known, [], {})
        case ast.Call(func=function, args=args, keywords=keywords):
            given = {str(k.arg): _value(k.value, known) for k in keywords}
            return _called(_name(function), known, [_value(arg, known) for arg in args], given)
        case ast.BinOp(left=left, op=ast.Div(), right=right):  # 2/255
            return _value(left, known) / _value(right, known)
        case ast.Constant() | ast.UnaryOp() | ast.Tuple() | ast.List():
            return ast.literal_eval(node)
    raise SyntaxError


def _called(name: str, known: Mapping[str, Callable], args: list, given: dict[str, Any]) -> Any:
    make = known[name]
    try:
        inspect.signature(make).bind(*args, **given)
    except TypeError as error:
        accepted = ", ".join(
            p.name if p.default is inspect._empty else f"{p.name}={_shown(p.default)}"
            for p in inspect.signature(make).parameters.values()
        )
        raise TypeError(f"{error}; it is written {name}({accepted})") from None
    return make(*args, **given)


def _shown(default: Any) -> str:
    return getattr(default, "__name__", repr(default))


def number(word: str) -> float:
    """A number, or a fraction such as 8/255. `UsageError` for anything else.

    >>> odejax.commands.written.number("8/255") == 8 / 255
    True
    """
    try:
        value = _value(_parsed(word), {})
        if isinstance(value, bool):
            raise TypeError
        return float(value)
    except (SyntaxError, LookupError, TypeError, ValueError, ZeroDivisionError):
        raise UsageError(f"{word!r} is no number, nor a fraction such as 8/255") from None
