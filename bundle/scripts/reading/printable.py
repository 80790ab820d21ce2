"""Text that can be printed and written, from names of files as they are."""

from __future__ import annotations

import os


def printable(text: str) -> str:
    """``text`` without what cannot be printed: names that are not UTF-8 are read as Latin-1.

    >>> printable(os.fsdecode(b"M\\xfcller")), printable("two\\nlines")
    ('Müller', 'two_lines')
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        text = os.fsencode(text).decode("latin-1")
    return "".join(letter if letter.isprintable() else "_" for letter in text)
