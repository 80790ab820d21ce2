"""Brains of the spina bifida atlas (Fidon et al. 2021, CC0), varied: a data set without skulls.

The shape is bent and stretched, ventricles are drawn from normal to as they are (the anatomy is
pathological), and half of the images are painted anew, tissue by tissue.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation
from tqdm import tqdm

from ...files import relative_path
from ...simulation.anatomy import eye_distance_mm, occipitofrontal_mm
from ...simulation.atlas import (
    Brain,
    as_scanned,
    atlas_ages,
    chosen_ages,
    narrowed,
    read_brain,
    repainted,
)
from ...simulation.contrast import CONTRASTS, draw_intensities
from ...simulation.shapes import Grid, WaveField
from ..dataset_files import DatasetFiles

# Raised whenever the same seed gives other volumes, so that old and new ones never mix.
VERSION = 1
SPACING_MM = 1.6


def import_brain_atlas(
    source: str | os.PathLike[str],
    dataset_dir: str | os.PathLike[str],
    test_weeks: Sequence[int] = (),
    repeats: int = 30,
    test_repeats: int = 4,
    seed: int = 0,
    progress: bool = True,
) -> Path:
    """Write a data set of the atlas in ``source``; return the path of its dataset.json.

    Training: every age but ``test_weeks``, ``repeats`` times, varied. Test: ``test_weeks``, the T2
    image as it is but turned at random, ``test_repeats`` times. A volume depends on seed, age,
    section and number only; a run that was stopped goes on.

    Raises
    ------
    FileNotFoundError : no folder of an atlas in ``source``
    ValueError : an age of ``test_weeks`` that the atlas does not have, or another data set there
    """
    ages, tested = atlas_ages(source), chosen_ages(source, test_weeks)
    parameters: dict[str, Any] = {
        "version": VERSION,
        "seed": seed,
        "source": relative_path(source, dataset_dir),
        "test_weeks": list(test_weeks),
    }
    files = DatasetFiles(Path(dataset_dir), "brain_atlas", parameters)
    files.start()
    entries: dict[str, list[dict[str, Any]]] = {"training": [], "test": []}
    for number, folder in enumerate(tqdm(ages, unit="brain", disable=not progress)):
        section = "test" if folder in tested else "training"
        brain = read_brain(folder, ages[folder])
        for repeat in range(test_repeats if section == "test" else repeats):
            sequence = np.random.SeedSequence([seed, number, repeat])
            random = np.random.RandomState(np.random.MT19937(sequence))
            entries[section].append(_write_volume(files, section, brain, repeat, random))
    return files.finish(entries)


def _write_volume(
    files: DatasetFiles, section: str, brain: Brain, repeat: int, random: np.random.RandomState
) -> dict[str, Any]:
    name = f"{brain.name}_{repeat:03d}"
    written = files.recorded(section, name)
    if written is not None and files.complete(written):
        return written
    if section == "test":
        image, mask, affine, pose, contrast = turned(brain, random)
        size = 1.0
    else:
        image, mask, affine, pose, contrast, size = varied(brain, random)
    # where the eyes would be: the phantom's mean (simulation/anatomy.py)
    middle = 0.93 * occipitofrontal_mm(brain.ga_weeks) / 2 * size
    middle_mm = middle * np.array([0, np.cos(np.pi / 6), -np.sin(np.pi / 6)])
    half = np.array([eye_distance_mm(brain.ga_weeks) / 2 * size, 0, 0])
    entry = {
        **files.paths(section, name),
        "head_to_world": pose.tolist(),
        "subject": brain.name,
        "ga_weeks": brain.ga_weeks,
        "contrast": contrast,
        "right_eye_mm": (middle_mm + half).tolist(),
        "left_eye_mm": (middle_mm - half).tolist(),
    }
    return files.write(section, name, entry, image, mask.astype(np.uint8), affine)


def turned(
    brain: Brain, random: np.random.RandomState
) -> tuple[NDArray[np.int16], NDArray[np.bool_], NDArray[np.float64], NDArray[np.float64], str]:
    """The brain as it is, in a world turned by a uniform rotation: nothing is resampled."""
    world_from_atlas = np.eye(4)
    world_from_atlas[:3, :3] = Rotation.from_quat(random.normal(size=4)).as_matrix()
    pose = world_from_atlas.copy()
    pose[:3, 3] = world_from_atlas[:3, :3] @ brain.centre_mm
    return _scaled(brain.t2, random), brain.mask, world_from_atlas @ brain.affine, pose, "t2"


def varied(
    brain: Brain, random: np.random.RandomState
) -> tuple[
    NDArray[np.int16], NDArray[np.bool_], NDArray[np.float64], NDArray[np.float64], str, float
]:
    """The brain stretched and bent, its ventricles narrowed; T2 as it is, or painted anew.

    Stretched by up to 8 % along each axis of the head, and 10 % in all (uniform); a smooth
    displacement whose deviation is uniform in 0-2 mm. The ventricles lose 0 to 6 mm of their
    depth to white matter. The last value is the mean stretch.
    """
    stretch = random.uniform(0.92, 1.08, size=3) * random.uniform(0.9, 1.1)
    half = 0.62 * occipitofrontal_mm(brain.ga_weeks) * float(stretch.max()) + 6
    n = int(np.ceil(2 * half / SPACING_MM))
    affine = np.diag([SPACING_MM] * 3 + [1.0])
    affine[:3, 3] = -SPACING_MM * (n - 1) / 2
    grid = Grid(affine, (n, n, n))
    bend = WaveField.draw(random, 12, (40, 140), [random.uniform(0, 2.0)] * 3)
    moved = bend.on_grid(grid, np.eye(4))
    points = np.stack(grid.coordinates(np.eye(4))) + moved
    points /= stretch[:, None, None, None]
    to_voxel = np.linalg.inv(brain.affine)
    offset = to_voxel[:3, :3] @ brain.centre_mm + to_voxel[:3, 3]
    voxel = np.tensordot(to_voxel[:3, :3], points, 1) + offset[:, None, None, None]
    parcellation = narrowed(brain, random.uniform(0, 6))
    contrast = str(random.choice(["srr", *CONTRASTS], p=[0.4, 0.2, 0.05, 0.1, 0.05, 0.2]))
    if contrast == "srr":
        values = as_scanned(brain, parcellation)
    else:
        values = repainted(parcellation, draw_intensities(random, contrast))
    image = map_coordinates(values, voxel, order=1)
    mask = map_coordinates(brain.mask.astype(np.float32), voxel, order=1) > 0.5
    texture = WaveField.draw(random, 48, (8, 60), [random.uniform(0, 0.08)])
    image *= 1 + texture.on_grid(grid, np.eye(4))[0]
    image += random.normal(size=image.shape) * random.uniform(0, 0.05) * image.max()
    image *= mask
    centre = affine[:3, :3] @ np.argwhere(mask).mean(axis=0) + affine[:3, 3]
    pose = np.eye(4)
    pose[:3, 3] = centre
    return _scaled(image, random), mask, affine, pose, contrast, float(stretch.mean())


def _scaled(image: NDArray, random: np.random.RandomState) -> NDArray[np.int16]:
    """Values from 0 to a maximum that is log-uniform in 500..3000."""
    top = float(np.exp(random.uniform(np.log(500), np.log(3000))))
    return np.round(np.maximum(image, 0) * (top / float(image.max()))).astype(np.int16)
