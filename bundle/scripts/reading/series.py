"""DICOM files put together to series, and what a series may be called.

Names, numbers and dates of patients stand in headers, and often in the names of folders. A series
is called by the folders above its files, without those that mention such a word, and its number.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from .dicom_frames import frames_of, times_s
from .dicom_headers import File, read_file
from .dicom_planes import NoPlanes, Plane
from .dicom_private import mentions
from .image import reason
from .printable import printable

HIDDEN = "*"  # stands for a part of a path that mentions a patient


@dataclass
class Series:
    """One series.

    number : SeriesNumber; path : folder that holds its files, or its file where it is one
    below : that folder below the data set's, without what is private; shown : ``path`` likewise
    frames : planes of each volume; times_s : from the first to each, where known
    remarks : what was left out
    """

    number: int
    path: Path
    below: PurePath
    shown: str
    frames: list[tuple[Plane, ...]]
    times_s: list[float | None]
    remarks: tuple[str, ...] = ()
    files: list[File] = field(default_factory=list, repr=False)


def collect(paths: Sequence[Path], root: Path) -> tuple[list[Series], list[tuple[str, str]]]:
    """Series of these files, by their first file, and (path, reason) for what is none."""
    groups: dict[str, dict[str, tuple[Path, File]]] = {}
    aside: dict[tuple[Path, str], list[Path]] = {}
    private: set[str] = set()
    for path in paths:
        try:
            file = read_file(path)
        except NoPlanes as error:
            aside.setdefault((path.parent, str(error)), []).append(path)
            continue
        except Exception as error:  # a defect or a file that pydicom cannot bear: of this file only
            aside.setdefault((path.parent, reason(error)), []).append(path)
            continue
        private |= file.private
        # copies of one image, as exports have them, are one image
        groups.setdefault(file.series, {}).setdefault(file.instance, (path, file))
    left = [
        (
            hide(members[0] if len(members) == 1 else folder, private)
            + (f" ({len(members)} files)" if len(members) > 1 else ""),
            why,
        )
        for (folder, why), members in aside.items()
    ]
    return [_series(list(members.values()), root) for members in groups.values()], left


def _series(members: list[tuple[Path, File]], root: Path) -> Series:
    paths = [path for path, _ in members]
    files = [file for _, file in members]
    private = frozenset().union(*(file.private for file in files))
    folder = Path(os.path.commonpath([path.parent for path in paths]))
    frames, remarks = frames_of([plane for file in files for plane in file.planes])
    below = PurePath(os.path.relpath(folder, root))
    path = paths[0] if len(paths) == 1 else folder
    return Series(
        number=files[0].number,
        path=path,
        below=PurePath(*(part for part in below.parts if not mentions(part, private))),
        shown=f"{hide(path, private)} (DICOM series {files[0].number})",
        frames=frames,
        times_s=times_s(frames),
        remarks=tuple(remarks),
        files=files,
    )


def hide(path: Path, private: set[str] | frozenset[str]) -> str:
    """A path for messages; what mentions one of these words is replaced by ``HIDDEN``."""
    parts = [HIDDEN if mentions(part, private) else part for part in path.parts]
    return printable(str(Path(*parts)))
