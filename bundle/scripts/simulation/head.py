"""Paints the fetal head of `anatomy.Head` on a fine grid, tissue by tissue."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from .anatomy import Head
from .atlas import Interior
from .shapes import Block, Floats, Grid, WaveField, capsule, cover, ellipsoid, smooth_union


@dataclass
class HeadImage:
    """float32 (i, j, k) arrays: intensity, share of head, of brain, of right and of left eye."""

    value: Floats
    head: Floats
    brain: Floats
    eyes: tuple[Floats, Floats]


def paint_head(
    head: Head,
    grid: Grid,
    head_from_grid: np.ndarray,
    tissue: Mapping[str, float],
    texture: WaveField,
    neck_end_mm: np.ndarray,
    interior: Interior | None = None,
) -> HeadImage:
    """Intensities and occupancies of a head on a grid.

    Parameters
    ----------
    head_from_grid : (4, 4) rigid, the grid's frame (world) to the head frame, mm.
    tissue : intensity of each tissue of `contrast.TISSUES`.
    texture : one-channel field, unit variance; modulates the brain by 4 %.
    neck_end_mm : (3,) lower end of the neck in the head frame.
    interior : brain of an atlas in place of the one that the head's own shapes make.
    """
    model_from_grid = np.array(head_from_grid)
    model_from_grid[:3, 3] += head.brain_centre_mm
    x, y, z = grid.coordinates(model_from_grid)
    value = np.full(grid.shape, tissue["face"], dtype=np.float32)
    straight = Block(x, y, z, value, grid.width_mm)
    bent = Block(*head.warped(grid, model_from_grid), value, grid.width_mm)
    inner = head.brain(bent.x, bent.y, bent.z)
    eyes = head.eyes_mm + head.brain_centre_mm

    outside = _hull(head, straight, inner, eyes, neck_end_mm + head.brain_centre_mm)
    upper = np.clip((z / head.radii_mm[2] + 0.55) * 4, 0, 1)
    straight.blend(upper, tissue["scalp"])
    _paint_neck(head, straight, tissue, neck_end_mm + head.brain_centre_mm)
    _paint_face(head, straight, tissue, eyes.mean(axis=0))
    # Bone is thin over the vault and thick under the brain.
    bone = head.skull_mm * (1 + 1.5 * (1 - upper) * (y > -0.3 * head.radii_mm[1]))
    straight.paint(inner - bone, tissue["skull"])
    straight.paint(inner, tissue["csf"])
    if interior is None:
        _paint_cerebrum(head, bent, straight, inner, tissue, grid, model_from_grid)
        _paint_centre(head, bent, tissue)
        _paint_below(head, bent, tissue, inner)
    else:
        interior.lay(bent, inner, tissue["csf"])
    # Superior sagittal sinus, under the vault in the midline.
    behind = np.maximum(np.abs(bent.x) - 2.2, -(inner + 3.5))
    behind = np.maximum(behind, -(bent.z + 0.15 * head.radii_mm[2]))
    straight.paint(np.maximum(behind, inner), tissue["vein"])
    brain = cover(inner, grid.width_mm)
    value *= 1 + 0.04 * texture.on_grid(grid, model_from_grid)[0] * brain
    globes = _paint_eyes(head, straight, tissue, eyes)
    return HeadImage(value, cover(outside, grid.width_mm), brain, globes)


def _hull(head: Head, block: Block, inner: Floats, eyes: np.ndarray, neck: np.ndarray) -> Floats:
    """Distance to the skin."""
    x, y, z = block.x, block.y, block.z
    s, (ex, ey, ez) = head.ofd_mm / 100, eyes.mean(axis=0)
    a, b, c = head.radii_mm
    jaw = head.jaw
    skin = ellipsoid(x, y, z, (ex, ey - 16 * s, ez - 6 * s), (30 * s, 23 * s, 22 * s))
    low = ellipsoid(x, y, z, (ex, ey - 13 * s, ez - 24 * s * jaw), (23 * s, 20 * s, 17 * s * jaw))
    skin = smooth_union(skin, low, 8)
    chin = ellipsoid(x, y, z, (ex, ey - 3 * s, ez - 37 * s * jaw), (11 * s, 9 * s, 7 * s))
    skin = smooth_union(skin, chin, 5)
    for offset, radii in (
        ((0, 8.5 * s, -9 * s), (5.5 * s, 6 * s, 7 * s)),  # nose
        ((0, 5.5 * s, -20 * s * jaw), (9 * s, 5 * s, 4.5 * s)),  # lips
    ):
        part = ellipsoid(x, y, z, np.add((ex, ey, ez), offset), radii)
        skin = smooth_union(skin, part, 3)
    lids = np.minimum(*(ellipsoid(x, y, z, e, [head.eye_radius_mm + 2] * 3) for e in eyes))
    skin = smooth_union(skin, lids, 3)
    trunk = capsule(x, y, z, (0, -0.2 * b, -0.9 * c), neck, (0.44 * a, 0.46 * a))
    skin = smooth_union(skin, trunk, 8)
    skin = smooth_union(skin, inner - head.skull_mm - head.scalp_mm, 5)
    wide = 0.97 * a + head.skull_mm + head.scalp_mm
    ears = ellipsoid(np.abs(x), y, z, (wide, -0.10 * b, ez - 4 * s), (2.5, 6 * s, 9 * s))
    return np.minimum(skin, ears)


def _paint_face(head: Head, block: Block, tissue: Mapping[str, float], eye: np.ndarray) -> None:
    """Bones, cavities and muscles of the face, before the skull and the eyes."""
    s, jaw = head.ofd_mm / 100, head.jaw

    def lay(centre: tuple[float, ...], radii: tuple[float, ...], name: str) -> None:
        for side in (1, -1) if centre[0] else (1,):
            place = eye + np.multiply(centre, (side * s, s, s))
            size = np.multiply(radii, s)
            part = block.near(place, size)
            if part is not None:
                part.paint(ellipsoid(part.x, part.y, part.z, place, size), tissue[name])

    lay((0, -16, -6), (17, 20, 9), "skull base")  # ethmoid and sphenoid
    lay((0, -10, -13 * jaw), (16, 12, 6), "fetal bone")  # maxilla
    lay((15, -11, -11), (8, 9, 8), "muscle of face")  # cheeks
    lay((17, -20, -24 * jaw), (5, 10, 9), "muscle of face")  # masseters
    lay((0, -9, -34 * jaw), (16, 13, 5), "fetal bone")  # mandible
    lay((0, -16, -34 * jaw), (11, 13, 6), "face")  # floor of the mouth
    lay((0, -13, -25.5 * jaw), (10.5, 14, 7), "muscle of face")  # tongue
    lay((0, -9, -19 * jaw), (10, 13, 1.8), "oral fluid")  # between tongue and palate
    lay((0, 1, -24 * jaw), (8, 4, 1.5), "oral fluid")
    lay((3.5, -9, -8), (2.2, 13, 5), "nasal cavity")
    lay((0, -29, -20), (6, 3, 14), "oral fluid")  # pharynx
    lay((0, -36, -26), (10, 7, 20), "fetal bone")  # clivus and upper vertebrae


def _paint_neck(head: Head, block: Block, tissue: Mapping[str, float], end: np.ndarray) -> None:
    """Cervical vertebrae, and the spinal cord in its fluid, from the foramen magnum down."""
    a, b, _ = head.radii_mm
    x, y, z = block.x, block.y, block.z
    top = head.stem_ends()[1]
    below = (float(end[0]), float(end[1]) - 0.06 * b, float(end[2]))
    column = capsule(x, y, z, (top[0], top[1] + 0.06 * b, top[2]), end, (0.2 * a, 0.2 * a))
    block.paint(column, tissue["fetal bone"])
    canal = capsule(x, y, z, top, below, (0.15 * a, 0.12 * a))
    block.paint(canal, tissue["cord csf"])
    block.paint(canal + 0.06 * a, tissue["spinal cord"])


def _paint_cerebrum(
    head: Head,
    bent: Block,
    straight: Block,
    inner: Floats,
    tissue: Mapping[str, float],
    grid: Grid,
    model_from_grid: np.ndarray,
) -> None:
    """White matter, subplate and cortex under a folded pial surface."""
    fold = head.folds.on_grid(grid, model_from_grid)[0] if head.sulcus_mm > 0.5 else inner
    pia = head.cerebrum(bent.x, bent.y, bent.z, inner)
    bent.paint(pia, tissue["fissure"])
    pia = np.maximum(pia, -head.clefts(bent.x, bent.y, bent.z, pia, fold))
    bent.paint(pia, tissue["cortex"])
    bent.paint(pia + 2.0, tissue["subplate"])
    bent.paint(pia + 6.0, tissue["white"])


def _paint_centre(head: Head, block: Block, tissue: Mapping[str, float]) -> None:
    """Callosum, septum, deep grey matter, ventricles and the deep veins."""
    a, b, c = head.radii_mm
    box = block.box((0, 0, 0), 0.85 * b + 6)
    if box is None:
        return
    part = block.crop(box)
    x, y, z = part.x, part.y, part.z
    side = np.abs(x)
    arch = np.abs(ellipsoid(x * 0, y, z, (0, 0.0, 0.0), (a, 0.46 * b, 0.34 * c))) - 1.6
    arch = np.maximum(arch, -(z + 0.05 * c))
    part.paint(np.maximum(arch, side - 0.30 * a), tissue["callosum"])
    thalamus = ellipsoid(
        side, y, z, (0.19 * a, -0.08 * b, -0.12 * c), (0.17 * a, 0.20 * b, 0.19 * c)
    )
    basal = ellipsoid(side, y, z, (0.38 * a, 0.15 * b, -0.08 * c), (0.16 * a, 0.26 * b, 0.22 * c))
    part.paint(np.minimum(thalamus, basal), tissue["deep grey"])
    r = head.ventricle_mm
    horns = (
        ((0.15 * a, 0.40 * b, 0.14 * c), (0.17 * a, 0.0, 0.25 * c), (0.6 * r, 0.5 * r)),
        ((0.17 * a, 0.0, 0.25 * c), (0.38 * a, -0.40 * b, 0.06 * c), (0.5 * r, r)),
        ((0.38 * a, -0.40 * b, 0.06 * c), (0.34 * a, -0.70 * b, 0.0), (r, 0.5 * r)),
        ((0.38 * a, -0.40 * b, 0.06 * c), (0.50 * a, -0.02 * b, -0.45 * c), (0.7 * r, 0.4 * r)),
    )
    ventricle = np.minimum.reduce([capsule(side, y, z, *horn) for horn in horns])
    third = ellipsoid(x, y, z, (0, -0.02 * b, -0.22 * c), (1.2, 0.18 * b, 0.18 * c))
    septum = ellipsoid(x, y, z, (0, 0.20 * b, 0.14 * c), (head.septum_mm, 0.22 * b, 0.13 * c))
    part.paint(np.minimum(np.minimum(ventricle, third), septum), tissue["csf"])
    veins = capsule(side, y, z, (1.0, 0.12 * b, 0.13 * c), (0.0, -0.28 * b, 0.10 * c), (1.0, 1.3))
    galen = capsule(x, y, z, (0, -0.28 * b, 0.10 * c), (0, -0.42 * b, 0.0), (1.5, 1.7))
    straight = capsule(x, y, z, (0, -0.42 * b, 0.0), (0, -0.86 * b, -0.18 * c), (1.5, 1.9))
    part.paint(np.minimum(np.minimum(veins, galen), straight), tissue["vein"])


def _paint_below(head: Head, block: Block, tissue: Mapping[str, float], inner: Floats) -> None:
    """Cerebellum, brainstem, fourth ventricle and the top of the spinal cord."""
    a, b, c = head.radii_mm
    f = head.fossa
    box = block.box((0, -0.3 * b, -0.8 * c), 0.9 * c + 6)
    if box is None:
        return
    part = block.crop(box)
    x, y, z = part.x, part.y, part.z
    lobes = ellipsoid(
        np.abs(x),
        y,
        z,
        (0.36 * a * f, -0.41 * b, -0.66 * c),
        (0.44 * a * f, 0.37 * b * f, 0.46 * c * f),
    )
    vermis = ellipsoid(x, y, z, (0, -0.42 * b, -0.62 * c), (0.15 * a, 0.30 * b * f, 0.38 * c * f))
    cerebellum = smooth_union(lobes, vermis, 2.0)
    room = head.posterior_fossa(x, y, z) + 0.6 * head.csf_mm
    part.paint(np.maximum(cerebellum, room), tissue["cerebellum"])
    top, bottom = head.stem_ends()
    stem = capsule(x, y, z, top, bottom, (0.20 * a, 0.10 * a))
    pons = ellipsoid(x, y, z, (0, -0.05 * b, -0.74 * c), (0.22 * a, 0.13 * b, 0.20 * c))
    part.paint(smooth_union(stem, pons, 3.0), tissue["brainstem"])
    fourth = ellipsoid(x, y, z, (0, -0.25 * b, -0.72 * c), (2.8, 0.06 * b + 1, 0.16 * c))
    part.paint(fourth, tissue["csf"])
    part.paint(np.maximum(inner[box], -(inner[box] + 1.0)), tissue["csf"])


def _paint_eyes(
    head: Head, block: Block, tissue: Mapping[str, float], eyes: np.ndarray
) -> tuple[Floats, Floats]:
    """Orbits, globes and lenses; the share of the voxels in the right and in the left globe."""
    shares = []
    r = head.eye_radius_mm
    for side, eye in zip((1, -1), eyes, strict=True):
        share = np.zeros_like(block.value)
        shares.append(share)
        box = block.box(eye, 4 * r)
        if box is None:
            continue
        part = block.crop(box)
        x, y, z = part.x, part.y, part.z
        apex = np.add(eye, (-side * 0.9 * r, -2.6 * r, 0))
        cone = capsule(x, y, z, eye, apex, (1.3 * r, 0.5 * r))
        part.paint(cone, tissue["orbit"])
        globe = ellipsoid(x, y, z, eye, (r, r, r))
        part.paint(globe, tissue["eye"])
        front = np.add(eye, (head.lens_side * 0.3 * r, 0.62 * r, 0))
        part.paint(ellipsoid(x, y, z, front, (0.36 * r, 0.24 * r, 0.36 * r)), tissue["lens"])
        share[box] = cover(globe, block.width_mm)
    return shares[0], shares[1]
