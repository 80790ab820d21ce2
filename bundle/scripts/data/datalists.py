"""Datalists: of training data sets and their mixtures, and of a folder of volumes."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from monai.data import Dataset

from ..labels import Status
from ..reading import Case, VolumeError, find_cases
from .dataset_entries import cases_apart, read_dataset, read_entry, section_of

logger = logging.getLogger(__name__)

SUFFIXES = (".nii.gz", ".nii")


def datalist(dataset_dir: str | os.PathLike[str], section: str) -> list[dict[str, Any]]:
    """Entries of a section of ``dataset_dir/dataset.json``, checked, with full paths.

    Every entry gets ``case``, the name of its image, or its path below the folder where several
    have that name, and ``head_to_world`` as a tensor (4, 4) float64, or None for a volume without a
    head. ``twin_to_world``, as it, and ``left_eye_mm`` and ``right_eye_mm``, in the head frame,
    stay where they are given. An empty section gives an empty list. No volume is read: see
    ``dataset_check``.

    Raises
    ------
    FileNotFoundError : no dataset.json, or a file that an entry names is not there
    ValueError : not JSON, no such section, an entry without "image", with a pose that is not rigid
        or with a key that looks like a misspelt "head_to_world"; the message names the file, the
        section and the number of the entry
    """
    path = Path(dataset_dir) / "dataset.json" if isinstance(dataset_dir, str | Path) else ""
    entries = []
    for number, given in enumerate(section_of(read_dataset(dataset_dir), dataset_dir, section)):
        entry, findings = read_entry(given, f"{path}: {section}[{number}]", dataset_dir)
        for finding in findings:
            if finding.error:
                raise (FileNotFoundError if finding.missing else ValueError)(str(finding))
        assert entry is not None  # without errors
        entries.append(entry)
    cases_apart(entries, dataset_dir)
    return entries


def mixture(dataset_dirs: Sequence[str | os.PathLike[str]], section: str) -> list[dict[str, Any]]:
    """Entries of a section of several data sets, each with ``source``, the number of its set.

    Cases of one name in two sets are called by the sets' folders too.
    """
    entries = [
        {**entry, "source": number}
        for number, dataset_dir in enumerate(dataset_dirs)
        for entry in datalist(dataset_dir, section)
    ]
    counts = Counter(entry["case"] for entry in entries)
    for entry in entries:
        if counts[entry["case"]] > 1:
            folder = Path(dataset_dirs[entry["source"]]).name
            entry["case"] = f"{folder}/{entry['case']}"
    return entries


class Volumes(list[dict[str, Any]]):
    """Entries for `CaseDataset`, with ``left_aside``, (path, reason) of what is none."""

    def __init__(self, cases: Sequence[Case], left_aside: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(
            {"image": str(case.path), "case": case.name, "reading": case} for case in cases
        )
        self.left_aside = list(left_aside)


def volumes_in(
    dataset_dir: Any, output_dir: str | os.PathLike[str] | None = None, voxel_mm: Any = None
) -> Volumes:
    """Entries for every volume below a folder, or of a file, or of a list of these.

    See `reading.find_cases`, whose errors are raised. One entry per frame, frames of a case in
    order, with "image" (the path), "case" and "reading" (the Case).
    """
    found = find_cases(dataset_dir, output_dir, voxel_mm)
    return Volumes(found.cases, found.left_aside)


def _volume_error(error: BaseException | None) -> VolumeError | None:
    """The VolumeError behind ``error``: MONAI wraps what a transform raises in RuntimeErrors."""
    while error is not None and not isinstance(error, VolumeError):
        error = error.__cause__
    return error


class CaseDataset(Dataset):
    """MONAI Dataset in which one bad volume never stops the others.

    Items have ``path`` (as it is shown), ``case``, ``reading`` (the Case), ``status``, ``message``,
    ``warnings`` (list of text), ``doubt`` (text; not empty where sides or geometry cannot be
    trusted), ``image`` and ``affine``. Where a transform raises, the status is that of the
    VolumeError, or "failed" for any other exception, and the image a small volume of zeros, so that
    the item passes through the same engine.
    """

    def __init__(self, data: Sequence[dict[str, Any]], transform: Any) -> None:
        super().__init__(data, transform)

    def _transform(self, index: int) -> dict[str, Any]:
        entry = self.data[index]
        case = entry["reading"]
        item: dict[str, Any] = {
            "path": case.shown,
            "case": entry["case"],
            "reading": case,
            "status": Status.OK,
            "message": "",
            "warnings": [],
            "doubt": "",
        }
        try:
            image = super()._transform(index)["image"]
            item.update(
                {key: image.meta[key] for key in ("warnings", "doubt") if key in image.meta}
            )
            item.update(image=image.as_tensor(), affine=torch.as_tensor(image.affine))
        except Exception as raised:
            error = _volume_error(raised)
            if error is not None:
                item.update(status=error.status, message=str(error), warnings=list(error.warnings))
            else:
                cause: BaseException = raised
                while cause.__cause__ is not None:
                    cause = cause.__cause__
                logger.error("%s: failed", case.shown, exc_info=raised)
                kind = type(cause).__name__
                item.update(status=Status.FAILED, message=f"{case.shown}: failed: {kind}: {cause}")
            item.update(image=torch.zeros(1, 8, 8, 8), affine=torch.eye(4, dtype=torch.float64))
        return item
