"""Variants of a data set: every volume of a section on another grid, its pose in the world kept.

- ``navigator``: coarse and oblique, with the slab that the last slice left, and noise.
- ``regridded``: the same content, turned and stored left-handed.
- ``headless``: a navigator of what lies beside the head; nothing is to be found in it.
- ``cut``: without the slices at one end that show 15 % of the brain.
- ``distorted``: as EPI at 3 T may show it, shifted, piled up and dark beside air.

From the bundle's folder:

    python -m scripts.variants navigator --dataset_dir D --output_dir V --section test
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from .data.variants import KINDS, write_variant


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of `write_variant`."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.variants", description="Make a variant of a section of a data set."
    )
    parser.add_argument("kind", choices=sorted(KINDS))
    parser.add_argument("--dataset_dir", required=True)
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--section", default="test")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=1, help="variants of every volume")
    parser.add_argument("--voxel_mm", type=float, help="of navigator and headless 6, regridded 3.5")
    try:
        print(write_variant(**vars(parser.parse_args(arguments))))
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
