"""Names of cases: printable, not too long for files, and no two alike."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence
from dataclasses import replace

from .cases import Case
from .formats import DICOM, suffix_of
from .printable import printable

LONGEST_NAME = 160  # bytes; endings of outputs are added to it, and file systems allow 255


def short_name(text: str) -> str:
    """A name that can stand in file names and tables: printable, and not too long for them."""
    text = printable(text).replace("/", "_").replace("\\", "_")
    if len(text.encode()) <= LONGEST_NAME:
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return text.encode()[: LONGEST_NAME - 9].decode(errors="ignore") + "_" + digest


def told_apart(cases: Sequence[Case]) -> list[Case]:
    """Names that no two cases share, also where letters' case and accents are not told apart."""

    def folded(name: str) -> str:
        return unicodedata.normalize("NFC", name).casefold()

    starts = [case for case in cases if case.frame == 0]
    count: dict[str, int] = {}
    for case in starts:
        count[folded(case.name)] = count.get(folded(case.name), 0) + 1
    names: list[str] = []
    taken = {name for name, times in count.items() if times == 1}
    for case in starts:
        name = case.name
        if count[folded(name)] > 1:
            # a.nii and a.nii.gz: the whole names tell them apart; else a number does
            whole = name if case.kind == DICOM else short_name(name + suffix_of(case.path.name))
            name, number = whole, 2
            while folded(name) in taken:
                name, number = f"{whole}_{number}", number + 1
            taken.add(folded(name))
        names.append(name)
    result, current = [], iter(names)
    name = ""
    for case in cases:
        if case.frame == 0:
            name = next(current)
        result.append(replace(case, name=name))
    return result
