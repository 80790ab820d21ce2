"""Data sets of synthetic fetal heads with known pose, made where they are needed.

From the bundle's folder:

    python -m scripts.phantom --dataset_dir D --training 128 --validation 16 --test 24 --seed 0
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from .argument_types import numbers, whole_numbers
from .data.dataset_entries import SECTIONS
from .data.phantoms import DEFAULT_COUNTS, embedded_dataset, write_dataset
from .simulation.anatomy import AGE_RANGE_WEEKS
from .simulation.contrast import CONTRASTS
from .simulation.stack import SEQUENCES
from .simulation.volume import Phantom, PhantomGenerator, make_phantom

__all__ = ["Phantom", "PhantomGenerator", "embedded_dataset", "make_phantom", "write_dataset"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of `write_dataset`."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.phantom", description="Make a data set of synthetic fetal heads."
    )
    parser.add_argument("--dataset_dir", required=True)
    for section in SECTIONS:
        parser.add_argument(f"--{section}", type=int, default=DEFAULT_COUNTS[section])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--headless_share", type=float, default=0.05)
    parser.add_argument("--twin_share", type=float, default=0.0)
    parser.add_argument("--ga_weeks", type=numbers, default=AGE_RANGE_WEEKS, help="such as 20,38")
    parser.add_argument("--contrast", choices=CONTRASTS)
    parser.add_argument("--voxel_mm", type=numbers, help="such as 6,6,6; drawn if not given")
    parser.add_argument("--sequence", choices=(*SEQUENCES, "varied"), help="stacks with motion")
    parser.add_argument("--coarsen", type=float, default=1.0, help="factor of the in-plane voxel")
    parser.add_argument(
        "--brain_only", action="store_true", help="cut out along the brain, as reconstructions are"
    )
    parser.add_argument(
        "--brains", metavar="ATLAS", help="folder of the spina bifida atlas: heads with its brains"
    )
    parser.add_argument(
        "--brain_weeks",
        type=whole_numbers,
        default=(),
        help="ages of it that are taken, such as 22,24",
    )
    options = vars(parser.parse_args(arguments))
    if len(options["ga_weeks"]) != 2:
        parser.error("--ga_weeks takes two ages, such as 20,38")
    try:
        print(write_dataset(**options))
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
