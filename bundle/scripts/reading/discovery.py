"""The cases below a folder, of a file, or of a list of them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

from .bids import entities, is_bids, left_out_folder
from .cases import Case
from .classify import classify, header_beside
from .formats import DICOM, ITK, NIFTI, case_name, suffix_of
from .headers import check_voxel_mm
from .image import VolumeError, reason
from .names import short_name, told_apart
from .nifti_header import frames_of as nifti_frames
from .other_formats import frames_of_itk, open_nibabel
from .printable import printable
from .series import Series, collect


@dataclass(frozen=True)
class Found:
    """``cases``: every frame of every case, in order. ``left_aside``: (path, reason), printable."""

    cases: list[Case]
    left_aside: list[tuple[str, str]]


def find_cases(
    dataset_dir: Any,
    leave_out: str | os.PathLike[str] | None = None,
    voxel_mm: Any = None,
) -> Found:
    """Everything below ``dataset_dir`` that can be a volume.

    Parameters
    ----------
    dataset_dir : a folder, searched to the bottom, or a file, or a list of these
    leave_out : a folder whose content is no input: that of the outputs
    voxel_mm : sizes along i, j, k that replace those of all headers

    Hidden files are passed over without a word; everything else that is no case is in
    ``left_aside``. Files of one DICOM series are one case, wherever they lie. In a BIDS data set
    ``derivatives``, ``sourcedata`` and ``code`` are left out.

    Raises
    ------
    FileNotFoundError : there is no such folder or file, or nothing in it that can be a volume
    ValueError : ``dataset_dir`` or ``voxel_mm`` of a wrong type
    """
    sizes = check_voxel_mm(voxel_mm)
    aside: list[tuple[str, str]] = []
    cases: list[Case] = []
    for root in _roots(dataset_dir):
        cases += _cases_of(root, leave_out, aside)
    if not cases:
        why = "".join(f"; {path}: {text}" for path, text in aside[:5])
        more = f" and {len(aside) - 5} more" if len(aside) > 5 else ""
        where = ", ".join(printable(str(root)) for root in _roots(dataset_dir))
        raise FileNotFoundError(
            f"{where}: no .nii or .nii.gz file in this folder or below it, and no other volume "
            f"(docs/inputs.md){why}{more}"
        )
    named = told_apart(cases)
    return Found([replace(case, voxel_mm=sizes) for case in named], aside)


def _roots(dataset_dir: Any) -> list[Path]:
    given = [dataset_dir] if isinstance(dataset_dir, str | os.PathLike | int) else dataset_dir
    wrong = isinstance(dataset_dir, bool) or not isinstance(given, list | tuple) or not given
    if wrong or any(
        isinstance(g, bool) or not isinstance(g, str | os.PathLike | int) for g in given
    ):
        raise ValueError(
            f"dataset_dir is {dataset_dir!r}, expected a folder, a file or a list of them; a name "
            "that looks like a number or a list needs quotes: --dataset_dir \"'1e5'\""
        )
    roots = [Path(str(g) if isinstance(g, int) else g) for g in given]
    for root in roots:
        if not root.exists():
            raise FileNotFoundError(f"{printable(str(root))}: no such folder or file")
    return roots


def _walk(
    root: Path, leave_out: Path | None, bids: bool, aside: list[tuple[str, str]]
) -> Iterator[Path]:
    """Files below a folder that are not hidden, sorted; each folder once, links are followed."""
    seen: set[str] = set()

    def failed(error: OSError) -> None:
        aside.append((printable(str(error.filename)), f"cannot be opened: {reason(error)}"))

    for folder, folders, files in os.walk(root, followlinks=True, onerror=failed):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        kept = []
        for name in sorted(folders):
            path = Path(folder, name)
            if name.startswith("."):
                continue
            if leave_out is not None and Path(os.path.realpath(path)) == leave_out:
                aside.append((printable(str(path)), "the folder of the outputs"))
            elif bids and Path(folder) == root and (why := left_out_folder(name)):
                aside.append((printable(str(path)), why))
            else:
                kept.append(name)
        folders[:] = kept
        yield from (Path(folder, name) for name in sorted(files) if not name.startswith("."))


def _cases_of(
    root: Path, leave_out: str | os.PathLike[str] | None, aside: list[tuple[str, str]]
) -> list[Case]:
    """The cases of one folder or file, not yet told apart."""
    if not root.is_dir():
        return _cases_of_files(root.parent, [root], False, aside)
    out = None if leave_out is None else Path(os.path.realpath(leave_out))
    bids = is_bids(root)
    return _cases_of_files(root, _walk(root, out, bids, aside), bids, aside)


def _cases_of_files(
    root: Path, paths: Iterator[Path] | list[Path], bids: bool, aside: list[tuple[str, str]]
) -> list[Case]:
    cases: list[Case] = []
    dicom: list[Path] = []
    one = isinstance(paths, list)
    for path in paths:
        kind, why = classify(path)
        if one and suffix_of(path.name) in (".img", ".img.gz"):
            path, kind, why = header_beside(path)
        if kind == DICOM:
            dicom.append(path)
        elif kind:
            case = _case(root, path, kind, bids)
            if bids and (case.bids or {}).get("part") in ("phase", "real", "imag"):
                aside.append((case.shown, f"the {(case.bids or {})['part']} part of an image"))
                continue
            cases += frames(case)
        elif why:
            aside.append((printable(str(path)), why))
    series, others = collect(dicom, root)
    aside += others
    for found in series:
        cases += _series_cases(found)
    return sorted(cases, key=lambda case: (str(case.path), case.name, case.frame))


def _case(root: Path, path: Path, kind: str, bids: bool) -> Case:
    """A case of one file, named by its path below ``root``."""
    below = PurePath(os.path.relpath(path, root))
    of_name = entities(below) if bids else None
    parts = [case_name(path)] if of_name else [*below.parent.parts, case_name(path)]
    return Case(
        name=short_name("_".join(parts)),
        path=path,
        kind=kind,
        folder=below.parent,
        bids=of_name,
        shown=printable(str(path)),
    )


def frames(case: Case) -> list[Case]:
    """One Case for each volume of a file. What cannot be read stays one, and says so when read."""
    step: float | None = None
    try:
        if case.kind == NIFTI:
            count, step = nifti_frames(case.path)
        elif case.kind == ITK:
            count = frames_of_itk(case.path)
        else:
            shape = open_nibabel(case.path, case.shown).shape
            count = shape[3] if len(shape) == 4 else 1
    except (VolumeError, OSError):
        return [case]
    if count > 1 and step is None:
        step = _repetition_s(case.path)
    return [
        replace(case, frame=k, frames=count, time_s=None if step is None else round(k * step, 6))
        if count > 1
        else case
        for k in range(count)
    ]


def _repetition_s(path: Path) -> float | None:
    """RepetitionTime of the JSON file that BIDS and dcm2niix put beside a volume, in seconds."""
    try:
        step = json.loads((path.parent / f"{case_name(path)}.json").read_text())["RepetitionTime"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return float(step) if isinstance(step, int | float) and 0 < step < 1e4 else None


def _series_cases(series: Series) -> list[Case]:
    name = short_name("_".join([*series.below.parts, f"series_{series.number:04d}"]))
    return [
        Case(
            name=name,
            path=series.path,
            kind=DICOM,
            frame=k,
            frames=len(series.frames),
            time_s=time_s,
            folder=series.below,
            shown=series.shown,
            planes=planes,
            remarks=series.remarks,
        )
        for k, (planes, time_s) in enumerate(zip(series.frames, series.times_s, strict=True))
    ]
