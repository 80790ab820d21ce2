"""Batches of inference: volumes of any sizes together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def collate_cases(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Items of ``CaseDataset`` as one batch: lists, but for ``image`` and ``affine``.

    Images (1, x, y, z) are padded with zeros behind their last voxels to the largest size, where
    the affines stay true, and stacked. Zeros are the padding that ``ToWorkingGridd`` knows.

    >>> items = [{"case": c, "image": torch.ones(1, n, 2, 2), "affine": torch.eye(4)}
    ...          for c, n in (("a", 2), ("b", 3))]
    >>> batch = collate_cases(items)
    >>> batch["case"], tuple(batch["image"].shape), batch["image"][0].sum().item()
    (['a', 'b'], (2, 1, 3, 2, 2), 8.0)
    """
    batch: dict[str, Any] = {key: [item[key] for item in items] for key in items[0]}
    size = torch.tensor([image.shape for image in batch["image"]]).amax(0).tolist()
    images = batch["image"][0].new_zeros(len(items), *size)
    for padded, image in zip(images, batch["image"], strict=True):
        padded[:, : image.shape[1], : image.shape[2], : image.shape[3]] = image
    batch["image"], batch["affine"] = images, torch.stack(batch["affine"])
    return batch
