"""Words of DICOM headers that must not reach an output: names, numbers and dates of patients."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

PRIVATE_TAGS = (
    "PatientName",
    "PatientID",
    "OtherPatientNames",
    "PatientBirthDate",
    "PatientBirthName",
    "AccessionNumber",
    "StudyDate",
    "SeriesDate",
    "AcquisitionDate",
    "ContentDate",
    "ReferringPhysicianName",
    "InstitutionName",
)


def private_words(data: Any) -> frozenset[str]:
    """Names, numbers and dates of a header that must not reach an output, in lower case."""
    words: set[str] = set()
    for tag in PRIVATE_TAGS:
        text = str(data.get(tag) or "").lower()
        if "date" in tag.lower() and re.fullmatch(r"\d{8}", text):
            year, month, day = text[:4], text[4:6], text[6:]
            for joint in ("", "-", "_", "."):
                words |= {joint.join((year, month, day)), joint.join((day, month, year))}
            words.add(text[2:])
        else:
            words |= {text, *re.split(r"[\W_]+", text)}
    return frozenset(word for word in words if len(word) > 1)


def mentions(name: str, private: Iterable[str]) -> bool:
    """Whether the name of a file or folder has one of these words in it.

    >>> mentions("DOE_Jane", {"doe"}), mentions("series3", {"doe"})
    (True, False)
    """
    lower = name.lower()
    tokens = set(re.split(r"[\W_]+", lower))
    return any(word in tokens or (len(word) > 3 and word in lower) for word in private)
