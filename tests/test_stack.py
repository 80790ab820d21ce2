"""simulation/stack.py and the stacks of slices that volume.py makes by it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from scripts.simulation.stack import (
    IN_PLANE_MM,
    SLICES,
    THICKNESS_MM,
    draw_motion,
    draw_plan,
)
from scripts.simulation.volume import PhantomGenerator, make_phantom


def test_plans_lie_within_their_ranges() -> None:
    random = np.random.RandomState(0)
    plans = [draw_plan(random) for _ in range(300)]
    voxel, size = (np.array([getattr(p, key) for p in plans]) for key in ("voxel_mm", "size"))
    assert (voxel[:, 0] == voxel[:, 1]).all()
    assert IN_PLANE_MM[0] <= voxel[:, 0].min() < 1.1 < 1.5 < voxel[:, 0].max() <= IN_PLANE_MM[1]
    assert THICKNESS_MM[0] <= voxel[:, 2].min() < voxel[:, 2].max() <= THICKNESS_MM[1] + 1
    assert SLICES[0] <= size[:, 2].min() < size[:, 2].max() <= SLICES[1]
    slab = voxel[:, 2] * size[:, 2]
    assert slab.min() < 75
    assert slab.max() > 140
    coarse = draw_plan(np.random.RandomState(1), coarsen=2.0)
    fine = draw_plan(np.random.RandomState(1))
    np.testing.assert_allclose(coarse.voxel_mm, fine.voxel_mm * [2, 2, 1])


@pytest.mark.parametrize("seed", range(4))
def test_the_mean_pose_over_the_head_is_the_pose(seed: int) -> None:
    seen = np.zeros(30, bool)
    seen[8:25] = True
    motion = draw_motion(np.random.RandomState(seed), 30, seen)
    mean = Rotation.from_matrix(motion.turn[seen]).mean()
    assert np.rad2deg(mean.magnitude()) < 1e-6
    np.testing.assert_allclose(motion.shift_mm[seen].mean(axis=0), 0, atol=1e-9)
    pose = np.eye(4)
    pose[:3, 3] = 10, 20, 30
    moved = motion.pose(9, pose)
    np.testing.assert_allclose(moved[:3, :3] @ moved[:3, :3].T, np.eye(3), atol=1e-9)
    np.testing.assert_allclose(moved[:3, 3] - pose[:3, 3], motion.shift_mm[9])


def test_motion_is_of_the_size_that_is_said_and_slices_are_lost() -> None:
    random = np.random.RandomState(0)
    seen = np.ones(40, bool)
    motions = [draw_motion(random, 40, seen) for _ in range(200)]
    angle = np.array([Rotation.from_matrix(m.turn).magnitude() for m in motions]) * 180 / np.pi
    assert 0.5 < np.median(angle) < 4
    jumps = angle.max(axis=1) > 8
    assert 0.05 < jumps.mean() < 0.3
    gains = np.array([m.gain for m in motions])
    lost, dark = (gains == 0).mean(), (gains < 0.55).mean()
    assert 0.005 < lost < 0.03
    assert lost < dark < 0.08


def test_a_stack_is_of_thick_slices_in_which_the_head_moves() -> None:
    stack = make_phantom(3, sequence="haste")
    voxel = np.linalg.norm(stack.affine[:3, :3], axis=0)
    assert voxel[0] == pytest.approx(voxel[1])
    assert voxel[0] <= 1.6
    assert voxel[2] >= 2.5
    assert stack.contrast == "t2"
    assert make_phantom(3, sequence="bssfp").contrast == "bssfp"
    # the label is what each slice shows, so its middle is that of the pose on the average
    assert stack.head_to_world is not None
    points = np.argwhere(stack.label == 1)
    middle = stack.affine[:3, :3] @ points.mean(axis=0) + stack.affine[:3, 3]
    assert np.linalg.norm(middle - stack.head_to_world[:3, 3]) < 12


def test_varied_draws_all_kinds_and_the_same_seed_the_same() -> None:
    generator = PhantomGenerator(sequence="varied", coarsen=4.0)
    contrasts = set()
    for seed in range(6):
        generator.set_random_state(seed=seed)
        phantom = generator()
        contrasts.add(phantom.contrast)
    generator.set_random_state(seed=5)
    np.testing.assert_array_equal(generator().image, phantom.image)
    assert {"t2", "random"} <= contrasts


def test_bad_sequences_are_refused() -> None:
    with pytest.raises(ValueError, match="'fse'"):
        PhantomGenerator(sequence="fse")
    with pytest.raises(ValueError, match=r"coarsen must lie in 1\.\.4, got 0"):
        PhantomGenerator(coarsen=0)
