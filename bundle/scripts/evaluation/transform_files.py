"""The pose as a transform file of other tools, written by nitransforms."""

from __future__ import annotations

import importlib.util
import os

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from ..files import replacing
from .aligned import head_grid

# word of --outputs: name of the format in nitransforms
FORMATS = {"transform": "itk", "fsl": "fsl", "lta": "fs", "afni": "afni"}
PACKAGE = "nitransforms==25.1.0"


def check_available(words: list[str]) -> None:
    """ModuleNotFoundError, with what to do, if one of ``words`` needs nitransforms and it is not
    there."""
    wanted = [word for word in words if word in FORMATS]
    if wanted and importlib.util.find_spec("nitransforms") is None:
        raise ModuleNotFoundError(
            f"--outputs {','.join(wanted)} needs a package that is not here: pip install {PACKAGE}"
        )


def write_transform(
    path: str | os.PathLike[str],
    word: str,
    head_to_world: NDArray,
    shape: tuple[int, ...],
    affine: NDArray,
    voxel_mm: float = 1.0,
) -> None:
    """Write the transform that takes the input onto ``head_grid``, in the format of ``word``.

    ITK and AFNI files hold ``head_to_world``, the map from points of the result to points of the
    input, in LPS mm. FSL's and FreeSurfer's hold its inverse, from input to head: FSL in FLIRT's
    scaled voxels, FreeSurfer in RAS mm. The latter three name or presuppose both grids.

    Parameters
    ----------
    head_to_world : (4, 4), rigid, mm, RAS
    shape, affine : the input's grid (i, j, k) and voxel to world, mm
    voxel_mm : of the aligned volume
    """
    # on need: it takes part of a second to import, and is an extra
    from nitransforms.base import ImageGrid
    from nitransforms.io import get_linear_factory

    side, voxel_to_head = head_grid(voxel_mm)
    head = ImageGrid(_grid((side,) * 3, voxel_to_head))
    moving = ImageGrid(_grid(shape[:3], affine))
    if word == "lta":
        # nitransforms 25.1 writes the matrix from input to head, but names the head's grid as its
        # source; FreeSurfer's source is where the matrix starts
        head, moving = moving, head
    written = get_linear_factory(FORMATS[word], is_array=False).from_ras(
        np.asarray(head_to_world, dtype=float), reference=head, moving=moving
    )
    with replacing(path) as partial:
        partial.write_text(written.to_string())


def _grid(shape: tuple[int, ...], affine: NDArray) -> nib.Nifti1Image:
    """An image that has a grid and takes no memory."""
    return nib.Nifti1Image(np.broadcast_to(np.uint8(0), shape), affine)
