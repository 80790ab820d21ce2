"""Pictures of entries of a data set, in the frame of their poses, to look for what is wrong."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from ..data.dataset_entries import Finding, structure
from ..files import replacing
from ..reading import VolumeError, read_image
from .drawing import draw_pose


def draw_entries(
    dataset_dir: str | os.PathLike[str],
    findings: Sequence[Finding],
    picture_dir: str | os.PathLike[str],
    count: int = 12,
) -> list[Path]:
    """Draw at most ``count`` entries of a data set: those with findings first, then some others.

    Each picture shows the three planes through the head with the label's outline, and its first
    finding. The good ones are taken evenly from all sections. Volumes that cannot be read have no
    picture.
    """
    said: dict[str, str] = {}
    for finding in findings:
        if finding.entry is not None:
            said.setdefault(str(finding.entry["where"]), finding.message)
    entries = {e["where"]: e for es in structure(dataset_dir)[0].values() for e in es}
    bad = [where for where in said if where in entries]
    good = [where for where in entries if where not in said]
    few = max(0, count - len(bad))
    chosen = bad[:count] + [
        good[k] for k in np.linspace(0, len(good) - 1, min(few, len(good))).astype(int)
    ]
    written = []
    for where in chosen:
        entry = entries[where]
        try:
            image = read_image(entry["image"])
            label: Any = nib.load(entry["label"]) if "label" in entry else None
            mask = None if label is None else np.asarray(label.dataobj).reshape(label.shape[:3])
        except (VolumeError, OSError, ValueError):
            continue
        section = where.rpartition(": ")[2]
        name = f"{section} {entry['case']}".replace("/", "_").replace("[", "_").replace("]", "")
        path = Path(picture_dir) / f"{name.replace(' ', '_')[:180]}.png"
        pose = entry["head_to_world"]
        with replacing(path) as partial:
            draw_pose(
                partial,
                image.values,
                image.affine,
                mask,
                None if label is None else label.affine,
                None if pose is None else np.asarray(pose),
                f"{section} {entry['case']}",
                said.get(where, ""),
            )
        written.append(path)
    return written
