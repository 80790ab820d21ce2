"""Fit the expected error of a pose to data sets that the weights were not trained on.

From the bundle's folder:

    python -m scripts.calibrate --fit A B --check C D [--ckpt_file models/model.pt]

prints the weights for ``ROTATION_WEIGHTS`` and ``TRANSLATION_WEIGHTS`` of ``network/search.py``
and, for every data set, the share of the errors within one and two standard deviations. Each data
set counts alike; their "test" sections are taken. Poses of a confidence below 0.6 do not count;
those that the expected error would refuse do.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .data.posed_volumes import posed_volumes
from .evaluation.calibration import WITHIN, Looked, coverage, features_of, fit
from .evaluation.tables import aligned
from .export import declared_network
from .geometry import geodesic_deg, nearer
from .network.chain import PoseChain

ROOT = Path(__file__).parents[1]
# of what looks less like a head the errors follow nothing, and would hide what the others follow
LEAST_CONFIDENCE = 0.6


def look(chain: PoseChain, dataset_dir: str | os.PathLike[str], section: str) -> Looked:
    """Features and errors of every head that is found in a section.

    ValueError, naming the data set, where none is.
    """
    features, degrees, mm = [], [], []
    for volume, true, twin in posed_volumes(dataset_dir, section, chain.spacing_mm):
        if true is None:
            continue
        row, found = features_of(chain, volume)
        pose = found.head_to_grid[0]
        truth = nearer(pose, true, twin)
        if torch.isfinite(pose).all() and found.confidence.item() >= LEAST_CONFIDENCE:
            features.append(row)
            degrees.append(geodesic_deg(pose[:3, :3], truth[:3, :3]).item())
            mm.append((pose[:3, 3] - truth[:3, 3]).norm().item())
    if not features:
        raise ValueError(f"{dataset_dir}: no head is found in its {section} section")
    return Looked(np.array(features), np.array(degrees), np.array(mm))


def calibrate(
    to_fit: Sequence[str | os.PathLike[str]],
    to_check: Sequence[str | os.PathLike[str]] = (),
    section: str = "test",
    ckpt_file: str | os.PathLike[str] = ROOT / "models/model.pt",
) -> tuple[list[list[float]], list[list[str]]]:
    """Weights of rotation and translation, and rows of the table of all data sets."""
    chain = declared_network(ROOT / "configs/inference.json", ckpt_file).plain()
    search: Any = chain.search
    search.max_rotation_sd_deg = 180.0  # the limit is one of what is fitted
    looked = {str(name): look(chain, name, section) for name in (*to_fit, *to_check)}
    fitted = [looked[str(name)] for name in to_fit]
    features = np.concatenate([part.features for part in fitted])
    counts = np.concatenate(
        [np.full(len(part.features), 1 / len(part.features)) for part in fitted]
    )
    weights = [
        fit(features, np.concatenate(errors), counts).round(3).tolist()
        for errors in (
            [part.rotation_deg for part in fitted],
            [part.translation_mm for part in fitted],
        )
    ]
    rows = []
    for name, part in looked.items():
        row = [Path(name).name, str(len(part.features))]
        for which, errors in zip(weights, (part.rotation_deg, part.translation_mm), strict=True):
            row += [f"{100 * share:.0f}" for share in coverage(which, part.features, errors)]
        rows.append(row)
    return weights, rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.calibrate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--fit", nargs="+", required=True, metavar="DATASET_DIR")
    parser.add_argument("--check", nargs="*", default=[], metavar="DATASET_DIR")
    parser.add_argument("--section", default="test")
    parser.add_argument("--ckpt_file", default=ROOT / "models/model.pt")
    options = parser.parse_args(arguments)
    try:
        weights, rows = calibrate(options.fit, options.check, options.section, options.ckpt_file)
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))
    print("ROTATION_WEIGHTS =", tuple(weights[0]))
    print("TRANSLATION_WEIGHTS =", tuple(weights[1]))
    print(f"share of the errors in %; {100 * WITHIN:.0f} and 95 are right")
    title = ["", "n", "1 sd, degrees", "2 sd", "1 sd, mm", "2 sd"]
    print(aligned([title, *rows]))


if __name__ == "__main__":
    main()
