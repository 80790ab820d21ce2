"""``poses.tsv``: a row for each case of a run."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from ..reading.printable import printable

COLUMNS = (
    "case",
    "status",
    "confidence",
    "brain_volume_ml",
    "x_mm",
    "y_mm",
    "z_mm",
    "rx_deg",
    "ry_deg",
    "rz_deg",
    "frame",
    "frames",
    "warnings",
    "message",
)


def pose_row(record: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the table from a record.

    x, y, z are the brain's centre in the world; rx, ry, rz the rotation vector of head_to_world, in
    degrees: its direction is the axis in the world, its length the angle. "n/a", as BIDS has it,
    where there is no pose or one frame only. Text has no tabs or line breaks.
    """
    row: dict[str, Any] = dict.fromkeys(COLUMNS, "n/a")
    row["case"] = printable(record["case"])
    for name in ("status", "confidence", "brain_volume_ml"):
        row[name] = record[name]
    for name in ("frame", "frames"):
        row[name] = record.get(name, "n/a")
    row["warnings"] = printable("; ".join(record.get("warnings", ()))) or "n/a"
    row["message"] = printable(record["message"]) or "n/a"
    if record["head_to_world"] is not None:
        pose = np.array(record["head_to_world"])
        vector = Rotation.from_matrix(pose[:3, :3]).as_rotvec(degrees=True)
        names = COLUMNS[4:10]
        row |= {n: f"{v:.3f}" for n, v in zip(names, [*pose[:3, 3], *vector], strict=True)}
    return row


def pose_table(records: Iterable[Mapping[str, Any]]) -> str:
    """Text of the table, UTF-8, a header line first."""
    text = io.StringIO()
    # BIDS knows no quotes in these files, and no text here has a tab or a line break
    style = {"delimiter": "\t", "lineterminator": "\n", "quoting": csv.QUOTE_NONE}
    table = csv.DictWriter(text, COLUMNS, quotechar=None, **style)  # type: ignore[arg-type]
    table.writeheader()
    table.writerows(pose_row(record) for record in records)
    return text.getvalue()
