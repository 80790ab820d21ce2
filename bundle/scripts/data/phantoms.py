"""Data sets of synthetic fetal heads with known pose, made where they are needed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
from tqdm import tqdm

from ..files import relative_path
from ..labels import BRAIN
from ..simulation.anatomy import AGE_RANGE_WEEKS
from ..simulation.volume import Phantom, PhantomGenerator
from .brain_only import within
from .dataset_entries import SECTIONS
from .dataset_files import DatasetFiles

DEFAULT_COUNTS = {"training": 128, "validation": 16, "test": 24}


# Raised whenever the same seed gives other volumes, so that old and new ones never mix.
VERSION = 1


def write_dataset(
    dataset_dir: str | os.PathLike[str],
    training: int = DEFAULT_COUNTS["training"],
    validation: int = DEFAULT_COUNTS["validation"],
    test: int = DEFAULT_COUNTS["test"],
    seed: int = 0,
    headless_share: float = 0.05,
    progress: bool = True,
    ga_weeks: tuple[float, float] = AGE_RANGE_WEEKS,
    contrast: str | None = None,
    voxel_mm: Sequence[float] | None = None,
    sequence: str | None = None,
    coarsen: float = 1.0,
    brain_only: bool = False,
    brains: str | os.PathLike[str] | None = None,
    brain_weeks: Sequence[int] = (),
    num_workers: int = 2,
    twin_share: float = 0.0,
) -> Path:
    """Write a MONAI datalist of phantoms; return the path of its dataset.json.

    A volume depends only on its section, its number and the parameters, which dataset.json keeps
    under "phantom". So a run that was stopped goes on where it was, and counts can be changed.

    Parameters
    ----------
    training, validation, test : number of volumes of each section.
    headless_share : share in 0..1 of the training and validation volumes that show no head; their
        "head_to_world" is null.
    ga_weeks, contrast, voxel_mm, sequence, coarsen, brains, brain_weeks : see `PhantomGenerator`.
    brain_only : cut out along the brain, as reconstructions are; takes cubic ``voxel_mm``, no
        ``sequence`` and no ``headless_share`` or ``twin_share`` but 0.
    num_workers : processes that make volumes.
    twin_share : share in 0..1 of the volumes that show twins, where they show a head: the second
        head is "twin_to_world" and 255 in the label.

    Raises
    ------
    ValueError
        For an argument outside its range, or where the folder holds something else than a data set
        with the same parameters; nothing is overwritten.
    FileNotFoundError
        For an atlas of ``brains`` that is not there.
    """
    counts = dict(zip(SECTIONS, (training, validation, test), strict=True))
    for section, count in counts.items():
        if count < 0:
            raise ValueError(f"{section} must be 0 or more volumes, got {count}")
    for name, share in (("headless_share", headless_share), ("twin_share", twin_share)):
        if not 0 <= share <= 1:
            raise ValueError(f"{name} must lie in 0..1, got {share}")
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, got {seed}")
    shares = headless_share or twin_share
    if brain_only and (sequence is not None or shares or len(set(voxel_mm or (1, 2))) > 1):
        raise ValueError(
            "brain_only takes cubic voxel_mm, no sequence and shares of 0, got "
            f"voxel_mm={voxel_mm}, sequence={sequence!r}, headless_share={headless_share:g}, "
            f"twin_share={twin_share:g}"
        )
    generator = PhantomGenerator(
        ga_weeks,
        contrast,
        voxel_mm=voxel_mm,
        sequence=sequence,
        coarsen=coarsen,
        brains=brains,
        brain_weeks=brain_weeks,
    )
    parameters: dict[str, Any] = {
        "version": VERSION,
        "seed": seed,
        "ga_weeks": [float(age) for age in ga_weeks],
        "contrast": contrast,
        "voxel_mm": None if voxel_mm is None else [float(v) for v in voxel_mm],
        "headless_share": float(headless_share),
    }
    if sequence is not None:  # data sets of version 0.8 do not say it
        parameters.update(sequence=sequence, coarsen=float(coarsen))
    if brain_only:
        parameters.update(brain_only=True)
    if twin_share:
        parameters.update(twin_share=float(twin_share))
    if brains is not None:
        where = relative_path(brains, dataset_dir)
        parameters.update(brains=where, brain_weeks=[int(week) for week in brain_weeks])
    files = DatasetFiles(Path(dataset_dir), "phantom", parameters)
    files.start()
    entries: dict[str, list[dict[str, Any]]] = {section: [] for section in SECTIONS}
    todo = [(section, i) for section in SECTIONS for i in range(counts[section])]
    with ProcessPoolExecutor(num_workers) as pool:
        jobs = []
        for section, i in todo:
            head = section == "test" or not _chosen(i, headless_share)
            arguments = (files, generator, section, i, head, head and _chosen(i, twin_share))
            jobs.append(pool.submit(_write_volume, *arguments))
        progress_bar = tqdm(jobs, desc="phantom", unit="volume", disable=not progress)
        try:
            for (section, _), job in zip(todo, progress_bar, strict=True):
                entries[section].append(job.result())
        except BaseException:
            pool.shutdown(cancel_futures=True)  # stop soon; what is written stays
            raise
    return files.finish(entries)


def _chosen(i: int, share: float) -> bool:
    """Spread evenly, and independent of the count: every 20th volume for a share of 0.05."""
    return int((i + 1) * share + 1e-9) > int(i * share + 1e-9)


def brain_of(phantom: Phantom, random: np.random.RandomState, border: int = 3) -> Phantom:
    """The brain of a phantom alone, cut tight or loose, in a smaller volume.

    As `RandBrainMaskd` cuts: from 2 mm within to 10 mm beyond the label, rippled by up to 2 mm.
    Around it stay ``border`` voxels of zero. The phantom's voxels are cubic.
    """
    spacing_mm = float(np.linalg.norm(phantom.affine[:3, 0]))
    ripple_mm = random.normal(size=(4, 4, 4)) * random.uniform(0, 2)
    kept = within(phantom.label == BRAIN, random.uniform(-2, 10), spacing_mm, ripple_mm)
    found = np.nonzero(kept)
    first = np.array([i.min() for i in found])
    box = tuple(slice(i.min(), i.max() + 1) for i in found)
    affine = phantom.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ (first - border)
    image, label = (np.pad((a * kept)[box], border) for a in (phantom.image, phantom.label))
    return replace(phantom, image=image, label=label, affine=affine)


def embedded_dataset(bundle_root: str | os.PathLike[str]) -> str:
    """Path of the bundle's own phantom data set, made at the first call (a few minutes)."""
    root = Path(bundle_root) / "data" / "phantom"
    with idist.one_rank_first():  # it makes the data set, the others find it
        write_dataset(root, progress=not (root / "dataset.json").exists())
    return str(root)


