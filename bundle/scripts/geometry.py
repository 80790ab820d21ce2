"""Rotations, rigid poses and voxel grids; pure torch, any leading batch dimensions, any float type.

A transform ``a_to_b`` maps coordinates: ``p_b = a_to_b @ p_a``. Lengths are mm, angles degrees.

Frames
------
world : RAS mm, as nibabel gives it.
head  : origin at the brain's centre of mass, +x the fetus's right, +y anterior, +z superior.
grid  : axes along the array axes (i, j, k) of a volume with isotropic voxels, origin at the
        volume's centre: voxel ``i`` of ``n`` lies at ``spacing_mm * (i - (n - 1) / 2)``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

EYES_BELOW_HORIZONTAL_DEG = 30.0


def rotation_about_x(angle_deg: Tensor | float) -> Tensor:
    """Right-handed rotation about the x axis, shape (..., 3, 3), from an angle in degrees (...).

    A tensor's type is kept; a plain number gives float64.
    """
    if not isinstance(angle_deg, Tensor):
        angle_deg = torch.tensor(angle_deg, dtype=torch.float64)
    angle = torch.deg2rad(angle_deg)
    c, s = torch.cos(angle), torch.sin(angle)
    one, zero = torch.ones_like(c), torch.zeros_like(c)
    rows = [one, zero, zero, zero, c, -s, zero, s, c]
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def rotation_about_y(angle_deg: Tensor | float) -> Tensor:
    """As ``rotation_about_x``, about the y axis."""
    return rotation_about_x(angle_deg).roll((1, 1), (-2, -1))


def rotation_about_z(angle_deg: Tensor | float) -> Tensor:
    """As ``rotation_about_x``, about the z axis.

    >>> rotation_about_z(90.0).round().tolist()  # x turns to y
    [[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    """
    return rotation_about_x(angle_deg).roll((2, 2), (-2, -1))


def quaternion_to_rotation(quaternion: Tensor) -> Tensor:
    """Rotation (..., 3, 3) of a quaternion (..., 4), real part first, of any non-zero norm.

    Four independent standard normals give a rotation uniform on SO(3) (Shoemake 1992); uniform
    Euler angles do not.

    >>> quaternion_to_rotation(torch.tensor([0.0, 0, 0, 1])).tolist()  # half a turn about z
    [[-1.0, 0.0, 0.0], [0.0, -1.0, 0.0], [0.0, 0.0, 1.0]]
    """
    w, x, y, z = torch.nn.functional.normalize(quaternion, dim=-1).unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def axis_angle_to_rotation(axis: Tensor, angle_deg: Tensor) -> Tensor:
    """Right-handed rotation (..., 3, 3) by degrees (...) about an axis (..., 3) of any length."""
    half = torch.deg2rad(angle_deg.to(axis))[..., None] / 2
    unit = torch.nn.functional.normalize(axis, dim=-1)
    return quaternion_to_rotation(torch.cat([torch.cos(half), torch.sin(half) * unit], dim=-1))


def half_turns() -> Tensor:
    """(4, 3, 3) float32: the identity, and half a turn about x, about y and about z."""
    signs = torch.tensor([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    return torch.diag_embed(signs)


def quarter_turns() -> Tensor:
    """(2, 3, 3) float32: a quarter turn about z, either way."""
    return torch.stack([rotation_about_z(angle_deg) for angle_deg in (90.0, -90.0)]).round().float()


def spread_rotations(number: int) -> Tensor:
    """``number`` rotations (number, 3, 3) float64 spread evenly over SO(3); the first is identity.

    Super-Fibonacci spiral (Alexa, CVPR 2022), turned so that it begins at the identity.
    """
    step = (torch.arange(number, dtype=torch.float64) + 0.5) / number
    # the two constants of the spiral; the second is a root of x^4 = x + 4
    alpha = 2 * math.pi * step * number / math.sqrt(2)
    beta = 2 * math.pi * step * number / 1.533751168755204288118041
    r, s = step.sqrt(), (1 - step).sqrt()
    parts = [r * alpha.sin(), r * alpha.cos(), s * beta.sin(), s * beta.cos()]
    rotations = quaternion_to_rotation(torch.stack(parts, dim=-1))
    return rotations[:1].mT @ rotations


def top_eigenvector(matrix: Tensor, squarings: int = 16) -> Tensor:
    """Unit eigenvector (..., n) of the largest eigenvalue of symmetric ``matrix`` (..., n, n).

    ``matrix`` must have no negative eigenvalues. Power iteration by repeated squaring: matrix
    products only, which every export format knows, where ``torch.linalg.eigh`` is a call into
    LAPACK. 16 squarings tell eigenvalues apart that differ by a part in a thousand. Zero for a
    matrix of zeros.
    """
    for _ in range(squarings):
        largest = matrix.abs().amax(dim=(-2, -1), keepdim=True)
        matrix = matrix / largest.clamp(min=1e-30)
        matrix = matrix @ matrix
    # every column is a multiple of it; the longest is the most precise
    column = matrix.diagonal(dim1=-2, dim2=-1).argmax(-1)[..., None, None]
    longest = matrix.gather(-1, column.expand_as(matrix[..., :1])).squeeze(-1)
    return torch.nn.functional.normalize(longest, dim=-1)


def nearest_rotation(matrix: Tensor) -> Tensor:
    """Proper rotation (..., 3, 3) nearest to ``matrix`` in the Frobenius norm.

    The quaternion q that maximises trace(R(q)^T matrix), a quadratic form in q (Horn 1987). The
    same rotation as U diag(1, 1, det U V^T) V^T of the singular vectors (Kabsch 1976), and never
    a reflection. Not differentiable where two singular values vanish.

    >>> mirrored = torch.diag(torch.tensor([3.0, 2, -1]))
    >>> nearest_rotation(mirrored).diagonal().round()  # not the reflection
    tensor([1., 1., 1.])
    """
    xx, xy, xz, yx, yy, yz, zx, zy, zz = matrix.flatten(-2).unbind(-1)
    form = [
        xx + yy + zz, zy - yz, xz - zx, yx - xy,
        zy - yz, xx - yy - zz, xy + yx, xz + zx,
        xz - zx, xy + yx, yy - xx - zz, yz + zy,
        yx - xy, xz + zx, yz + zy, zz - xx - yy,
    ]  # fmt: skip
    quadratic = torch.stack(form, dim=-1).unflatten(-1, (4, 4))
    # the same eigenvectors, no negative eigenvalue
    shift = torch.linalg.vector_norm(quadratic, dim=(-2, -1))[..., None, None]
    unit = torch.eye(4, dtype=matrix.dtype, device=matrix.device)
    return quaternion_to_rotation(top_eigenvector(quadratic + shift * unit))


def frame_to_rotation(axes: Tensor) -> Tensor:
    """Rotation whose columns are the head's right, anterior and superior axes.

    Parameters
    ----------
    axes : (..., 3, 3)
        ``axes[..., k, :]`` is the estimate of axis k. They need be neither unit nor orthogonal.
        The first is known up to sign only: the sign that makes the frame right-handed is taken.

    Returns
    -------
    (..., 3, 3), nearest rotation after the sign is fixed; NaN where an axis is zero or the
    second and third are parallel, because then no frame is defined.

    >>> axes = torch.diag(torch.tensor([-2.0, 1, 1]))  # the first axis points to the left
    >>> frame_to_rotation(axes).diagonal().round()
    tensor([1., 1., 1.])
    """
    unit = torch.nn.functional.normalize(axes, dim=-1)
    normal = torch.linalg.cross(unit[..., 1, :], unit[..., 2, :])
    side = (unit[..., 0, :] * normal).sum(-1)
    sign = torch.where(side < 0, -torch.ones_like(side), torch.ones_like(side))
    first = sign.unsqueeze(-1) * unit[..., 0, :]
    columns = torch.stack([first, unit[..., 1, :], unit[..., 2, :]], dim=-1)
    lengths = torch.linalg.vector_norm(unit, dim=-1).amin(-1)
    defined = (lengths > 0.5) & (torch.linalg.vector_norm(normal, dim=-1) > 1e-6)
    defined = defined[..., None, None]
    identity = torch.eye(3, dtype=axes.dtype, device=axes.device)
    rotation = nearest_rotation(torch.where(defined, columns, identity))
    return rotation.masked_fill(~defined, float("nan"))


def geodesic_deg(a: Tensor, b: Tensor) -> Tensor:
    """Angle in degrees (...) of the rotation that takes rotation ``a`` to ``b``, both (..., 3, 3).

    atan2 of the antisymmetric and symmetric parts is accurate at 0 and at 180 degrees, where
    arccos of the trace alone loses half of the digits.

    >>> geodesic_deg(rotation_about_x(10.0), rotation_about_x(40.0)).round()
    tensor(30., dtype=torch.float64)
    >>> geodesic_deg(torch.eye(3), half_turns())
    tensor([  0., 180., 180., 180.])
    """
    relative = a.mT @ b
    axis = torch.stack(
        [
            relative[..., 2, 1] - relative[..., 1, 2],
            relative[..., 0, 2] - relative[..., 2, 0],
            relative[..., 1, 0] - relative[..., 0, 1],
        ],
        dim=-1,
    )
    trace = relative.diagonal(dim1=-2, dim2=-1).sum(-1)
    return torch.rad2deg(torch.atan2(torch.linalg.vector_norm(axis, dim=-1), trace - 1))


def axis_angles_deg(a: Tensor, b: Tensor) -> Tensor:
    """Angles in degrees (..., 3) between the columns of ``a`` and of ``b``, both (..., 3, 3).

    >>> axis_angles_deg(torch.eye(3).double(), rotation_about_x(30.0)).round()  # x stays
    tensor([ 0., 30., 30.], dtype=torch.float64)
    """
    sine = torch.linalg.cross(a, b, dim=-2).norm(dim=-2)
    return torch.rad2deg(torch.atan2(sine, (a * b).sum(-2)))


def rigid(rotation: Tensor, translation: Tensor) -> Tensor:
    """Rigid transform (..., 4, 4) from a rotation (..., 3, 3) and a translation (..., 3) in mm.

    >>> a_to_b = rigid(rotation_about_z(90.0), torch.tensor([10.0, 20, 30]))
    >>> a_to_b @ torch.tensor([1.0, 0, 0, 1]).double()
    tensor([10., 21., 30.,  1.], dtype=torch.float64)
    """
    top = torch.cat([rotation, translation.unsqueeze(-1)], dim=-1)
    bottom = torch.zeros_like(top[..., :1, :])
    bottom[..., 3] = 1
    return torch.cat([top, bottom], dim=-2)


def no_head(pose: Tensor) -> Tensor:
    """Which of the poses (batch, 4, 4) say by NaN that there is no head, (batch,) bool.

    >>> no_head(torch.stack([torch.eye(4), torch.full((4, 4), torch.nan)]))
    tensor([False,  True])
    """
    return pose.flatten(1).isnan().any(1)


def nearer(found: Tensor, pose: Tensor, other: Tensor) -> Tensor:
    """Of two poses (..., 4, 4) that whose origin lies nearer to that of ``found``.

    ``pose`` where one of the others is NaN.

    >>> here, there = torch.eye(4), torch.eye(4)
    >>> there[:3, 3] = torch.tensor([90.0, 0, 0])
    >>> nearer(there + 1.0, here, there)[:3, 3], nearer(here, here, there * torch.nan)[:3, 3]
    (tensor([90.,  0.,  0.]), tensor([0., 0., 0.]))
    """
    away, beside = (
        torch.linalg.vector_norm(found[..., :3, 3] - one[..., :3, 3], dim=-1)
        for one in (pose, other)
    )
    return torch.where((beside < away)[..., None, None], other, pose)


def invert_rigid(a_to_b: Tensor) -> Tensor:
    """``b_to_a`` of a rigid transform (..., 4, 4).

    >>> a_to_b = rigid(rotation_about_z(90.0), torch.tensor([10.0, 20, 30]))
    >>> (invert_rigid(a_to_b) @ a_to_b).round().equal(torch.eye(4).double())
    True
    """
    rotation = a_to_b[..., :3, :3].mT
    return rigid(rotation, -(rotation @ a_to_b[..., :3, 3:]).squeeze(-1))


def check_rigid(a_to_b: Tensor, name: str, tolerance: float = 1e-3) -> None:
    """Raise ValueError, naming ``name``, unless ``a_to_b`` (4, 4) is rigid with det +1.

    The last row has to be 0, 0, 0, 1, so that a matrix that was transposed is none.

    >>> check_rigid(torch.diag(torch.tensor([-1.0, 1, 1, 1])), "a mirror")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: a mirror: expected a rigid transform with det +1, got det -1.0000 ...
    """
    if a_to_b.shape != (4, 4) or not torch.isfinite(a_to_b).all():
        raise ValueError(f"{name}: expected a finite 4 x 4 matrix, got {a_to_b.tolist()}")
    rotation = a_to_b[:3, :3]
    error = (rotation.mT @ rotation - torch.eye(3, dtype=a_to_b.dtype)).abs().max().item()
    det = torch.linalg.det(rotation).item()
    if error > tolerance or det < 0:
        raise ValueError(
            f"{name}: expected a rigid transform with det +1, got det {det:.4f} and a deviation "
            f"of {error:.2g} from orthogonality: {a_to_b.tolist()}"
        )
    bottom = a_to_b[3].tolist()
    if max(abs(x - y) for x, y in zip(bottom, (0.0, 0.0, 0.0, 1.0), strict=True)) > tolerance:
        raise ValueError(
            f"{name}: the last row must be 0, 0, 0, 1, got {bottom}: is the matrix transposed? "
            f"{a_to_b.tolist()}"
        )


def voxel_to_grid(shape: Sequence[int], spacing_mm: float) -> Tensor:
    """(4, 4) from voxel indices of a volume of ``shape`` (3) to mm in its grid frame.

    >>> voxel_to_grid((3, 3, 3), 4.0) @ torch.tensor([0.0, 1, 2, 1]).double()
    tensor([-4.,  0.,  4.,  1.], dtype=torch.float64)
    """
    matrix = torch.eye(4, dtype=torch.float64) * spacing_mm
    matrix[:3, 3] = -spacing_mm * (torch.tensor(list(shape), dtype=torch.float64) - 1) / 2
    matrix[3, 3] = 1
    return matrix


def grid_points(shape: Sequence[int], spacing_mm: float) -> tuple[Tensor, Tensor, Tensor]:
    """Broadcastable x (n, 1, 1), y (1, n, 1), z (1, 1, n) of the voxel centres, mm, grid frame.

    >>> x, y, z = grid_points((2, 3, 1), 4.0)
    >>> x.flatten(), y.flatten(), z.flatten()
    (tensor([-2.,  2.]), tensor([-4.,  0.,  4.]), tensor([0.]))
    """
    x, y, z = (spacing_mm * (torch.arange(n, dtype=torch.float32) - (n - 1) / 2) for n in shape)
    return x[:, None, None], y[None, :, None], z[None, None, :]


def grid_to_world(affine: Tensor, shape: Sequence[int], spacing_mm: float) -> Tensor:
    """(4, 4) from the grid frame to the world, for a volume with voxel-to-world ``affine``.

    Raises ValueError unless the volume is isotropic, right-handed and without shear, which the
    resampling to the working grid guarantees.

    >>> affine = torch.diag(torch.tensor([4.0, 4, 4, 1]))  # the first voxel at the world's origin
    >>> grid_to_world(affine, (3, 3, 3), 4.0)[:3, 3]  # the middle one, where the grid's origin is
    tensor([4., 4., 4.], dtype=torch.float64)
    """
    affine = torch.as_tensor(affine, dtype=torch.float64)
    matrix = affine @ torch.linalg.inv(voxel_to_grid(shape, spacing_mm))
    check_rigid(matrix, f"grid_to_world of a volume with {spacing_mm} mm voxels")
    return matrix


def head_to_grid(
    affine: Tensor, shape: Sequence[int], spacing_mm: float, head_to_world: Tensor
) -> Tensor:
    """Pose of the head (4, 4) in the grid frame of a volume whose ``affine`` may scale or mirror.

    Augmentation that enlarges or mirrors the image leaves its trace in ``affine``. The grid frame
    takes the voxels at face value: the head is then larger, or its own mirror image. A mirrored
    head is a head again: anterior and superior follow the mirror, and its right is the side that
    makes the frame right-handed, where the original's left has gone. Head coordinates of a
    landmark change from p to scale * p, and for a mirror from (x, y, z) to scale * (-x, y, z). The
    scale may differ between the head's own axes, which are then still its axes.

    Raises ValueError if ``affine`` shears the head.

    >>> head_to_world = rigid(torch.eye(3), torch.tensor([-4.0, 4, 4]))  # at the volume's middle
    >>> mirrored = torch.diag(torch.tensor([-4.0, 4, 4, 1]))
    >>> pose = head_to_grid(mirrored, (3, 3, 3), 4.0, head_to_world)
    >>> check_rigid(pose, "the pose of the mirrored head")
    >>> pose.diagonal()[:3], pose[:3, 3]
    (tensor([1., 1., 1.], dtype=torch.float64), tensor([0., 0., 0.], dtype=torch.float64))
    """
    affine = torch.as_tensor(affine, dtype=torch.float64)
    world_to_grid = voxel_to_grid(shape, spacing_mm) @ torch.linalg.inv(affine)
    matrix = world_to_grid @ torch.as_tensor(head_to_world, dtype=torch.float64)
    matrix[:3, :3] /= matrix[:3, :3].norm(dim=0)
    if torch.linalg.det(matrix[:3, :3]) < 0:
        matrix[:3, 0] *= -1
    check_rigid(matrix, f"head_to_grid under the affine {affine.tolist()}")
    return matrix


def landmarks_to_pose(brain: Tensor, left_eye: Tensor, right_eye: Tensor) -> Tensor:
    """head_to_world (..., 4, 4) from three landmarks (..., 3) in world mm.

    The line from the brain's centre to the point between the eyes lies about 30 degrees below the
    head's horizontal plane (Hoffmann et al., IJIMA 2021), so the frame that it spans is pitched up
    by that angle. Raises ValueError for coincident or collinear landmarks.

    >>> brain = torch.tensor([0.0, 0, 0])
    >>> left_eye, right_eye = torch.tensor([-20.0, 40, 0]), torch.tensor([20.0, 40, 0])
    >>> pose = landmarks_to_pose(brain, left_eye, right_eye)
    >>> axis_angles_deg(pose[:3, :3], torch.eye(3)).round()  # pitched up by 30 degrees
    tensor([ 0., 30., 30.])
    """
    right = right_eye - left_eye
    forward = (left_eye + right_eye) / 2 - brain
    up = torch.linalg.cross(right, forward)
    if (up.norm(dim=-1) < 1e-3 * right.norm(dim=-1) * forward.norm(dim=-1) + 1e-9).any():
        raise ValueError(
            f"brain {brain.tolist()}, left eye {left_eye.tolist()} and right eye "
            f"{right_eye.tolist()} lie on one line: no pose follows from them"
        )
    return rigid(landmark_frame(brain, left_eye, right_eye), brain)


def landmark_frame(
    brain: Tensor,
    left_eye: Tensor,
    right_eye: Tensor,
    eyes_below_deg: float = EYES_BELOW_HORIZONTAL_DEG,
) -> Tensor:
    """Rotation (..., 3, 3) of ``landmarks_to_pose``; no frame, but finite, for collinear landmarks.

    The columns are the head's right, anterior and superior axes in the landmarks' frame.
    """
    right = right_eye - left_eye
    forward = (left_eye + right_eye) / 2 - brain
    up = torch.nn.functional.normalize(torch.linalg.cross(right, forward), dim=-1)
    forward = torch.nn.functional.normalize(forward, dim=-1)
    frame = torch.stack([torch.linalg.cross(forward, up), forward, up], dim=-1)
    below_deg = torch.tensor(eyes_below_deg, dtype=frame.dtype, device=frame.device)
    return frame @ rotation_about_x(below_deg)


def put_in_line(
    rotation: Tensor, center_mm: Tensor, side_mm: Tensor, point: Tensor
) -> tuple[Tensor, Tensor]:
    """Rotation (..., 3, 3) and middle (..., 3) of a cube once it is in line with its landmarks.

    ``rotation`` turns the cube's frame into that of ``center_mm``; ``point`` (..., 3, 3) has the
    brain's centre and the left and right eye in sides (...) of the cube from its middle.
    """
    brain, left_eye, right_eye = point[..., 0, :], point[..., 1, :], point[..., 2, :]
    moved = (rotation @ brain.unsqueeze(-1)).squeeze(-1)
    turned = nearest_rotation(rotation @ landmark_frame(brain, left_eye, right_eye))
    return turned, center_mm + side_mm.unsqueeze(-1) * moved
