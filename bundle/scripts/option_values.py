"""Values of options as they are meant: words for true and false, numbers, files of any name."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from typing import Any

from monai.bundle import ReferenceResolver

SEPARATOR = ReferenceResolver.sep
WORDS = {
    **dict.fromkeys(("true", "yes", "on", "1"), True),
    **dict.fromkeys(("false", "no", "off", "0"), False),
}


class OptionError(ValueError):
    """Options that cannot be meant; a line for each."""


def nearest(name: str, known: Iterable[str]) -> str:
    """``; did you mean --a or --b?`` for names like ``name``, empty if none is.

    >>> nearest("ckpt_pth", ["ckpt_path", "output_dir"])
    '; did you mean --ckpt_path?'
    """
    found = difflib.get_close_matches(name, [k for k in known if k != name], n=2)
    return f"; did you mean {' or '.join(f'--{k}' for k in found)}?" if found else ""


def truth(name: str, value: Any) -> bool:
    """``value`` as true or false: either, 0, 1, or one of ``WORDS``. OptionError for others.

    >>> truth("resume", "No"), truth("resume", 1)
    (False, True)
    """
    word = str(value).strip().lower()
    if word not in WORDS:
        raise OptionError(f"--{name} {value}: expected True or False")
    return WORDS[word]


def number(name: str, value: Any, like: int | float) -> int | float:
    """``value`` as a number, a whole one where ``like`` is one. OptionError for anything else."""
    try:
        if isinstance(value, bool):  # what Fire makes of an option without a value
            raise ValueError
        found = float(value)
        if isinstance(like, int) and not found.is_integer():
            raise ValueError
    except (ValueError, OverflowError):
        kind = "a whole number" if isinstance(like, int) else "a number"
        text = "without a value" if value is True else value
        raise OptionError(f"--{name} {text}: expected {kind}") from None
    return int(found) if isinstance(like, int) else found


def is_path(name: str) -> bool:
    """Whether an option is a file or folder, by its name."""
    return name.endswith(("_dir", "_path", "_root"))


def path(name: str, value: Any, text: str | None, default: Any) -> Any:
    """A path as it was meant, out of what Fire made of the ``text`` that was typed.

    None, where the default is, and lists of paths stay what they are. OptionError for what is no
    path.
    """
    text = os.fspath(value) if text is None and isinstance(value, str | os.PathLike) else text
    if text is None:
        if isinstance(value, list | tuple) and all(isinstance(p, str | os.PathLike) for p in value):
            return [with_hash(os.fspath(part)) for part in value]
        if value is None and default is None:
            return None
        given = "without a value" if value is True else f"{value!r}"
        raise OptionError(f"--{name} {given}: expected a path, as text")
    if os.path.lexists(text):
        return text
    if value is None and default is None:
        return None
    if isinstance(value, list | tuple) and all(isinstance(part, str) for part in value):
        parts = [with_hash(part) for part in value]
        if text[0] in "[(" or any(os.path.lexists(part) for part in parts):
            return parts
    return text


def with_hash(text: str) -> str:
    """A path in which MONAI has put :: for #, where a file tells that it has."""
    meant = text.replace(SEPARATOR, "#")
    return meant if os.path.lexists(meant) and not os.path.lexists(text) else text


def literal(text: str) -> str:
    """A text for a config that MONAI reads as it is, whatever is in it: an expression if need be.

    >>> literal("a/b"), literal("c#d")
    ('a/b', "$'c\\\\x23d'")
    """
    if not any(mark in text for mark in "#@%$"):
        return text
    quoted = ascii(text)
    for mark in "#@%$":
        quoted = quoted.replace(mark, f"\\x{ord(mark):02x}")
    return f"${quoted}"


def is_computed(value: Any) -> bool:
    """Whether a text is an expression or a reference of the config language."""
    return isinstance(value, str) and value.startswith(("$", "@", "%"))
