"""Import data laid out as by the authors of E(3)-Pose: images, labels and a CSV of Euler angles.

A folder of images and a folder of labels (0 background, 1 brain, 2 eyes) have equal file names,
and a CSV has the columns ``frame_id, rot_x, rot_y, rot_z``: the file's name with or without .nii
or .nii.gz, and degrees. Columns ``fold`` (training, validation, test) and ``subject`` may follow.

The angles are those of the rotation from the volume to the canonical frame, in voxel axes:

    p_canonical = R p_voxel,    R = Rz(rot_z) Ry(rot_y) Rx(rot_x)

p_voxel lies along the unit directions of the voxel axes i, j, k, so voxels may have unequal sides
but no shear. The axes of the canonical frame are an orientation code: for each axis the side of
the head, not of the scanner, to which it points. The head's position is the brain's centre of mass.
"""

from __future__ import annotations

import csv
import math
import os
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from ...files import json_text, relative_path, write_text
from ...geometry import check_rigid, rigid, rotation_about_x, rotation_about_y, rotation_about_z
from ...labels import BRAIN, check_label
from ...reading.formats import case_name
from ..datalists import SUFFIXES
from ..dataset_entries import SECTIONS
from ..volumes import LoadVolumed

ANGLES = ("rot_x", "rot_y", "rot_z")


# sides of the head: where its axes x, y, z point, and the other way
SIDES = (("R", "L"), ("A", "P"), ("S", "I"))


def angles_to_rotation(rot_x: float, rot_y: float, rot_z: float) -> Tensor:
    """R (3, 3) float64 from extrinsic x, y, z Euler angles in degrees."""
    # not scipy's, whose last digits differ: a data set that is there is compared with them
    return rotation_about_z(rot_z) @ rotation_about_y(rot_y) @ rotation_about_x(rot_x)


def pose_to_angles(
    head_to_world: Any, affine: Any, canonical_axes: str = "RAS"
) -> tuple[float, float, float]:
    """rot_x, rot_y, rot_z in degrees of a pose, the inverse of what ``import_e3pose`` reads.

    Parameters
    ----------
    head_to_world : (4, 4), rigid
    affine : (4, 4), voxel indices of the volume to world mm
    canonical_axes : as in ``import_e3pose``

    Where rot_y is +-90 degrees many angles are the same rotation, and rot_z is 0 in those returned.
    ValueError for a pose that is not rigid, a sheared affine, a bad code, unequal handedness.
    """
    pose = torch.as_tensor(head_to_world, dtype=torch.float64)
    check_rigid(pose, "head_to_world")
    voxel_axes, head_axes = _axes(affine, canonical_axes, "the affine")
    rotation = head_axes @ pose[:3, :3].mT @ voxel_axes
    in_scipy = Rotation.from_matrix(rotation.numpy())
    x, y, z = in_scipy.as_euler("xyz", degrees=True, suppress_warnings=True).tolist()
    return x, y, z


