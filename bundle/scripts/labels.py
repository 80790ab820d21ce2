"""Names of classes and statuses, and what a label map has to be."""

from __future__ import annotations

import numpy as np
import torch
from monai.data import MetaTensor

BACKGROUND, BRAIN, EYES, UNKNOWN = 0, 1, 2, 255


def check_label(label: MetaTensor, image: MetaTensor) -> None:
    """Raise ValueError, naming the file, for a label on another grid or not of 0, 1, 2."""
    name = label.meta.get("filename_or_obj", "label")
    same = label.shape == image.shape and np.allclose(label.affine, image.affine, atol=1e-2)
    if not same:
        raise ValueError(
            f"{name}: the label's grid is not the image's: shapes {tuple(label.shape)} and "
            f"{tuple(image.shape)}, affines {np.asarray(label.affine).tolist()} and "
            f"{np.asarray(image.affine).tolist()}"
        )
    values = label.as_tensor()
    known = (values == 0) | (values == 1) | (values == 2)
    if not known.all():
        found = torch.unique(values).tolist()
        raise ValueError(f"{name}: labels must be 0, 1 or 2, got {found}")


USABLE = ("ok", "uncertain", "no_head")  # statuses of volumes that could be looked at
