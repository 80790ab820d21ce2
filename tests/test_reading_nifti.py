"""NIfTI and Analyze files: what is meant is read, what cannot be meant is said or refused."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from conftest import make_affine, save_nifti
from scripts.reading import VolumeError, find_cases, read_image
from scripts.reading import nifti as nifti_module

SHAPE = (40, 42, 30)
VALUES = (np.random.default_rng(5).random(SHAPE) * 900 + 50).astype(np.float32)
AFFINE = make_affine("LAS", (4.0, 4.0, 5.0), 12.0, SHAPE)


def stack(values=VALUES, affine=AFFINE, kind=nib.Nifti1Image):
    """An image whose header says all that can be said."""
    image = kind(values, affine)
    image.header.set_xyzt_units("mm", "sec")
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    return image


def save(folder: Path, image, *patches, name="a.nii") -> Path:
    """Save it, then write (offset, bytes) over the file: nibabel mends headers when it saves."""
    path = folder / name
    nib.save(image, path)
    content = bytearray(path.read_bytes())
    for offset, value, kind in patches:
        data = np.asarray(value, kind).tobytes()
        content[offset : offset + len(data)] = data
    path.write_bytes(content)
    return path


def refused(path, status="unreadable") -> str:
    with pytest.raises(VolumeError) as caught:
        read_image(path)
    assert caught.value.status == status
    assert path.name in str(caught.value)
    return str(caught.value)


def test_a_good_file_is_read_as_nibabel_reads_it_without_a_word(tmp_path):
    image = read_image(save(tmp_path, stack()))
    np.testing.assert_array_equal(image.values, VALUES)
    np.testing.assert_allclose(image.affine, AFFINE, atol=1e-4)
    assert (image.warnings, image.doubt) == ((), "")
    assert image.values.dtype == np.float32
    assert image.affine.dtype == np.float64


KINDS = ["u1", "i1", "i2", ">i2", "u2", "i4", "u4", "i8", "u8", "f4", ">f4", "f8", ">f8"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_every_number_type_and_slope(tmp_path, kind, name):
    stored = (VALUES / 10).astype(kind)
    header = nib.Nifti1Header(endianness=">" if kind[0] == ">" else "<")
    header.set_data_dtype(stored.dtype)
    image = nib.Nifti1Image(stored, AFFINE, header)
    for slope, inter in ((None, None), (0.5, -7.0), (1e-30, 0.0), (1e6, 3.0)):
        image.header.set_slope_inter(slope, inter)
        nib.save(image, tmp_path / name)
        expected = np.asarray(nib.load(tmp_path / name).dataobj, dtype=np.float64)
        found = read_image(tmp_path / name).values
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_names_do_not_matter_for_how_a_file_is_packed(tmp_path):
    plain = save(tmp_path, stack())
    packed = gzip.compress(plain.read_bytes())
    for name, content in {
        "packed.nii": packed,
        "plain.nii.gz": plain.read_bytes(),
        "LOUD.NII.GZ": packed,
        "Odd.Nii.Gz": packed,
        "LOUD.NII": plain.read_bytes(),
        "a.nii.bz2": __import__("bz2").compress(plain.read_bytes()),
    }.items():
        (tmp_path / name).write_bytes(content)
    cases = find_cases(tmp_path).cases
    assert len(cases) == 7
    for case in cases:
        np.testing.assert_array_equal(read_image(case).values, VALUES)


def test_other_classes_of_nibabel(tmp_path):
    nib.save(stack(kind=nib.Nifti2Image), tmp_path / "two.nii.gz")
    nib.save(stack(kind=nib.Nifti1Pair), tmp_path / "pair.hdr")
    nib.save(stack(kind=nib.Nifti2Pair), tmp_path / "pair2.img")
    nib.save(nib.Spm99AnalyzeImage(VALUES, AFFINE), tmp_path / "old.hdr")
    for case in find_cases(tmp_path).cases:
        image = read_image(case)
        np.testing.assert_array_equal(image.values, VALUES)
        if case.name == "old":
            assert "left and right" in image.doubt
        else:
            np.testing.assert_allclose(image.affine, AFFINE, atol=1e-4)
            assert image.doubt == ""
    (tmp_path / "pair.img").unlink()
    assert "the .img file" in refused(tmp_path / "pair.hdr")


# what a header says, (offset, value, type) of nifti1.h: and the word that tells it
MIRROR = np.diag([-1.0, 1, 1, 1])
SROW, PIXDIM, OFFSET, UNITS, CODES, SLOPE = 280, 80, 108, 123, 252, 112


def test_both_codes_0_say_nothing_of_the_sides(tmp_path):
    image = read_image(save(tmp_path, stack(), (CODES, [0, 0], "<i2")))
    assert "nothing of the sides" in image.doubt
    assert image.doubt in image.warnings
    for codes in ([1, 0], [0, 1]):
        image = read_image(save(tmp_path, stack(), (CODES, codes, "<i2")))
        np.testing.assert_allclose(image.affine, AFFINE, atol=1e-3)
        assert image.warnings == ()


def test_sform_and_qform_that_mirror_each_other_are_doubted(tmp_path):
    other = stack(affine=AFFINE @ MIRROR)
    image = stack()
    image.set_qform(other.affine, 1)
    found = read_image(save(tmp_path, image))
    assert "mirror" in found.doubt
    assert "sform" in found.doubt
    assert "qform" in found.doubt
    np.testing.assert_allclose(found.affine, AFFINE, atol=1e-4)


def test_sform_and_qform_that_differ_by_a_turn_or_a_way_are_told(tmp_path):
    turned, moved = stack(), stack()
    turned.set_qform(make_affine("LAS", (4.0, 4.0, 5.0), 30.0, SHAPE), 1)
    away = AFFINE.copy()
    away[0, 3] += 40
    moved.set_qform(away, 1)
    for image, text in ((turned, "degrees"), (moved, "40.0 mm")):
        found = read_image(save(tmp_path, image))
        (warning,) = found.warnings
        assert "sform and qform disagree" in warning
        assert text in warning
        assert found.doubt == ""


@pytest.mark.parametrize(("share", "doubt"), [(0.02, False), (0.15, True)])
def test_shear_is_told(tmp_path, share, doubt):
    sheared = AFFINE.copy()
    sheared[:3, 1] += share * sheared[:3, 0]
    image = stack()
    image.set_sform(sheared, 1)
    found = read_image(save(tmp_path, image, (CODES, [0, 1], "<i2")))
    assert any("shear" in text for text in found.warnings)
    assert ("shear" in found.doubt) == doubt


@pytest.mark.parametrize(("unit", "factor"), [(1, 1e-3), (3, 1e3)])
def test_units_are_honoured(tmp_path, unit, factor):
    affine = np.diag([factor, factor, factor, 1]) @ AFFINE
    path = save(tmp_path, stack(affine=affine), (UNITS, unit, "u1"))
    found = read_image(path)
    np.testing.assert_allclose(found.affine, AFFINE, atol=1e-3)
    assert "converted to mm" in " ".join(found.warnings)
    wrong = read_image(save(tmp_path, stack(), (UNITS, unit, "u1")))  # the affine is in mm
    np.testing.assert_allclose(wrong.affine, AFFINE, atol=1e-3)
    assert "taken as mm" in " ".join(wrong.warnings)


@pytest.mark.parametrize("unit", [0, 5])
def test_unknown_units_are_told(tmp_path, unit):
    (warning,) = read_image(save(tmp_path, stack(), (UNITS, unit, "u1"))).warnings
    assert "unit of length" in warning


def test_an_identity_on_a_matrix_of_a_scanner(tmp_path):
    values = np.resize(VALUES, (128, 128, 62)).astype(np.complex64)
    path = save(tmp_path, stack(values, np.eye(4)))
    assert "--voxel_mm" in " ".join(read_image(path).warnings)
    found = read_image(path, voxel_mm="3.125,3.125,3")
    assert np.linalg.norm(found.affine[:3, :3], axis=0) == pytest.approx([3.125, 3.125, 3])
    assert found.warnings == (
        "voxel size 3.125 x 3.125 x 3 mm by --voxel_mm, where the header has 1 x 1 x 1",
    )
    large = np.zeros((200, 200, 160), np.int16)
    large[20:180, 20:180, 20:140] = 1
    assert read_image(save(tmp_path, stack(large, np.eye(4)))).warnings == ()


def test_voxel_sizes_that_stand_in_pixdim_only(tmp_path):
    bare = AFFINE / [4, 4, 5, 1]
    bare[:3, 3] = AFFINE[:3, 3]
    path = save(tmp_path, stack(), (SROW, bare[:3], "<f4"), (CODES, [0, 1], "<i2"))
    found = read_image(path)
    np.testing.assert_allclose(found.affine, AFFINE, atol=1e-3)
    assert "pixdim has 4 x 4 x 5" in " ".join(found.warnings)


def test_pixdim_0(tmp_path):
    zero = (PIXDIM, [0, 0, 0], "<f4")
    found = read_image(save(tmp_path, stack(), zero, (CODES, [0, 1], "<i2")))
    np.testing.assert_allclose(found.affine, AFFINE, atol=1e-3)
    assert "pixdim 0 x 0 x 0" in " ".join(found.warnings)
    path = save(tmp_path, stack(), zero, (CODES, [1, 0], "<i2"))
    assert "--voxel_mm" in refused(path)
    found = read_image(path, voxel_mm=(4, 4, 5))
    np.testing.assert_allclose(found.affine, AFFINE, atol=1e-3)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [SROW, SROW + 12])
def test_an_sform_that_is_no_numbers(tmp_path, value, place):
    path = save(tmp_path, stack(), (place, value, "<f4"), (CODES, [0, 1], "<i2"))
    assert str(value) in refused(path)
    found = read_image(save(tmp_path, stack(), (place, value, "<f4")))
    np.testing.assert_allclose(found.affine, AFFINE, atol=1e-3)
    assert "the qform is used" in " ".join(found.warnings)


@pytest.mark.parametrize(("size", "word"), [(300.0, "large"), (0.03, "small")])
def test_a_field_of_view_of_no_uterus(tmp_path, size, word):
    affine = np.diag([size, size, size, 1])
    text = " ".join(read_image(save(tmp_path, stack(affine=affine))).warnings)
    assert f"too {word} for a uterus" in text
    assert f"{size:g} x {size:g} x {size:g}" in text


@pytest.mark.parametrize("offset", [0.0, 4.0, np.nan, 1e9])
def test_vox_offset_within_the_header(tmp_path, offset):
    path = save(tmp_path, stack(), (OFFSET, offset, "<f4"))
    if offset == 0:  # what is meant is clear: the file is as long as header and voxels
        found = read_image(path)
        np.testing.assert_array_equal(found.values, VALUES)
        assert "vox_offset" in " ".join(found.warnings)
        path.write_bytes(path.read_bytes() + b"more")
    text = refused(path)
    assert "vox_offset" in text or "cut off" in text


def test_what_is_cut_off_or_damaged_is_refused(tmp_path):
    whole = save(tmp_path, stack()).read_bytes()
    packed = gzip.compress(whole, mtime=0)
    for name, content, words in (
        ("short.nii", whole[:-1], "cut off"),
        ("header.nii", whole[:200], "header"),
        ("half.nii.gz", packed[: len(packed) // 2], "damaged compressed"),
        ("trailer.nii.gz", packed[:-8], "damaged compressed"),
        ("one_byte.nii.gz", packed[:-1], "damaged compressed"),
        ("crc.nii.gz", packed[:-8] + b"\0\0\0\0" + packed[-4:], "CRC"),
        ("few.nii.gz", gzip.compress(whole[:-4000]), "ends after"),
        ("empty.nii", b"", "0 bytes"),
        ("zeros.nii.gz", bytes(5000), "zeros"),
        ("lfs.nii.gz", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-lfs"),
        ("page.nii.gz", b"\n<!DOCTYPE html><html></html>", "HTML"),
        ("page_in.nii.gz", gzip.compress(b"<html></html>" * 50), "HTML"),
        ("zip.nii.gz", b"PK\x03\x04" + bytes(100), "zip"),
        ("text.nii", b"no image\n" * 100, "first bytes"),
    ):
        (tmp_path / name).write_bytes(content)
        assert words in refused(tmp_path / name), name
    assert "no such file" in refused(tmp_path / "gone.nii")


def test_absurd_sizes_are_refused_before_memory_is_taken(tmp_path):
    path = save(tmp_path, stack(), (42, [32767] * 3, "<i2"))
    assert "32767 x 32767 x 32767" in refused(path)
    assert "-5" in refused(save(tmp_path, stack(), (42, [-5, 42, 30], "<i2")))
    bomb = bytearray(path.read_bytes()[:352])
    bomb[40:56] = np.array([3, 16, 16, 16, 1, 1, 1, 1], "<i2").tobytes()
    (tmp_path / "bomb.nii.gz").write_bytes(gzip.compress(bytes(bomb) + bytes(90 * 2**20), 1))
    assert "MiB follow" in refused(tmp_path / "bomb.nii.gz")


def test_axes_of_one(tmp_path):
    for shape in ((*SHAPE, 1), (*SHAPE, 1, 1), (*SHAPE, 1, 1, 1, 1)):
        found = read_image(save(tmp_path, stack(VALUES.reshape(shape))))
        np.testing.assert_array_equal(found.values, VALUES)
        assert found.warnings == ()
    for shape, doubt in (
        ((1, *SHAPE), False),
        ((SHAPE[0], 1, *SHAPE[1:]), False),
        ((*SHAPE[:2], 1, SHAPE[2]), True),
    ):
        found = read_image(save(tmp_path, stack(VALUES.reshape(shape))))
        np.testing.assert_array_equal(found.values, VALUES)
        np.testing.assert_allclose(found.affine, AFFINE, atol=1e-4)
        assert "is taken for" in found.warnings[0]
        assert bool(found.doubt) == doubt
    for shape in ((40, 42), (1, 40, 42), (40, 1, 42, 1), (5, 4, 3, 2, 2), (7,)):
        path = save(tmp_path, stack(np.ones(shape, np.float32)))
        assert str(shape)[:-1] in refused(path, "not_3d")


def test_frames_and_their_times(tmp_path, monkeypatch):
    frames = np.stack([VALUES, 2 * VALUES, 3 * VALUES], axis=-1)
    image = stack(frames)
    image.header["pixdim"][4] = 2500
    image.header.set_xyzt_units("mm", "msec")
    for name in ("a.nii", "a.nii.gz"):
        nib.save(image, tmp_path / name)
        cases = find_cases(tmp_path / name).cases
        assert [(case.frame, case.frames, case.time_s) for case in cases] == [
            (0, 3, 0.0),
            (1, 3, 2.5),
            (2, 3, 5.0),
        ]
        for kept in (nifti_module.CACHED_BYTES, 0):
            monkeypatch.setattr(nifti_module, "CACHED_BYTES", kept)
            for case in cases:
                found = read_image(case).values
                np.testing.assert_array_equal(found, VALUES * (case.frame + 1))
        with pytest.raises(VolumeError, match="no frame 3"):
            read_image(tmp_path / name, 3)
        with pytest.raises(VolumeError, match="got 3 frames"):
            read_image(tmp_path / name, one_volume=True)
    image.header["pixdim"][4] = 0
    nib.save(image, tmp_path / "a.nii")
    assert find_cases(tmp_path / "a.nii").cases[1].time_s is None
    (tmp_path / "a.json").write_text('{"RepetitionTime": 1.5}')
    assert find_cases(tmp_path / "a.nii").cases[1].time_s == 1.5


def test_complex_is_magnitude_and_colours_are_grey(tmp_path):
    waves = (VALUES * np.exp(1j * VALUES)).astype(np.complex64)
    np.testing.assert_allclose(read_image(save(tmp_path, stack(waves))).values, VALUES, rtol=1e-5)
    grey = (VALUES / 4).astype(np.uint8)
    for names in ("RGB", "RGBA"):
        colours = np.zeros(SHAPE, [(name, "u1") for name in names])
        for name in "RGB":
            colours[name] = grey
        found = read_image(save(tmp_path, stack(colours))).values
        np.testing.assert_allclose(found, grey, atol=1e-4)
    vector = stack(np.stack([grey] * 3, axis=-1)[..., None, :])
    vector.header.set_intent(2003, allow_unknown=True)
    np.testing.assert_allclose(read_image(save(tmp_path, vector)).values, grey, atol=1e-4)


def test_a_slope_that_turns_a_picture_negative_is_taken_by_its_size(tmp_path):
    stored = VALUES.astype(np.int16)
    found = read_image(save(tmp_path, stack(stored), (SLOPE, [-2, 0], "<f4")))
    np.testing.assert_array_equal(found.values, 2 * stored)
    assert "scl_slope -2" in " ".join(found.warnings)
    found = read_image(save(tmp_path, stack(-stored), (SLOPE, [-2, 0], "<f4")))
    np.testing.assert_array_equal(found.values, 2 * stored)
    assert found.warnings == ()
    assert "intercept" in refused(save(tmp_path, stack(stored), (SLOPE, [2, np.nan], "<f4")))
    found = read_image(save(tmp_path, stack(stored), (SLOPE, [np.nan, 0], "<f4")))
    np.testing.assert_array_equal(found.values, stored)


@pytest.mark.parametrize("given", ["3,3", "a,b,c", (1, 2, 0), (1, 2, np.nan), 3.0, "3,3,3,3"])
def test_voxel_mm_that_are_no_three_sizes(tmp_path, given):
    with pytest.raises(ValueError, match="voxel_mm must be three sizes"):
        read_image(save_nifti(tmp_path / "a.nii", VALUES), voxel_mm=given)
    with pytest.raises(ValueError, match="voxel_mm must be three sizes"):
        find_cases(tmp_path, voxel_mm=given)
