"""What a scanner sees: a mother and her fetus in layers that can be imaged at any time and place.

The anatomy is painted once: the mother, at rest, in the world, and the fetus in the frame of its
head. Whoever takes an image lays the fetus, head, trunk and limbs in one piece, where its head is
at that time, over the mother. That is a simplification: a real fetus moves its head against its
trunk and is held by the uterus, and here a large turn may carry limbs through its wall.

World is RAS mm, the head's frame that of docs/conventions.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates

from .contrast import draw_intensities
from .head import paint_head
from .shapes import Canvas, Floats, Grid, WaveField
from .volume import Anatomy

FWHM_PER_SD = math.sqrt(8 * math.log(2))
AROUND_MM, FETUS_MM, HEAD_MM = 3.0, 2.5, 1.0  # voxels of the layers


@dataclass(frozen=True)
class Layer:
    """Signal times the share of a voxel that it fills, and that share; (i, j, k) float32.

    affine (4, 4): voxel to the layer's own frame, mm.
    """

    signal: Floats
    share: Floats | None
    affine: NDArray[np.float64]

    def at(self, points: NDArray[np.float64]) -> tuple[Floats, Floats]:
        """Signal and share at points (..., 3) of the layer's frame, trilinear; 0 outside."""
        inverse = np.linalg.inv(self.affine)
        index = points @ inverse[:3, :3].T + inverse[:3, 3]
        inside = ((index > -1) & (index < self.signal.shape)).all(-1)
        near = index[inside].T
        signal = np.zeros(points.shape[:-1], np.float32)
        signal[inside] = map_coordinates(self.signal, near, order=1, mode="grid-constant")
        if self.share is None:
            return signal, inside.astype(np.float32)
        share = np.zeros_like(signal)
        share[inside] = map_coordinates(self.share, near, order=1, mode="grid-constant")
        return signal, share

    def blurred(self, width_mm: float) -> Layer:
        """As voxels see it that are `width_mm` wide: Gaussians with that full width at half
        maximum, less the layer's own voxels."""
        voxel = np.linalg.norm(self.affine[:3, :3], axis=0)
        sigma = np.sqrt(np.clip(width_mm**2 - voxel**2, 0, None)) / FWHM_PER_SD / voxel
        share = None if self.share is None else gaussian_filter(self.share, sigma, mode="constant")
        return Layer(gaussian_filter(self.signal, sigma, mode="nearest"), share, self.affine)


@dataclass(frozen=True)
class Scene:
    """Everything that can be imaged, and what is true of it.

    `mother` (in the world, or None) and `fetus` (layers in the head's frame, the front one last)
    have one contrast for navigators and one for slices. `head_to_world` (4, 4) is the pose at time
    0, `brain_mm` (n, 3) are points evenly spread over the brain, in the head's frame. `coil` is the
    logarithm of the coils' sensitivity in the world, or None. `white`: the signal that noise is a
    share of.
    """

    mother: tuple[Layer, Layer] | None
    fetus: tuple[list[Layer], list[Layer]]
    head_to_world: NDArray[np.float64]
    brain_mm: NDArray[np.float64]
    coil: WaveField | None
    white: float
    ga_weeks: float


def paint_scene(anatomy: Anatomy, random: np.random.RandomState) -> Scene:
    """The scene of a phantom: T2*-weighted EPI for navigators, T2-weighted for slices."""
    epi, t2 = (draw_intensities(random, contrast) for contrast in ("epi", "t2"))
    coil = WaveField.draw(random, 6, (300.0, 900.0), [random.uniform(0.05, 0.3)])
    around = Grid(*_centred(anatomy.world_from_mother[:3, 3], 240.0, AROUND_MM))
    body = Grid(*_centred(_body_middle(anatomy), _body_reach(anatomy), FETUS_MM))
    middle, radii = anatomy.fetus.head.bounds_mm
    head = Grid(*_centred(middle, np.asarray(radii) + 6, HEAD_MM))
    mothers, fetuses = [], []
    for tissue in (epi, t2):
        mothers.append(_mother(anatomy, tissue, around))
        fetus, brain = _fetus(anatomy, tissue, body, head)
        fetuses.append(fetus)
    return Scene(
        (mothers[0], mothers[1]),
        (fetuses[0], fetuses[1]),
        anatomy.head_to_world,
        inside_mm(brain >= 0.5, head.affine),
        coil,
        1.0,
        anatomy.ga_weeks,
    )


