"""Table and picture that compare evaluations: one ``cases.csv`` each, as evaluate.json writes it.

From the bundle's folder:

    python -m scripts.report A/cases.csv B/cases.csv --picture errors.png
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .drawing import draw_errors
from .metrics import read_case_table

ROWS = (
    ("rotation, median (degrees)", "rotation_deg", np.nanmedian),
    ("rotation, mean (degrees)", "rotation_deg", np.nanmean),
    ("rotation above 15 degrees (%)", "rotation_deg", lambda x: 100 * np.mean(x > 15)),
    ("rotation above 30 degrees (%)", "rotation_deg", lambda x: 100 * np.mean(x > 30)),
    ("rotation, reference crop, median (degrees)", "reference_crop_deg", np.nanmedian),
    ("left-right axis, median (degrees)", "axis_x_deg", np.nanmedian),
    ("anterior axis, median (degrees)", "axis_y_deg", np.nanmedian),
    ("superior axis, median (degrees)", "axis_z_deg", np.nanmedian),
    ("translation, median (mm)", "translation_mm", np.nanmedian),
    ("Dice brain, mean", "dice_brain", np.nanmean),
    ("Dice eyes, mean", "dice_eyes", np.nanmean),
    ("head found where there is one (%)", "head_detection", lambda x: 100 * np.mean(x)),
)


def table(paths: Sequence[str | os.PathLike[str]]) -> str:
    """Text table, a row per quantity and a column per evaluation, named by its folder.

    Cases whose value is NaN (no head, no reference) do not count; a head not found counts as 180
    degrees and infinitely many mm.
    """
    columns = [read_case_table(path) for path in paths]
    names = [Path(path).resolve().parent.name for path in paths]
    lines = [f"{'':44}" + "".join(f"{name:>14}" for name in names)]
    for title, key, summary in ROWS:
        cells = []
        for column in columns:
            values = np.array(column[key])
            values = values[~np.isnan(values)]
            cells.append(f"{summary(values):14.2f}" if len(values) else f"{'-':>14}")
        lines.append(f"{title:44}" + "".join(cells))
    counts = [sum(not np.isnan(v) for v in column["rotation_deg"]) for column in columns]
    lines.append(f"{'cases with a head':44}" + "".join(f"{count:14d}" for count in counts))
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of `table` and of the picture of the distributions."""
    parser = argparse.ArgumentParser(prog="python -m scripts.report", description=__doc__)
    parser.add_argument("cases", nargs="+", help="cases.csv of each evaluation")
    parser.add_argument("--picture", help="PNG of the distributions of rotation errors")
    options = parser.parse_args(arguments)
    print(table(options.cases))
    if options.picture:
        errors = {
            Path(path).resolve().parent.name: [
                value for value in read_case_table(path)["rotation_deg"] if not np.isnan(value)
            ]
            for path in options.cases
        }
        draw_errors(options.picture, errors, "Rotation error on volumes not trained on")
        print(f"picture: {options.picture}")


if __name__ == "__main__":
    main()
