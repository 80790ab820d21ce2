"""Kinds besides NIfTI and DICOM: nibabel's and ITK's, against second readers."""

from __future__ import annotations

import builtins
import gzip

import nibabel as nib
import numpy as np
import pytest

from conftest import make_affine
from scripts.reading import VolumeError, find_cases, read_image
from test_reading_nifti import AFFINE, SHAPE, VALUES, refused, stack


def test_mgz(tmp_path):
    nib.save(nib.MGHImage(VALUES, AFFINE), tmp_path / "a.mgz")
    frames = np.stack([VALUES, 2 * VALUES], axis=-1)
    nib.save(nib.MGHImage(frames, AFFINE), tmp_path / "b.MGZ".lower())
    cases = find_cases(tmp_path).cases
    assert [(case.name, case.frame, case.kind) for case in cases] == [
        ("a", 0, "nibabel"),
        ("b", 0, "nibabel"),
        ("b", 1, "nibabel"),
    ]
    for case, factor in zip(cases, (1, 1, 2), strict=True):
        image = read_image(case)
        np.testing.assert_array_equal(image.values, factor * VALUES)
        np.testing.assert_allclose(image.affine, AFFINE, atol=1e-3)
        assert image.doubt == ""
    whole = (tmp_path / "a.mgz").read_bytes()
    (tmp_path / "a.mgz").write_bytes(whole[:-6])
    assert "damaged" in refused(tmp_path / "a.mgz")
    plain = bytearray(gzip.decompress(whole))
    plain[28:30] = b"\0\0"  # goodRASFlag
    (tmp_path / "c.mgh").write_bytes(plain)
    assert "goodRASFlag" in read_image(tmp_path / "c.mgh").doubt


@pytest.mark.parametrize("kind", ["small.mnc", "phantom_EPI_asc_CLEAR_2_1.PAR", "scaled+tlrc.HEAD"])
def test_what_else_nibabel_reads(kind):
    path = nib.__path__[0] + "/tests/data/" + kind
    source = nib.load(path)
    image = read_image(path)
    expected = np.asarray(source.dataobj, dtype=np.float32)
    expected = expected[..., 0] if expected.ndim == 4 else expected
    np.testing.assert_allclose(image.values, expected, rtol=1e-6)
    np.testing.assert_allclose(image.affine, source.affine)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".mhd", ".nhdr"])
@pytest.mark.parametrize("axes", ["RAS", "LPS", "PIL"])
def test_itk_and_nibabel_agree(tmp_path, suffix, axes):
    itk = pytest.importorskip("SimpleITK", reason="the extra `formats` is not installed")
    affine = make_affine(axes, (4.0, 4.0, 5.0), 20.0, SHAPE)
    nib.save(stack(affine=affine), tmp_path / "a.nii")
    image = itk.ReadImage(str(tmp_path / "a.nii"))
    for key in image.GetMetaDataKeys():
        image.EraseMetaData(key)
    (tmp_path / "itk").mkdir()
    itk.WriteImage(image, str(tmp_path / "itk" / f"b{suffix}"))
    (case,) = find_cases(tmp_path / "itk").cases
    assert (case.name, case.kind) == ("b", "itk")
    found = read_image(case)
    np.testing.assert_array_equal(found.values, VALUES)
    np.testing.assert_allclose(found.affine, affine, atol=1e-3)
    assert (found.warnings, found.doubt) == ((), "")


def test_itk_headers_that_say_nothing_of_the_sides(tmp_path):
    pytest.importorskip("SimpleITK", reason="the extra `formats` is not installed")
    data = np.ones((6, 7, 8), "<i2", order="F").tobytes()
    (tmp_path / "a.nrrd").write_bytes(
        b"NRRD0004\ntype: short\ndimension: 3\nsizes: 6 7 8\nspacings: 4 4 5\n"
        b"endian: little\nencoding: raw\n\n" + data
    )
    (tmp_path / "b.mha").write_bytes(
        b"ObjectType = Image\nNDims = 3\nDimSize = 6 7 8\nElementType = MET_SHORT\n"
        b"ElementSpacing = 4 4 5\nElementDataFile = LOCAL\n" + data
    )
    for name in ("a.nrrd", "b.mha"):
        found = read_image(tmp_path / name)
        assert "nothing of the sides" in found.doubt
        assert np.linalg.norm(found.affine[:3, :3], axis=0) == pytest.approx([4, 4, 5])


def test_itk_series_colours_and_refusals(tmp_path):
    itk = pytest.importorskip("SimpleITK", reason="the extra `formats` is not installed")
    frames = np.stack([VALUES.T, 2 * VALUES.T])
    itk.WriteImage(itk.GetImageFromArray(frames, isVector=False), str(tmp_path / "t.mha"))
    cases = find_cases(tmp_path / "t.mha").cases
    assert [case.frame for case in cases] == [0, 1]
    np.testing.assert_array_equal(read_image(cases[1]).values, 2 * VALUES)
    grey = (VALUES.T / 4).astype(np.uint8)
    colours = itk.GetImageFromArray(np.stack([grey] * 3, axis=-1), isVector=True)
    itk.WriteImage(colours, str(tmp_path / "c.nrrd"))
    np.testing.assert_allclose(read_image(tmp_path / "c.nrrd").values, grey.T, atol=1e-3)
    itk.WriteImage(itk.GetImageFromArray(grey[0]), str(tmp_path / "flat.mha"))
    refused(tmp_path / "flat.mha", "not_3d")
    (tmp_path / "bomb.mha").write_bytes(
        b"ObjectType = Image\nNDims = 3\nDimSize = 32767 32767 32767\n"
        b"ElementType = MET_SHORT\nElementDataFile = LOCAL\n"
    )
    assert "32767" in refused(tmp_path / "bomb.mha")
    (tmp_path / "text.nrrd").write_text("no image\n")
    refused(tmp_path / "text.nrrd")


@pytest.mark.parametrize(
    ("package", "name", "words"),
    [("SimpleITK", "a.mha", "the extra `formats`"), ("pydicom", "a.dcm", "the extra `dicom`")],
)
def test_an_extra_that_is_not_there_is_one_sentence(tmp_path, monkeypatch, package, name, words):
    (tmp_path / name).write_bytes(b"\x08\0\x05\0" + b"ObjectType = Image\n" * 30)
    real = builtins.__import__

    def hidden(module, *arguments, **options):
        if module.split(".")[0] == package:
            raise ImportError(module)
        return real(module, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", hidden)
    with pytest.raises(VolumeError, match=words):
        read_image(tmp_path / name)
    if package == "pydicom":
        with pytest.raises(FileNotFoundError, match=words):
            find_cases(tmp_path)
    else:
        assert find_cases(tmp_path).cases[0].kind == "itk"
