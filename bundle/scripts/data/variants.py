"""Variants of a data set: every volume of a section on another grid, its pose in the world kept.

- ``navigator``: coarse and oblique, with the slab that the last slice left, and noise.
- ``regridded``: the same content, turned and stored left-handed.
- ``headless``: a navigator of what lies beside the head; nothing is to be found in it.

From the bundle's folder:

    python -m scripts.variants navigator --dataset_dir D --output_dir V --section test
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from tqdm import tqdm

from ..files import write_json, write_nifti
from ..simulation.fetus import random_rotation
from .augmentation import saturation
from .datalists import SECTIONS, datalist
from .volumes import LoadVolumed

MIRROR = np.diag([-1.0, 1.0, 1.0])


# Raised whenever the same seed gives other volumes, so that old and new ones never mix.
VERSION = 1


class Volume(NamedTuple):
    """image (i, j, k) float32, affine (4, 4) voxel to world mm, label (i, j, k) uint8 or None."""

    image: NDArray[np.float32]
    affine: NDArray[np.float64]
    label: NDArray[np.uint8] | None = None


def centered_affine(linear: NDArray, center_mm: NDArray, shape: Sequence[int]) -> NDArray:
    """Affine (4, 4) of a grid of ``shape`` whose middle lies at ``center_mm`` in the world.

    The columns of ``linear`` (3, 3) are the steps from voxel to voxel along i, j, k in world mm.
    """
    affine = np.eye(4)
    affine[:3, :3] = linear
    affine[:3, 3] = center_mm - linear @ (np.array(shape) - 1) / 2
    return affine


def volume_center_mm(volume: Volume) -> NDArray[np.float64]:
    """World position (3,) of the middle of the field of view."""
    middle = (np.array(volume.image.shape) - 1) / 2
    return volume.affine[:3, :3] @ middle + volume.affine[:3, 3]


def resampled(source: Volume, affine: NDArray, shape: Sequence[int]) -> Volume:
    """The volume on another grid: image trilinear, label nearest, zero outside the source."""
    matrix = np.linalg.inv(source.affine) @ affine

    def sample(values: NDArray, order: int) -> NDArray:
        return ndimage.affine_transform(
            values, matrix, output_shape=tuple(shape), order=order, mode="grid-constant"
        )

    label = None if source.label is None else sample(source.label, 0)
    return Volume(sample(source.image, 1), affine, label)


def averaged(source: Volume, voxel_mm: float) -> Volume:
    """Smoothed by what voxels of ``voxel_mm`` average over beyond the source's own voxels.

    Voxels count as Gaussians with their size as full width at half maximum; variances add. Along
    an axis with coarser voxels nothing is done.
    """
    size_mm = np.linalg.norm(source.affine[:3, :3], axis=0)
    width_mm = np.sqrt(np.clip(voxel_mm**2 - size_mm**2, 0, None))
    sigma = width_mm / math.sqrt(8 * math.log(2)) / size_mm
    return source._replace(image=ndimage.gaussian_filter(source.image, sigma, mode="nearest"))


def random_navigator(
    source: Volume,
    center_mm: NDArray,
    random: np.random.RandomState,
    voxel_mm: float = 6.0,
    shape: Sequence[int] = (64, 64, 48),
    shift_mm: float = 40.0,
    slab_offset_mm: float = 20.0,
    sigma_mm: tuple[float, float] = (2.3, 4.6),
    delay_s: tuple[float, float] = (0.2, 2.5),
    t1_s: tuple[float, float] = (3.0, 5.0),
    noise: tuple[float, float] = (0.02, 0.06),
) -> Volume:
    """As a navigator sees the head: coarse, turned, with a dark slab and noise.

    All ranges are of uniform distributions. The grid's rotation is uniform on SO(3), the slab's
    normal on the sphere.

    Parameters
    ----------
    center_mm : (3,) brain's centre in the world
    voxel_mm, shape : isotropic voxels of the new grid
    shift_mm : largest shift of the grid's middle from the brain's along each of the grid's axes
    slab_offset_mm : largest distance of the slab's middle from the brain's centre
    sigma_mm : range of the slab's width
    delay_s, t1_s : ranges of the time since excitation and of T1; the slab's depth is
        exp(-delay / t1)
    noise : range of the standard deviation of Gaussian noise, as a share of the range between the
        0.5 and 99.5 percentiles
    """
    rotation = random_rotation(random)
    shift = random.uniform(-shift_mm, shift_mm, 3)
    normal = random.normal(size=3)
    normal /= np.linalg.norm(normal)
    # in the grid frame, whose origin is the grid's middle, the brain lies at -shift
    point = normal * random.uniform(-slab_offset_mm, slab_offset_mm) - shift
    sigma = random.uniform(*sigma_mm)
    alpha = math.exp(-random.uniform(*delay_s) / random.uniform(*t1_s))
    level = random.uniform(*noise)
    added = random.normal(size=shape)

    affine = centered_affine(rotation * voxel_mm, center_mm + rotation @ shift, shape)
    grid = resampled(averaged(source, voxel_mm), affine, shape)
    directions = torch.from_numpy(normal), torch.from_numpy(point)
    image = grid.image * saturation(shape, voxel_mm, *directions, sigma, alpha).numpy()
    low, high = np.percentile(image, [0.5, 99.5])
    return grid._replace(image=(image + level * (high - low) * added).astype(np.float32))


def random_regridded(
    source: Volume, center_mm: NDArray, random: np.random.RandomState, voxel_mm: float = 3.5
) -> Volume:
    """The same content on a left-handed grid, turned by a rotation uniform on SO(3).

    ``center_mm`` does not matter: the grid holds the whole source volume.
    """
    return regridded(source, random_rotation(random), voxel_mm)


def regridded(source: Volume, rotation: NDArray, voxel_mm: float) -> Volume:
    """The whole volume on a left-handed grid of isotropic voxels.

    The columns of ``rotation`` (3, 3) are the directions of the new axes in the world, the first
    one reversed.
    """
    linear = rotation @ MIRROR * voxel_mm
    edges = source.affine[:3, :3] * source.image.shape  # columns, world mm
    shape = np.ceil(np.abs(np.linalg.inv(linear) @ edges).sum(1)).astype(int)
    return resampled(source, centered_affine(linear, volume_center_mm(source), shape), shape)


def random_headless(
    source: Volume,
    center_mm: NDArray,
    random: np.random.RandomState,
    voxel_mm: float = 6.0,
    distance_mm: float = 85.0,
) -> Volume:
    """A navigator of the mother and the rest of the fetus: the field of view ends beside the head.

    It is cut by a plane ``distance_mm`` from the brain's centre, which leaves out the face too. Of
    64 uniform directions that one is taken on whose side most of the volume is left.
    """
    normals = random.normal(size=(64, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    index = np.indices(source.image.shape, dtype=np.float32).reshape(3, -1)
    points = source.affine[:3, :3] @ index + (source.affine[:3, 3] - center_mm)[:, None]
    shown = source.image.ravel() > 0
    # one by one: all at once would take a gigabyte for a stack
    sizes = [np.count_nonzero(shown & (normal @ points > distance_mm)) for normal in normals]
    if not max(sizes):
        raise ValueError(f"nothing of the volume is {distance_mm:g} mm from the brain or further")
    kept = normals[int(np.argmax(sizes))] @ points > distance_mm
    place = center_mm + points[:, kept & shown].mean(1)
    kept = kept.reshape(source.image.shape)
    label = None if source.label is None else source.label * kept
    rest = source._replace(image=source.image * kept, label=label)
    return random_navigator(rest, place, random, voxel_mm)


KINDS = {
    "navigator": (random_navigator, 6.0),
    "regridded": (random_regridded, 3.5),
    "headless": (random_headless, 6.0),
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
    kind : "navigator", "regridded" or "headless"
    repeats : variants of every volume, named case, case_repeat1, case_repeat2, ...
    voxel_mm : size of the new voxels; None for 3.5 mm (regridded) or 6 mm

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
    size_mm = KINDS[kind][1] if voxel_mm is None else float(voxel_mm)
    if seed < 0 or repeats < 1 or not size_mm > 0:
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
    twice = [name for name, count in Counter(job[0] for job in jobs).items() if count > 1]
    if twice:
        raise ValueError(f"{given}: {section} would give several volumes named {twice}")

    parameters = {
        "version": VERSION, "kind": kind, "section": section, "seed": seed, "voxel_mm": size_mm
    }  # fmt: skip
    root = Path(output_dir)
    _check_parameters(root / "dataset.json", parameters)
    if not _check_parameters(root / "variant.json", parameters):
        # Written first: volumes of a run that was stopped keep their parameters with them.
        write_json(root / "variant.json", {"variant": parameters})
    entries = [
        _write_volume(root, parameters, *job)
        for job in tqdm(jobs, desc=kind, unit="volume", disable=not progress)
    ]
    sections: dict[str, Any] = {name: [] for name in SECTIONS} | {section: entries}
    path = root / "dataset.json"
    write_json(path, {**sections, "variant": parameters})
    return path


def _write_volume(
    root: Path,
    parameters: dict[str, Any],
    name: str,
    repeat: int,
    entry: dict[str, Any],
    keys: dict[str, Any],
) -> dict[str, Any]:
    """Write one volume unless it is there; return its entry of the datalist."""
    # Labels lie apart, so that a section's folder can be given to inference as it is.
    section = parameters["section"]
    image, label = f"{section}/{name}.nii.gz", f"{section}_labels/{name}.nii.gz"
    record = root / f"{section}_labels/{name}.json"
    # The repeats of a volume without a subject are still of one subject.
    result = {"subject": entry["subject"], **keys, "image": image}
    if parameters["kind"] == "headless":
        result = {key: value for key, value in result.items() if key not in OF_THE_HEAD}
        result["head_to_world"] = None
    if "label" in entry:
        result["label"] = label
    if record.exists():
        if json.loads(record.read_text()) != result:
            raise ValueError(f"{record} is of another {entry['image']}; choose another folder")
        if all((root / result[key]).exists() for key in ("image", "label") if key in entry):
            return result
    source = _load(entry)
    pose = entry["head_to_world"]
    center = volume_center_mm(source) if pose is None else np.array(pose)[:3, 3]
    # not hash(), which differs from process to process
    number = zlib.crc32(entry["case"].encode())
    sequence = np.random.SeedSequence([parameters["seed"], number, repeat])
    random = np.random.RandomState(np.random.MT19937(sequence))
    make: Any = KINDS[parameters["kind"]][0]
    try:
        volume: Volume = make(source, center, random, voxel_mm=parameters["voxel_mm"])
    except ValueError as error:
        raise ValueError(f"{entry['image']}: {error}") from error
    write_nifti(root / image, volume.image, volume.affine)
    if volume.label is not None:
        write_nifti(root / label, volume.label, volume.affine)
    write_json(record, result)
    return result


def _load(entry: Any) -> Volume:
    """The entry's image and, where it has one, its label."""
    data: Any = LoadVolumed(["image", "label"], allow_missing_keys=True)(entry)
    image, affine = data["image"][0].numpy(), np.asarray(data["image"].affine)
    if "label" not in data:
        return Volume(image, affine)
    label = data["label"][0].numpy()
    if label.shape != image.shape or not np.allclose(data["label"].affine, affine, atol=1e-2):
        raise ValueError(f"{entry['label']}: the label's grid is not that of {entry['image']}")
    if not np.isin(label, (0, 1, 2)).all():
        raise ValueError(f"{entry['label']}: labels must be 0, 1 or 2, got {np.unique(label)}")
    return Volume(image, affine, label.astype(np.uint8))


def _check_parameters(path: Path, parameters: dict[str, Any]) -> bool:
    """Whether the file is there; ValueError if it does not come from these parameters."""
    if not path.exists():
        return False
    try:
        found = json.loads(path.read_text())["variant"]
    except (KeyError, TypeError, json.JSONDecodeError):
        found = "none"
    if found != parameters:
        raise ValueError(
            f"{path} is there with variant {found}, wanted {parameters}; choose another folder"
        )
    return True
