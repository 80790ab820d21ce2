"""What kind a file is of, by its name and its first bytes."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ..labels import Status
from .image import VolumeError, reason

NIFTI, NIBABEL, ITK, DICOM = "nifti", "nibabel", "itk", "dicom"
KINDS = {
    ".nii": NIFTI,
    ".nii.gz": NIFTI,
    ".nii.bz2": NIFTI,
    ".hdr": NIFTI,
    ".hdr.gz": NIFTI,
    ".mgz": NIBABEL,
    ".mgh": NIBABEL,
    ".mnc": NIBABEL,
    ".par": NIBABEL,
    ".head": NIBABEL,
    ".nrrd": ITK,
    ".nhdr": ITK,
    ".mha": ITK,
    ".mhd": ITK,
}
# files that hold the voxels of another file, by the endings of that one
PARTNERS = {
    ".img": (".hdr", ".hdr.gz"),
    ".img.gz": (".hdr", ".hdr.gz"),
    ".rec": (".par",),
    ".brik": (".head",),
    ".brik.gz": (".head",),
    ".raw": (".mhd", ".nhdr"),
    ".raw.gz": (".nhdr",),
    ".zraw": (".mhd",),
}
DICOM_SUFFIXES = (".dcm", ".ima", ".dicom")
GZIP, BZIP2, ZIP = b"\x1f\x8b", b"BZh", b"PK\x03\x04"
MORE_THAN_DECLARED = 64 * 2**20  # bytes behind the voxels that are still read to check a gzip file


def suffix_of(name: str, suffixes: object = (*KINDS, *PARTNERS)) -> str:
    """The longest ending of ``name`` among these, in lower case, else "".

    >>> suffix_of("a.NII.gz"), suffix_of("a.b.hdr"), suffix_of("notes.txt")
    ('.nii.gz', '.hdr', '')
    """
    lower = name.lower()
    known = [s for s in suffixes if lower.endswith(s) and len(lower) > len(s)]  # type: ignore[attr-defined]
    return max(known, key=len, default="")


def case_name(path: str | os.PathLike[str]) -> str:
    """File name without the ending of its kind.

    >>> case_name("x/a.b.nii.gz"), case_name("a.MHA"), case_name("a.gz")
    ('a.b', 'a', 'a.gz')
    """
    name = Path(path).name
    return name[: len(name) - len(suffix_of(name))]


def first_bytes(path: Path, count: int = 352) -> bytes:
    """The beginning of a file, as it is stored. OSError where it cannot be opened."""
    with open(path, "rb") as file:
        return file.read(count)


def is_dicom(start: bytes) -> bool:
    """Whether a file that starts so is in DICOM's file format (PS3.10, 7.1)."""
    return start[128:132] == b"DICM"


def pretender(start: bytes) -> str:
    """What a file is that stands in a volume's place, by its first bytes; "" if it is none known.

    >>> pretender(b"version https://git-lfs.github.com/spec/v1")
    'is a git-lfs pointer, not the volume itself: run "git lfs pull"'
    """
    text = start.lstrip(b"\xef\xbb\xbf \r\n\t").lower()
    if not start:
        return "is empty: 0 bytes"
    if text.startswith(b"version https://git-lfs"):
        return 'is a git-lfs pointer, not the volume itself: run "git lfs pull"'
    if start.startswith((b"/annex/objects/", b"../.git/annex", b".git/annex")):
        return 'is a git-annex pointer, not the volume itself: run "git annex get"'
    if text.startswith((b"<!doctype html", b"<html")):
        return "is an HTML page, not a volume: a page of a web site was saved in its place"
    if text.startswith(b"<?xml"):
        return "is XML, not a volume: a server's answer may have been saved in its place"
    if start.startswith(ZIP):
        return "is a zip archive: unpack it"
    if start.strip(b"\0") == b"":
        return "holds zeros only: a download or a copy that was not finished"
    return ""


@contextlib.contextmanager
def uncompressed(path: Path) -> Iterator[BinaryIO]:
    """The bytes of a file, whatever it is called: of gzip and bzip2 what is in them."""
    with open(path, "rb") as file:
        start = file.read(3)
        file.seek(0)
        if start[:2] == GZIP:
            with gzip.GzipFile(fileobj=file) as inner:
                yield inner  # type: ignore[misc]
        elif start == BZIP2:
            with bz2.BZ2File(file) as inner_bz2:
                yield inner_bz2  # type: ignore[misc]
        else:
            yield file


def read_exactly(stream: BinaryIO, count: int, shown: str) -> bytearray:
    """``count`` bytes of a stream; VolumeError "unreadable" where it ends before."""
    data = bytearray(count)
    view, done = memoryview(data), 0
    while done < count:
        got = stream.readinto(view[done:])  # type: ignore[attr-defined]
        if not got:
            raise VolumeError(
                Status.UNREADABLE,
                f"{shown}: ends after {done} of the {count} bytes of voxels that its header "
                "declares",
            )
        done += got
    return data


def check_end(stream: BinaryIO, shown: str) -> None:
    """Read a compressed stream to its end, where its check sum stands.

    VolumeError "unreadable" : a check sum or an end that does not fit, or far more than declared
    """
    left = 0
    try:
        while chunk := stream.read(2**20):
            left += len(chunk)
            if left > MORE_THAN_DECLARED:
                raise VolumeError(
                    Status.UNREADABLE,
                    f"{shown}: more than {left // 2**20} MiB follow the voxels that its header "
                    "declares",
                )
    except (EOFError, OSError, zlib.error) as error:
        raise broken_compression(error, shown) from error


def broken_compression(error: BaseException, shown: str) -> VolumeError:
    """The error for a gzip or bzip2 file that is cut off or damaged."""
    return VolumeError(
        Status.UNREADABLE, f"{shown}: cut off or damaged compressed file: {reason(error)}"
    )
