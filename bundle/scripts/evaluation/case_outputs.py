"""The files of a case beside its JSON file, one writer each: (path, finding, image) -> None."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from ..files import replacing
from ..reading import Image
from .aligned import align, head_grid, write_aligned
from .drawing import draw_pose
from .mask import label_to_grid, write_mask
from .outputs import ENDINGS, TRANSFORMS
from .record import Finding
from .transform_files import write_transform

Writer = Callable[[Path, Finding, Image], None]


def writers(words: Sequence[str], aligned_mm: float) -> dict[str, Writer]:
    """Writers of the files of a case, in the order of ``words``; json, motion and report are not
    among them."""
    known: dict[str, Writer] = {
        "picture": write_picture,
        "mask": write_brain_mask,
        "aligned": partial(write_aligned_volume, voxel_mm=aligned_mm),
    }
    for word in TRANSFORMS:
        known[word] = partial(write_pose, word=word, voxel_mm=aligned_mm)
    return {word: known[word] for word in words if word in ENDINGS and word != "json"}


def write_picture(path: Path, finding: Finding, image: Image) -> None:
    """The head in its own planes; of a volume without a head the volume's middle."""
    with replacing(path) as part:
        draw_pose(
            part,
            image.values,
            image.affine,
            finding.label,
            finding.label_affine,
            finding.pose,
            finding.title,
            finding.doubt,
        )


def write_brain_mask(path: Path, finding: Finding, image: Image) -> None:
    """The mask on the input's grid, where there is a pose."""
    # without one, what the localizer marked was not taken for a head: no mask may say "brain" of it
    if finding.pose is not None:
        mask = label_to_grid(finding.label, finding.label_affine, image.values.shape, image.affine)
        write_mask(path, mask, image.affine, image.header)


def write_aligned_volume(path: Path, finding: Finding, image: Image, voxel_mm: float) -> None:
    """The volume in the head frame, where there is a pose."""
    if finding.pose is not None:
        values = align(image.values, image.affine, finding.pose, voxel_mm)
        write_aligned(path, values, head_grid(voxel_mm)[1])


def write_pose(path: Path, finding: Finding, image: Image, word: str, voxel_mm: float) -> None:
    """The pose as a transform file, where there is one."""
    if finding.pose is not None:
        write_transform(path, word, finding.pose, image.values.shape, image.affine, voxel_mm)
