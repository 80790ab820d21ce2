"""distortion.py: signal is moved by field times train, kept in sum, and lost beside air."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from conftest import make_affine
from scripts.data.datalists import datalist
from scripts.data.distortion import distorted, random_distorted
from scripts.data.phantoms import write_dataset
from scripts.data.regridding import Volume, volume_center_mm
from scripts.data.variants import write_variant

SHAPE = (40, 36, 20)
AFFINE = make_affine("LPS", (3.0, 3.0, 4.5), 20.0, SHAPE)


def a_volume(seed: int = 0) -> Volume:
    """Smooth content that ends before the volume does, and a label where it is brightest."""
    image = ndimage.gaussian_filter(np.random.default_rng(seed).random(SHAPE), 2)
    inside = np.zeros(SHAPE)
    inside[8:-8, 8:-8, 4:-4] = 1
    image = (image * ndimage.gaussian_filter(inside, 1)).astype(np.float32)
    return Volume(image, AFFINE, (image > np.quantile(image, 0.95)).astype(np.uint8))


@pytest.mark.parametrize("axis", [0, 1])
def test_content_moves_by_the_field_times_the_train(axis):
    source = a_volume()
    moved = distorted(source, np.full(SHAPE, 100.0), axis, 0.03, 0.05)  # three voxels
    back = tuple(slice(3, None) if n == axis else slice(None) for n in range(3))
    there = tuple(slice(None, -3) if n == axis else slice(None) for n in range(3))
    np.testing.assert_allclose(moved.image[back], source.image[there], atol=1e-6)
    np.testing.assert_array_equal(moved.label[back], source.label[there])
    np.testing.assert_array_equal(moved.affine, source.affine)
    assert distorted(source._replace(label=None), np.zeros(SHAPE), axis, 0.03, 0.05).label is None


def test_signal_is_piled_up_and_spread_but_not_lost():
    """What lies at r is shown at r + d(r), and every line along the axis keeps its sum."""
    source, axis = a_volume(), 1
    r = np.arange(SHAPE[axis])
    shift = 3 * np.sin(2 * np.pi * r / SHAPE[axis])
    field = np.broadcast_to(shift[None, :, None] / 0.03, SHAPE)
    found = distorted(source, field, axis, 0.03, 0.0).image
    np.testing.assert_allclose(found.sum(axis), source.image.sum(axis), rtol=0.03, atol=1e-2)
    for line in ((20, 10), (15, 8)):
        before, after = (image[line[0], :, line[1]] for image in (source.image, found))
        middle = (before * (r + shift)).sum() / before.sum()
        assert (after * r).sum() / after.sum() == pytest.approx(middle, abs=0.1)
    # the field stretches the middle of the line backwards: not merely a shift
    assert np.abs(found - source.image).max() > 0.2 * source.image.max()


def test_a_gradient_across_the_slices_takes_signal():
    source = a_volume()
    for per_slice, left in ((0.0, 1.0), (10.0, np.sinc(0.5)), (20.0, 0.0)):
        field = np.broadcast_to(per_slice * np.arange(SHAPE[2]), SHAPE)
        found = distorted(source, field, 0, 1e-9, 0.05).image
        np.testing.assert_allclose(found, left * source.image, atol=1e-6)
    in_plane = np.broadcast_to(20.0 * np.arange(SHAPE[1])[:, None], SHAPE)
    found = distorted(source, in_plane, 0, 1e-9, 0.05).image
    np.testing.assert_allclose(found, source.image, atol=1e-6)


def test_either_axis_of_the_slices_and_the_head_about_where_it_was():
    source = a_volume()
    center_mm = volume_center_mm(source)
    axes, shifts = set(), []
    for seed in range(12):
        given = source, center_mm
        found = random_distorted(*given, np.random.RandomState(seed), echo_s=(0, 0))
        again = random_distorted(*given, np.random.RandomState(seed), echo_s=(0, 0))
        np.testing.assert_array_equal(found.image, again.image)
        assert found.image.dtype == np.float32
        assert set(np.unique(found.label)) <= {0, 1}
        # along the axis of the phase encoding every line keeps its sum
        changes = [np.abs(found.image.sum(n) - source.image.sum(n)).max() for n in range(3)]
        axes.add(int(np.argmin(changes)))
        middles = [np.array(ndimage.center_of_mass(v.image)) for v in (found, source)]
        shifts.append(middles[0] - middles[1])
    assert axes == {0, 1}
    # a field of 40 Hz that were not centred on the head would move it by a voxel, and one way
    assert np.abs(np.mean(shifts, axis=0)).max() < 0.3


def test_a_data_set_of_distorted_volumes(tmp_path):
    """On the same grid and with the same poses; volumes without a head, and labels, too."""
    write_dataset(
        tmp_path / "D", 0, 0, 2, seed=3, voxel_mm=(6, 6, 6), headless_share=0.5, progress=False
    )
    write_variant("distorted", tmp_path / "D", tmp_path / "V", progress=False)
    for before, after in zip(
        datalist(tmp_path / "D", "test"), datalist(tmp_path / "V", "test"), strict=True
    ):
        assert (before["head_to_world"] is None) == (after["head_to_world"] is None)
        if before["head_to_world"] is not None:
            assert after["head_to_world"].equal(before["head_to_world"])
        images = [nib.load(entry["image"]) for entry in (before, after)]
        np.testing.assert_allclose(images[0].affine, images[1].affine)
        values = [np.asarray(image.dataobj, np.float32) for image in images]
        assert values[0].shape == values[1].shape
        assert np.abs(values[0] - values[1]).max() > 0.1 * values[0].max()
    with pytest.raises(ValueError, match="distorted keeps the voxels as they are"):
        write_variant("distorted", tmp_path / "D", tmp_path / "W", voxel_mm=4, progress=False)
