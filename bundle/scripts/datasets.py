"""Datalists: of training data sets and their mixtures, and of a folder of volumes.

The command line imports data of others, from the bundle's folder:

    python -m scripts.datasets fetal_align --source CLONE --dataset_dir D
    python -m scripts.datasets e3pose --images I --labels L --angles_csv A.csv --dataset_dir D
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path


def _subjects(text: str) -> tuple[str, ...]:
    return tuple(part for part in text.split(",") if part)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of the importers."""
    # here, because the importers themselves read and write datalists
    from .data.importers.e3pose import import_e3pose
    from .data.importers.fetal_align import import_fetal_align

    parser = argparse.ArgumentParser(
        prog="python -m scripts.datasets", description="Import data of others as a data set."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    align = commands.add_parser("fetal_align", help="a clone of mu40/fetal-align")
    align.add_argument("--source", required=True, help="the clone")
    for section in ("validation", "test"):
        align.add_argument(
            f"--{section}", type=_subjects, default=(), help="subjects: f01,f04 or ga31.00"
        )
    angles = commands.add_parser("e3pose", help="images, labels and a table of Euler angles")
    angles.add_argument("--images", required=True, help="folder")
    angles.add_argument("--labels", required=True, help="folder, with the same file names")
    angles.add_argument("--angles_csv", required=True, help="frame_id, rot_x, rot_y, rot_z[, fold]")
    angles.add_argument("--canonical_axes", default="RAS", help="orientation code, such as LPS")
    angles.add_argument("--validation_share", type=float, default=0.0)
    angles.add_argument("--seed", type=int, default=0)
    for command in (align, angles):
        command.add_argument("--dataset_dir", required=True, help="folder to write to")
    options = vars(parser.parse_args(arguments))
    importers: dict[str, Callable[..., Path]] = {
        "fetal_align": import_fetal_align,
        "e3pose": import_e3pose,
    }
    try:
        print(importers[options.pop("command")](**options))
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