def import_e3pose(
    images: str | os.PathLike[str],
    labels: str | os.PathLike[str],
    angles_csv: str | os.PathLike[str],
    dataset_dir: str | os.PathLike[str],
    canonical_axes: str = "RAS",
    validation_share: float = 0.0,
    seed: int = 0,
) -> Path:
    """Write the dataset.json of the volumes that the CSV names; return its path.

    Nothing is copied: images and labels are referred to by relative paths and must stay where they
    are. Files without a row are left out. Without a column ``subject`` every frame counts as a
    subject of its own, so several frames of one fetus need that column.

    Parameters
    ----------
    images, labels : folders with equal file names
    angles_csv : see above; UTF-8, separated by commas
    dataset_dir : made if need be; a dataset.json of other content in it is never overwritten
    canonical_axes : such as "RAS" or "LPS"
    validation_share : share of the subjects in 0..1 that is drawn for validation where the CSV has
        no column ``fold``; all others are for training
    seed : of that draw

    Raises
    ------
    FileNotFoundError : no CSV, or an image or label that a row names is not there
    ValueError : a row, label or affine that cannot be used; a subject in two sections; a volume in
        which the head would be its own mirror image; the message names file, line and value
    """
    head_axes_matrix(canonical_axes)
    root, rows = Path(dataset_dir), _read_rows(Path(angles_csv))
    section_of = _sections(rows, Path(angles_csv), validation_share, seed)
    content: dict[str, list[dict[str, Any]]] = {section: [] for section in SECTIONS}
    for row in rows:
        image, label = (_find(Path(folder), row) for folder in (images, labels))
        try:
            pose = _pose(image, label, row["angles_deg"], canonical_axes)
        except ValueError as error:
            raise ValueError(f"{row['where']}: {error}") from error
        entry = {
            "image": relative_path(image, root),
            "label": relative_path(label, root),
            "head_to_world": pose.tolist(),
            "subject": row["subject"],
        }
        content[section_of[row["subject"]]].append(entry)
    path, text = root / "dataset.json", json_text(content)
    if not path.exists():
        write_text(path, text)
    elif path.read_text() != text:
        raise ValueError(f"{path} is another data set and is left alone; choose another folder")
    return path


def _read_rows(path: Path) -> list[dict[str, Any]]:
    """The CSV's rows, with ``subject`` in any case, ``angles_deg`` (3) and ``where``, the line."""
    rows: dict[str, dict[str, Any]] = {}
    try:
        # spreadsheets put a byte order mark first
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, skipinitialspace=True)
            header = [name.strip() for name in next(reader, [])]
            once = ["frame_id", *ANGLES, *(n for n in ("fold", "subject") if n in header)]
            if any(header.count(name) != 1 for name in once):
                raise ValueError(f"{path}, line 1: expected one column each {once}, got {header}")
            for cells in reader:
                where = f"{path}, line {reader.line_num}"
                if not any(cell.strip() for cell in cells):
                    continue
                if len(cells) != len(header):
                    raise ValueError(f"{where}: {len(cells)} values for {len(header)} columns")
                row = _check_row(dict(zip(header, map(str.strip, cells), strict=True)), where)
                first = rows.setdefault(row["frame_id"], row)
                if first is not row:
                    raise ValueError(f"{where}: frame {row['frame_id']!r} as in {first['where']}")
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: not a CSV file in UTF-8: {error}") from error
    if not rows:
        raise ValueError(f"{path}: no rows")
    return list(rows.values())


def _check_row(given: dict[str, str], where: str) -> dict[str, Any]:
    name = given["frame_id"]
    if not name or name.startswith(".") or Path(name).name != name:
        raise ValueError(f"{where}: frame_id must be a file's name without folder, got {name!r}")
    angles = []
    for key in ANGLES:
        try:
            angles.append(float(given[key]))
        except ValueError:
            angles.append(math.nan)
        if not math.isfinite(angles[-1]):
            raise ValueError(f"{where}: {key} must be a number of degrees, got {given[key]!r}")
    if "fold" in given and given["fold"] not in SECTIONS:
        raise ValueError(f"{where}: fold must be one of {SECTIONS}, got {given['fold']!r}")
    row = {"subject": case_name(name)} | given | {"frame_id": case_name(name)}
    if not row["subject"]:
        raise ValueError(f"{where}: no subject")
    return row | {"angles_deg": angles, "where": where}


def _sections(rows: list[dict[str, Any]], path: Path, share: float, seed: int) -> dict[str, str]:
    """Subject -> section; a split never divides a fetus."""
    subjects = sorted({row["subject"] for row in rows})
    if "fold" in rows[0]:
        if share:
            raise ValueError(f"{path} has a column fold: validation_share {share} must be 0")
        first: dict[str, dict[str, Any]] = {}
        for row in rows:
            other = first.setdefault(row["subject"], row)
            if row["fold"] != other["fold"]:
                raise ValueError(
                    f"{row['where']}: subject {row['subject']!r} is in {row['fold']}, but in "
                    f"{other['fold']} in {other['where']}; a fetus belongs in one section"
                )
        return {subject: row["fold"] for subject, row in first.items()}
    count = round(share * len(subjects)) if 0 <= share < 1 else 0
    if share and not 0 < count < len(subjects):
        raise ValueError(
            "validation_share must lie in 0..1 and leave subjects for training and validation, got "
            f"{share} of {len(subjects)}"
        )
    drawn = np.random.default_rng(seed).permutation(subjects)[:count].tolist()
    return {s: "validation" if s in drawn else "training" for s in subjects}


