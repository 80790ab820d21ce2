"""Values that can hardly be meant: padding, holes, spikes. What is good stays as it is."""

from __future__ import annotations

import numpy as np
import pytest

from scripts.reading import VolumeError
from scripts.reading.image import Notes
from scripts.reading.values import cure, to_real

SHAPE = (30, 32, 28)
ML = 0.064  # of a voxel of 4 mm


@pytest.fixture
def body():
    """A bright ellipsoid in noise, as a stack is."""
    random = np.random.default_rng(2)
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    inside = sum(a**2 for a in axes) < 0.7
    return (20 * random.random(SHAPE) + inside * (400 + 300 * random.random(SHAPE))).astype("f4")


def cured(values):
    notes = Notes()
    return cure(values, ML, notes, "a.nii"), notes.warnings


@pytest.mark.parametrize(("margin", "shift"), [(0, 0), (6, 0), (0, -1024)])
def test_good_values_stay_as_they_are(body, margin, shift):
    bias = np.exp(np.linspace(0, np.log(20), SHAPE[0]))[:, None, None]
    for values in (body, (body * bias).astype("f4"), body * np.float32(1e-30)):
        values = np.pad(values, margin)
        values = values + np.float32(shift) if values.max() > 1 else values
        kept = values.copy()
        found, warnings = cured(values)
        np.testing.assert_array_equal(found, kept)
        assert warnings == []


@pytest.mark.parametrize("constant", [255, 32767, -32768, -1024, 1e9, np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("width", [(12, 12), (0, 9)])
def test_padding_of_any_constant_becomes_0(body, constant, width):
    around = ((0, 0), (0, 0), width)
    padded = np.pad(body, around, constant_values=constant)
    before = padded.copy()
    found, (warning,) = cured(padded)
    np.testing.assert_array_equal(found, np.pad(body, around))
    assert "taken as padding" in warning
    np.testing.assert_array_equal(padded, before)  # a copy is changed


def test_padding_below_negative_values_is_the_least(body):
    padded = np.pad(body - 300, 8, constant_values=-1024)
    found, _ = cured(padded)
    np.testing.assert_array_equal(found, np.pad(body - 300 - (body - 300).min(), 8))


def test_padding_of_0_in_a_picture_of_negative_values(body):
    found, (warning,) = cured(np.pad(body - 1024, 8))
    assert "are 0: taken as padding" in warning
    np.testing.assert_allclose(found[8:-8, 8:-8, 8:-8], body - body.min(), atol=1e-3)
    assert found[0, 0, 0] == found.min() == 0


def test_a_masked_background_of_a_constant_is_padding(body):
    masked = np.where(body > 100, body, np.float32(32767))
    found, _ = cured(masked)
    np.testing.assert_array_equal(found, np.where(body > 100, body, 0))


def test_few_holes_are_padding_and_many_within_are_refused(body):
    few = body.copy()
    few[10, 11, 12] = np.nan
    few[20, 11, 12] = np.inf
    found, (warning,) = cured(few)
    assert "2 voxels" in warning
    assert found[10, 11, 12] == 0
    assert (found != body).sum() == 2
    many = body.copy()
    many[12:19, 12:19, 12:19] = np.nan  # 22 ml
    with pytest.raises(VolumeError, match=r"a\.nii.*343 of 26880.*22 ml") as caught:
        cured(many)
    assert caught.value.status == "not_finite"
    with pytest.raises(VolumeError, match="every voxel"):
        cured(np.full(SHAPE, np.nan, "f4"))


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("slices", [[0], [13], [13, 14], [27]])
def test_hot_slices_are_replaced_by_their_neighbours(body, axis, slices):
    for heat in (50, 1e6):
        hot = body.copy()
        # the outer slices are air, which times 50 is still no brighter than a body
        heat = 1e6 if slices[0] in (0, 27) else heat
        np.moveaxis(hot, axis, 0)[slices] *= np.float32(heat)
        found, warnings = cured(hot)
        assert f"slices {slices} along voxel axis {axis}" in warnings[-1]
        assert found.max() <= body.max()
        left = np.delete(np.arange(SHAPE[axis]), slices)
        np.testing.assert_array_equal(found.take(left, axis), body.take(left, axis))


@pytest.mark.parametrize(("sign", "size"), [(1, 1e5), (-1, 1e5), (1, 1e30)])
def test_hot_voxels_are_clipped(body, sign, size):
    hot = body.copy()
    places = ([4, 15, 20], [9, 9, 16], [3, 14, 14])
    hot[places] = sign * size
    found, (warning,) = cured(hot)
    assert warning.startswith("3 voxels lie far beyond the rest")
    assert found.max() <= body.max()
    assert found.min() >= 0
    assert (found != body).sum() < 0.002 * body.size


def test_real_values():
    np.testing.assert_allclose(to_real(np.array([3 + 4j, -5j])), [5, 5])
    colours = np.zeros(2, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    colours["G"][1] = 100
    np.testing.assert_allclose(to_real(colours), [0, 58.7], rtol=1e-6)
    assert to_real(np.array([1e300])).dtype == np.float32


@pytest.mark.parametrize("hole", [False, True])
def test_values_at_the_ends_of_float32(body, hole):
    """Their sums and differences would be beyond it."""
    values = ((body / body.max() - 0.5) * np.float32(3.3e38)) * np.float32(2)
    if hole:
        values[0, 0, 0] = np.nan
    with np.errstate(all="raise", under="ignore", invalid="ignore"):
        found, warnings = cured(values)
    assert "2^30" in warnings[0]
    assert len(warnings) == 1 + hole
    shift = found[12, 12, 12] - values[12, 12, 12] / 2**30
    np.testing.assert_allclose(found[9:20] / 1e29, (values[9:20] / 2**30 + shift) / 1e29, atol=1e-5)
    assert np.abs(found).max() < 1e30


def test_tiny_values_stay(body):
    values = body * np.float32(1e-37)
    np.testing.assert_array_equal(cured(values)[0], values)