def _write_volume(
    files: DatasetFiles, generator: PhantomGenerator, section: str, i: int, head: bool, twin: bool
) -> dict[str, Any]:
    """Write one volume unless it is there; return its entry of the datalist."""
    name = f"phantom_{i:04d}"
    entry = files.recorded(section, name)
    if entry is not None and files.complete(entry):
        return entry
    sequence = np.random.SeedSequence([files.parameters["seed"], SECTIONS.index(section), i])
    generator.set_random_state(seed=int(sequence.generate_state(1)[0]))
    phantom = generator(head, twin)
    if files.parameters.get("brain_only"):
        phantom = brain_of(phantom, generator.R)
    pose, right, left = phantom.head_to_world, phantom.right_eye_mm, phantom.left_eye_mm
    entry = {
        **files.paths(section, name),
        "head_to_world": None if pose is None else pose.tolist(),
        "subject": f"{section}_{i:04d}",
        "ga_weeks": phantom.ga_weeks,
        "contrast": phantom.contrast,
        "right_eye_mm": None if right is None else right.tolist(),
        "left_eye_mm": None if left is None else left.tolist(),
    }
    if phantom.twin_to_world is not None:
        entry["twin_to_world"] = phantom.twin_to_world.tolist()
    return files.write(section, name, entry, phantom.image, phantom.label, phantom.affine)
