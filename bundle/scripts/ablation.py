"""What each part of the chain contributes, as a table, for any data set with poses.

From the bundle's folder:

    python -m scripts.ablation --dataset_dir D [--section test] [--plain_cnn P/model.pt]

Volumes are looked at by the shipped chain, then with stand-ins for the first pose (the plain CNN of
``configs/plain_cnn.json``, a random rotation, the identity), with and without landmarks, and with
single steps left out. A head that is not found counts as 180 degrees and infinitely many mm.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from monai.bundle import ConfigParser
from torch import nn

from .data.posed_volumes import posed_volumes
from .evaluation.ablation import Variant, changes
from .evaluation.drawing import LARGE_ERROR_DEG
from .evaluation.tables import aligned, quantile
from .export import declared_network
from .files import write_text
from .weight_files import part_of, read_weights

ROOT = Path(__file__).parents[1]
TITLE = ("", "cubes", "n", "median", "quartiles", "above 30", "refused", "mm", "headless, given")


def trained_rotation(ckpt_file: str | os.PathLike[str]) -> nn.Module:
    """The network of ``configs/plain_cnn.json`` with the rotation's weights of a model.pt."""
    parser = ConfigParser()
    parser.read_config([str(ROOT / f"configs/{name}.json") for name in ("inference", "plain_cnn")])
    network: nn.Module = parser.get_parsed_content("network_def").rotation
    network.load_state_dict(part_of(read_weights(ckpt_file), "rotation"))
    return network.eval()


def run(
    dataset_dir: str | os.PathLike[str],
    section: str = "test",
    config_file: str | os.PathLike[str] = ROOT / "configs/inference.json",
    ckpt_file: str | os.PathLike[str] = ROOT / "models/model.pt",
    plain_cnn: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> dict[str, Variant]:
    """Variants by name after they have looked at every volume of a section.

    FileNotFoundError and ValueError, naming the file, for data or weights that cannot be used.
    """
    network = declared_network(config_file, ckpt_file)
    chain = network.plain()
    other = None if plain_cnn is None else trained_rotation(plain_cnn)
    variants = {name: Variant(chain, change) for name, change in changes(other).items()}
    for volume, pose, twin in posed_volumes(dataset_dir, section, chain.spacing_mm, progress):
        for variant in variants.values():
            variant.look(volume, pose, twin)
    return variants


def rows(variants: Mapping[str, Variant]) -> list[list[str]]:
    """The table's rows below its title."""
    found = []
    for name, variant in variants.items():
        row = [name, f"{np.median(variant.cubes):.0f}", str(len(variant.errors))]
        if variant.errors:
            angles, distances = np.array(variant.errors).T
            low, middle, high = (quantile(angles, share) for share in (0.25, 0.5, 0.75))
            row += [
                f"{middle:.1f}",
                f"{low:.1f} - {high:.1f}",
                str(int((angles > LARGE_ERROR_DEG).sum())),
                str(int(np.isinf(distances).sum())),
                f"{quantile(distances, 0.5):.1f}",
            ]
        else:
            row += ["-"] * 5
        headless = variant.headless
        found.append([*row, f"{sum(headless)} of {len(headless)}" if headless else "-"])
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.ablation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--dataset_dir", required=True)
    parser.add_argument("--section", default="test")
    parser.add_argument("--ckpt_file", default=ROOT / "models/model.pt")
    parser.add_argument("--plain_cnn", help="model.pt trained with configs/plain_cnn.json")
    parser.add_argument("--csv", help="file for the table")
    options = vars(parser.parse_args(arguments))
    path = options.pop("csv")
    try:
        table = rows(run(**options))
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))
    print(aligned([list(TITLE), *table]))
    if path:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([TITLE, *table])
        write_text(path, text.getvalue())


if __name__ == "__main__":
    main()
