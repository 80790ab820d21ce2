"""Variants of a data set, of the kinds of ``KINDS``, written as a data set."""

from __future__ import annotations

import json
import os
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..labels import check_label
from .datalists import datalist
from .dataset_files import DatasetFiles
from .distortion import random_distorted
from .regridding import (
    Volume,
    random_cut,
    random_headless,
    random_navigator,
    random_regridded,
    volume_center_mm,
)
from .volumes import LoadVolumed

# Raised whenever the same seed gives other volumes, so that old and new ones never mix.
VERSION = 1

# how a volume is made, and of what voxel size by default; None where it keeps its own
KINDS: dict[str, tuple[Callable[..., Volume], float | None]] = {
    "navigator": (random_navigator, 6.0),
    "regridded": (random_regridded, 3.5),
    "headless": (random_headless, 6.0),
    "cut": (random_cut, None),
    "distorted": (random_distorted, None),
}

# of an entry, what is no longer true without the head
OF_THE_HEAD = ("head_to_world", "right_eye_mm", "left_eye_mm")


def write_variant(
    kind: str,
    dataset_dir: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    section: str = "test",
    seed: int = 0,
    repeats: int = 1,
    voxel_mm: float | None = None,
    progress: bool = True,
) -> Path:
    """Write the variant of one section as a data set; return the path of its dataset.json.

    Entries keep their keys and poses, but for headless ones, which have none. A volume depends on
    the seed, its case's name and the number of the repeat only, so a run that was stopped goes on
    where it was.

    Parameters
    ----------
    kind : one of ``KINDS``
    repeats : variants of every volume, named case, case_repeat1, case_repeat2, ...
    voxel_mm : size of the new voxels; None for 3.5 mm (regridded) or 6 mm. "cut" and
        "distorted" keep them.

    Raises
    ------
    ValueError
        For an argument outside its range, two images of one name, a label on another grid than its
        image or with other values than 0, 1, 2, a volume that cannot be used, or a folder that
        holds something else than the same variant of the same volumes; nothing is overwritten.
    FileNotFoundError
        Where a file of the data set is missing.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {sorted(KINDS)}, got {kind!r}")
    size_mm = KINDS[kind][1]
    if voxel_mm is not None and size_mm is None:
        raise ValueError(f"{kind} keeps the voxels as they are, got voxel_mm {voxel_mm}")
    size_mm = size_mm if voxel_mm is None else float(voxel_mm)
    if seed < 0 or repeats < 1 or not (size_mm is None or size_mm > 0):
        raise ValueError(
            "expected seed >= 0, repeats >= 1 and voxel_mm > 0, "
            f"got {seed}, {repeats} and {size_mm}"
        )
    given = Path(dataset_dir) / "dataset.json"
    checked = datalist(dataset_dir, section)
    written = json.loads(given.read_text())[section]
    jobs = []
    for entry, keys in zip(checked, written, strict=True):
        for repeat in range(repeats):
            name = entry["case"] + (f"_repeat{repeat}" if repeat else "")
            jobs.append((name, repeat, entry, keys))
    twins = [entry["image"] for entry in checked if "twin_to_world" in entry]
    if kind == "headless" and twins:
        raise ValueError(f"{twins[0]} shows two heads: beside the one may lie the other")
    twice = [name for name, count in Counter(job[0] for job in jobs).items() if count > 1]
    if twice:
        raise ValueError(f"{given}: {section} would give several volumes named {twice}")

    parameters = {
        "version": VERSION, "kind": kind, "section": section, "seed": seed, "voxel_mm": size_mm
    }  # fmt: skip
    files = DatasetFiles(Path(output_dir), "variant", parameters)
    files.start()
    entries = [
        _write_volume(files, *job)
        for job in tqdm(jobs, desc=kind, unit="volume", disable=not progress)
    ]
    return files.finish({section: entries})


def _write_volume(
    files: DatasetFiles, name: str, repeat: int, entry: dict[str, Any], keys: dict[str, Any]
) -> dict[str, Any]:
    """Write one volume unless it is there; return its entry of the datalist."""
    parameters = files.parameters
    paths = files.paths(parameters["section"], name)
    if "label" not in entry:
        del paths["label"]
    # The repeats of a volume without a subject are still of one subject.
    result = {"subject": entry["subject"], **keys, **paths}
    if parameters["kind"] == "headless":
        result = {key: value for key, value in result.items() if key not in OF_THE_HEAD}
        result["head_to_world"] = None
    written = files.recorded(parameters["section"], name)
    if written is not None and written != result:
        raise ValueError(
            f"{files.record(parameters['section'], name)} is of another {entry['image']}; "
            "choose another folder"
        )
    if written is not None and files.complete(written):
        return written
    source = _load(entry)
    pose = entry["head_to_world"]
    center = volume_center_mm(source) if pose is None else pose[:3, 3].numpy()
    # not hash(), which differs from process to process
    number = zlib.crc32(entry["case"].encode())
    sequence = np.random.SeedSequence([parameters["seed"], number, repeat])
    random = np.random.RandomState(np.random.MT19937(sequence))
    make, size_mm = KINDS[parameters["kind"]][0], parameters["voxel_mm"]
    sized = {} if size_mm is None else {"voxel_mm": size_mm}
    try:
        volume = make(source, center, random, **sized)
    except ValueError as error:
        raise ValueError(f"{entry['image']}: {error}") from error
    return files.write(
        parameters["section"], name, result, volume.image, volume.label, volume.affine
    )


def _load(entry: Any) -> Volume:
    """The entry's image and, where it has one, its label."""
    data: Any = LoadVolumed(["image", "label"], allow_missing_keys=True)(entry)
    image, affine = data["image"][0].numpy(), np.asarray(data["image"].affine)
    if "label" not in data:
        return Volume(image, affine)
    check_label(data["label"], data["image"], "twin_to_world" in entry)
    return Volume(image, affine, data["label"][0].numpy().astype(np.uint8))
