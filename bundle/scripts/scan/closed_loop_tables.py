"""What the simulated scan writes down: rows of slices, of stacks, and their summary."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .stack_quality import WIDE_MM
from .stack_scan import Run

WAYS = {
    "blind": "as planned at the start",
    "pose": "by each pose",
    "tracker": "by pose and tracker",
    "true": "by the true pose at the navigator",
}
NOT_STARTED = "not started"


def stack_row(run: Run, thickness_mm: float) -> dict[str, Any]:
    """A row of stacks.csv; run.coverage has to be known."""
    assert run.coverage is not None
    oblique = _column(run.rows, "obliqueness_deg")
    off = np.abs(_column(run.rows, "position_mm"))
    lacking = sum(row["status"] not in ("", "ok") for row in run.rows)
    return {
        "run": run.name,
        "slices": len(run.rows),
        "gap": round(run.coverage.gap, 5),
        "hole": round(run.coverage.hole, 5),
        "overlap": round(run.coverage.overlap, 5),
        "obliqueness_median_deg": round(float(np.median(oblique)), 3),
        "obliqueness_p90_deg": round(float(np.percentile(oblique, 90)), 3),
        "position_median_mm": round(float(np.median(off)), 3),
        "off_share": round(float(np.mean(off > thickness_mm / 2)), 4),
        "without_pose": lacking,
    }


def summarize(
    stacks: Sequence[Mapping[str, Any]], slices: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Rows of summary.csv: for each motion, each plane and all planes together, and each way.

    `gap`, `hole`, `overlap` and the obliqueness of a stack are medians over the stacks with
    quartiles; obliqueness, position and the share of slices that are off by more than half of
    their thickness are also given over all slices.
    """
    found = []
    for motion in dict.fromkeys(row["motion"] for row in stacks):
        planes = list(dict.fromkeys(row["plane"] for row in stacks if row["motion"] == motion))
        for plane in [*planes, *(["all"] if len(planes) > 1 else [])]:

            def of(rows: Iterable[Mapping[str, Any]], m=motion, p=plane) -> list[Mapping[str, Any]]:
                return [r for r in rows if r["motion"] == m and p in (r["plane"], "all")]

            here, taken = of(stacks), of(slices)
            failed = sum(row["run"] == NOT_STARTED for row in here)
            for way in WAYS:
                row: dict[str, Any] = {"motion": motion, "plane": plane, "run": way}
                some = [r for r in here if r["run"] == way]
                each = [r for r in taken if r["run"] == way]
                if not some:
                    continue
                row |= {"stacks": len(some), "not_started": failed, "slices": len(each)}
                for name in ("gap", "hole", "overlap", "obliqueness_median_deg"):
                    row |= _quartiles(name, _column(some, name))
                oblique = _column(each, "obliqueness_deg")
                off = np.abs(_column(each, "position_mm"))
                row["obliqueness_slices_median_deg"] = round(float(np.median(oblique)), 3)
                row["obliqueness_slices_p90_deg"] = round(float(np.percentile(oblique, 90)), 3)
                row["position_slices_median_mm"] = round(float(np.median(off)), 3)
                row["position_slices_p90_mm"] = round(float(np.percentile(off, 90)), 3)
                row["off_share"] = round(float(np.average(
                    _column(some, "off_share"), weights=_column(some, "slices"))), 4)  # fmt: skip
                row["without_pose_share"] = round(
                    float(_column(some, "without_pose").sum() / len(each)), 4
                )
                found.append(row)
    return found


def summary_text(summary: Sequence[Mapping[str, Any]]) -> str:
    """The summary as lines to read."""
    lines = [
        f"{'motion':10}{'plane':10}{'slices follow':34}{'stacks':>7}"
        f"{'gap, % (quartiles)':>22}{f'> {WIDE_MM:g} mm, %':>10}{'overlap, %':>11}"
        f"{'oblique, deg (p90)':>20}{'position, mm':>13}{'off, %':>8}{'no pose, %':>11}"
    ]
    for row in summary:
        gap = f"{row['gap']:.1%} ({row['gap_q1']:.1%} - {row['gap_q3']:.1%})".replace("%", "")
        oblique = (
            f"{row['obliqueness_slices_median_deg']:.1f} ({row['obliqueness_slices_p90_deg']:.1f})"
        )
        lines.append(
            f"{row['motion']:10}{row['plane']:10}{WAYS[row['run']]:34}{row['stacks']:7d}"
            f"{gap:>22}{100 * row['hole']:10.1f}{100 * row['overlap']:11.1f}"
            f"{oblique:>20}{row['position_slices_median_mm']:13.2f}"
            f"{100 * row['off_share']:8.1f}{100 * row['without_pose_share']:11.1f}"
        )
    failed = {(r["motion"], r["plane"]): r["not_started"] for r in summary if r["plane"] != "all"}
    if sum(failed.values()):
        lines.append(
            f"{sum(failed.values())} stacks did not start: no certain pose at the beginning"
        )
    return "\n".join(lines)


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table with a column for every key, in the order in which they come up."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: f"{v:.6g}" if isinstance(v, float) else v for key, v in row.items()})
    return text.getvalue()


def read_csv(path: Path) -> list[dict[str, Any]]:
    """The rows that `csv_text` wrote; none if there is no file. Numbers become numbers again."""
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return [{key: _value(text) for key, text in row.items()} for row in csv.DictReader(file)]


def _value(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _column(rows: Sequence[Mapping[str, Any]], name: str) -> NDArray[np.float64]:
    return np.array([row[name] for row in rows], dtype=np.float64)


def _quartiles(name: str, values: NDArray[np.float64]) -> dict[str, float]:
    low, middle, high = np.percentile(values, [25, 50, 75])
    return {
        name: round(float(middle), 5),
        f"{name}_q1": round(float(low), 5),
        f"{name}_q3": round(float(high), 5),
    }
