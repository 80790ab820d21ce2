"""What the simulated scan writes down: rows of slices, of stacks, and their summary."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..files import write_nifti, write_text
from .stack_quality import WIDE_MM
from .taken_stack import Stack

WAYS = {
    "blind": "as planned at the start",
    "pose": "by each pose",
    "tracker": "by pose and tracker",
    "true": "by the true pose at the navigator",
    "service": "as the service asks",
}
NOT_STARTED = "not started"


def stack_row(run: Stack, thickness_mm: float) -> dict[str, Any]:
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


class LoopTables:
    """Rows of stacks.csv and slices.csv, and with them summary.csv, of one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stacks: list[dict[str, Any]] = []
        self.slices: list[dict[str, Any]] = []

    def read(self) -> set[tuple[str, str, str]]:
        """Take in what is there of complete stacks; case, motion and plane of each."""
        self.stacks = read_csv(self.folder / "stacks.csv")
        done = {_stack_of(row) for row in self.stacks}
        rows = read_csv(self.folder / "slices.csv")
        self.slices = [row for row in rows if _stack_of(row) in done]
        return done

    def add(
        self, key: dict[str, str], ga_weeks: float, runs: Sequence[Stack], thickness_mm: float
    ) -> None:
        """The runs of a complete stack, none where it did not start.

        key : its case, motion and plane
        """
        if not runs:
            self.stacks.append({**key, "ga_weeks": ga_weeks, "run": NOT_STARTED})
        for run in runs:
            self.stacks.append({**key, "ga_weeks": ga_weeks, **stack_row(run, thickness_mm)})
            self.slices += [{**key, **row} for row in run.rows]

    def summary(self) -> list[dict[str, Any]]:
        return summarize(self.stacks, self.slices)

    def write(self) -> None:
        # slices first: a stack counts as done when it stands in stacks.csv
        write_text(self.folder / "slices.csv", csv_text(self.slices))
        write_text(self.folder / "stacks.csv", csv_text(self.stacks))
        write_text(self.folder / "summary.csv", csv_text(self.summary()))


def write_images(folder: Path, key: Mapping[str, str], run: Stack) -> None:
    """The images of a run's slices, under the folder's "slices"."""
    stack = f"{key['case']}_{Path(key['motion']).stem}_{key['plane']}"
    for number, taken in run.images.items():
        path = folder / "slices" / stack / run.name / f"slice_{number:02d}.nii.gz"
        write_nifti(path, np.round(taken.image).astype(np.int16), taken.affine)


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


def _stack_of(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return str(row["case"]), str(row["motion"]), str(row["plane"])


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
