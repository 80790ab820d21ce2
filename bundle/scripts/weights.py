"""Weights of others as a model.pt of this bundle, and the config that declares their network.

From the bundle's folder:

    python -m scripts.weights e3pose --rotation R.pth --localizer U.ckpt --output_dir O
    python -m monai.bundle run --config_file "['configs/inference.json','O/e3pose.json']" ...
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from .e3pose.checkpoints import import_e3pose


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of the importers of weights."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.weights",
        description="Import trained weights of others: model.pt, and the config of their network.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    e3pose = commands.add_parser(
        "e3pose",
        help="E(3)-CNN and U-Net of the authors of E(3)-Pose",
        description="Both files are needed: neither network makes a pose alone.",
    )
    e3pose.add_argument("--rotation", required=True, help=".pth of the E(3)-CNN")
    e3pose.add_argument("--localizer", required=True, help=".ckpt of the U-Net")
    e3pose.add_argument("--output_dir", required=True, help="folder to write to")
    e3pose.add_argument(
        "--spacing_mm", type=float, default=3.0, help="voxels that the localizer was trained on"
    )
    e3pose.add_argument(
        "--crop_size", type=int, default=64, help="voxels along the rotation's training crops"
    )
    e3pose.add_argument("--canonical_axes", default="RAS", help="orientation code, such as LPS")
    e3pose.add_argument(
        "--skip_objects", action="store_true", help="pass over pickled objects beside the tensors"
    )
    options = vars(parser.parse_args(arguments))
    del options["command"]
    try:
        print(import_e3pose(**options))
    except (ValueError, OSError) as error:
        e3pose.error(str(error))


if __name__ == "__main__":
    main()
