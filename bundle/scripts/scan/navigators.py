"""Navigators from the images of a session: whole volumes, or slices of one repetition."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ismrmrd.image import Image
from numpy.typing import NDArray

from .mrd_images import ImageRefused, image_affine, image_values

Matrix = NDArray[np.float64]

SPACING_MM = 0.1  # by which the places of slices may differ from equal steps


@dataclass(frozen=True)
class Navigator:
    """One volume to answer, numbered from 0 in its session.

    values (i, j, k) float32; affine (4, 4), voxel to world (RAS mm); received_s by the service's
    clock, when the last byte was there; stamp, the acquisition time stamp of the scanner.
    """

    number: int
    values: NDArray[np.float32]
    affine: Matrix
    received_s: float
    stamp: int

    @property
    def centre_mm(self) -> Matrix:
        """Middle (3,) of the field of view in the world."""
        return self.affine[:3, :3] @ (np.array(self.values.shape) - 1) / 2 + self.affine[:3, 3]


class Assembler:
    """Collects slices until a navigator is complete.

    slices : of one navigator; None where only whole volumes are expected
    """

    def __init__(self, slices: int | None = None) -> None:
        self.slices = slices
        self._parts: dict[int, Image] = {}
        self._repetition: int | None = None

    def add(self, image: Image) -> tuple[NDArray[np.float32], Matrix, int] | None:
        """Values, affine and time stamp of a navigator once it is complete, else None.

        Raises ImageRefused where slices do not belong together, and for an incomplete navigator
        when the next repetition begins; the image that began it is kept.
        """
        head = image.getHead()
        if head.matrix_size[2] > 1:
            return image_values(image), image_affine(head), int(head.acquisition_time_stamp)
        if self.slices is None or self.slices < 2:
            raise ImageRefused(
                "a single slice, and the number of a navigator's slices is not known: say "
                "navigator_slices in the configuration, or encodingLimits.slice in the header"
            )
        left = None
        if self._parts and head.repetition != self._repetition:
            left = (
                f"repetition {self._repetition} ended with {len(self._parts)} of {self.slices} "
                "slices"
            )
            self._parts = {}
        self._repetition = int(head.repetition)
        self._parts[int(head.slice)] = image
        if left:
            raise ImageRefused(left)
        if len(self._parts) < self.slices:
            return None
        parts, self._parts = list(self._parts.values()), {}
        return stacked(parts)


def stacked(images: list[Image]) -> tuple[NDArray[np.float32], Matrix, int]:
    """One volume of parallel slices in equal steps, in any order; its affine and time stamp.

    Raises ImageRefused for other slices.
    """
    affines = [image_affine(image.getHead()) for image in images]
    first = affines[0]
    if any(image.matrix_size != images[0].matrix_size for image in images) or any(
        not np.allclose(affine[:3, :2], first[:3, :2], atol=1e-3) for affine in affines
    ):
        raise ImageRefused("slices of one navigator differ in size or direction")
    normal = np.cross(first[:3, 0], first[:3, 1])
    normal /= np.linalg.norm(normal)
    order = np.argsort([normal @ affine[:3, 3] for affine in affines])
    origins = np.array([affines[k][:3, 3] for k in order])
    step = (origins[-1] - origins[0]) / (len(images) - 1)
    ideal = origins[0] + np.arange(len(images))[:, None] * step
    if np.abs(origins - ideal).max() > SPACING_MM or np.linalg.norm(step) < SPACING_MM:
        raise ImageRefused(f"slices of one navigator are not in equal steps: {origins.tolist()}")
    affine = first.copy()
    affine[:3, 2], affine[:3, 3] = step, origins[0]
    values = np.concatenate([image_values(images[k]) for k in order], axis=2)
    return values, affine, max(int(image.getHead().acquisition_time_stamp) for image in images)