def scene_of_volume(
    image: NDArray, affine: NDArray, brain: NDArray, head_to_world: NDArray, ga_weeks: float
) -> Scene:
    """The scene of a real volume that moves in one piece, the mother with the fetus.

    image, brain (i, j, k): signal, and where the brain is; affine (4, 4) voxel to world;
    head_to_world (4, 4) the pose in the volume. Navigators and slices have the volume's contrast.
    ValueError for a volume without brain.
    """
    if not brain.any():
        raise ValueError("the label shows no brain, so that nothing tells what has to be covered")
    head_from_voxel = np.linalg.inv(head_to_world) @ affine
    layer = Layer(np.clip(image, 0, None).astype(np.float32), None, head_from_voxel)
    white = float(np.median(image[brain]))
    points = inside_mm(brain, head_from_voxel)
    return Scene(None, ([layer], [layer]), head_to_world, points, None, white, ga_weeks)


def inside_mm(mask: NDArray, affine: NDArray) -> NDArray[np.float64]:
    """Centres (n, 3) of a mask's voxels in the frame of its affine (4, 4)."""
    return np.argwhere(mask) @ affine[:3, :3].T + affine[:3, 3]


def _canvas(grid: Grid, ground: float, texture: WaveField) -> Canvas:
    field = texture.on_grid(grid, np.eye(4))[0]
    return Canvas(grid, np.full(grid.shape, ground, np.float32), field)


def _mother(anatomy: Anatomy, tissue: dict[str, float], grid: Grid) -> Layer:
    canvas = _canvas(grid, 0.0, anatomy.texture)
    # her uterus has room for the fetus as it lies at time 0
    fetus = anatomy.fetus, anatomy.head_to_world
    anatomy.mother.paint(canvas, anatomy.world_from_mother, tissue, [fetus])
    return Layer(canvas.value, None, grid.affine)


def _fetus(
    anatomy: Anatomy, tissue: dict[str, float], body: Grid, head: Grid
) -> tuple[list[Layer], Floats]:
    """Body and head in the head's frame, and the share of brain in the voxels of the head."""
    fetus, texture = anatomy.fetus, anatomy.texture
    # what shines through of a white ground and not of a black one is not the body's
    black, white = (_canvas(body, ground, texture) for ground in (0.0, 1.0))
    for canvas in (black, white):
        fetus.paint(canvas, np.eye(4), tissue)
    share = np.clip(1 - (white.value - black.value), 0, 1)
    neck = fetus.body_to_head[:3, 3]
    painted = paint_head(fetus.head, head, np.eye(4), tissue, texture, neck)
    layers = [
        Layer(black.value, share, body.affine),
        Layer(painted.head * painted.value, painted.head, head.affine),
    ]
    return layers, painted.brain


def _centred(
    middle_mm: NDArray, reach_mm: float | NDArray, voxel_mm: float
) -> tuple[NDArray[np.float64], tuple[int, int, int]]:
    """Affine and shape of a grid of cubes that reaches so far to either side of its middle."""
    i, j, k = np.ceil(2 * np.broadcast_to(reach_mm, 3) / voxel_mm).astype(int)
    return centred_grid(middle_mm, np.eye(3) * voxel_mm, (int(i), int(j), int(k)))


def centred_grid(
    middle_mm: NDArray, steps: NDArray, shape: Sequence[int]
) -> tuple[NDArray[np.float64], tuple[int, int, int]]:
    """Affine of a grid of this shape about a middle; the columns of `steps` lead to the next."""
    affine = np.eye(4)
    affine[:3, :3] = steps
    affine[:3, 3] = middle_mm - steps @ ((np.array(shape) - 1) / 2)
    return affine, (shape[0], shape[1], shape[2])


def grid_points(affine: NDArray[np.float64], shape: tuple[int, int, int]) -> NDArray[np.float64]:
    """Voxel centres (i, j, k, 3) in the affine's frame."""
    i, j, k = Grid(affine, shape).ticks(np.eye(4))
    return i[:, None, None] + j[None, :, None] + k[None, None]


def _body_middle(anatomy: Anatomy) -> NDArray[np.float64]:
    """About the middle of head and trunk, in the head's frame."""
    pose = anatomy.fetus.body_to_head
    return pose[:3, 3] - 0.3 * anatomy.fetus.trunk_mm * pose[:3, 2]


def _body_reach(anatomy: Anatomy) -> float:
    """Half the side of a cube that holds the trunk and most of the limbs, mm."""
    return 0.75 * anatomy.fetus.trunk_mm + 25.0
