"""Names of classes and statuses, and what a label map has to be."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # MONAI takes seconds to import, and `prescribe` needs only the names
    from monai.data import MetaTensor

BACKGROUND, BRAIN, EYES, UNKNOWN = 0, 1, 2, 255


class Status(StrEnum):
    """What inference says of a volume, as the words that stand in ``<case>_pose.json``.

    >>> import json
    >>> json.dumps({"status": Status.NO_HEAD}), Status("ok").usable, Status.EMPTY.usable
    ('{"status": "no_head"}', True, False)
    """

    OK = "ok"
    UNCERTAIN = "uncertain"  # there is a pose, which may be far off
    NO_HEAD = "no_head"
    UNREADABLE = "unreadable"
    NOT_3D = "not_3d"
    NOT_FINITE = "not_finite"
    EMPTY = "empty"  # without contrast
    FAILED = "failed"  # a defect of this program, or of the machine: the message says which

    @property
    def usable(self) -> bool:
        """Whether the volume could be looked at."""
        return self in (Status.OK, Status.UNCERTAIN, Status.NO_HEAD)


def label_values(twin: bool = False) -> frozenset[int]:
    """Values that a label map may have.

    Of an entry with a ``twin`` 255, unknown, too. Elsewhere not: many programs write masks of 0 and
    255.

    >>> sorted(label_values(twin=True) - label_values())
    [255]
    """
    return frozenset([BACKGROUND, BRAIN, EYES] + [UNKNOWN] * twin)


def check_label(label: MetaTensor, image: MetaTensor, twin: bool = False) -> None:
    """Raise ValueError, naming the file, for a label on another grid or of other `label_values`."""
    name = label.meta.get("filename_or_obj", "label")
    same = label.shape == image.shape and np.allclose(label.affine, image.affine, atol=1e-2)
    if not same:
        raise ValueError(
            f"{name}: the label's grid is not the image's: shapes {tuple(label.shape)} and "
            f"{tuple(image.shape)}, affines {np.asarray(label.affine).tolist()} and "
            f"{np.asarray(image.affine).tolist()}"
        )
    values = label.as_tensor()
    if not np.isin(values.numpy(), list(label_values(twin))).all():
        found = values.unique().tolist()
        raise ValueError(f"{name}: labels must be 0, 1 or 2, got {found}")
