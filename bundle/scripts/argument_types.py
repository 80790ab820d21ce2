"""Lists as a command line has them, "a,b,c", for argparse's ``type``."""

from __future__ import annotations

from argparse import ArgumentTypeError


def words(text: str) -> tuple[str, ...]:
    """What stands between the commas of ``text``.

    >>> words("f01,f04,")
    ('f01', 'f04')
    """
    return tuple(part.strip() for part in text.split(",") if part.strip())


def numbers(text: str) -> tuple[float, ...]:
    """The numbers of ``text``, such as "20,38". ArgumentTypeError for anything else."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ArgumentTypeError(f"expected numbers such as 1,2.5, got {text!r}") from None


def three_numbers(text: str) -> tuple[float, ...]:
    """Three ``numbers``."""
    found = numbers(text)
    if len(found) != 3:
        raise ArgumentTypeError(f"expected three numbers such as 1,2.5,0, got {text!r}")
    return found


def whole_numbers(text: str) -> tuple[int, ...]:
    """The whole numbers among the ``words`` of ``text``, such as "21,23"; of an empty text none.

    ArgumentTypeError for anything else.
    """
    try:
        return tuple(int(part) for part in words(text))
    except ValueError:
        raise ArgumentTypeError(f"expected whole numbers such as 21,23, got {text!r}") from None
