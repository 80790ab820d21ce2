"""The slices of a diagnostic stack, from the pose that inference found.

From the bundle's folder:

    python -m scripts.prescribe O/CASE_pose.json --plane coronal --thickness_mm 3

writes ``CASE_prescription.json``, and a picture of the slices if the volume is given (--image) or
lies beside the pose as ``CASE_aligned.nii.gz``. What it holds: docs/prescription.md.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .argument_types import three_numbers
from .files import replacing, write_text
from .labels import BRAIN, Status
from .reading import read_image
from .scan.extent import ellipsoid_extent_mm, mask_extent_mm
from .scan.patient import PATIENT_POSITIONS, patient_to_device, world_to_patient
from .scan.prescription import FOV_STEP_MM, Prescription, prescribe, rigid_pose
from .scan.slices import PLANES

Volume = tuple[NDArray, NDArray[np.float64]]  # values (i, j, k), voxel-to-world matrix
SUFFIX = "_pose.json"


def read_pose(path: Path, allow_uncertain: bool) -> dict[str, Any]:
    """The record of ``<case>_pose.json``, whose pose can be used.

    Raises ValueError where there is no pose, or one that is not "ok" and that is not allowed.
    """
    try:
        record = json.loads(path.read_text())
        status, pose = record["status"], record["head_to_world"]
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no pose of inference: {error!r}") from error
    if pose is None:
        raise ValueError(f"{path}: status {status!r}, there is no pose: {record.get('message')}")
    if status != Status.OK and not allow_uncertain:
        raise ValueError(
            f"{path}: status {status!r}: look at the picture of the pose; --allow_uncertain takes "
            f"it all the same: {record.get('message')}"
        )
    try:
        rigid_pose(pose)
        for key in ("brain_volume_ml", "translation_sd_mm", "rotation_sd_deg"):
            record[key] = float(record.get(key) or 0.0)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    return record


def read_volume(path: Path) -> Volume:
    """Values (i, j, k) and affine of a file; ValueError, naming it, where it cannot be read."""
    try:
        image = read_image(path, cured=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as a volume: {error}") from error
    return image.values, image.affine


def beside(pose: Path, output: str) -> Path | None:
    """The "mask" or "aligned" volume that inference wrote beside a pose, None if it did not.

    Names are those of ``docs/outputs.md``, in a BIDS tree ``..._desc-brain_mask.nii.gz`` and
    ``..._space-head_T2w.nii.gz``.
    """
    name = pose.name.removesuffix(SUFFIX)
    names = [f"{name}_{output}.nii.gz"]
    if found := re.fullmatch(r"(.*)_desc-([A-Za-z0-9]+)", name):
        stem, suffix = found.groups()
        bids = {"mask": "desc-brain_mask", "aligned": f"space-head_{suffix}"}
        names.append(f"{stem}_{bids[output]}.nii.gz")
    return next((path for n in names if (path := pose.with_name(n)).exists()), None)


def extent_of(
    record: dict[str, Any], mask: Volume | None, tilt_deg: Sequence[float]
) -> tuple[NDArray[np.float64], str]:
    """Extent (3, 2) of the brain along the axes of the tilted head, mm, and what it comes from."""
    if mask is not None:
        values, affine = mask
        extent = mask_extent_mm(values == BRAIN, affine, record["head_to_world"], tilt_deg)
        return extent, "mask"
    return ellipsoid_extent_mm(record["brain_volume_ml"], tilt_deg), "brain_volume_ml"


def prescription_record(
    record: dict[str, Any],
    prescription: Prescription,
    extent_from: str,
    patient_position: str | None,
    isocentre_lps: Sequence[float],
) -> dict[str, Any]:
    """What ``<case>_prescription.json`` holds (docs/prescription.md)."""
    content = {
        "case": record.get("case"),
        "status": record["status"],
        "confidence": record.get("confidence"),
        "head_to_world": record["head_to_world"],
        "head_to_patient_lps": world_to_patient(record["head_to_world"]).tolist(),
        "extent_from": extent_from,
        **prescription.record(),
    }
    if patient_position:
        device = patient_to_device(patient_position, isocentre_lps)
        content["patient_position"] = patient_position
        content["patient_to_device"] = device.tolist()
        for entry, one in zip(content["slices"], prescription.slices, strict=True):
            to_device = device @ world_to_patient(one.slice_to_world)
            entry["slice_to_device"] = (to_device + 0.0).tolist()
    return content


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of ``prescribe``: reads a pose, writes the slices and a picture of them."""
    parser = argparse.ArgumentParser(prog="python -m scripts.prescribe")
    parser.description = "Slices through the head, from the pose that inference found."
    parser.add_argument("pose", type=Path, metavar="CASE_pose.json")
    parser.add_argument("--plane", choices=PLANES, default="axial")
    parser.add_argument("--thickness_mm", type=float, default=3.0)
    parser.add_argument("--gap_mm", type=float, default=0.0)
    parser.add_argument("--in_plane_mm", type=float, default=1.0, help="pixel size")
    parser.add_argument("--matrix", type=int, default=256, help="pixels along either side")
    parser.add_argument("--slices", type=int, help="their number; else what covers the brain")
    parser.add_argument("--interleave", type=int, default=4)
    parser.add_argument(
        "--tilt_deg",
        type=three_numbers,
        default=(0.0, 0.0, 0.0),
        help="a,b,c about the head's x, y, z",
    )
    parser.add_argument("--mask", type=Path, help="brain mask; else CASE_mask.nii.gz beside it")
    parser.add_argument("--image", type=Path, help="the volume, for the picture")
    parser.add_argument("--output_dir", type=Path, help="else the folder of the pose")
    parser.add_argument(
        "--allow_uncertain", action="store_true", help="take a pose whose status is not ok"
    )
    navigator = parser.add_argument_group("the next navigator")
    navigator.add_argument("--fov_centre_mm", type=three_numbers, help="x,y,z of the last one, RAS")
    navigator.add_argument("--fov_step_mm", type=float, default=FOV_STEP_MM, help="at most so far")
    scanner = parser.add_argument_group("the scanner's own coordinates")
    scanner.add_argument("--patient_position", choices=PATIENT_POSITIONS)
    scanner.add_argument(
        "--isocentre_lps",
        type=three_numbers,
        default=(0.0, 0.0, 0.0),
        help="x,y,z in patient coordinates",
    )
    options = parser.parse_args(arguments)
    try:
        _prescribe(options)
    except (ValueError, OSError) as error:
        parser.error(str(error))


