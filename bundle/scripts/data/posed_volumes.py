"""Volumes of a data set as the chain takes them, with the poses that it should find."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor
from tqdm import tqdm

from .datalists import datalist
from .transforms import HeadToGridd
from .volumes import LoadVolumed, ToWorkingGridd


class PosedVolume(NamedTuple):
    """One volume on the working grid.

    volume : (1, 1, x, y, z)
    head_to_grid : (4, 4) float32, mm; None for a volume without a head
    twin_to_grid : that of a second head, NaN where there is none
    """

    volume: Tensor
    head_to_grid: Tensor | None
    twin_to_grid: Tensor


def posed_volumes(
    dataset_dir: str | os.PathLike[str], section: str, spacing_mm: float, progress: bool = True
) -> Iterator[PosedVolume]:
    """Every volume of a section, read when it is asked for.

    FileNotFoundError and ValueError, naming the file, for data that cannot be used; ValueError also
    for an empty section.
    """
    load = LoadVolumed("image")
    to_grid = ToWorkingGridd(label_key=None, spacing_mm=spacing_mm)
    with_pose = HeadToGridd(spacing_mm=spacing_mm)
    entries = datalist(dataset_dir, section)
    if not entries:
        raise ValueError(f"{dataset_dir}: no {section} volumes")
    for entry in tqdm(entries, desc=str(dataset_dir), unit="volume", disable=not progress):
        item = with_pose(to_grid(load(entry)))
        # a head that lies outside the volume is one too, which `has_head` does not count
        pose = None if entry["head_to_world"] is None else item["head_to_grid"]
        yield PosedVolume(item["image"].as_tensor()[None], pose, item["twin_to_grid"])
