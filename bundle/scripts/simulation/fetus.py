"""What lies around the head: the fetal body, the uterus with its contents, and the mother.

Mother frame: origin at the uterus's centre, +x the mother's right, +y anterior, +z superior, mm.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from .anatomy import Head
from .shapes import Block, Canvas, Floats, capsule, ellipsoid, smooth_union

Vector = np.ndarray


def rotation(axis: int, angle_deg: float) -> np.ndarray:
    """(3, 3) right-handed rotation about coordinate axis 0, 1 or 2."""
    t = np.deg2rad(angle_deg)
    turned = np.eye(3)
    p, q = (axis + 1) % 3, (axis + 2) % 3
    turned[p, p] = turned[q, q] = np.cos(t)
    turned[p, q], turned[q, p] = -np.sin(t), np.sin(t)
    return turned


def random_rotation(random: np.random.RandomState) -> np.ndarray:
    """(3, 3) rotation, uniform on SO(3): a unit quaternion uniform on the sphere."""
    q = random.normal(size=4)
    w, x, y, z = q / np.linalg.norm(q)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def rigid(turn: np.ndarray, shift_mm: np.ndarray) -> np.ndarray:
    """(4, 4) of a rotation and a translation."""
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = turn, shift_mm
    return pose


@dataclass
class Fetus:
    """Neck, trunk and limbs that go with a head, as points in the head frame, mm.

    `body_to_head` (4, 4): the body frame has its origin at the base of the neck, +x right,
    +y anterior, +z towards the head.
    """

    head: Head
    body_to_head: np.ndarray
    trunk_mm: float
    curl_deg: float
    girth: float
    limbs: list[tuple[Vector, Vector, float, float]]

    @classmethod
    def draw(cls, random: np.random.RandomState, head: Head) -> Fetus:
        """Random posture: neck flexed by -5..45, tilted by +-12 and turned by +-25 degrees."""
        _, b, c = head.radii_mm
        turn = (
            rotation(0, random.uniform(-5, 45))
            @ rotation(1, random.uniform(-12, 12))
            @ rotation(2, random.uniform(-25, 25))
        )
        nape = np.array([0, -0.24 * b, -1.3 * c]) - head.brain_centre_mm
        base = nape - turn[:, 2] * 0.20 * head.ofd_mm * random.uniform(0.7, 1.2)
        fetus = cls(
            head=head,
            body_to_head=rigid(turn, base),
            trunk_mm=1.55 * head.ofd_mm * random.uniform(0.9, 1.1),
            curl_deg=random.uniform(0, 40),
            girth=random.uniform(0.50, 0.66) * head.bpd_mm,
            limbs=[],
        )
        fetus.limbs = fetus._draw_limbs(random)
        return fetus

    @property
    def pelvis_to_body(self) -> np.ndarray:
        """(4, 4): the lower trunk's frame, flexed forward at the waist."""
        return rigid(rotation(0, self.curl_deg), np.array([0, 0, -0.52 * self.trunk_mm]))

    def balls_mm(self) -> tuple[np.ndarray, np.ndarray]:
        """Middles (n, 3) in the head frame and radii (n,) of balls about head and trunk, mm."""
        middle, radii = self.head.bounds_mm
        waist, hip = 0.52 * self.trunk_mm, self.body_to_head @ self.pelvis_to_body
        along = np.array([[0, 0, -z, 1] for z in (0.1 * waist, 0.55 * waist, waist)])
        trunk = [self.body_to_head @ point for point in along]
        trunk.append(hip @ [0, 0, -0.36 * self.trunk_mm, 1])
        middles = np.array([middle, *(point[:3] for point in trunk)])
        return middles, np.array([np.mean(radii), *[1.1 * self.girth] * len(trunk)])

    def _draw_limbs(
        self, random: np.random.RandomState
    ) -> list[tuple[Vector, Vector, float, float]]:
        """Arms and legs in the body frame: start, end, and the radii in mm there.

        Every segment's direction is random about a flexed posture (normal, deviation 0.6).
        """
        o, t = self.head.ofd_mm, self.trunk_mm
        limbs: list[tuple[Vector, Vector, float, float]] = []
        hip = self.pelvis_to_body
        for side in (1, -1):
            shoulder = np.array([side * 1.0 * self.girth, 0, -0.12 * t])
            arm = ((0.5 * o, 0.085 * o), (0.45 * o, 0.07 * o), (0.22 * o, 0.055 * o))
            leads = ([0.5 * side, 0.5, -0.8], [-0.3 * side, 0.9, 0.8], [-0.2 * side, 0.5, 0.5])
            limbs += _chain(random, shoulder, arm, leads)
            joint = hip[:3, :3] @ [side * 0.55 * self.girth, 0, -0.36 * t] + hip[:3, 3]
            leg = ((0.55 * o, 0.13 * o), (0.5 * o, 0.095 * o), (0.3 * o, 0.06 * o))
            leads = ([0.4 * side, 1.0, 0.3], [-0.3 * side, -0.3, -1.0], [0, 0.9, -0.3])
            limbs += _chain(random, joint, leg, leads)
        return limbs

    def trunk(self, x: Floats, y: Floats, z: Floats) -> Floats:
        """Distance to the trunk's skin in the body frame, mm."""
        g, t = self.girth, self.trunk_mm
        chest = ellipsoid(x, y, z, (0, 0.1 * g, -0.30 * t), (0.98 * g, 0.85 * g, 0.36 * t))
        shoulders = ellipsoid(x, y, z, (0, 0, -0.13 * t), (1.15 * g, 0.55 * g, 0.13 * t))
        hip = np.linalg.inv(self.pelvis_to_body).astype(np.float32)
        u, v, w = (hip[n, 0] * x + hip[n, 1] * y + hip[n, 2] * z + hip[n, 3] for n in range(3))
        belly = ellipsoid(u, v, w, (0, 0.15 * g, -0.03 * t), (1.0 * g, 1.0 * g, 0.30 * t))
        pelvis = ellipsoid(u, v, w, (0, 0, -0.33 * t), (0.85 * g, 0.7 * g, 0.20 * t))
        skin = smooth_union(smooth_union(chest, shoulders, 8), belly, 12)
        return smooth_union(skin, pelvis, 12)

    def paint(
        self, canvas: Canvas, world_from_head: np.ndarray, tissue: Mapping[str, float]
    ) -> None:
        """Lay limbs, neck, trunk and organs on the canvas."""
        pose = world_from_head @ self.body_to_head
        for start, end, first, last in self.limbs:
            block = canvas.block(pose, (start + end) / 2, np.linalg.norm(end - start) / 2 + first)
            if block is not None:
                rod = capsule(block.x, block.y, block.z, start, end, (first, last))
                block.paint(rod, tissue["fetal soft tissue"], 0.12)
                block.paint(rod + 0.66 * first, tissue["fetal bone"])
        block = canvas.block(
            pose, (0, 0.1 * self.trunk_mm, -0.42 * self.trunk_mm), 0.72 * self.trunk_mm
        )
        if block is not None:
            self._paint_trunk(block, tissue)

    def _paint_trunk(self, block: Block, tissue: Mapping[str, float]) -> None:
        """Trunk with lungs, heart, liver, stomach, bladder, kidneys and spine."""
        g, t = self.girth, self.trunk_mm
        x, y, z = block.x, block.y, block.z
        block.paint(self.trunk(x, y, z), tissue["fetal soft tissue"], 0.15)
        neck = capsule(x, y, z, (0, -2, 0.3 * t), (0, 0, -0.1 * t), (0.42 * g, 0.5 * g))
        block.paint(neck, tissue["fetal soft tissue"])

        def lay(centre: tuple[float, ...], radii: tuple[float, ...], name: str) -> None:
            place, size = np.multiply(centre, (g, g, t)), np.multiply(radii, g)
            part = block.near(place, size)
            if part is not None:
                part.paint(ellipsoid(part.x, part.y, part.z, place, size), tissue[name], 0.06)

        lay((0.45, 0.05, -0.27), (0.36, 0.55, 0.62), "lung")
        lay((-0.45, 0.05, -0.27), (0.36, 0.55, 0.62), "lung")
        lay((-0.15, 0.35, -0.30), (0.42, 0.38, 0.42), "heart")
        lay((0.22, 0.30, -0.50), (0.68, 0.62, 0.42), "liver")
        # Organs below the waist turn with it; they are round enough to be left unturned.
        hip = self.pelvis_to_body
        for centre, radii, name in (
            ((-0.48, 0.05, 0.02), (0.24, 0.28, 0.3), "fetal urine"),  # stomach, on the left
            ((0.0, 0.25, -0.30), (0.24, 0.24, 0.28), "fetal urine"),  # bladder
            ((0.40, -0.35, -0.08), (0.24, 0.26, 0.4), "organ"),  # kidneys
            ((-0.40, -0.35, -0.08), (0.24, 0.26, 0.4), "organ"),
        ):
            place = hip[:3, :3] @ np.multiply(centre, (g, g, t)) + hip[:3, 3]
            lay(tuple(place / (g, g, t)), radii, name)
        low = self.pelvis_to_body @ [0, -0.35 * g, -0.36 * t, 1]
        waist = (0.0, -0.62 * g, -0.50 * t)
        for start, end in (((0, -0.06 * g, 0.25 * t), waist), (waist, tuple(low[:3]))):
            bone = capsule(x, y, z, start, end, (0.20 * g, 0.18 * g))
            block.paint(bone, tissue["fetal bone"])
            back = [(p[0], p[1] - 0.07 * g, p[2]) for p in (start, end)]
            canal = capsule(x, y, z, back[0], back[1], (0.095 * g, 0.085 * g))
            block.paint(canal, tissue["cord csf"])
            block.paint(canal + 0.05 * g, tissue["spinal cord"])


def _chain(
    random: np.random.RandomState,
    start: Vector,
    segments: tuple[tuple[float, float], ...],
    leads: tuple[list[float], ...],
) -> list[tuple[Vector, Vector, float, float]]:
    """Segments (length, radius) one after the other, each about its leading direction."""
    chain = []
    for (length, radius), lead in zip(segments, leads, strict=True):
        direction = np.asarray(lead) + random.normal(scale=0.6, size=3)
        end = start + direction / np.linalg.norm(direction) * length
        chain.append((start, end, radius * 1.1, radius * 0.9))
        start = end
    return chain
