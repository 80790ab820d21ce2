"""Texts that compare evaluations, and the poses of two runs of inference."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import mannwhitneyu

from ..geometry import check_rigid, geodesic_deg
from .case_table import read_cases
from .drawing import LARGE_ERROR_DEG

Columns = dict[str, NDArray[np.float64]]


POSE_SUFFIX = "_pose.json"


def quantile(values: NDArray, share: float) -> float:
    """Quantile of some values between the two nearest of them, which may be infinite."""
    ordered = np.sort(values)
    position = round(share * (len(ordered) - 1), 9)
    low, high = ordered[math.floor(position)], ordered[math.ceil(position)]
    # numpy's own gives NaN between a number and infinity
    return float(high if low == high else low + (position % 1) * (high - low))


def auroc(
    errors_deg: Sequence[float] | NDArray,
    confidences: Sequence[float] | NDArray,
    above_deg: float = LARGE_ERROR_DEG,
) -> float:
    """Chance that of a wrong and a right case the wrong one has the lower confidence.

    The area under the ROC curve of the confidence as a test for errors above ``above_deg``; a tie
    counts half. Cases with a NaN (no head) do not count; NaN if there is no wrong or no right one.
    """
    errors, values = np.asarray(errors_deg, dtype=float), np.asarray(confidences, dtype=float)
    known = ~np.isnan(errors) & ~np.isnan(values)
    wrong, right = (values[known & side] for side in (errors > above_deg, errors <= above_deg))
    if not len(wrong) or not len(right):
        return math.nan
    # U counts the pairs in which the right one is the higher; the method is of a p that is not used
    u = mannwhitneyu(right, wrong, method="asymptotic").statistic
    return float(u / (len(right) * len(wrong)))


def _median(values: NDArray) -> str:
    return f"{quantile(values, 0.5):.2f}"


def _mean(values: NDArray) -> str:
    return f"{np.mean(values):.2f}"


def _quartiles(values: NDArray) -> str:
    return f"{quantile(values, 0.25):.2f} - {quantile(values, 0.75):.2f}"


def _high(values: NDArray) -> str:
    return f"{quantile(values, 0.9):.2f}"


def _largest(values: NDArray) -> str:
    return f"{np.max(values):.2f}"


def _above(limit: float) -> Callable[[NDArray], str]:
    return lambda values: _share(values > limit)


def _share(values: NDArray) -> str:
    """Percentage, and how many of how many."""
    return f"{100 * np.mean(values):.1f} ({int(np.sum(values))}/{len(values)})"


ROWS: tuple[tuple[str, str, Callable[[NDArray], str]], ...] = (
    ("rotation, median (degrees)", "rotation_deg", _median),
    ("rotation, quartiles (degrees)", "rotation_deg", _quartiles),
    ("rotation, 90th percentile (degrees)", "rotation_deg", _high),
    ("rotation, largest (degrees)", "rotation_deg", _largest),
    ("rotation, mean (degrees)", "rotation_deg", _mean),
    ("rotation above 15 degrees (%)", "rotation_deg", _above(15)),
    ("rotation above 30 degrees (%)", "rotation_deg", _above(30)),
    ("rotation, reference crop, median (degrees)", "reference_crop_deg", _median),
    ("left-right axis, median (degrees)", "axis_x_deg", _median),
    ("anterior axis, median (degrees)", "axis_y_deg", _median),
    ("superior axis, median (degrees)", "axis_z_deg", _median),
    ("translation, median (mm)", "translation_mm", _median),
    ("translation, 90th percentile (mm)", "translation_mm", _high),
    ("Dice brain, mean", "dice_brain", _mean),
    ("Dice eyes, mean", "dice_eyes", _mean),
    ("head found where there is one (%)", "found", _share),
    ("no head found where there is none (%)", "rightly_none", _share),
)


def case_columns(path: str | os.PathLike[str]) -> Columns:
    """Columns of a cases.csv; ``head_detection`` parted into volumes with and without a head."""
    columns = {name: np.array(values) for name, values in read_cases(path)[1].items()}
    if "rotation_deg" not in columns:
        raise ValueError(f"{path}: no column rotation_deg, only {sorted(columns)}")
    if (detection := columns.pop("head_detection", None)) is not None:
        headless = np.isnan(columns["rotation_deg"])
        columns["found"] = np.where(headless, np.nan, detection)
        columns["rightly_none"] = np.where(headless, detection, np.nan)
    return columns


def _pooled(evaluations: Sequence[Columns]) -> Columns:
    """All cases in one; NaN where an evaluation lacks a column."""
    names = {name: None for columns in evaluations for name in columns}
    return {
        name: np.concatenate(
            [c.get(name, np.full_like(c["rotation_deg"], np.nan)) for c in evaluations]
        )
        for name in names
    }


def evaluation_names(paths: Sequence[str | os.PathLike[str]]) -> list[str]:
    """The folders of the files, with as many of their parents as tell them apart."""
    folders = [Path(path).resolve().parent.parts for path in paths]
    for depth in range(1, max(map(len, folders)) + 1):
        names = ["/".join(parts[-depth:]) for parts in folders]
        if len(set(names)) == len(names):
            break
    return names


def table(paths: Sequence[str | os.PathLike[str]]) -> str:
    """Text table, a row per quantity and a column per evaluation, named by its folder.

    Where there are several, a last column "pooled" takes all their cases together. Cases whose
    value is NaN (no head, no reference) do not count; a head not found counts as 180 degrees and
    infinitely many mm. ValueError, naming the file, for one that is no table of cases.
    """
    evaluations, names = [case_columns(path) for path in paths], evaluation_names(paths)
    if len(paths) > 1:
        evaluations, names = [*evaluations, _pooled(evaluations)], [*names, "pooled"]
    rows = [["", *names]]
    rows.append(["cases (n)", *(str(len(c["rotation_deg"])) for c in evaluations)])
    with_head = [int(np.sum(~np.isnan(c["rotation_deg"]))) for c in evaluations]
    rows.append(["cases with a head (n)", *map(str, with_head)])
    for title, key, summary in ROWS:
        found = [columns.get(key, np.array([])) for columns in evaluations]
        found = [values[~np.isnan(values)] for values in found]
        rows.append([title, *(summary(values) if len(values) else "-" for values in found)])
    areas = [auroc(c["rotation_deg"], c["confidence"]) if "confidence" in c else math.nan
             for c in evaluations]  # fmt: skip
    title = f"AUROC, confidence against {LARGE_ERROR_DEG:.0f} degrees"
    rows.append([title, *("-" if math.isnan(area) else f"{area:.3f}" for area in areas)])
    return aligned(rows)


def case_list(path: str | os.PathLike[str]) -> str:
    """Text table of the cases of one evaluation, worst rotation first, those without a head last.

    Values that are not there or NaN are "-".
    """
    names, columns = read_cases(path)
    shown = ("rotation_deg", "translation_mm", "confidence")
    values = [columns.get(name, [math.nan] * len(names)) for name in shown]
    rotations = [-math.inf if math.isnan(value) else value for value in values[0]]
    order = sorted(range(len(names)), key=lambda k: (-rotations[k], names[k]))
    rows = [["case", *shown]]
    for k in order:
        rows.append([names[k], *("-" if math.isnan(v[k]) else f"{v[k]:.2f}" for v in values)])
    return aligned(rows)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Lines with the first column to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    )


def read_poses(folder: str | os.PathLike[str]) -> dict[str, torch.Tensor | None]:
    """``head_to_world`` (4, 4) float64 by case from a folder of inference's output, None for none.

    FileNotFoundError for a folder without poses; ValueError, naming the file, for a broken one.
    """
    paths = sorted(Path(folder).glob(f"[!.]*{POSE_SUFFIX}"))
    if not paths:
        raise FileNotFoundError(f"{folder}: no <case>{POSE_SUFFIX} in this folder")
    poses: dict[str, torch.Tensor | None] = {}
    for path in paths:
        try:
            given = json.loads(path.read_text())["head_to_world"]
            pose = None if given is None else torch.tensor(given, dtype=torch.float64)
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: no head_to_world can be read: {error!r}") from error
        if pose is not None:
            check_rigid(pose, f"{path}: head_to_world")
        poses[path.name.removesuffix(POSE_SUFFIX)] = pose
    return poses


def moved(a: str | os.PathLike[str], b: str | os.PathLike[str]) -> str:
    """Text table of how far apart the poses are that two runs of inference give the same cases.

    A case without a pose in either folder has no distance; such cases are counted.
    ValueError if the folders have no case in common.
    """
    first, second = read_poses(a), read_poses(b)
    cases = sorted(set(first) & set(second))
    if not cases:
        raise ValueError(f"{a} and {b} have no case in common")
    angles, distances = [], []
    for p, q in ((first[case], second[case]) for case in cases):
        if p is not None and q is not None:
            angles.append(geodesic_deg(p[:3, :3], q[:3, :3]).item())
            distances.append((p[:3, 3] - q[:3, 3]).norm().item())
    none = [{case for case in cases if poses[case] is None} for poses in (first, second)]
    rows = [["", "n", "median", "90th percentile", "largest"]]
    for title, values in (("rotation (degrees)", angles), ("distance (mm)", distances)):
        array, summaries = np.array(values), (_median, _high, _largest)
        rows.append([title, str(len(values)), *(f(array) if values else "-" for f in summaries)])
    return (
        f"{aligned(rows)}\n"
        f"{len(cases)} cases in both folders, {len(set(first) ^ set(second))} in one only\n"
        f"no pose in the first only: {len(none[0] - none[1])}, in the second only: "
        f"{len(none[1] - none[0])}, in both: {len(none[0] & none[1])}"
    )
