"""Import the public fetal EPI stacks of mu40/fetal-align: poses and labels from their landmarks.

The repository (Hoffmann et al., IJIMA 2021; BSD 2-Clause) holds stacks ``data/ep2d_NN.nii.gz`` and
``loaddata.m`` with gestational ages and, in 0-based voxel indices, the centres of brain and eyes.
It holds no masks: they are made here.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nibabel.affines import apply_affine
from numpy.typing import NDArray
from scipy import ndimage
from skimage.segmentation import random_walker
from tqdm import tqdm

from ...files import json_text, relative_path, write_nifti, write_text
from ...geometry import landmarks_to_pose
from ...reading.formats import case_name
from ...simulation.anatomy import biparietal_mm, eye_diameter_mm, occipitofrontal_mm
from ..volumes import LoadVolumed

SOURCE = "mu40/fetal-align"


LANDMARKS = ("brain", "left_eye", "right_eye")


# The same volumes, annotated twice under two numbers (case dropped: case kept).
DUPLICATES = {"ep2d_35": "ep2d_13", "ep2d_36": "ep2d_14"}


GRID_MM, GRID_HALF_WIDTH_MM = 2.5, 80.0  # the head-aligned grid on which masks are made


@dataclass
class Annotation:
    """Landmarks of one stack, voxel indices (i, j, k); ``subject`` groups stacks of one fetus."""

    case: str
    subject: str
    ga_weeks: float
    brain: NDArray[np.float64]
    left_eye: NDArray[np.float64]
    right_eye: NDArray[np.float64]

    def __post_init__(self) -> None:
        if not self.case or not self.subject:
            raise ValueError("no name of the stack or of the fetus")
        if not 14 <= self.ga_weeks <= 45:
            raise ValueError(f"{self.case}: expected an age of 14 to 45 weeks, got {self.ga_weeks}")


def read_landmarks_csv(path: Path) -> list[Annotation]:
    """Annotations from ``case, fetus, ga_weeks, brain_i, brain_j, brain_k, left_eye_i, ...``."""
    annotations: dict[str, Annotation] = {}
    # spreadsheets put a byte order mark first
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, skipinitialspace=True)
        for row in reader:
            try:
                points = {
                    name: np.array([float(row[f"{name}_{axis}"]) for axis in "ijk"])
                    for name in LANDMARKS
                }
                found = Annotation(row["case"], row["fetus"], float(row["ga_weeks"]), **points)
                if annotations.setdefault(found.case, found) is not found:
                    raise ValueError(f"{found.case} for the second time")
            except (KeyError, ValueError, TypeError) as error:
                raise ValueError(f"{path}, line {reader.line_num}: {error!r} in {row}") from error
    return list(annotations.values())


def read_loaddata(path: Path) -> list[Annotation]:
    """Annotations from the repository's ``loaddata.m``.

    The file does not tell which stacks show one fetus. Stacks of one gestational age count as one
    subject: that may join two fetuses, but divides none.
    """
    # a comment is no statement
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    text = "\n".join(line.split("%")[0] for line in lines)
    ages: dict[int, float] = {}
    for number, weeks, days in re.findall(
        r"\bga\(\s*(\d+)\s*\)\s*=\s*(\d+\.?\d*)\s*(?:\+\s*(\d+)\s*/\s*7\s*)?;", text
    ):
        ages[int(number)] = float(weeks) + int(days or 0) / 7
    points: dict[int, dict[str, NDArray[np.float64]]] = {}
    names = dict(zip(("bman", "lman", "rman"), LANDMARKS, strict=True))
    for name, number, values in re.findall(r"\b([blr]man)\{\s*(\d+)\s*\}\s*=\s*\[([^\]]*)\]", text):
        try:
            i, j, k = (float(value) for value in values.replace(",", " ").split())
        except ValueError as error:
            given = f"{name}{{{number}}} = [{values}]"
            raise ValueError(f"{path}: expected 3 numbers, got {given}") from error
        points.setdefault(int(number), {})[names[name]] = np.array([i, j, k])
    if not points:
        raise ValueError(f"{path}: no landmarks such as bman{{ 1}} = [ 62  86 28];")
    annotations = []
    for number, found in sorted(points.items()):
        missing = [name for name in LANDMARKS if name not in found]
        if missing or number not in ages:
            raise ValueError(f"{path}: stack {number} lacks {', '.join(missing) or 'its age, ga'}")
        age = ages[number]
        subject = f"ga{age:.2f}"
        try:
            annotations.append(Annotation(f"ep2d_{number:02d}", subject, age, **found))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    return annotations


def import_fetal_align(
    source: str | os.PathLike[str],
    dataset_dir: str | os.PathLike[str],
    validation: tuple[str, ...] = (),
    test: tuple[str, ...] = (),
    progress: bool = True,
) -> Path:
    """Write a data set of the stacks in a clone of fetal-align; return its dataset.json.

    Stacks are found in ``data`` or ``stacks`` below ``source``, landmarks in ``landmarks.csv`` if
    it is there, else in ``loaddata.m``. Images are referred to where they lie; labels are written.
    Duplicates and stacks without landmarks are left out. Every entry has ``subject``, ``ga_weeks``
    and the positions of the eyes in world mm. Labels that are there already are kept, so an
    interrupted run goes on.

    Parameters
    ----------
    validation, test : subjects that go into these sections; all others are for training

    Raises
    ------
    FileNotFoundError : no landmarks, or no stack with landmarks
    ValueError : landmarks that cannot be read, lie outside their stack or on one line; a stack that
        is no volume; subjects that are not there; a dataset.json of something else
    """
    source, root = Path(source), Path(dataset_dir)
    path = root / "dataset.json"
    _check_ours(path)
    annotations = _annotations(source)
    stacks = {case_name(p): p for d in ("data", "stacks") for p in (source / d).glob("ep2d_*.nii*")}
    if not stacks:
        raise FileNotFoundError(f"{source}: no ep2d_*.nii.gz in its folder data or stacks")
    present = [a for a in annotations if a.case in stacks and a.case not in DUPLICATES]
    if not present:
        raise FileNotFoundError(f"{source}: none of its {len(stacks)} stacks has landmarks")
    subjects = {a.subject for a in present}
    unknown = sorted({*validation, *test} - subjects)
    if unknown or {*validation} & {*test}:
        raise ValueError(
            f"validation {validation} and test {test} must be disjoint and among the subjects "
            f"{sorted(subjects)}"
        )
    section_of = {s: "validation" for s in validation} | {s: "test" for s in test}
    content: dict[str, Any] = {"training": [], "validation": [], "test": []}
    for annotation in tqdm(present, desc="fetal-align", unit="stack", disable=not progress):
        entry = _import_stack(annotation, stacks[annotation.case], root)
        content[section_of.get(annotation.subject, "training")].append(entry)
    content["source"] = SOURCE
    write_text(path, json_text(content))
    return path


def _check_ours(path: Path) -> None:
    """ValueError for a dataset.json that this importer has not written."""
    if not path.exists():
        return
    try:
        content = json.loads(path.read_text())
    except ValueError:
        content = None
    if not isinstance(content, dict) or content.get("source") != SOURCE:
        raise ValueError(f"{path} is another data set and is left alone; choose another folder")


def _annotations(source: Path) -> list[Annotation]:
    readers: Mapping[str, Callable[[Path], list[Annotation]]] = {
        "landmarks.csv": read_landmarks_csv,
        "loaddata.m": read_loaddata,
    }
    for name, reader in readers.items():
        if (source / name).exists():
            return reader(source / name)
    found = next(iter(sorted(source.rglob("loaddata.m"))), None)
    if found is None:
        raise FileNotFoundError(f"{source}: neither loaddata.m nor landmarks.csv in this folder")
    return read_loaddata(found)


def _import_stack(annotation: Annotation, stack: Path, root: Path) -> dict[str, Any]:
    image = LoadVolumed(["image"])({"image": str(stack)})["image"]
    values, affine = image.as_tensor()[0].numpy(), image.affine.numpy()
    world = {}
    for name in LANDMARKS:
        voxel = getattr(annotation, name)
        # so written that NaN lies outside too
        if not ((voxel >= -0.5) & (voxel <= np.array(values.shape) - 0.5)).all():
            raise ValueError(
                f"{stack}: {name} at voxel {voxel.tolist()} lies outside the stack of "
                f"{values.shape} voxels"
            )
        world[name] = apply_affine(affine, voxel)
    try:
        pose = landmarks_to_pose(*(torch.from_numpy(world[name]) for name in LANDMARKS)).numpy()
    except ValueError as error:
        raise ValueError(f"{stack}: {error}") from error
    label_name = f"labels/{annotation.case}.nii.gz"
    label_path = root / label_name
    if not label_path.exists():
        label = make_label(
            values, affine, pose, annotation.ga_weeks, (world["left_eye"], world["right_eye"])
        )
        write_nifti(label_path, label, affine)
    world_to_head = np.linalg.inv(pose)
    return {
        "image": relative_path(stack, root),
        "label": label_name,
        "head_to_world": pose.tolist(),
        "subject": annotation.subject,
        "ga_weeks": annotation.ga_weeks,
        "contrast": "epi",
        "left_eye_mm": apply_affine(world_to_head, world["left_eye"]).tolist(),
        "right_eye_mm": apply_affine(world_to_head, world["right_eye"]).tolist(),
    }


def make_label(
    image: NDArray,
    affine: NDArray,
    head_to_world: NDArray,
    ga_weeks: float,
    eyes_mm: tuple[NDArray, ...],
) -> NDArray[np.uint8]:
    """Label map of brain (1) and eyes (2) on the image's grid.

    The brain is found by a random walker (Grady 2006) between seeds that biometry places in the
    head frame. Eyes are spheres of the mean diameter at that age, at the landmarks ``eyes_mm``
    (3) in world mm.
    """
    steps = np.arange(-GRID_HALF_WIDTH_MM, GRID_HALF_WIDTH_MM + GRID_MM / 2, GRID_MM)
    points = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"))
    head_to_voxel = np.linalg.inv(affine) @ head_to_world
    voxels = np.einsum("ij,jxyz->ixyz", head_to_voxel[:3, :3], points)
    aligned = ndimage.map_coordinates(
        image, voxels + head_to_voxel[:3, 3, None, None, None], order=1, mode="nearest"
    )
    brain = brain_mask(aligned, points, ga_weeks)
    # back to the image's grid, where every voxel asks whether most of it lies in the mask
    indices = np.stack(np.meshgrid(*(np.arange(n) for n in image.shape), indexing="ij"))
    world = np.einsum("ij,jxyz->ixyz", affine[:3, :3], indices) + affine[:3, 3, None, None, None]
    head = np.einsum("ji,jxyz->ixyz", head_to_world[:3, :3], world)
    head -= (head_to_world[:3, :3].T @ head_to_world[:3, 3])[:, None, None, None]
    inside = ndimage.map_coordinates(
        brain.astype(np.float32), (head + GRID_HALF_WIDTH_MM) / GRID_MM, order=1
    )
    label = (inside > 0.5).astype(np.uint8)
    for eye in eyes_mm:
        distance = np.linalg.norm(world - np.reshape(eye, (3, 1, 1, 1)), axis=0)
        # at least the voxel that holds the landmark, however thick the slices
        label[distance <= max(eye_diameter_mm(ga_weeks) / 2, distance.min())] = 2
    return label


def brain_mask(aligned: NDArray, points: NDArray, ga_weeks: float) -> NDArray[np.bool_]:
    """Brain in a head-aligned image (x, y, z), whose voxels lie at ``points`` (3, x, y, z) mm."""
    bpd, ofd = biparietal_mm(ga_weeks), occipitofrontal_mm(ga_weeks)
    cerebrum = _ellipsoid_radius(points, (0, 0, 0), (bpd / 2 - 3, ofd / 2 - 3, 0.46 * bpd))
    fossa = _ellipsoid_radius(
        points, (0, -0.20 * ofd, -0.30 * bpd), (0.30 * bpd, 0.22 * ofd, 0.24 * bpd)
    )
    distance = np.minimum(cerebrum, fossa)
    # receive coils make a bias far smoother than the brain: flatten what varies over 25 mm
    positive = np.clip(aligned, 0, np.percentile(aligned, 99.5)).astype(np.float64)
    background = ndimage.gaussian_filter(positive, 25 / GRID_MM)
    flat = positive / (background + 1e-3 * positive.max() + 1e-12)
    flat = np.clip(ndimage.gaussian_filter(flat, 0.5), 0, 3)
    seeds = np.zeros(aligned.shape, dtype=np.int32)
    seeds[cerebrum < 0.7] = 1
    seeds[distance > 1.17] = 2
    # where the image is flat, the distance decides alone
    channels = np.stack([flat / max(flat.std(), 1e-6), 0.7 * distance.clip(0, 2)], axis=-1)
    # solved directly: conjugate gradients stop while voxels that edges part from all others, which
    # hardly count in the residual, are still wrong, or run on for minutes
    mask = random_walker(channels, seeds, beta=150, mode="bf", channel_axis=-1) == 1
    mask = ndimage.binary_opening(mask, ndimage.generate_binary_structure(3, 1), iterations=2)
    components, count = ndimage.label(mask)
    if count > 1:
        sizes = ndimage.sum_labels(mask, components, np.arange(1, count + 1))
        mask = components == 1 + int(np.argmax(sizes))
    return ndimage.binary_fill_holes(mask)


def _ellipsoid_radius(
    points: NDArray, center: tuple[float, ...], semi_axes: tuple[float, ...]
) -> NDArray[np.float64]:
    """Distance from the centre in units of the semi-axes: below 1 inside."""
    scaled = (points - np.reshape(center, (3, 1, 1, 1))) / np.reshape(semi_axes, (3, 1, 1, 1))
    return np.linalg.norm(scaled, axis=0)
