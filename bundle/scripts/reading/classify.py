"""Whether a file can be a volume, and why not."""

from __future__ import annotations

import os
from pathlib import Path

from .formats import (
    DICOM,
    DICOM_SUFFIXES,
    KINDS,
    NIFTI,
    PARTNERS,
    case_name,
    first_bytes,
    is_dicom,
    pretender,
    suffix_of,
)
from .image import reason
from .printable import printable

OUTPUTS = ("_mask", "_aligned")  # volumes that inference writes beside <case>_pose.json


def header_beside(path: Path) -> tuple[Path, str, str]:
    """The .hdr file that belongs to an .img file."""
    for other in path.parent.iterdir():
        if (
            case_name(other).lower() == case_name(path).lower()
            and suffix_of(other.name) in PARTNERS[suffix_of(path.name)]
        ):
            return other, NIFTI, ""
    return path, "", "an .img file without .hdr"


def classify(path: Path) -> tuple[str, str]:
    """Kind of a file, or why it is left aside; neither for what belongs to another file."""
    if path.is_symlink() and not path.exists():
        return "", f"a dangling link to {printable(os.readlink(path))}"
    if not path.is_file():
        return "", "no regular file"
    suffix = suffix_of(path.name)
    if suffix in PARTNERS:
        whole = path.name[: len(path.name) - len(suffix)].lower()
        mates = {whole + ending for ending in PARTNERS[suffix]}
        if any(other.name.lower() in mates for other in path.parent.iterdir()):
            return "", ""
        return "", f"{suffix} without {' or '.join(PARTNERS[suffix])} beside it"
    if suffix in KINDS:
        if _is_output(path, suffix):
            return "", "an output of inference"
        return KINDS[suffix], ""
    try:
        start = first_bytes(path)
    except OSError as error:
        return "", f"cannot be opened: {reason(error)}"
    if is_dicom(start):
        return DICOM, ""
    if path.suffix.lower() in DICOM_SUFFIXES:  # older files have no preamble
        found = pretender(start)
        return ("", found) if found else (DICOM, "")
    return "", _unknown(path, start)


def _unknown(path: Path, start: bytes) -> str:
    suffix = path.suffix.lower()
    found = pretender(start)
    if found and suffix not in (".html", ".htm", ".xml", ".txt"):
        return found
    return f"no kind of file that is read ({suffix or 'without ending'})"


def _is_output(path: Path, suffix: str) -> bool:
    """Whether inference wrote this volume: a record of the same case lies beside it."""
    stem = path.name[: len(path.name) - len(suffix)]
    return any(
        stem.endswith(ending) and (path.parent / f"{stem[: -len(ending)]}_pose.json").exists()
        for ending in OUTPUTS
    )