def _find(folder: Path, row: dict[str, Any]) -> Path:
    path = folder / row["frame_id"]
    found = [p for p in (Path(f"{path}{suffix}") for suffix in SUFFIXES) if p.is_file()]
    if not found:
        raise FileNotFoundError(f"{row['where']}: {path}.nii.gz: no such file, nor .nii")
    if len(found) > 1:
        raise ValueError(f"{row['where']}: {path}.nii.gz and .nii are both there: which is meant?")
    return found[0]


def _pose(image: Path, label: Path, angles_deg: list[float], canonical_axes: str) -> Tensor:
    """head_to_world (4, 4) float64 of one volume."""
    loaded = LoadVolumed(["image", "label"])({"image": str(image), "label": str(label)})
    check_label(loaded["label"], loaded["image"])
    brain = (loaded["label"].as_tensor()[0] == BRAIN).nonzero().to(torch.float64)
    if len(brain) == 0:
        raise ValueError(f"{label}: no voxel is {BRAIN}, brain, so the head has no position")
    affine = loaded["image"].affine.to(torch.float64)
    voxel_axes, head_axes = _axes(affine, canonical_axes, str(image))
    rotation = voxel_axes @ angles_to_rotation(*angles_deg).mT @ head_axes
    return rigid(rotation, affine[:3, :3] @ brain.mean(0) + affine[:3, 3])


def head_axes_matrix(canonical_axes: str) -> Tensor:
    """Signed permutation (3, 3) float64 from head to canonical coordinates."""
    rows = [[(a == plus) - (a == minus) for plus, minus in SIDES] for a in canonical_axes]
    matrix = torch.tensor(rows, dtype=torch.float64)
    if matrix.shape != (3, 3) or not matrix.det():
        raise ValueError(
            f"canonical_axes must be a letter each of RL, AP and SI, got {canonical_axes!r}"
        )
    return matrix


def _axes(affine: Any, canonical_axes: str, name: str) -> tuple[Tensor, Tensor]:
    """Orthogonal matrices (3, 3): voxel directions to world, head to canonical coordinates.

    ValueError, naming ``name``, for a shear of more than 0.06 degrees, and where the one is
    left-handed and the other right-handed: no rotation joins those.
    """
    affine = torch.as_tensor(affine, dtype=torch.float64)
    head_axes = head_axes_matrix(canonical_axes)
    directions = affine[:3, :3] / affine[:3, :3].norm(dim=0)
    cosine = (directions.mT @ directions - torch.eye(3, dtype=torch.float64)).abs().max()
    if not cosine < 1e-3:
        raise ValueError(
            f"{name}: the voxel axes are not at right angles (cosine {cosine:.2g}), so no rotation "
            f"in voxel axes is one in the world: {affine.tolist()}"
        )
    u, _, vh = torch.linalg.svd(directions)
    if directions.det() * head_axes.det() < 0:
        volume, canonical = ("left", "right") if head_axes.det() > 0 else ("right", "left")
        code = "".join(nib.orientations.aff2axcodes(affine.numpy()))
        mirrored = canonical_axes.translate(str.maketrans("RL", "LR"))
        raise ValueError(
            f"{name}: the voxel axes, {code}, are {volume}-handed and the canonical axes, "
            f"{canonical_axes}, {canonical}-handed: the head would be its own mirror image. Give "
            f"the canonical axes in which the angles were measured (perhaps {mirrored!r}), or the "
            "volumes as they were stored then"
        )
    return u @ vh, head_axes
