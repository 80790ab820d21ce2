"""augmentation.py: labels follow the image, randomness is seeded and uniform, physics is physical.

What the label of a mirrored head means: a mirrored head is a head again. Anterior and superior
follow the mirror; its right is where the original's left has gone, so that the frame stays
right-handed. A landmark at (x, y, z) of the original is at (-x, y, z) of the mirrored head.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor
from monai.transforms import Compose
from scipy.spatial.transform import Rotation

from conftest import LANDMARKS, find_landmarks, head_pose, labelled_case, make_affine
from scripts.cubes import brain_cube
from scripts.data import augmentation
from scripts.data.augmentation import (
    RandFieldOfViewd,
    RandSimilarityd,
    RandSliceMotiond,
    RandSpinHistoryd,
    half_space,
    move_slices,
    saturation,
    similarity,
)
from scripts.data.transforms import HeadToGridd
from scripts.data.volumes import LoadVolumed, ToWorkingGridd
from scripts.geometry import check_rigid, head_to_grid

SPACING_MM = 4.0
NOTHING = {
    "spatial_size": 64,
    "rotate_prob": 0.0,
    "mirror_prob": 0.0,
    "scale": (1.0, 1.0),
    "shift_mm": 0.0,
}
SETTINGS = {
    "nothing": {},
    "rotation": {"rotate_prob": 1.0},
    "mirror": {"mirror_prob": 1.0},
    "smaller": {"scale": (0.8, 0.8)},
    "larger": {"scale": (1.25, 1.25)},
    "stretch": {"stretch": 1.3},
    "shift": {"shift_mm": 40.0},
    "rotation and mirror": {"rotate_prob": 1.0, "mirror_prob": 1.0},
    "all": {
        "rotate_prob": 1.0,
        "mirror_prob": 1.0,
        "scale": (0.8, 1.25),
        "stretch": 1.2,
        "shift_mm": 40.0,
    },
}


def to_grid(entry):
    return ToWorkingGridd(spacing_mm=SPACING_MM)(LoadVolumed(["image", "label"])(entry))


def landmark_errors_mm(image, pose, factors=(1.0, 1.0, 1.0)):
    """Distance of each blob in the image from where the pose puts its landmark times factors."""
    found = find_landmarks(image[0].numpy(), SPACING_MM)
    pose = np.asarray(pose, dtype=float)
    points = LANDMARKS * factors
    return np.linalg.norm(found - (points @ pose[:3, :3].T + pose[:3, 3]), axis=1)


def memory_entry(shape=(16, 18, 20), pose=None, seed=0):
    """Noise on a working grid in memory."""
    affine = torch.from_numpy(make_affine("RAS", (SPACING_MM,) * 3, 8.0, shape))
    noise = torch.rand(1, *shape, generator=torch.Generator().manual_seed(seed))
    return {
        "image": MetaTensor(noise, affine=affine),
        "label": MetaTensor((noise > 0.5).float(), affine=affine),
        "head_to_world": (head_pose() if pose is None else pose).tolist(),
    }


# --- RandSimilarityd -------------------------------------------------------------------------


def test_similarity_moves_the_landmarks_with_the_pose(landmark_case):
    d = to_grid(landmark_case)
    for name, changed in SETTINGS.items():
        transform = RandSimilarityd(**NOTHING | changed).set_random_state(5)
        moved = HeadToGridd(spacing_mm=SPACING_MM)(transform(d))
        mirror = -1.0 if transform.mirror_prob else 1.0
        scale = transform.linear.det().abs().item() ** (1 / 3)
        pose = moved["head_to_grid"]
        check_rigid(pose.double(), name)
        factors = scale * transform.stretches.numpy()
        errors = landmark_errors_mm(moved["image"], pose, np.array([mirror, 1, 1]) * factors)
        assert errors.max() < 1, f"{name}: {errors}"
        # the head's origin stands where the offset says: in the middle of the patch, or shifted
        torch.testing.assert_close(
            pose[:3, 3], transform.offset_mm.float(), atol=1e-3, rtol=0, msg=name
        )
        if mirror < 0:  # the pose of the head that was not mirrored would be far off
            assert landmark_errors_mm(moved["image"], pose, factors).max() > 20, name
        if transform.stretch > 1:  # and so would be that of the head that was not stretched
            assert np.abs(np.log(transform.stretches)).max() > 0.05
            unstretched = np.array([mirror, 1, 1]) * scale
            assert landmark_errors_mm(moved["image"], pose, unstretched).max() > 2, name


def test_similarity_moves_points_as_documented(landmark_case):
    d = to_grid(landmark_case)
    linear = torch.from_numpy(Rotation.from_euler("xyz", [20, -65, 130], degrees=True).as_matrix())
    linear = 1.1 * linear @ torch.diag(torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64))
    offset, center = (torch.tensor(p, dtype=torch.float64) for p in ([9, -14, 5], [3, -8, 12]))
    before = find_landmarks(d["image"][0].numpy(), SPACING_MM)
    moved = similarity(linear, offset, center, SPACING_MM, (60, 64, 68))(d["image"])
    assert moved.shape == (1, 60, 64, 68)
    after = find_landmarks(moved[0].numpy(), SPACING_MM)
    expected = (before - center.numpy()) @ linear.numpy().T + offset.numpy()
    assert np.linalg.norm(after - expected, axis=1).max() < 1


def test_similarity_without_change_is_exact():
    image = memory_entry()["image"]
    identity, origin = torch.eye(3).double(), torch.zeros(3).double()
    same = similarity(identity, origin, origin, SPACING_MM, image.shape[1:])(image)
    torch.testing.assert_close(same.as_tensor(), image.as_tensor(), atol=1e-5, rtol=0)
    np.testing.assert_allclose(same.affine, image.affine, atol=1e-5)


def test_similarity_keeps_labels_and_moves_them_with_the_image(tmp_path):
    d = to_grid(labelled_case(tmp_path))
    transform = RandSimilarityd(shift_mm=30.0).set_random_state(2)
    for _ in range(4):
        moved = HeadToGridd()(transform(d))
        assert moved["label"].shape == moved["image"].shape == (1, 80, 80, 80)
        assert set(moved["label"].unique().tolist()) == {0, 1, 2}
        cube, _ = brain_cube(moved["label"].as_tensor()[None] == 1, SPACING_MM, 0.6)
        assert (cube.center_mm[0] - moved["head_to_grid"][:3, 3]).norm() < 1
        inside = moved["label"].as_tensor() > 0
        assert moved["image"].as_tensor()[inside].mean() > 0.4  # the noise outside has 0.2
    assert torch.equal(d["image"].as_tensor(), to_grid(labelled_case(tmp_path))["image"])


def test_similarity_without_head_turns_about_the_volume():
    d = memory_entry() | {"head_to_world": None}
    moved = HeadToGridd()(RandSimilarityd(spatial_size=24, shift_mm=0.0)(d))
    assert moved["has_head"] == 0
    mass = moved["image"].as_tensor()[0]
    center = [(mass.sum([a for a in range(3) if a != k]) * torch.arange(24)).sum() for k in (0, 1)]
    np.testing.assert_allclose(torch.stack(center) / mass.sum(), 11.5, atol=0.5)


def test_a_stretch_leaves_the_axes_of_the_head_where_they_were():
    """And moves nothing else: the same draws without it give the same pose."""
    poses = []
    for stretch in (1.0, 1.4):
        transform = RandSimilarityd(spatial_size=20, stretch=stretch).set_random_state(3)
        moved = HeadToGridd()(transform(memory_entry()))
        check_rigid(moved["head_to_grid"].double(), "pose")
        poses.append(moved["head_to_grid"])
        if stretch == 1:
            assert transform.stretches.eq(1).all()
    torch.testing.assert_close(*poses, atol=1e-4, rtol=0)
    without = RandSimilarityd(spatial_size=20, stretch=1.4)(
        memory_entry() | {"head_to_world": None}
    )
    linear = np.asarray(without["image"].affine)[:3, :3]  # no head, no axes, no stretch
    gram = linear.T @ linear
    np.testing.assert_allclose(gram, gram[0, 0] * np.eye(3), atol=1e-4)


def test_patch_away_from_the_head_lies_anywhere_in_the_volume():
    """The pose follows: it is that of a head that may lie outside of the patch."""
    transform = RandSimilarityd(spatial_size=20, shift_mm=10.0, stretch=1.2, away_prob=1.0)
    transform.set_random_state(0)
    d = memory_entry(shape=(40, 44, 48))
    before = HeadToGridd()(d)["head_to_grid"].double()
    places, inside = [], []
    for _ in range(300):
        moved = HeadToGridd()(transform(d))
        middle = transform.place * torch.tensor([40, 44, 48]) * SPACING_MM
        axes = before[:3, :3]
        linear = transform.linear @ axes @ torch.diag(transform.stretches) @ axes.mT
        expected = linear @ (before[:3, 3] - middle) + transform.offset_mm
        pose = moved["head_to_grid"]
        torch.testing.assert_close(pose[:3, 3].double(), expected, atol=1e-2, rtol=0)
        check_rigid(pose.double(), "pose")
        assert moved["has_head"] == (pose[:3, 3].abs() <= 40).all()
        places.append(transform.place.numpy())
        inside.append(moved["has_head"].item())
    assert 0.01 < np.mean(inside) < 0.5
    assert np.abs(places).max() == pytest.approx(0.5, abs=0.01)
    np.testing.assert_allclose(np.mean(places, axis=0), 0, atol=0.06)


def test_patches_lie_away_as_often_as_stated():
    transform = RandSimilarityd(away_prob=0.15).set_random_state(0)
    drawn = []
    for _ in range(2000):
        transform.randomize()
        drawn.append(transform.away)
    assert np.mean(drawn) == pytest.approx(0.15, abs=0.03)
    transform = RandSimilarityd(spatial_size=20, shift_mm=0.0)  # by default never
    for _ in range(20):
        origin = HeadToGridd()(transform(memory_entry()))["head_to_grid"][:3, 3]
        assert origin.norm() < 1e-3


def test_stretches_fill_their_range():
    transform = RandSimilarityd(stretch=1.2).set_random_state(0)
    drawn = []
    for _ in range(2000):
        transform.randomize()
        drawn.append(transform.stretches.log().numpy())
    drawn = np.array(drawn) / np.log(1.2)
    assert np.abs(drawn).max() == pytest.approx(1, abs=0.01)
    np.testing.assert_allclose(drawn.mean(0), 0, atol=0.05)
    np.testing.assert_allclose(np.cov(drawn.T), np.eye(3) / 3, atol=0.03)  # each for itself


def test_similarity_draws_uniformly():
    transform = RandSimilarityd(mirror_prob=0.3, scale=(0.8, 1.25), shift_mm=60.0)
    transform.set_random_state(0)
    linear, offsets = [], []
    for _ in range(4000):
        transform.randomize()
        linear.append(transform.linear.numpy())
        offsets.append(transform.offset_mm.numpy())
    linear, offsets = np.array(linear), np.array(offsets)
    det = np.linalg.det(linear)
    assert (det < 0).mean() == pytest.approx(0.3, abs=0.03)
    log_scale = np.log(np.abs(det)) / 3
    assert log_scale.min() == pytest.approx(np.log(0.8), abs=0.01)
    assert log_scale.max() == pytest.approx(np.log(1.25), abs=0.01)
    assert log_scale.mean() == pytest.approx(0, abs=0.01)
    assert np.abs(offsets).max() == pytest.approx(60, abs=0.5)
    np.testing.assert_allclose(offsets.mean(0), 0, atol=2)
    # The angle of a uniform rotation has the density (1 - cos) / pi, its mean is 126.5 degrees.
    rotation = linear / np.exp(log_scale)[:, None, None]
    rotation[det < 0] = rotation[det < 0] @ np.diag([-1.0, 1, 1])
    angles = np.degrees(Rotation.from_matrix(rotation).magnitude())
    assert angles.mean() == pytest.approx(np.degrees(np.pi / 2 + 2 / np.pi), abs=1.5)
    # Every axis is uniform on the sphere, so every entry has mean 0 and variance 1 / 3.
    np.testing.assert_allclose(rotation.mean(0), 0, atol=0.04)
    np.testing.assert_allclose(rotation.var(0), 1 / 3, atol=0.02)
    # The trap: uniform Euler angles hardly differ in the angle, 125.8 degrees, but in the axes.
    euler = np.random.default_rng(0).uniform(-180, 180, (4000, 3))
    wrong = Rotation.from_euler("xyz", euler, degrees=True).as_matrix()
    assert np.abs(wrong.var(0) - 1 / 3).max() > 0.1


# --- seeds -----------------------------------------------------------------------------------


def random_chain():
    return Compose(
        [
            RandSimilarityd(spatial_size=12, stretch=1.2),
            HeadToGridd(),
            RandSliceMotiond(prob=0.8),
            RandFieldOfViewd(prob=0.8),
            RandSpinHistoryd(prob=0.8),
        ]
    )


def run_chain(seed, count=4):
    chain = random_chain().set_random_state(seed)
    return torch.stack([chain(memory_entry())["image"].as_tensor() for _ in range(count)])


def test_seed_alone_decides():
    first = run_chain(1)
    np.random.seed(99)  # noqa: NPY002
    torch.manual_seed(99)
    assert torch.equal(run_chain(1), first)
    assert not torch.equal(run_chain(2), first)
    assert not torch.equal(first[0], first[1])


def test_global_random_state_is_left_alone():
    np.random.seed(5)  # noqa: NPY002
    expected = np.random.random()  # noqa: NPY002
    np.random.seed(5)  # noqa: NPY002
    torch.manual_seed(5)
    torch_state = torch.get_rng_state()
    run_chain(1)
    assert np.random.random() == expected  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), torch_state)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loader_augments_every_item_differently(num_workers):
    def load():
        torch.manual_seed(7)
        dataset = Dataset([memory_entry()] * 6, random_chain())
        loader = DataLoader(dataset, batch_size=1, num_workers=num_workers)
        batches = list(loader) + list(loader)  # two epochs
        return torch.cat([torch.as_tensor(b["head_to_grid"]) for b in batches])

    poses = load()
    distance = torch.cdist(poses.flatten(1), poses.flatten(1)) + 100 * torch.eye(12)
    assert distance.min() > 0.1
    np.random.seed(3)  # noqa: NPY002
    assert torch.equal(load(), poses)


# --- RandSliceMotiond ------------------------------------------------------------------------


@pytest.fixture
def head(landmark_case):
    return HeadToGridd(spacing_mm=SPACING_MM)(to_grid(landmark_case))


def test_slice_motion_without_amplitude_changes_nothing(head):
    motion = RandSliceMotiond(prob=1.0, rotate_deg=0.0, shift_mm=0.0).set_random_state(0)
    for _ in range(3):
        moved = motion(head)
        torch.testing.assert_close(
            moved["image"].as_tensor(), head["image"].as_tensor(), atol=1e-4, rtol=0
        )
        assert torch.equal(moved["label"].as_tensor(), head["label"].as_tensor())
        np.testing.assert_array_equal(moved["image"].affine, head["image"].affine)
    assert landmark_errors_mm(moved["image"], moved["head_to_grid"]).max() < 1


def test_slice_motion_keeps_the_mean_pose(head):
    # a small motion: every landmark stays within 1 mm
    motion = RandSliceMotiond(prob=1.0, rotate_deg=0.5, shift_mm=0.3).set_random_state(0)
    assert landmark_errors_mm(motion(head)["image"], head["head_to_grid"]).max() < 1
    # the full motion tears the blobs apart, but the mean of many stacks shows them at the pose
    motion = RandSliceMotiond(prob=1.0, rotate_deg=4.0, shift_mm=3.0).set_random_state(1)
    stacks = torch.stack([motion(head)["image"].as_tensor() for _ in range(20)])
    assert landmark_errors_mm(stacks.mean(0), head["head_to_grid"]).max() < 1
    assert stacks.std(0).max() > 0.2


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_one_motion_of_all_slices_is_a_rigid_motion(head, axis):
    slices = head["image"].shape[1 + axis]
    angles, shift = torch.tensor([14.0, -9.0, 21.0]), torch.tensor([6.0, -11.0, 8.0])
    center = torch.tensor([2.0, 7.0, -5.0])
    moved = move_slices(
        head["image"],
        axis,
        angles.expand(slices, 3),
        shift.expand(slices, 3),
        center,
        SPACING_MM,
    )
    before = find_landmarks(head["image"][0].numpy(), SPACING_MM)
    rotation = Rotation.from_euler("xyz", angles.numpy(), degrees=True)  # about x first
    expected = rotation.apply(before - center.numpy()) + center.numpy() + shift.numpy()
    after = find_landmarks(moved[0].numpy(), SPACING_MM)
    assert np.linalg.norm(after - expected, axis=1).max() < 1


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_every_slice_shows_its_own_pose(head, axis):
    image = head["image"].as_tensor()
    slices = image.shape[1 + axis]
    generator = torch.Generator().manual_seed(axis)
    angles = 10 * torch.rand(slices, 3, generator=generator) - 5
    shifts = 12 * torch.rand(slices, 3, generator=generator) - 6
    shifts[:, axis] = 0  # so that a slice near a landmark still cuts it near its centre
    center = head["head_to_grid"][:3, 3]
    moved = move_slices(image, axis, angles, shifts, center, SPACING_MM)[0].numpy()
    before = find_landmarks(image[0].numpy(), SPACING_MM)
    inplane = [k for k in range(3) if k != axis]
    positions = [SPACING_MM * (np.arange(n) - (n - 1) / 2) for n in moved.shape]
    a, b = np.meshgrid(*(positions[k] for k in inplane), indexing="ij")
    checked = 0
    for k in range(slices):
        rotation = Rotation.from_euler("xyz", angles[k].numpy(), degrees=True)
        expected = rotation.apply(before - center.numpy()) + center.numpy() + shifts[k].numpy()
        for point in expected:
            if abs(point[axis] - positions[axis][k]) > 4:
                continue
            # a ball cut by a plane is a disc, whose centre lies under the ball's
            near = np.hypot(a - point[inplane[0]], b - point[inplane[1]]) < 22
            weight = moved.take(k, axis) * near
            found = np.array([(weight * a).sum(), (weight * b).sum()]) / weight.sum()
            assert np.abs(found - point[inplane]).max() < 1
            checked += 1
    assert checked >= 6


def test_slice_motion_is_a_walk_in_the_order_of_acquisition(monkeypatch):
    entry = HeadToGridd()(memory_entry(shape=(30, 30, 30)))
    drawn = []

    def record(image, axis, rotations_deg, shifts_mm, center_mm, spacing_mm, mode):
        drawn.append((axis, torch.cat([rotations_deg, shifts_mm], dim=1), mode))
        torch.testing.assert_close(center_mm, entry["head_to_grid"][:3, 3])
        return image

    monkeypatch.setattr(augmentation, "move_slices", record)
    motion = RandSliceMotiond(prob=1.0, rotate_deg=4.0, shift_mm=3.0).set_random_state(0)
    for _ in range(60):
        motion(entry)
    assert {mode for _, _, mode in drawn} == {"bilinear", "nearest"}
    assert {axis for axis, _, _ in drawn} == {0, 1, 2}
    for of_image, of_label in zip(drawn[::2], drawn[1::2], strict=True):
        assert of_image[0] == of_label[0]
        assert torch.equal(of_image[1], of_label[1])
    steps = torch.stack([s for _, s, _ in drawn[::2]])
    assert steps.mean(1).abs().max() < 1e-4  # so that the pose is the mean pose
    sd = steps.std(1, correction=0)
    assert sd[:, :3].max() <= 4.0 + 1e-4
    assert sd[:, 3:].max() <= 3.0 + 1e-4
    assert sd[:, :3].max() > 3.5
    acquired = torch.cat([steps[:, 0::2], steps[:, 1::2]], dim=1)
    assert acquired.diff(dim=1).abs().mean() < 0.6 * steps.diff(dim=1).abs().mean()


def test_slice_motion_keeps_labels(tmp_path):
    d = HeadToGridd()(to_grid(labelled_case(tmp_path)))
    moved = RandSliceMotiond(prob=1.0, rotate_deg=8.0, shift_mm=5.0).set_random_state(3)(d)
    assert set(moved["label"].unique().tolist()) == {0, 1, 2}
    assert not torch.equal(moved["label"].as_tensor(), d["label"].as_tensor())
    inside = moved["label"].as_tensor() > 0
    assert moved["image"].as_tensor()[inside].mean() > 0.4


# --- RandSpinHistoryd ------------------------------------------------------------------------


def test_saturation_is_the_formula_at_the_right_place():
    shape, spacing = (11, 14, 9), 3.0
    normal, point = np.array([0.6, 0.0, -0.8]), np.array([4.0, -7.0, 2.5])
    sigma, alpha = 3.7, 0.83
    found = saturation(
        shape, spacing, torch.from_numpy(normal), torch.from_numpy(point), sigma, alpha
    ).numpy()
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    mm = spacing * (index - np.array([5.0, 6.5, 4.0]))
    expected = 1 - alpha * np.exp(-(((mm - point) @ normal) ** 2) / (2 * sigma**2))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert found.min() > 0
    assert found.max() <= 1


def test_saturation_is_darkest_at_its_plane():
    normal, point = torch.tensor([0.0, 1.0, 0.0]), torch.tensor([0.0, 12.0, 0.0])
    found = saturation((9, 21, 9), 4.0, normal, point, 3.0, 1.0)
    assert found.shape == (9, 21, 9)
    assert (found.argmin(dim=1) == 13).all()  # 12 mm = 3 voxels above the middle one, 10
    assert found.min() == 0
    assert saturation((9, 21, 9), 4.0, normal, point, 3.0, 0.0).eq(1).all()


@pytest.mark.parametrize("alpha", [1.0001, 2.0, -0.1, float("nan")])
def test_more_than_all_cannot_be_saturated(alpha):
    with pytest.raises(ValueError, match="alpha"):
        saturation((4, 4, 4), 4.0, torch.eye(3)[0], torch.zeros(3), 3.0, alpha)


def test_spin_history_before_its_cause_is_refused():
    spin = RandSpinHistoryd(prob=1.0, delay_s=(-2.0, -1.0))
    with pytest.raises(ValueError, match="alpha"):
        spin(HeadToGridd()(memory_entry()))


def fit_slab(factor):
    """(alpha, sigma_mm, distance_mm of the plane from the grid's origin along its normal, normal).

    The logarithm of 1 - factor is a quadratic of the position; least squares gives it back.
    """
    factor = factor.astype(float)
    index = np.argwhere(1 - factor > 1e-2)
    mm = SPACING_MM * (index - (np.array(factor.shape) - 1) / 2)
    x, y, z = mm.T
    terms = np.stack([x * x, y * y, z * z, x * y, x * z, y * z, x, y, z, x**0], axis=1)
    q = np.linalg.lstsq(terms, np.log(1 - factor[tuple(index.T)]), rcond=None)[0]
    hessian = np.array([[2 * q[0], q[3], q[4]], [q[3], 2 * q[1], q[5]], [q[4], q[5], 2 * q[2]]])
    values, vectors = np.linalg.eigh(hessian)
    normal, precision = vectors[:, 0], -values[0]
    distance = q[6:9] @ normal / precision
    alpha = np.exp(q[9] + 0.5 * precision * distance**2)
    return alpha, precision**-0.5, distance, normal


def test_spin_history_draws_within_its_ranges():
    entry = HeadToGridd()(memory_entry(shape=(30, 30, 30)))
    entry["image"] = MetaTensor(torch.ones(1, 30, 30, 30), affine=entry["image"].affine)
    spin = RandSpinHistoryd(prob=1.0, sigma_mm=(2.3, 4.6), offset_mm=25.0).set_random_state(0)
    slabs = []
    for _ in range(60):
        image = spin(entry)["image"]
        assert image.min() > 0
        assert image.max() <= 1
        slabs.append(fit_slab(image[0].numpy()))
    alpha, sigma, distance, normal = (np.array(values) for values in zip(*slabs, strict=True))
    assert np.exp(-2.5 / 3) - 1e-3 < alpha.min() < alpha.max() < np.exp(-0.2 / 5) + 1e-3
    assert 2.29 < sigma.min() < 2.6
    assert 4.3 < sigma.max() < 4.61
    from_head = distance - normal @ entry["head_to_grid"][:3, 3].numpy()
    assert 15 < np.abs(from_head).max() < 25.1
    np.testing.assert_allclose(np.mean(normal**2, axis=0), 1 / 3, atol=0.12)


def test_spin_history_leaves_labels_and_signs_alone():
    entry = HeadToGridd()(memory_entry())
    spin = RandSpinHistoryd(prob=1.0).set_random_state(4)
    for _ in range(20):
        moved = spin(entry)
        assert moved["image"].min() >= 0
        assert (moved["image"] <= entry["image"]).all()
        assert torch.equal(moved["label"], entry["label"])
        np.testing.assert_array_equal(moved["image"].affine, entry["image"].affine)
    never = RandSpinHistoryd(prob=0.0)(entry)
    assert torch.equal(never["image"], entry["image"])


# --- RandFieldOfViewd ------------------------------------------------------------------------


def distances_mm(shape, normal, point):
    """Signed distance of every voxel of a grid from the plane, written out from the definition."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    mm = SPACING_MM * (index - (np.array(shape) - 1) / 2)
    return (mm - np.asarray(point)) @ np.asarray(normal)


def plane_normal(seen):
    """Unit normal of the plane at which ``seen`` ends, from the voxels along it."""
    edges = []
    for axis in range(3):
        first = np.argwhere(np.diff(seen.astype(int), axis=axis))
        edges.append(first + 0.5 * np.eye(3)[axis])  # between the last seen and the first unseen
    points = SPACING_MM * np.concatenate(edges)
    _, _, directions = np.linalg.svd(points - points.mean(0), full_matrices=False)
    normal = directions[2]
    index = np.argwhere(~seen).mean(0) - np.argwhere(seen).mean(0)
    return normal * np.sign(normal @ index)


@pytest.mark.parametrize("limit", [-7.0, 0.0, 13.0])
def test_half_space_ends_at_its_plane(limit):
    shape, normal, point = (11, 14, 9), np.array([0.6, 0.0, -0.8]), np.array([4.1, -7.0, 2.3])
    found = half_space(shape, SPACING_MM, torch.from_numpy(normal), torch.from_numpy(point), limit)
    assert found.shape == shape
    np.testing.assert_array_equal(found, distances_mm(shape, normal, point) <= limit)
    assert 0 < found.mean() < 1


def test_nothing_is_seen_beyond_the_plane():
    """Image and label end at one plane, as far from the head as stated, with any normal."""
    shape = (36, 38, 34)
    entry = HeadToGridd()(memory_entry(shape=shape))
    for key in ("image", "label"):
        entry[key] = MetaTensor(torch.rand(1, *shape) + 1, affine=entry[key].affine)
    origin = entry["head_to_grid"][:3, 3].numpy()
    view = RandFieldOfViewd(prob=1.0, distance_mm=(10.0, 30.0)).set_random_state(0)
    limits, normals = [], []
    for _ in range(60):
        cut = view(entry)
        seen = cut["image"][0].numpy() > 0
        np.testing.assert_array_equal(cut["label"][0].numpy() > 0, seen)
        for key in ("image", "label"):
            torch.testing.assert_close(
                cut[key].as_tensor(), entry[key].as_tensor() * torch.from_numpy(seen)
            )
            np.testing.assert_array_equal(cut[key].affine, entry[key].affine)
        assert torch.equal(cut["head_to_grid"], entry["head_to_grid"])
        normal = plane_normal(seen)
        distance = distances_mm(shape, normal, origin)
        assert distance[seen].max() < distance[~seen].min() + 3  # one plane parts them
        limits.append((distance[seen].max() + distance[~seen].min()) / 2)
        normals.append(normal)
    assert 9 < min(limits) < 13
    assert 27 < max(limits) < 31
    np.testing.assert_allclose(np.mean(np.square(normals), axis=0), 1 / 3, atol=0.12)
    assert np.abs(np.mean(normals, axis=0)).max() < 0.3


def test_field_of_view_with_no_probability_leaves_everything_as_it_is():
    entry = HeadToGridd()(memory_entry())
    never = RandFieldOfViewd(prob=0.0)(entry)
    for key in ("image", "label"):
        assert never[key] is entry[key]
    cut = RandFieldOfViewd(prob=1.0, distance_mm=(0.0, 0.0))(entry)
    assert (cut["image"] != entry["image"]).any()
    assert set(cut["label"].unique().tolist()) == {0, 1}
    often = RandFieldOfViewd(prob=0.3, distance_mm=(0.0, 0.0)).set_random_state(0)
    share = np.mean([often(entry)["image"] is not entry["image"] for _ in range(300)])
    assert share == pytest.approx(0.3, abs=0.08)


def test_field_of_view_is_seeded():
    entry = HeadToGridd()(memory_entry(shape=(30, 30, 30)))

    def cut(seed):
        view = RandFieldOfViewd(prob=1.0).set_random_state(seed)
        return torch.stack([view(entry)["image"].as_tensor() for _ in range(3)])

    first = cut(1)
    np.random.seed(99)  # noqa: NPY002
    torch.manual_seed(99)
    assert torch.equal(cut(1), first)
    assert not torch.equal(cut(2), first)
    assert not torch.equal(first[0], first[1])


def test_field_of_view_of_a_volume_without_a_head_ends_about_its_middle():
    entry = HeadToGridd()(memory_entry(shape=(30, 30, 30)) | {"head_to_world": None})
    cut = RandFieldOfViewd(prob=1.0, distance_mm=(0.0, 0.0)).set_random_state(0)(entry)
    assert (cut["image"] > 0).float().mean().item() == pytest.approx(0.5, abs=0.05)


def test_pose_of_augmented_grid_agrees_with_the_world():
    d = memory_entry()
    transform = RandSimilarityd(spatial_size=20, mirror_prob=0.0, scale=(1.0, 1.0))
    moved = transform.set_random_state(8)(d)
    pose = head_to_grid(moved["image"].affine, (20,) * 3, SPACING_MM, torch.from_numpy(head_pose()))
    before = head_to_grid(
        d["image"].affine, d["image"].shape[1:], SPACING_MM, torch.from_numpy(head_pose())
    )
    torch.testing.assert_close(pose[:3, :3], transform.linear @ before[:3, :3], atol=1e-6, rtol=0)
