"""From a field of axes to the head's frame."""

# no "from __future__ import annotations": TorchScript reads annotations of classes as types

import torch
from torch import Tensor

from ..geometry import top_eigenvector


def pool_axes(field: Tensor) -> tuple[Tensor, Tensor]:
    """Axes (batch, 3, 3) and confidence (batch,) of a field (batch, 3, 3, s, s, s).

    e_x is the top eigenvector of the sum of v v^T over the voxels: blind to sign, and every voxel
    counts. e_y and e_z are the sums of v. Longer vectors count more; the loss trains their length
    through the same sums, so the network learns where to look. The confidence in [0, 1] is the
    smallest of the eigenvalue gap, as a share of the trace, and the lengths of the two sums, as
    shares of the sums of lengths: 1 where all voxels agree, about 0 without a preferred frame.
    """
    tiny = 1e-37  # above the smallest float32, so that a field of zeros stays finite
    vectors = field.flatten(3)
    moment = vectors[:, 0] @ vectors[:, 0].mT
    trace = moment.diagonal(dim1=-2, dim2=-1).sum(-1).clamp(min=tiny)
    moment = moment / trace[:, None, None]
    top = top_eigenvector(moment)
    others = vectors[:, 1:].sum(-1)
    axes = torch.cat([top.unsqueeze(1), others], dim=1)
    # the second eigenvalue from the sum, and the sum of squares, of all three
    first = (top * (moment @ top.unsqueeze(-1)).squeeze(-1)).sum(-1)
    rest = moment.diagonal(dim1=-2, dim2=-1).sum(-1) - first
    squares = moment.square().sum((-2, -1)) - first.square()
    second = (rest + (2 * squares - rest.square()).clamp(min=0).sqrt()) / 2
    gap = first - second
    lengths = torch.linalg.vector_norm(vectors[:, 1:], dim=2).sum(-1)
    agreement = torch.linalg.vector_norm(others, dim=-1) / lengths.clamp(min=tiny)
    confidence = torch.cat([gap.unsqueeze(1), agreement], dim=1).amin(1)
    return axes, confidence.clamp(0, 1)
