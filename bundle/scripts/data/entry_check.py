"""Whether an entry of a data set fits together: its pose with its label, its label with its image.

A pose in LPS, inverse or transposed is as rigid as a right one, and trains the opposite. What gives
it away is where it puts the head: far from the brain of its own label, outside the volume, or with
the eyes at the back. The label is read, of the image the header alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ..labels import label_values
from .dataset_entries import Finding
from .label_facts import LabelFacts, grid_of, label_facts

# of the line from the brain's centre to between the eyes, in the head frame (docs/conventions.md)
EYES_DIRECTION = np.array([0.0, np.cos(np.pi / 6), -np.sin(np.pi / 6)])
# Angles beyond what two people's frames differ by. Landmarks and the authors' frames lie within 25.
EYES_DOUBTFUL_DEG, EYES_WRONG_DEG, PAIR_WRONG_DEG, LONG_AXIS_DEG = 40.0, 60.0, 45.0, 60.0
EYES_OFF_MM = 20.0
SMALL_BRAIN_ML, LARGE_EYES_ML = 8.0, 15.0


def check_entry(entry: Mapping[str, Any]) -> list[Finding]:
    """What does not fit together in an entry of `dataset_entries.structure`; it reads the label."""
    where, sections = str(entry["where"]), (str(entry["section"]),)
    try:
        shape, affine = grid_of(entry["image"])
        facts = label_facts(entry["label"]) if "label" in entry else None
    except (ValueError, OSError) as error:
        return [Finding(where, str(error), entry=entry, sections=sections)]
    twin = "twin_to_world" in entry
    found = list(_label(facts, shape, affine, twin)) if facts else []
    pose = entry["head_to_world"]
    if pose is None:
        found += _headless(facts, entry)
    else:
        found += _pose(facts, np.asarray(pose), shape, affine)
        found += _given_eyes(facts, np.asarray(pose), entry)
    return [replace(f, where=where, entry=entry, sections=sections) for f in found]


def _label(
    facts: LabelFacts, shape: tuple[int, ...], affine: np.ndarray, twin: bool
) -> Iterator[Finding]:
    if facts.values - label_values(twin):
        yield Finding("", f"labels must be 0, 1 or 2, got {sorted(facts.values)[:6]}")
    if facts.shape != shape:
        yield Finding("", f"label of {facts.shape} voxels, image of {shape}")
    elif not np.allclose(facts.affine, affine, atol=1e-2):
        index = np.array([*(np.array(shape) - 1), 1.0])
        corners = [m @ index for m in (facts.affine, affine)] + [facts.affine[:, 3], affine[:, 3]]
        off = max(np.linalg.norm(corners[0] - corners[1]), np.linalg.norm(corners[2] - corners[3]))
        mirrored = np.linalg.det(facts.affine[:3, :3]) * np.linalg.det(affine[:3, :3]) < 0
        text = f"label and image have other affines: corners lie {off:.0f} mm apart"
        yield Finding("", text + (", and one is the mirror image of the other" if mirrored else ""))
    if facts.brain_ml and facts.eyes_ml > facts.brain_ml:
        text = "eyes named brain, and brain eyes?" if facts.eyes_ml > LARGE_EYES_ML else ""
        yield Finding(
            "", f"brain of {facts.brain_ml:.1f} ml, eyes of {facts.eyes_ml:.1f} ml: {text}"
        )
    elif 0 < facts.brain_ml < SMALL_BRAIN_ML and not facts.cut:
        text = f"brain of {facts.brain_ml:.1f} ml in {facts.brain_parts} parts"
        yield Finding("", f"{text}: are these the eyes, named brain?")
    elif facts.eyes_ml > LARGE_EYES_ML:
        yield Finding("", f"eyes of {facts.eyes_ml:.1f} ml", error=False)


def _headless(facts: LabelFacts | None, entry: Mapping[str, Any]) -> Iterator[Finding]:
    if not facts or not (facts.brain_ml or facts.eyes_ml):
        return
    what = f"label with a brain of {facts.brain_ml:.0f} ml"
    if "head_to_world" in entry["given"]:
        yield Finding("", f"{what}, and head_to_world null", error=False)
    else:
        text = "no head_to_world: the volume would count as one that shows no head. null says that"
        yield Finding("", f"{what}, but {text}")


def _pose(
    facts: LabelFacts | None, pose: np.ndarray, shape: tuple[int, ...], affine: np.ndarray
) -> Iterator[Finding]:
    outside = _outside_mm(pose[:3, 3], shape, affine)
    if outside > 0:
        text = f"the pose's origin lies {outside:.0f} mm outside the volume"
        yield Finding("", text + _reading(facts, pose, shape, affine))
        return
    if facts is None:
        return
    if not facts.brain_ml:
        yield Finding("", "a pose, but no brain in the label; without any label, leave it out")
        return
    off = float(np.linalg.norm(facts.brain_mm - pose[:3, 3]))
    doubtful, wrong = facts.tolerance_mm
    if off > doubtful:
        text = f"the pose's origin lies {off:.0f} mm from the centre of the label's brain"
        yield Finding("", text + _reading(facts, pose, shape, affine), error=off > wrong)
    yield from _turn(facts, pose, off <= doubtful, shape, affine)


def _turn(
    facts: LabelFacts, pose: np.ndarray, placed: bool, shape: tuple[int, ...], affine: np.ndarray
) -> Iterator[Finding]:
    """Whether eyes and brain lie in the head as they should, wherever the pose puts it."""
    reading = _reading(facts, pose, shape, affine) if placed else ""
    angle = _eyes_deg(facts, pose)
    if angle is None:
        long_axis = facts.long_axis
        if long_axis is not None:
            off = np.degrees(np.arccos(min(1.0, abs(float(long_axis @ pose[:3, 1])))))
            if off > LONG_AXIS_DEG:
                text = f"the brain's longest axis lies {off:.0f} degrees from the pose's anterior"
                yield Finding("", text, error=False)
        return
    if angle > EYES_DOUBTFUL_DEG:
        text = f"the label's eyes lie {angle:.0f} degrees from where the pose has them"
        wrong = angle > EYES_WRONG_DEG
        yield Finding("", text + (reading if wrong else ""), error=wrong)
    pair = facts.between_eyes
    if pair is not None:
        off = np.degrees(np.arccos(min(1.0, abs(float(pair @ pose[:3, 0])))))
        if off > PAIR_WRONG_DEG:
            text = f"the line between the eyes lies {off:.0f} degrees from the pose's left-right"
            yield Finding("", text + reading)


def _given_eyes(
    facts: LabelFacts | None, pose: np.ndarray, entry: Mapping[str, Any]
) -> Iterator[Finding]:
    if "left_eye_mm" not in entry or "right_eye_mm" not in entry:
        return
    eyes = np.array([entry["left_eye_mm"], entry["right_eye_mm"]], dtype=float)
    plausible = [are_eyes(e) for e in (eyes, (eyes - pose[:3, 3]) @ pose[:3, :3])]
    if plausible == [False, True]:
        text = "left_eye_mm and right_eye_mm seem to be in the world; they belong in the head frame"
        yield Finding("", text, error=False)
    elif not plausible[0]:
        text = f"left_eye_mm, right_eye_mm {eyes.round(1).tolist()}: left is -x, anterior +y"
        yield Finding("", f"{text} in the head frame")
    elif facts and len(facts.eyes_mm):
        shown = eyes @ pose[:3, :3].T + pose[:3, 3]
        off = np.linalg.norm(facts.eyes_mm[:, None] - shown, axis=2).min(1).max()
        if off > EYES_OFF_MM:
            text = f"the label's eyes lie up to {off:.0f} mm from left_eye_mm and right_eye_mm"
            yield Finding("", text, error=False)


def are_eyes(eyes_mm: np.ndarray) -> bool:
    """Whether points (2, 3), left and right, in mm of the head frame can be eyes.

    >>> are_eyes(np.array([[-20.0, 38, -20], [20, 38, -20]]))
    True
    """
    (left, right), far = eyes_mm, np.linalg.norm(eyes_mm, axis=1)
    return bool(left[0] < 0 < right[0] and (eyes_mm[:, 1] > 0).all() and (abs(far - 50) < 38).all())


def _outside_mm(point: np.ndarray, shape: tuple[int, ...], affine: np.ndarray) -> float:
    """How far a world point lies outside a volume, mm; 0 within it."""
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    voxel = np.linalg.solve(affine, [*point, 1.0])[:3]
    inside = np.clip(voxel, -0.5, np.array(shape) - 0.5)
    return float(np.linalg.norm((voxel - inside) * sizes))


def _eyes_deg(facts: LabelFacts, pose: np.ndarray) -> float | None:
    """Angle between where the label's eyes lie from its brain, and where a pose has them."""
    if not len(facts.eyes_mm) or not facts.brain_ml:
        return None
    seen = pose[:3, :3].T @ (facts.eyes_mm.mean(0) - facts.brain_mm)
    norm = np.linalg.norm(seen)
    return None if norm < 5 else float(np.degrees(np.arccos(seen @ EYES_DIRECTION / norm)))


def _reading(
    facts: LabelFacts | None, pose: np.ndarray, shape: tuple[int, ...], affine: np.ndarray
) -> str:
    """As what else a matrix would fit, in words; empty if as nothing."""
    lps = np.diag([-1.0, -1.0, 1.0, 1.0])
    inverse, turned = np.linalg.inv(pose), pose.copy()
    turned[:3, :3] = pose[:3, :3].T
    readings = {
        "in LPS, as DICOM and ITK have it": lps @ pose,
        "world_to_head, its inverse": inverse,
        "with its rotation transposed": turned,
        "the inverse of a pose in LPS": lps @ inverse,
    }
    if facts is None or not facts.brain_ml:
        return ""  # nothing that would tell a chance hit
    fitting = {}
    for name, other in readings.items():
        off = np.linalg.norm(facts.brain_mm - other[:3, 3]) / facts.tolerance_mm[0]
        turn = (_eyes_deg(facts, other) or 0.0) / EYES_DOUBTFUL_DEG
        if off <= 1 and turn <= 1 and not _outside_mm(other[:3, 3], shape, affine):
            fitting[name] = off + turn
    best = min(fitting, key=fitting.__getitem__, default="")
    return f"; it fits if the matrix is read as {best}" if best else ""
