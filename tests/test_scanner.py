"""The simulated scanner shows the head where it is, at any pose, with what slices have left."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from conftest import head_pose, make_affine
from scripts.simulation.scanner import Scanner, band_of
from scripts.simulation.scene import Layer, Scene, paint_scene, scene_of_volume
from scripts.simulation.volume import PhantomGenerator

# three blobs in the head frame that no symmetry maps onto themselves, and their heights
BLOBS_MM = np.array([[30.0, 0, 0], [0, 36, 0], [0, -10, 40]])


def blobs(axcodes: str = "RAS") -> tuple[np.ndarray, np.ndarray]:
    """A volume (i, j, k) with the blobs of a head at ``head_pose()``, and its affine."""
    shape, pose = (80, 84, 88), head_pose()
    affine = make_affine(axcodes, (2.0, 2.0, 2.0), 20.0, shape)
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    head = (index @ affine[:3, :3].T + affine[:3, 3] - pose[:3, 3]) @ pose[:3, :3]
    image = sum(
        h * np.exp(-((head - p) ** 2).sum(-1) / 50)
        for h, p in zip((1, 2, 3), BLOBS_MM, strict=True)
    )
    return image.astype(np.float32), affine


def scene(axcodes: str = "RAS") -> Scene:
    image, affine = blobs(axcodes)
    return scene_of_volume(image, affine, image > 0.5, head_pose(), 30.0)


def scanner(of: Scene, **options) -> Scanner:
    return Scanner(of, np.random.RandomState(0), **{"noise": 0.0, "voxel_mm": 4.0, **options})


def centres(image: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Centres (3, 3) of the blobs in the world, by their height."""
    parts, count = ndimage.label(image > 0.15 * image.max())
    assert count == 3
    order = np.argsort(ndimage.maximum(image, parts, range(1, 4)))
    found = np.array(ndimage.center_of_mass(image, parts, range(1, 4)))[order]
    return found @ affine[:3, :3].T + affine[:3, 3]


@pytest.mark.parametrize("axcodes", ["RAS", "LPS", "PIL"])
def test_a_navigator_shows_the_head_where_it_is(axcodes):
    """Also of a stored volume that is left-handed and oblique, and far from its field of view."""
    there = head_pose(5)
    there[:3, 3] += [40, -25, 60]
    taken = scanner(scene(axcodes)).navigator(there, there[:3, 3] + 8)
    truth = BLOBS_MM @ there[:3, :3].T + there[:3, 3]
    np.testing.assert_allclose(centres(taken.image, taken.affine), truth, atol=0.6)
    middle = taken.affine @ [*(np.array(taken.image.shape) - 1) / 2, 1]
    np.testing.assert_allclose(middle[:3], there[:3, 3] + 8)


def test_a_slice_shows_what_lies_in_it_and_nothing_beside_it():
    there = head_pose(7)
    onto = there.copy()  # through the blob on the head's z axis, across z
    onto[:3, 3] = there[:3, :3] @ BLOBS_MM[2] + there[:3, 3]
    made = scanner(scene())
    taken = made.slice(onto, there, 3.0, 1.0, 128)
    assert taken.image.shape == (128, 128, 1)
    peak = np.unravel_index(taken.image.argmax(), taken.image.shape)
    found = taken.affine @ [*peak, 1]
    np.testing.assert_allclose(found[:3], onto[:3, 3], atol=1.0)
    beside = onto.copy()
    beside[:3, 3] += 30 * onto[:3, 2]
    assert made.slice(beside, there, 3.0, 1.0, 128).image.max() < 0.02 * taken.image.max()


def test_a_band_is_that_of_the_formula_and_moves_with_the_head():
    """I *= 1 - alpha exp(-d^2 / 2 sigma^2), where the slice was in the head at its own time."""
    shape = (60, 60, 60)
    affine = make_affine("RAS", (3.0, 3.0, 3.0), 0.0, shape)
    flat = Scene(
        None,
        ([Layer(np.ones(shape, np.float32), None, affine)],) * 2,
        np.eye(4),
        np.zeros((1, 3)),
        None,
        1.0,
        30.0,
    )
    made = scanner(flat, voxel_mm=3.0, shape=(24, 24, 24))
    then, now = head_pose(4), head_pose(2)
    one = np.eye(4)
    one[2, 3] = 6.0  # across the head's z axis
    bands = made.bands([(then @ one, then, 10.0)], 11.5, 3.0)
    taken = made.navigator(now, now[:3, 3], bands)
    band = band_of(one, 3.0, 1.5, 4.0, 3.0)
    assert band.depth == pytest.approx(np.exp(-1.5 / 4) * 3.6 / np.hypot(3.6, 3.0))
    index = np.stack(np.meshgrid(*(np.arange(24),) * 3, indexing="ij"), axis=-1)
    world = index @ taken.affine[:3, :3].T + taken.affine[:3, 3]
    away = (world - now[:3, 3]) @ now[:3, 2] - 6.0
    expected = 1 - band.depth * np.exp(-(away**2) / (2 * band.sd_mm**2))
    np.testing.assert_allclose(taken.image / 500, expected, atol=1e-4)
    # one of long ago has left nothing
    assert made.bands([(one, then, 0.0)], 20.0, 3.0) == []


def test_a_phantom_is_seen_with_its_brain_and_over_its_mother():
    generator = PhantomGenerator((26.0, 26.0))
    generator.set_random_state(seed=3)
    painted = paint_scene(generator.draw_anatomy(), np.random.RandomState(0))
    assert np.abs(painted.brain_mm.mean(0)).max() < 0.3  # the head's origin is the brain's centre
    volume_ml = len(painted.brain_mm) / 1000
    assert 120 < volume_ml < 330
    made = scanner(painted, voxel_mm=6.0)
    there = painted.head_to_world.copy()
    there[:3, 3] += [12, 0, 0]
    both = [made.navigator(pose, there[:3, 3]) for pose in (painted.head_to_world, there)]
    change = np.abs(both[1].image - both[0].image)
    index = np.argwhere(change > 0.2 * both[0].image.max())
    world = index @ both[0].affine[:3, :3].T + both[0].affine[:3, 3]
    # the mother rests: nothing changes far from the fetus
    assert len(index) > 20
    assert np.linalg.norm(world - there[:3, 3], axis=1).max() < 260
    corner = both[0].image[:6, :6]
    np.testing.assert_array_equal(corner, both[1].image[:6, :6])
    # the brain is not the mother's: it is in the middle of the slice through its centre
    taken = made.slice(there, there, 3.0, 1.0, 64)
    assert taken.image.mean() > 100


def test_a_seed_gives_one_image_and_noise_has_its_size():
    one = [Scanner(scene(), np.random.RandomState(4), noise=0.05) for _ in range(2)]
    images = [s.navigator(head_pose(), np.array([400.0, 0, 0])).image for s in one]
    np.testing.assert_array_equal(*images)
    # where there is no signal: Rayleigh, with a mean of sd sqrt(pi / 2), white matter is 500
    assert images[0].mean() == pytest.approx(500 * 0.05 * np.sqrt(np.pi / 2), rel=0.02)


def test_a_volume_without_brain_is_refused():
    image, affine = blobs()
    with pytest.raises(ValueError, match="the label shows no brain"):
        scene_of_volume(image, affine, image > 99, head_pose(), 30.0)
