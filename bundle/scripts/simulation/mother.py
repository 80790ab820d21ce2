"""Uterus, amniotic fluid, placenta, umbilical cord, and the mother's body around them.

Mother frame: origin at the uterus's centre, +x the mother's right, +y anterior, +z superior, mm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .fetus import Fetus, rotation
from .shapes import Block, Box, Canvas, Floats, WaveField, capsule, cover, ellipsoid, smooth_union


@dataclass
class Mother:
    """Parameters of one mother; lengths in mm, points in the mother frame."""

    uterus_radii_mm: np.ndarray
    uterus_turn: np.ndarray
    wall_mm: float
    margin_mm: float
    placenta_axis: np.ndarray
    placenta_mm: float
    placenta_spread: float
    half_width_mm: float
    half_depth_mm: float
    fat_mm: float
    muscle_mm: float
    bladder_mm: np.ndarray
    loops: list[tuple[np.ndarray, np.ndarray, float]]
    cord: np.ndarray
    cord_mm: float
    warp: WaveField

    @classmethod
    def draw(cls, random: np.random.RandomState, ga_weeks: float) -> Mother:
        """Random mother of a pregnancy of this age; ranges are uniform, in mm."""
        # The fundal height in cm is about the age in weeks.
        length = 10 * ga_weeks * random.uniform(0.30, 0.90) / 2 + 10
        radii = length * np.array([random.uniform(0.62, 0.85), random.uniform(0.55, 0.72), 1.0])
        # Leaning by a normal angle of deviation 12 degrees about each axis.
        lean = [rotation(axis, random.normal(scale=12)) for axis in range(3)]
        fat, muscle = random.uniform(8, 40), random.uniform(6, 12)
        wall = random.uniform(4, 11)
        loops = []
        for _ in range(int(random.randint(14, 26))):
            place = random.normal(size=3)
            place /= np.linalg.norm(place)
            place = place * (radii + random.uniform(12, 45))
            place[1] = min(place[1], 0.6 * radii[1])
            loops.append((place, random.uniform(8, 30, size=3), float(random.uniform())))
        axis = random.normal(size=3)
        steps = random.normal(size=(16, 3)) * [9, 9, 9] + random.normal(size=3) * 7
        cord = np.cumsum(steps, axis=0)
        cord += random.normal(size=3) * radii * 0.4 - cord.mean(axis=0)
        return cls(
            uterus_radii_mm=radii,
            uterus_turn=lean[0] @ lean[1] @ lean[2],
            wall_mm=wall,
            margin_mm=12 * random.uniform() ** 2,  # fluid between the fetus and the wall at least
            placenta_axis=axis / np.linalg.norm(axis),
            placenta_mm=random.uniform(18, 45),
            placenta_spread=random.uniform(0.15, 0.65),  # cosine of its angular radius
            half_width_mm=float(radii[0]) + random.uniform(35, 80) + fat,
            half_depth_mm=(2 * float(radii[1]) + wall + muscle + fat + random.uniform(95, 140)) / 2,
            fat_mm=fat,
            muscle_mm=muscle,
            bladder_mm=random.uniform(8, 38, size=3),
            loops=loops,
            cord=cord,
            cord_mm=random.uniform(5, 9),
            # Lumpy shapes: displacement of deviation 2..7 mm.
            warp=WaveField.draw(random, 8, (70, 220), [random.uniform(2, 7)]),
        )

    def paint(
        self,
        canvas: Canvas,
        world_from_mother: np.ndarray,
        tissue: Mapping[str, float],
        fetuses: Sequence[tuple[Fetus, np.ndarray]],
    ) -> None:
        """Lay the mother and her uterus on the canvas.

        `fetuses`: each with its world_from_head; the uterus makes room for them.
        """
        lumps = self.warp.on_grid(canvas.grid, np.linalg.inv(world_from_mother))[0]
        pose = np.array(world_from_mother)
        pose[:3, :3] = pose[:3, :3] @ self.uterus_turn
        box = self._uterus_box(canvas, pose, fetuses)
        inner = canvas.in_box(pose, box)
        cavity = ellipsoid(inner.x, inner.y, inner.z, (0, 0, 0), self.uterus_radii_mm)
        cavity += lumps[box]
        for fetus in fetuses:
            cavity = smooth_union(cavity, self._room(canvas, box, fetus), 15.0)

        block = canvas.in_box(world_from_mother)
        front = float(self.uterus_radii_mm[1]) + self.wall_mm + self.muscle_mm + self.fat_mm
        middle = front - self.half_depth_mm
        skin = self._skin(block.x, block.y - middle, block.z) + 0.6 * lumps
        # The belly bulges where the uterus needs the room.
        around = self.wall_mm + self.muscle_mm + self.fat_mm
        skin[box] = smooth_union(skin[box], cavity - around, 40.0)
        block.value[...] = 0.0
        block.blend(cover(skin, block.width_mm), tissue["skin"])
        block.paint(skin + 2.5, tissue["fat"], 0.15)
        block.paint(skin + self.fat_mm, tissue["muscle"], 0.25)
        block.paint(skin + self.fat_mm + self.muscle_mm, tissue["viscera"], 0.45)
        self._paint_organs(canvas, world_from_mother, tissue, middle - self.half_depth_mm)
        self._paint_uterus(canvas, inner, pose, tissue, cavity)

    def _uterus_box(
        self,
        canvas: Canvas,
        world_from_uterus: np.ndarray,
        fetuses: Sequence[tuple[Fetus, np.ndarray]],
    ) -> Box:
        """Index box around the uterus with the fetuses in it, and what bulges over it."""
        grid, margin = canvas.grid, 50.0
        radii = self.uterus_radii_mm + margin
        boxes = [grid.box(world_from_uterus[:3, 3], world_from_uterus[:3, :3] * radii)]
        for body, world_from_head in fetuses:
            low = body.body_to_head[:3, 3] - body.body_to_head[:3, 2] * 0.5 * body.trunk_mm
            waist = world_from_head[:3, :3] @ low + world_from_head[:3, 3]
            boxes += [
                grid.box(waist, 0.6 * body.trunk_mm + margin),
                grid.box(world_from_head[:3, 3], 0.6 * body.head.ofd_mm + margin),
            ]
        met = [box for box in boxes if box is not None]
        if not met:
            return slice(0, 0), slice(0, 0), slice(0, 0)
        i, j, k = (
            slice(min(b[axis].start for b in met), max(b[axis].stop for b in met))
            for axis in range(3)
        )
        return i, j, k

    def _skin(self, x: Floats, y: Floats, z: Floats) -> Floats:
        """Distance to an elliptical trunk that narrows away from the uterus, mm."""
        u, v = x * (1 / self.half_width_mm), y * (1 / self.half_depth_mm)
        size = np.sqrt(u * u + v * v) * (1 + (z * (1 / 420)) ** 2)
        return (size - 1) * min(self.half_width_mm, self.half_depth_mm)

    def _paint_organs(
        self,
        canvas: Canvas,
        world_from_mother: np.ndarray,
        tissue: Mapping[str, float],
        back_mm: float,
    ) -> None:
        """Spine, muscles beside it, kidneys, bowel loops and bladder; `back_mm`: the back's y."""
        _, ry, rz = (float(r) for r in self.uterus_radii_mm)
        spine = back_mm + self.fat_mm + 62
        for centre, radii, name, texture in (
            ((48.0, spine + 4, -60.0), (24.0, 24.0, 150.0), "muscle", 0.2),
            ((-48.0, spine + 4, -60.0), (24.0, 24.0, 150.0), "muscle", 0.2),
            ((40.0, spine - 38, 0.0), (32.0, 20.0, 260.0), "muscle", 0.3),
            ((-40.0, spine - 38, 0.0), (32.0, 20.0, 260.0), "muscle", 0.3),
            ((75.0, spine + 2, 110.0), (26.0, 22.0, 50.0), "organ", 0.1),
            ((-75.0, spine + 2, 120.0), (26.0, 22.0, 50.0), "organ", 0.1),
            ((80.0, spine + 70, rz + 85), (85.0, 75.0, 70.0), "organ", 0.1),
        ):
            block = canvas.block(world_from_mother, centre, radii)
            if block is not None:
                shape = ellipsoid(block.x, block.y, block.z, centre, radii)
                block.paint(shape, tissue[name], texture)
        for place, size, draw in self.loops:
            block = canvas.block(world_from_mother, place, size)
            if block is not None:
                low, high = np.log(tissue["bowel low"]), np.log(tissue["bowel high"])
                shape = ellipsoid(block.x, block.y, block.z, place, size)
                block.paint(shape, float(np.exp(low + draw * (high - low))), 0.3)
        block = canvas.block(world_from_mother, (0, spine - 10, 0), (40.0, 60.0, 1500.0))
        if block is not None:
            x, y, z = block.x, block.y - spine, block.z
            # Vertebral bodies every 34 mm, with discs between.
            bodies = np.sqrt(x * x + y * y) - 21 + 4 * np.cos(z * np.float32(2 * np.pi / 34))
            block.paint(bodies, tissue["vertebra"], 0.1)
            canal = np.sqrt(x * x + (y + 30) * (y + 30)) - 8
            block.paint(canal, tissue["cord csf"])
        bladder = (0.0, 0.35 * ry, -rz - 4.0)
        block = canvas.block(world_from_mother, bladder, self.bladder_mm + 5)
        if block is not None:
            shape = ellipsoid(block.x, block.y, block.z, bladder, self.bladder_mm)
            block.paint(shape - 4, tissue["muscle"])
            block.paint(shape, tissue["urine"])

    def _paint_uterus(
        self,
        canvas: Canvas,
        block: Block,
        pose: np.ndarray,
        tissue: Mapping[str, float],
        cavity: Floats,
    ) -> None:
        """Wall, fluid, placenta and cord; `pose`: uterus to world, `cavity`: its distance."""
        block.paint(cavity - self.wall_mm, tissue["uterus"], 0.2)
        block.paint(cavity, tissue["amniotic fluid"], 0.06)
        radii = self.uterus_radii_mm
        u, v, w = (
            q * np.float32(1 / r) for q, r in zip((block.x, block.y, block.z), radii, strict=True)
        )
        px, py, pz = (float(p) for p in self.placenta_axis)
        cosine = (u * px + v * py + w * pz) / np.sqrt(u * u + v * v + w * w + 1e-3)
        bulge = np.clip((cosine - self.placenta_spread) / (1 - self.placenta_spread), 0, 1)
        thick = self.placenta_mm * np.sqrt(bulge)
        inside = np.maximum(cavity, -(cavity + thick)) + np.float32(3) * (bulge <= 0)
        block.paint(inside, tissue["placenta"], 0.12)
        for start, end in zip(self.cord[:-1], self.cord[1:], strict=True):
            part = canvas.block(pose, (start + end) / 2, np.linalg.norm(end - start) / 2 + 10)
            if part is not None:
                rod = capsule(part.x, part.y, part.z, start, end, (self.cord_mm, self.cord_mm))
                part.paint(rod, tissue["cord"])
                part.paint(rod + 0.5 * self.cord_mm, tissue["flowing blood"])

    def _room(self, canvas: Canvas, box: Box, fetus: tuple[Fetus, np.ndarray]) -> Floats:
        """Distance to a hull around the fetus's head and trunk, with fluid about it."""
        body, world_from_head = fetus
        x, y, z = canvas.grid.coordinates(np.linalg.inv(world_from_head), box)
        head = body.head
        a, b, c = (r + 7.0 + self.margin_mm for r in head.radii_mm)
        room = ellipsoid(x, y, z, (0, 0.05 * b, -0.15 * c), (a, b, 1.15 * c))
        turn, t, g = body.body_to_head[:3, :3], body.trunk_mm, body.girth + self.margin_mm
        # Wider in front of the trunk, where the limbs are folded.
        top = body.body_to_head[:3, 3] + turn[:, 1] * 0.2 * g
        end = top - turn[:, 2] * 0.75 * t + turn[:, 1] * 0.3 * g
        trunk = capsule(x, y, z, top, end, (g, 1.3 * g))
        return smooth_union(room, trunk, 20.0)
