"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A hidden name to write under, beside ``path`` and of its suffix, which then becomes ``path``.

    Nothing is left under it where that fails or is interrupted, and a ``path`` that is there stays
    as it was. The folder is made if need be.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with replacing(f"{folder}/new/mask.nii.gz") as partial:
    ...         size = partial.write_bytes(b"the mask")
    ...     [file.name for file in partial.parent.iterdir()]
    ['mask.nii.gz']
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # the end of the name, for writers that go by the suffix; a name may be too long to add to it
    partial = path.with_name(f".{secrets.token_hex(4)}_{path.name[-32:]}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def relative_path(path: str | os.PathLike[str], folder: str | os.PathLike[str]) -> str:
    """``path`` as seen from ``folder``, right also where either is reached through a link."""
    # ".." leads out of what a link points to; a file that is a link keeps its own name
    path = Path(path)
    return os.path.relpath(
        Path(os.path.realpath(path.parent)) / path.name, os.path.realpath(folder)
    )


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file, whole or not at all."""
    with replacing(path) as partial:
        partial.write_text(text)


def write_tensors(content: Any, path: str | os.PathLike[str]) -> None:
    """``torch.save`` of tensors and plain values, whole or not at all."""
    with replacing(path) as partial:
        torch.save(content, partial)


def json_text(content: Any) -> str:
    """``content`` as the bundle's data sets and configs are written."""
    return json.dumps(content, indent=1) + "\n"


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write JSON unless it is there already: a finished data set may be read-only."""
    path, text = Path(path), json_text(content)
    if not path.exists() or path.read_text() != text:
        write_text(path, text)


def write_nifti(path: str | os.PathLike[str], values: np.ndarray, affine: np.ndarray) -> None:
    """Write a volume (i, j, k) in mm, whole or not at all; gzip level 1, nibabel's default."""
    image = nib.Nifti1Image(values, affine)
    image.header.set_xyzt_units("mm")
    with replacing(path) as partial:
        image.to_filename(partial)
