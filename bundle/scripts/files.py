"""Files that are there whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np


def partial_path(path: str | os.PathLike[str]) -> Path:
    """Name to write under before ``os.replace`` makes the file appear; same suffix, same folder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f".{os.getpid()}_{path.name}")


def relative_path(path: str | os.PathLike[str], folder: str | os.PathLike[str]) -> str:
    """``path`` as seen from ``folder``, right also where either is reached through a link."""
    # ".." leads out of what a link points to; a file that is a link keeps its own name
    path = Path(path)
    return os.path.relpath(
        Path(os.path.realpath(path.parent)) / path.name, os.path.realpath(folder)
    )


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file through a temporary name; an interruption leaves the old one as it was."""
    partial = partial_path(path)
    partial.write_text(text)
    os.replace(partial, path)


def json_text(content: Any) -> str:
    """``content`` as the bundle's data sets and configs are written."""
    return json.dumps(content, indent=1) + "\n"


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write JSON unless it is there already: a finished data set may be read-only."""
    path, text = Path(path), json_text(content)
    if not path.exists() or path.read_text() != text:
        write_text(path, text)


def write_nifti(path: str | os.PathLike[str], values: np.ndarray, affine: np.ndarray) -> None:
    """Write a volume (i, j, k) in mm through a temporary name; gzip level 1, nibabel's default."""
    partial = partial_path(path)
    image = nib.Nifti1Image(values, affine)
    image.header.set_xyzt_units("mm")
    image.to_filename(partial)
    os.replace(partial, path)
