"""Geometry of ISMRMRD images: headers to voxel-to-world matrices, and volumes to images.

An image's data is (channel, z, y, x); x runs along read_dir, y along phase_dir, z along slice_dir,
all in patient coordinates (LPS), mm. ``position`` is the middle of the image: of n voxels along an
axis of the field of view f, number i lies (i - (n - 1) / 2) f / n from it. Volumes here are
(i, j, k) = (x, y, z), as nibabel has them, with matrices into its world (RAS, mm).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from ismrmrd.image import Image, ImageHeader
from numpy.typing import ArrayLike, NDArray

from .patient import world_to_patient

Matrix = NDArray[np.float64]

TYPES = (1, 2, 3, 4, 5, 6, 7, 8)  # of ISMRMRD: u/int16, u/int32, float32, float64, complex64, 128
MAX_VOXELS = 2**24  # 256^3, twenty times a navigator
MAX_CHANNEL = 1


class ImageRefused(ValueError):
    """An image that no navigator can be made of; the message says why."""


def check_header(header: ImageHeader) -> None:
    """Raise ImageRefused for sizes, types or geometry that cannot be meant or are not handled."""
    size = tuple(header.matrix_size)
    if header.data_type not in TYPES:
        raise ImageRefused(f"data type {header.data_type} is none of ISMRMRD's {TYPES}")
    if header.channels > MAX_CHANNEL:
        raise ImageRefused(
            f"{header.channels} channels: combine the coils before sending (magnitude or complex)"
        )
    if min(size) < 1 or header.channels < 1 or math.prod(size) > MAX_VOXELS:
        raise ImageRefused(f"matrix size {size}, {header.channels} channels: not a navigator")
    image_affine(header)


def image_affine(header: ImageHeader) -> Matrix:
    """Voxel-to-world matrix (4, 4) of an image, RAS mm.

    Raises ImageRefused for a field of view that is not positive, and directions that are no
    right angles apart. They may be left-handed.
    """
    fov = np.array(header.field_of_view, dtype=np.float64)
    axes = np.array([header.read_dir, header.phase_dir, header.slice_dir], dtype=np.float64).T
    centre = np.array(header.position, dtype=np.float64)
    if not np.isfinite([*fov, *axes.ravel(), *centre]).all() or (fov <= 0).any():
        raise ImageRefused(f"field of view {fov.tolist()} mm at {centre.tolist()}: no geometry")
    if not np.allclose(axes.T @ axes, np.eye(3), atol=1e-2):
        raise ImageRefused(f"read, phase and slice directions {axes.T.tolist()}: not orthonormal")
    size = np.array(header.matrix_size, dtype=np.float64)
    affine = np.eye(4)
    affine[:3, :3] = axes * (fov / size)
    affine[:3, 3] = centre - affine[:3, :3] @ (size - 1) / 2
    return world_to_patient(affine)  # LPS to RAS is the same step as back


def image_values(image: Image) -> NDArray[np.float32]:
    """Values (i, j, k) of an image of one channel; the magnitude of complex ones."""
    values = np.asarray(image.data)[0].transpose(2, 1, 0)
    if np.iscomplexobj(values):
        values = np.abs(values)
    return np.ascontiguousarray(values, dtype=np.float32)


def volume_image(values: NDArray, affine: ArrayLike, **header: Any) -> Image:
    """An ISMRMRD image of a volume (i, j, k) with its voxel-to-world matrix, of the same type.

    Other fields of the header are given by name, such as ``repetition=3``. ValueError for a matrix
    that shears, which the header cannot say.
    """
    patient = world_to_patient(affine)
    size_mm = np.linalg.norm(patient[:3, :3], axis=0)
    axes = patient[:3, :3] / size_mm
    if not np.allclose(axes.T @ axes, np.eye(3), atol=1e-3):
        raise ValueError(f"an affine that shears has no ISMRMRD header: {patient.tolist()}")
    shape = np.array(values.shape)
    if values.dtype == np.int64 or values.dtype not in (
        np.uint16, np.int16, np.uint32, np.float32, np.float64, np.complex64, np.complex128,
    ):  # fmt: skip
        values = values.astype(np.float32)
    image = Image.from_array(
        np.ascontiguousarray(values.transpose(2, 1, 0)[None]),
        transpose=False,
        field_of_view=tuple(size_mm * shape),
        position=tuple(patient[:3, :3] @ (shape - 1) / 2 + patient[:3, 3]),
        read_dir=tuple(axes[:, 0]),
        phase_dir=tuple(axes[:, 1]),
        slice_dir=tuple(axes[:, 2]),
        **header,
    )
    return image


def slice_images(values: NDArray, affine: ArrayLike, **header: Any) -> list[Image]:
    """The slices along k of a volume, each an image of its own, numbered by ``slice``."""
    affine = np.asarray(affine, dtype=np.float64)
    found = []
    for k in range(values.shape[2]):
        there = affine.copy()
        there[:3, 3] = affine[:3, :3] @ [0, 0, k] + affine[:3, 3]
        found.append(volume_image(values[:, :, k : k + 1], there, slice=k, **header))
    return found
