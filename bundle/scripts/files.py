"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import nibabel as nib
import numpy as np


def partial_path(path: str | os.PathLike[str]) -> Path:
    """Name to write under before ``os.replace`` makes the file appear; same suffix, same folder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f".{os.getpid()}_{path.name}")


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file through a temporary name; an interruption leaves the old one as it was."""
    partial = partial_path(path)
    partial.write_text(text)
    os.replace(partial, path)


def write_nifti(path: str | os.PathLike[str], values: np.ndarray, affine: np.ndarray) -> None:
    """Write a volume (i, j, k) in mm through a temporary name; gzip level 1, nibabel's default."""
    partial = partial_path(path)
    image = nib.Nifti1Image(values, affine)
    image.header.set_xyzt_units("mm")
    image.to_filename(partial)
    os.replace(partial, path)