def _prescribe(options: argparse.Namespace) -> None:
    record = read_pose(options.pose, options.allow_uncertain)
    name = options.pose.name
    name = name.removesuffix(SUFFIX) if name.endswith(SUFFIX) else options.pose.stem
    base = (options.output_dir or options.pose.parent) / name
    mask_path = options.mask or beside(options.pose, "mask")
    mask = None if mask_path is None else read_volume(mask_path)
    image = _image(options, record)

    extent, extent_from = extent_of(record, mask, options.tilt_deg)
    prescription = prescribe(
        record["head_to_world"],
        extent,
        options.plane,
        options.thickness_mm,
        gap_mm=options.gap_mm,
        in_plane_mm=options.in_plane_mm,
        matrix=options.matrix,
        slices=options.slices,
        interleave=options.interleave,
        tilt_deg=options.tilt_deg,
        translation_sd_mm=record["translation_sd_mm"],
        rotation_sd_deg=record["rotation_sd_deg"],
        fov_centre_mm=options.fov_centre_mm,
        fov_step_mm=options.fov_step_mm,
    )
    content = prescription_record(
        record, prescription, extent_from, options.patient_position, options.isocentre_lps
    )
    path = base.with_name(f"{base.name}_prescription.json")
    write_text(path, json.dumps(content, indent=2) + "\n")
    for warning in prescription.warnings:
        print(f"warning: {warning}")
    print(f"{len(prescription.slices)} slices: {path}")
    if image is None:
        print("no picture: give the volume by --image")
        return
    from .scan.prescription_picture import draw_prescription  # matplotlib takes a while

    brain = None if mask is None else (mask[0] == BRAIN, mask[1])
    title = f"{name}: {record['status']}"
    with replacing(path.with_suffix(".png")) as partial:
        draw_prescription(partial, prescription, record["head_to_world"], *image, brain, title)
    print(f"picture: {path.with_suffix('.png')}")


def _image(options: argparse.Namespace, record: dict[str, Any]) -> Volume | None:
    """The volume to draw on: as given, or the aligned one beside the pose."""
    if options.image:
        return read_volume(options.image)
    aligned = beside(options.pose, "aligned")
    if aligned is None:
        return None
    values, voxel_to_head = read_volume(aligned)  # its world is the head frame
    return values, np.array(record["head_to_world"]) @ voxel_to_head


if __name__ == "__main__":
    main()
