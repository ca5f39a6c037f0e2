"""Attacks and certificates as they are written on a command line: `PGD(40)`, `EOT(PGD(20), 10)`."""

import ast
import inspect
from types import ModuleType
from typing import Any

from .command_line import UsageError


def public_classes(package: ModuleType, *kinds: type) -> dict[str, type]:
    """The classes of these kinds that a package exports and that can be made.

    >>> from odejax.commands.written import public_classes
    >>> known = public_classes(odejax.attacks, odejax.attacks.AbstractAttack)
    >>> "PGD" in known, "AbstractAttack" in known, "AttackResult" in known
    (True, False, False)
    """
    return {
        name: value
        for name, value in sorted(vars(package).items())
        if inspect.isclass(value) and issubclass(value, kinds) and not inspect.isabstract(value)
    }


def methods(words: tuple[str, ...], kind: str, accepted: dict[str, type]) -> dict[str, Any]:
    """What the words say, by these words.

    Only classes in `accepted` are called, with numbers, strings, None, True, False and other such
    classes as arguments. Nothing else is evaluated.

    - `kind`: what it is, in a message.

    Raises `UsageError` for a word that is none of these, and for arguments that the class refuses.

    >>> from odejax.commands.written import methods
    >>> methods(("PGD(3)",), "attack", {"PGD": odejax.attacks.PGD})["PGD(3)"].steps
    3
    """
    return {word: _made(word, kind, accepted) for word in words}


def _made(word: str, kind: str, accepted: dict[str, type]) -> Any:
    try:
        return _value(ast.parse(word.strip(), mode="eval").body, accepted)
    except KeyError as error:
        known = f"accepted: {', '.join(accepted)}"
        raise UsageError(f"unknown {kind} {error.args[0]!r} in {word!r}; {known}") from None
    except SyntaxError:
        raise UsageError(f"{kind}s are written like PGD(40); got {word!r}") from None
    except (TypeError, ValueError) as error:
        raise UsageError(f"{kind} {word!r}: {error}") from None


def _value(node: ast.expr, accepted: dict[str, type]) -> Any:
    match node:
        case ast.Name(id=name):
            return accepted[name]()
        case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords):
            given = {str(k.arg): _value(k.value, accepted) for k in keywords}
            return accepted[name](*(_value(arg, accepted) for arg in args), **given)
        case ast.BinOp(left=left, op=ast.Div(), right=right):  # 2/255
            return _value(left, accepted) / _value(right, accepted)
        case ast.Constant() | ast.UnaryOp() | ast.Tuple() | ast.List():
            return ast.literal_eval(node)
        case _:
            raise SyntaxError


def number(word: str) -> float:
    """A number, or a fraction such as 8/255. `UsageError` for anything else.

    >>> odejax.commands.written.number("8/255") == 8 / 255
    True
    """
    try:
        return float(_value(ast.parse(word.strip(), mode="eval").body, {}))
    except (SyntaxError, LookupError, TypeError, ValueError, ZeroDivisionError):
        raise UsageError(f"{word!r} is no number, nor a fraction such as 8/255") from None
