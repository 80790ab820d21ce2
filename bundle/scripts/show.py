"""The picture of a case again: larger, in other planes.

From the bundle's folder:

    python -m scripts.show O/case_pose.json
    python -m scripts.show O/case_pose.json --planes axial --slices 9 --step_mm 8 --width_mm 120

draws parallel slices through the head, each plane a row, into ``case_slices.png`` beside the JSON
file. The volume is the one that the pose was found in, if it is still where it was, or ``--image``.
Outlines are those of ``case_mask.nii.gz``, where the run wrote one. A pose is not needed: without
one the slices are the volume's own.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from .evaluation.drawing import draw_slices
from .evaluation.outputs import STATE, short_stem
from .evaluation.planes import HALF_WIDTH_MM, PLANES, Head
from .files import replacing
from .geometry import check_rigid
from .reading import Case, find_cases, read_image

POSE_END, MASK_END = "_pose.json", "_mask.nii.gz"


def read_record(path: Path) -> dict[str, Any]:
    """A ``<case>_pose.json``. ValueError, with the file's name, if it is none."""
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error
    if not isinstance(record, dict) or not {"case", "status", "head_to_world"} <= set(record):
        raise ValueError(f"{path}: is no record of a pose")
    if record["head_to_world"] is not None:
        pose = torch.tensor(record["head_to_world"], dtype=torch.float64)
        check_rigid(pose, f"{path}: head_to_world")
    return record


def kept_state(path: Path, case: str) -> tuple[Path, dict[str, Any]]:
    """The run's folder and what it keeps of the case of a JSON file in it, or below it.

    The file's own folder and nothing where the run kept nothing.
    """
    for folder in path.resolve().parents:
        state = folder / STATE / "cases" / f"{short_stem(case)}.json"
        if state.exists():
            return folder, json.loads(state.read_text())
    return path.parent, {}


def case_in(source: Path, record: dict[str, Any]) -> Case | Path:
    """``source``, or of the folder of a DICOM series the frame that the record is of.

    ValueError if the folder does not hold the series.
    """
    if not source.is_dir():
        return source
    name = record["case"].rpartition("series_")[2]
    for case in find_cases(source).cases:
        if case.name.rpartition("series_")[2] == name and case.frame == record.get("frame", 0):
            return case
    raise ValueError(f"{source}: holds no {record['case']}")


def show(
    path: Path,
    output: Path | None = None,
    image: Path | None = None,
    planes: Sequence[str] = tuple(PLANES),
    slices: int = 7,
    step_mm: float = 10.0,
    width_mm: float = 2 * HALF_WIDTH_MM,
) -> Path:
    """Draw slices through the head of a case, and return the picture's path.

    Parameters
    ----------
    path : ``<case>_pose.json``
    output : PNG to write; ``<case>_slices.png`` beside ``path`` if not given
    image : the volume, where it is no longer where the run found it
    slices : number in each row, ``step_mm`` apart, the middle one through the head's origin
    width_mm : side of what a slice shows

    Raises
    ------
    ValueError : no record, or no volume to show (``scripts.reading.VolumeError`` is one)
    FileNotFoundError : the volume is not there
    """
    record = read_record(path)
    folder, state = kept_state(path, record["case"])
    source = image or Path(state.get("input", {}).get("path", ""))
    if not state and image is None:
        raise ValueError(f"{path}: where its volume is was not kept: give it by --image")
    if not source.exists():
        raise FileNotFoundError(f"{source}: the volume of {path} is not there: give it by --image")
    voxel_mm = state.get("settings", {}).get("voxel_mm")
    volume = read_image(case_in(source, record), record.get("frame", 0), voxel_mm)
    pose = record["head_to_world"]
    label = label_affine = None
    mask = path.with_name(path.name.removesuffix(POSE_END) + MASK_END)
    for name in state.get("files", ()):
        mask = folder / name if name.endswith(MASK_END) else mask
    if mask.exists():
        # on the voxels of the volume, whatever their header says of the world
        label, label_affine = np.asarray(nib.load(mask).dataobj), volume.affine  # type: ignore[attr-defined]
    head = Head(
        volume.values, volume.affine, label, label_affine, None if pose is None else np.array(pose)
    )
    offsets_mm = step_mm * (np.arange(slices) - (slices - 1) / 2)
    title = f"{record['case']}: {record['status']}, confidence {record.get('confidence', 0):.2f}"
    if volume.doubt:
        title += f"; {volume.doubt}"
    output = output or path.with_name(path.name.removesuffix(POSE_END) + "_slices.png")
    with replacing(output) as partial:
        draw_slices(partial, head, planes, offsets_mm.tolist(), title, width_mm / 2)
    return output


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of `show`."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.show", description="Draw slices through the head of a case."
    )
    parser.add_argument("pose", type=Path, metavar="CASE_pose.json")
    parser.add_argument("--output", type=Path, help="PNG to write")
    parser.add_argument("--image", type=Path, help="the volume, if it has moved")
    parser.add_argument("--planes", default=",".join(PLANES), help="such as axial,coronal")
    parser.add_argument("--slices", type=int, default=7, help="in each row")
    parser.add_argument("--step_mm", type=float, default=10.0, help="between them")
    parser.add_argument("--width_mm", type=float, default=2 * HALF_WIDTH_MM, help="of a slice")
    options = parser.parse_args(arguments)
    planes = [plane.strip() for plane in options.planes.split(",")]
    for plane in planes:
        if plane not in PLANES:
            parser.error(f"--planes: {plane!r} is none of {', '.join(PLANES)}")
    if not 1 <= options.slices <= 40:
        parser.error(f"--slices: 1 to 40, got {options.slices}")
    if not options.step_mm > 0 or not 10 <= options.width_mm <= 500:
        parser.error("--step_mm must be above 0, --width_mm between 10 and 500")
    try:
        written = show(
            options.pose,
            options.output,
            options.image,
            planes,
            options.slices,
            options.step_mm,
            options.width_mm,
        )
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(written)


if __name__ == "__main__":
    main()
