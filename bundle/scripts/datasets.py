"""Data sets for training: whether one fits together, and data of others as one.

From the bundle's folder:

    python -m scripts.datasets check --dataset_dir D [--picture_dir P]

    python -m scripts.datasets fetal_align --source CLONE --dataset_dir D
    python -m scripts.datasets e3pose --images I --labels L --angles_csv A.csv --dataset_dir D
    python -m scripts.datasets brain_atlas --source ATLAS --dataset_dir D --test_weeks 21,23
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from .argument_types import whole_numbers, words


def _check(dataset_dir: str, picture_dir: str | None, count: int) -> int:
    """Print what does not fit together; 1 if that must not be trained on, else 0."""
    from .data.dataset_check import check_dataset, summary
    from .evaluation.dataset_pictures import draw_entries

    findings = check_dataset(dataset_dir)
    if findings:
        print(summary(findings))
    errors = sum(finding.error for finding in findings)
    print(f"{dataset_dir}: {errors} errors, {len(findings) - errors} warnings")
    if picture_dir is not None:
        written = draw_entries(dataset_dir, findings, picture_dir, count)
        print(f"{len(written)} pictures in {picture_dir}")
    return 1 if errors else 0


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    # here, because the importers themselves read and write datalists
    from .data.importers.brain_atlas import import_brain_atlas
    from .data.importers.e3pose import import_e3pose
    from .data.importers.fetal_align import import_fetal_align

    parser = argparse.ArgumentParser(
        prog="python -m scripts.datasets", description="Check a data set, or import one."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    align = commands.add_parser("fetal_align", help="a clone of mu40/fetal-align")
    align.add_argument("--source", required=True, help="the clone")
    for section in ("validation", "test"):
        align.add_argument(
            f"--{section}", type=words, default=(), help="subjects: f01,f04 or ga31.00"
        )
    angles = commands.add_parser("e3pose", help="images, labels and a table of Euler angles")
    angles.add_argument("--images", required=True, help="folder")
    angles.add_argument("--labels", required=True, help="folder, with the same file names")
    angles.add_argument("--angles_csv", required=True, help="frame_id, rot_x, rot_y, rot_z[, fold]")
    angles.add_argument("--canonical_axes", default="RAS", help="orientation code, such as LPS")
    angles.add_argument("--validation_share", type=float, default=0.0)
    angles.add_argument("--seed", type=int, default=0)
    atlas = commands.add_parser("brain_atlas", help="the spina bifida atlas, varied: brains alone")
    atlas.add_argument("--source", required=True, help="folder with the atlas's folders")
    atlas.add_argument(
        "--test_weeks", type=whole_numbers, default=(), help="ages kept for the test: 21,23"
    )
    atlas.add_argument("--repeats", type=int, default=30, help="variants of each age")
    atlas.add_argument("--seed", type=int, default=0)
    check = commands.add_parser("check", help="does a data set fit together?")
    check.add_argument("--dataset_dir", required=True, help="folder with a dataset.json")
    check.add_argument("--picture_dir", help="draw entries into this folder, the doubtful first")
    check.add_argument("--pictures", type=int, default=12, help="how many to draw at most")
    for command in (align, angles, atlas):
        command.add_argument("--dataset_dir", required=True, help="folder to write to")
    options = vars(parser.parse_args(arguments))
    importers: dict[str, Callable[..., Path]] = {
        "fetal_align": import_fetal_align,
        "e3pose": import_e3pose,
        "brain_atlas": import_brain_atlas,
    }
    try:
        if options["command"] == "check":
            sys.exit(_check(options["dataset_dir"], options["picture_dir"], options["pictures"]))
        print(importers[options.pop("command")](**options))
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
