"""The localizer's mask on the grid of the input, for viewers and registrations."""

from __future__ import annotations

import itertools
import os
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import affine_transform

from ..files import replacing
from ..labels import BRAIN, EYES


def label_to_grid(
    label: NDArray, label_affine: NDArray, shape: tuple[int, ...], affine: NDArray
) -> NDArray[np.uint8]:
    """A label (x, y, z) of 1 brain, 2 eyes, on another grid of ``shape`` (i, j, k), uint8.

    Each class is interpolated linearly and counts where it is above one half, so that the 4 mm
    voxels of the working grid leave no steps in a finer one; the eyes go before the brain.
    ``affine`` and ``label_affine`` take voxels to the world, mm.
    """
    found = np.zeros(shape, dtype=np.uint8)
    voxel_to_label = np.linalg.inv(label_affine) @ affine
    for value in (BRAIN, EYES):
        inside = np.argwhere(label == value)
        if not len(inside):
            continue
        # only the box around it: a stack may have 50 million voxels
        low, high = inside.min(0) - 1, inside.max(0) + 1
        corners = np.array([[*c, 1] for c in itertools.product(*zip(low, high, strict=True))])
        corners = (corners @ np.linalg.inv(voxel_to_label).T)[:, :3]
        first = np.clip(np.floor(corners.min(0)).astype(int), 0, shape)
        last = np.clip(np.ceil(corners.max(0)).astype(int) + 1, 0, shape)
        if (last <= first).any():
            continue
        part = affine_transform(
            (label == value).astype(np.float32),
            voxel_to_label[:3, :3],
            offset=voxel_to_label[:3, :3] @ first + voxel_to_label[:3, 3],
            output_shape=tuple(last - first),
            order=1,
        )
        box = found[tuple(slice(a, b) for a, b in zip(first, last, strict=True))]
        box[part > 0.5] = value
    return found


def write_mask(
    path: str | os.PathLike[str], mask: NDArray[np.uint8], affine: NDArray, header: Any = None
) -> None:
    """Write ``mask`` (i, j, k) as NIfTI with the geometry of its input.

    Parameters
    ----------
    affine : voxel to world, mm, for an input that has no NIfTI header
    header : the input's NIfTI header, of the same shape: its sform, qform, codes and units are kept
        as they are; what it says besides (descriptions, which may name the patient) is not
    """
    if isinstance(header, nib.Nifti1Header) and header.get_data_shape()[:3] == mask.shape:
        kind = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
        geometry = kind.header_class(endianness="<")
        for field in ("qform_code", "sform_code", "xyzt_units"):
            geometry[field] = header[field]
        for field in ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"):
            geometry[field] = header[field]
        for field in ("srow_x", "srow_y", "srow_z"):
            geometry[field] = header[field]
        geometry.set_data_shape(mask.shape)
        geometry["pixdim"][:4] = header["pixdim"][:4]
        image = kind(mask, None, geometry)
    else:
        image = nib.Nifti1Image(mask, affine)
        image.set_sform(affine, 1)
        image.set_qform(affine, 1)
        image.header.set_xyzt_units("mm")
    image.set_data_dtype(np.uint8)
    with replacing(path) as partial:
        image.to_filename(partial)
