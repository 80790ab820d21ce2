"""Datalists: of training data sets and their mixtures, and of a folder of volumes."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from monai.data import Dataset

from ..labels import Status
from .transforms import world_pose
from .volumes import VolumeError

SUFFIXES = (".nii.gz", ".nii")


SECTIONS = ("training", "validation", "test")


def case_name(path: str | os.PathLike[str]) -> str:
    """File name without .nii or .nii.gz."""
    name = Path(path).name
    for suffix in SUFFIXES:
        if name.endswith(suffix):
            return name[: -len(suffix)]
    return name


def datalist(dataset_dir: str | os.PathLike[str], section: str) -> list[dict[str, Any]]:
    """Entries of a section of ``dataset_dir/dataset.json``, checked, with full paths.

    Every entry gets ``case``, the name of its image, and ``head_to_world`` as a tensor (4, 4)
    float64, or None for a volume without a head. An empty section gives an empty list.

    Raises
    ------
    FileNotFoundError : no dataset.json, or a file that an entry names is not there
    ValueError : not JSON, no such section, an entry without "image" or with a pose that is not
        rigid; the message names the file, the section and the number of the entry
    """
    path = Path(dataset_dir) / "dataset.json"
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: no such file; a data set is a folder with a dataset.json (docs/data.md)"
        )
    try:
        content = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected sections, got a {type(content).__name__}")
    if section not in content:
        raise ValueError(f"{path}: no section {section!r}, only {sorted(content)}")
    entries = []
    for number, given in enumerate(content[section]):
        where = f"{path}: {section}[{number}]"
        if "image" not in given:
            raise ValueError(f'{where} has no "image", only {sorted(given)}')
        entry = {key: given[key] for key in ("image", "label") if given.get(key) is not None}
        for key, name in entry.items():
            entry[key] = str(Path(dataset_dir) / name)
            if not os.path.exists(entry[key]):
                raise FileNotFoundError(f"{where}: {key} {entry[key]} does not exist")
        entry["case"] = case_name(entry["image"])
        entry["subject"] = str(given.get("subject", entry["case"]))
        entry["head_to_world"] = given.get("head_to_world")
        try:
            world_pose(entry)  # puts a tensor in its place
        except (ValueError, TypeError) as error:
            raise ValueError(f"{where}: {error}") from error
        entries.append(entry)
    return entries


def mixture(dataset_dirs: Sequence[str | os.PathLike[str]], section: str) -> list[dict[str, Any]]:
    """Entries of a section of several data sets, each with ``source``, the number of its set."""
    return [
        {**entry, "source": number}
        for number, dataset_dir in enumerate(dataset_dirs)
        for entry in datalist(dataset_dir, section)
    ]


def volumes_in(dataset_dir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Entries for every .nii and .nii.gz in a folder but hidden ones, sorted by name.

    Two files of the same case (a.nii and a.nii.gz) are told apart by their whole names.
    FileNotFoundError if the folder is not there or holds no such file.
    """
    folder = Path(dataset_dir)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    paths = sorted(
        p
        for p in folder.iterdir()
        if p.name.endswith(SUFFIXES) and p.is_file() and p.name[0] != "."
    )
    if not paths:
        raise FileNotFoundError(f"{folder}: no .nii or .nii.gz file in this folder")
    names = [case_name(path) for path in paths]
    cases = [p.name if names.count(n) > 1 else n for p, n in zip(paths, names, strict=True)]
    return [{"image": str(p), "case": case} for p, case in zip(paths, cases, strict=True)]


def _volume_error(error: BaseException | None) -> VolumeError | None:
    """The VolumeError behind ``error``: MONAI wraps what a transform raises in RuntimeErrors."""
    while error is not None and not isinstance(error, VolumeError):
        error = error.__cause__
    return error


class CaseDataset(Dataset):
    """MONAI Dataset in which one bad volume never stops the others.

    Items have ``path``, ``case``, ``status`` and ``message``. Where a transform raises
    VolumeError, the status is the error's and the image a small volume of zeros, so that the item
    passes through the same engine; any other exception is a defect and is raised.
    """

    def __init__(self, data: Sequence[dict[str, Any]], transform: Any) -> None:
        super().__init__(data, transform)

    def _transform(self, index: int) -> dict[str, Any]:
        entry = self.data[index]
        item = {"path": entry["image"], "case": entry["case"], "status": Status.OK, "message": ""}
        try:
            image = super()._transform(index)["image"]
            item["affine"] = torch.as_tensor(image.affine)
            item["image"] = image.as_tensor()
        except (VolumeError, RuntimeError) as raised:
            error = _volume_error(raised)
            if error is None:
                raise
            item.update(status=error.status, message=str(error))
            item.update(image=torch.zeros(1, 8, 8, 8), affine=torch.eye(4, dtype=torch.float64))
        return item
