"""Tables and a picture that compare evaluations, one ``cases.csv`` each, as evaluate.json writes
it; and how far apart the poses of two runs of inference lie.

From the bundle's folder:

    python -m scripts.report A/cases.csv B/cases.csv --picture errors.png --cases
    python -m scripts.report --moved A_poses B_poses
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np

from .evaluation.drawing import draw_errors
from .evaluation.tables import case_columns, case_list, evaluation_names, moved, table


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of `table`, `case_list`, `moved` and of the picture of the distributions."""
    parser = argparse.ArgumentParser(prog="python -m scripts.report")
    parser.description = "Compare evaluations, or the poses of two runs of inference."
    parser.add_argument("tables", nargs="*", metavar="cases.csv", help="one of each evaluation")
    parser.add_argument("--picture", help="PNG of the distributions of rotation errors")
    parser.add_argument("--cases", action="store_true", help="list the cases, worst first")
    parser.add_argument("--moved", nargs=2, metavar=("A", "B"), help="folders of <case>_pose.json")
    options = parser.parse_args(arguments)
    if not options.tables and not options.moved:
        parser.error("give a cases.csv or --moved with two folders")
    try:
        _report(options)
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))


def _report(options: argparse.Namespace) -> None:
    if options.tables:
        names = evaluation_names(options.tables)
        print(table(options.tables))
        for name, path in zip(names, options.tables, strict=True):
            if options.cases:
                print(f"\n{name}\n{case_list(path)}")
        if options.picture:
            errors = [case_columns(path)["rotation_deg"] for path in options.tables]
            curves = {n: values[~np.isnan(values)] for n, values in zip(names, errors, strict=True)}
            draw_errors(options.picture, curves, "Rotation error on volumes not trained on")
            print(f"picture: {options.picture}")
    if options.moved:
        print(moved(*options.moved))


if __name__ == "__main__":
    main()
