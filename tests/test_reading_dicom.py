"""DICOM series: phantoms written by pydicom come back where they were, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("pydicom", reason="the extra `dicom` is not installed")

from scipy import ndimage

from conftest import make_affine
from dicom_files import PATIENT, write_classic, write_enhanced, write_mosaic
from scripts.reading import VolumeError, find_cases, read_image
from scripts.simulation.volume import make_phantom

PRIVATE = ("doe", "jane", "mrn4711", "1990", "20260102", "2026")


@pytest.fixture(scope="module")
def phantom():
    return make_phantom(3, shape=(30, 26, 22), voxel_mm=(6, 6.5, 7), contrast="t2", axcodes="LPS")


def landmarks(volume, affine):
    """World coordinates (n, 3) of the centres of what is bright, at several levels."""
    found = []
    for share in (0.3, 0.5, 0.7, 0.85):
        weight = volume > share * np.percentile(volume, 99)
        found.append(affine[:3, :3] @ ndimage.center_of_mass(weight) + affine[:3, 3])
    top = np.unravel_index(volume.argmax(), volume.shape)
    found.append(affine[:3, :3] @ top + affine[:3, 3])
    return np.array(found)


def oblique(phantom):
    """The phantom's grid turned, so that no axis of it is one of the patient's."""
    turned = make_affine("LPS", (6, 6.5, 7), 25.0, phantom.image.shape)
    return turned


def assert_same(case, volume, affine):
    image = read_image(case)
    error_mm = np.linalg.norm(
        landmarks(image.values, image.affine) - landmarks(volume, affine), axis=1
    )
    assert error_mm.max() < 0.1
    np.testing.assert_allclose(
        np.sort(image.values.ravel()), np.sort(volume.astype(np.float32).ravel()), atol=1
    )
    return image


AXES = {"HFS": "LPS", "FFS": "RPI", "left-handed": "LPI", "sagittal": "PIR", "coronal": "LIA"}


@pytest.mark.parametrize("axes", AXES)
def test_classic_series_come_back_in_place(tmp_path, phantom, axes):
    affine = make_affine(AXES[axes], (6, 6.5, 7), 0.0, phantom.image.shape)
    write_classic(tmp_path, phantom.image, affine, position="FFS" if axes == "FFS" else "HFS")
    (case,) = find_cases(tmp_path).cases
    assert (case.name, case.kind, case.frames, case.time_s) == ("series_0001", "dicom", 1, None)
    image = assert_same(case, phantom.image, affine)
    assert image.warnings == ()
    assert image.doubt == ""


@pytest.mark.parametrize("form", ["classic", "enhanced", "mosaic"])
@pytest.mark.parametrize("axes", ["LPS", "PIR", "LPI"])
def test_every_form_of_an_oblique_series(tmp_path, phantom, form, axes):
    affine = make_affine(axes, (6, 6.5, 7), 25.0, phantom.image.shape)
    volume = phantom.image // 2 * 2
    if form == "classic":
        write_classic(tmp_path, volume, affine)
    elif form == "enhanced":
        write_enhanced(tmp_path, [volume], affine)
    else:
        write_mosaic(tmp_path, [volume], affine)
    (case,) = find_cases(tmp_path).cases
    assert_same(case, volume, affine)


@pytest.mark.parametrize("form", ["classic", "enhanced", "mosaic"])
def test_several_times_are_frames_in_order(tmp_path, phantom, form):
    affine = make_affine("LPS", (6, 6.5, 7), 10.0, phantom.image.shape)
    frames = [np.roll(phantom.image, shift, axis=0) // 2 * 2 for shift in range(3)]
    if form == "classic":
        for time, volume in enumerate(frames):
            write_classic(tmp_path, volume, affine, frame=time, seconds=6.5 * time)
        step = 6.5  # and over midnight
    elif form == "enhanced":
        write_enhanced(tmp_path, frames, affine)
        step = 2.0
    else:
        write_mosaic(tmp_path, frames, affine)
        step = 3.0
    cases = find_cases(tmp_path).cases
    assert [case.frame for case in cases] == [0, 1, 2]
    assert {case.frames for case in cases} == {3}
    assert len({case.name for case in cases}) == 1
    np.testing.assert_allclose([case.time_s for case in cases], np.arange(3) * step, atol=1e-4)
    for case, volume in zip(cases, frames, strict=True):
        np.testing.assert_allclose(read_image(case).values, read_image(cases[0]).values, atol=1e5)
        assert_same(case, volume, affine)


def test_the_second_readers_agree(tmp_path, phantom):
    """SimpleITK's own assembly of a classic series, in its world."""
    itk = pytest.importorskip("SimpleITK", reason="the extra `formats` is not installed")
    affine = make_affine("PIR", (6, 6.5, 7), 25.0, phantom.image.shape)
    write_classic(tmp_path, phantom.image, affine, name="IM{:04d}.dcm")
    files = itk.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path))
    image = itk.ReadImage(files)
    stored = itk.GetArrayFromImage(image).transpose(2, 1, 0).astype(np.float32)
    lps = np.eye(4)
    lps[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    lps[:3, 3] = image.GetOrigin()
    found = read_image(find_cases(tmp_path).cases[0])
    theirs = landmarks(stored, np.diag([-1.0, -1, 1, 1]) @ lps)
    np.testing.assert_allclose(landmarks(found.values, found.affine), theirs, atol=0.1)


BLOCK = np.arange(12 * 10 * 20, dtype=np.int16).reshape(12, 10, 20)
GRID = make_affine("LPS", (5.0, 5.0, 4.0), 15.0, BLOCK.shape)


def test_several_series_in_one_folder_and_copies(tmp_path):
    write_classic(tmp_path, BLOCK, GRID, series=1)
    write_classic(tmp_path, BLOCK + 1, GRID, series=2, name="IM2{:04d}.dcm")
    write_classic(tmp_path / "copies", BLOCK, GRID, series=1)  # the same images once more
    write_classic(tmp_path / "more", BLOCK + 2, GRID, series=12)
    found = find_cases(tmp_path)
    assert [case.name for case in found.cases] == [
        "series_0001",
        "series_0002",
        "more_series_0012",
    ]
    assert found.left_aside == []
    for case, shift in zip(found.cases, (0, 1, 2), strict=True):
        np.testing.assert_array_equal(
            np.sort(read_image(case).values, axis=None), np.sort(BLOCK + shift, axis=None)
        )


def test_names_and_dates_of_patients_reach_no_output(tmp_path):
    folder = tmp_path / "DOE_JANE_19900307" / "2026-01-02" / "brain"
    write_classic(folder, BLOCK, GRID, slices=range(3))
    write_classic(folder, BLOCK, GRID, series=4, slices=[0, 1, 2, 9], name="S{}")
    write_classic(folder, BLOCK, GRID, series=5, change=_secondary, slices=[0, 1], name="C{}")
    found = find_cases(tmp_path)
    with pytest.raises(VolumeError, match="missing") as refused:
        read_image(found.cases[1])
    texts = [str(refused.value), *(path + why for path, why in found.left_aside)]
    for case in found.cases:
        texts += [case.name, case.shown, str(case.folder), *read_image(found.cases[0]).warnings]
    assert found.cases[0].name == "brain_series_0001"
    assert found.left_aside
    for text in texts:
        assert not any(word in text.lower().replace(str(tmp_path), "") for word in PRIVATE), text


def _secondary(data, _):
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"


def _directory(data, _):
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.1.3.10"


def _without(tag):
    def change(data, k):
        data.SOPInstanceUID = f"1.2.3.{k}"
        delattr(data, tag)

    return change


def _set(**values):
    def change(data, _):
        for tag, value in values.items():
            setattr(data, tag, value)

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_secondary, "secondary capture"),
        (_directory, "DICOMDIR"),
        (_without("ImagePositionPatient"), "without position"),
        (_without("SeriesInstanceUID"), "without SeriesInstanceUID"),
        (_without("PixelSpacing"), "broken header"),
        (_without("Rows"), "without an image"),
        (_set(NumberOfFrames=4), "multi-frame"),
        (_set(ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"]), "without CSA header"),
    ],
)
def test_files_that_show_no_part_of_a_volume_are_left_aside(tmp_path, change, words):
    write_classic(tmp_path / "good", BLOCK, GRID, series=9)
    write_classic(tmp_path / "odd", BLOCK, GRID, change=change, slices=[0, 1])
    (tmp_path / "cut.dcm").write_bytes(b"\0" * 128 + b"DICM\2\0\0\0UL")
    found = find_cases(tmp_path)
    assert [case.name for case in found.cases] == ["good_series_0009"]
    reasons = dict(found.left_aside)
    (why,) = [why for path, why in reasons.items() if "(2 files)" in path]
    assert words in why
    assert len(reasons) == 2


def _localizer(data, k):
    if k % 2:
        data.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]


def _moved(data, k):
    if k == 5:
        data.ImagePositionPatient = [v + 9 for v in data.ImagePositionPatient]


def _smaller(data, k):
    if k == 5:
        data.Rows, data.PixelData = data.Rows - 2, data.PixelData[: 2 * 12 * 8]


def _spaced(data, k):
    if k == 5:
        data.PixelSpacing = [5, 5.5]


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        ({"change": _localizer}, "not_3d", "orientations, like a localizer"),
        ({"slices": [0]}, "not_3d", "one slice"),
        ({"slices": [0, 1, 2, 3, 7, 8, 9, 10]}, "not_3d", "3 slices are missing"),
        ({"slices": [0, 2, 3, 4, 6, 7, 8, 10]}, "not_3d", "slices are missing"),
        ({"change": _moved}, "not_3d", "apart"),
        ({"change": _smaller}, "not_3d", "several sizes"),
        ({"change": _spaced}, "not_3d", "several PixelSpacings"),
        ({"change": _set(PixelSpacing=[0, 5])}, "unreadable", "PixelSpacing"),
        ({"change": _set(ImageOrientationPatient=[1, 0, 0, 0, 2, 0])}, "unreadable", "direction"),
        ({"change": _set(PixelData=b"\0\0")}, "unreadable", "cannot be decoded"),
        ({"change": _set(Rows=32767, Columns=32767)}, "unreadable", "32767 x 32767 x 20"),
    ],
)
def test_series_that_are_no_volume_are_refused_with_the_reason(tmp_path, options, status, words):
    write_classic(tmp_path, BLOCK, GRID, **options)
    (case,) = find_cases(tmp_path).cases
    with pytest.raises(VolumeError, match=words) as caught:
        read_image(case)
    assert caught.value.status == status
    assert "DICOM series 1" in str(caught.value)


def test_uneven_spacing_is_refused(tmp_path):
    for k, shift in enumerate([0, 0, 0, 1.5, 1.5, 2.5]):
        away = GRID.copy()
        away[:3, 3] += shift * GRID[:3, 2] / 4
        write_classic(tmp_path, BLOCK, away, slices=[k], name=f"IM{k}{{}}")
    (case,) = find_cases(tmp_path).cases
    with pytest.raises(VolumeError, match=r"4\.000 to 5\.500 mm apart"):
        read_image(case)


def test_a_missing_slice_is_filled_in_with_a_word(tmp_path):
    write_classic(tmp_path, BLOCK, GRID, slices=[k for k in range(20) if k != 7])
    image = read_image(find_cases(tmp_path).cases[0])
    (warning,) = image.warnings
    assert "missing" in warning
    assert image.values.shape == BLOCK.shape
    kept = np.moveaxis(image.values, 2, 0)
    np.testing.assert_allclose(np.sort(kept, axis=None), np.sort(BLOCK, axis=None), atol=1)
    np.testing.assert_allclose(np.abs(np.linalg.det(image.affine)), 100, rtol=1e-4)


def test_parts_echoes_and_cut_off_series(tmp_path):
    write_classic(tmp_path, BLOCK, GRID, name="M{}")
    write_classic(
        tmp_path,
        BLOCK * 0 + 7,
        GRID,
        frame=1,
        name="P{}",
        change=_set(ImageType=["ORIGINAL", "PRIMARY", "P", "ND"]),
    )
    (case,) = find_cases(tmp_path).cases
    image = read_image(case)
    assert image.values.max() == BLOCK.max()
    assert "phase" in image.warnings[0]
    echoes = tmp_path / "echoes"
    for number, time in enumerate((90, 30)):
        write_classic(echoes, BLOCK + number, GRID, 3, frame=number, change=_set(EchoTime=time))
    (case,) = find_cases(echoes).cases
    image = read_image(case)
    assert image.values.min() == 1  # of 30 ms
    assert "echo" in image.warnings[0]
    cut = tmp_path / "cut"
    for frame in range(3):
        slices = range(20) if frame < 2 else range(12)
        write_classic(cut, BLOCK + frame, GRID, 5, frame=frame, slices=slices, seconds=2.0 * frame)
    cases = find_cases(cut).cases
    assert [case.time_s for case in cases] == [0, 2]
    assert "slices missing" in read_image(cases[1]).warnings[0]


def test_scaling_and_inverted_pictures(tmp_path):
    write_classic(tmp_path, BLOCK, GRID, change=_set(RescaleSlope="2", RescaleIntercept="-30"))
    found = read_image(find_cases(tmp_path).cases[0]).values
    np.testing.assert_array_equal(np.sort(found, axis=None), np.sort(BLOCK * 2.0 - 30, axis=None))
    other = tmp_path / "inverted"
    write_classic(other, BLOCK, GRID, 2, change=_set(PhotometricInterpretation="MONOCHROME1"))
    found = read_image(find_cases(other).cases[0]).values
    np.testing.assert_array_equal(np.sort(found, axis=None), np.sort(65535.0 - BLOCK, axis=None))


@pytest.mark.parametrize(
    "syntax", ["RLELossless", "JPEGLosslessProcess14_1", "JPEGLSLossless", "JPEG2000Lossless"]
)
def test_compressed_pictures(tmp_path, syntax):
    """Every file compressed without loss by GDCM comes back as it was."""
    gdcm = pytest.importorskip("gdcm", reason="the extra `dicom` is not installed")
    for path in write_classic(tmp_path, BLOCK, GRID):
        reader, writer = gdcm.ImageReader(), gdcm.ImageWriter()
        reader.SetFileName(str(path))
        assert reader.Read()
        change = gdcm.ImageChangeTransferSyntax()
        change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer.SetFileName(str(path))
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write()
    (case,) = find_cases(tmp_path).cases
    found = read_image(case).values
    np.testing.assert_array_equal(np.sort(found, axis=None), np.sort(BLOCK, axis=None))


def test_pictures_without_a_decoder_are_refused_in_one_sentence(tmp_path, monkeypatch):
    from pydicom.pixels.decoders import RLELosslessDecoder
    from pydicom.uid import RLELossless

    write_classic(tmp_path, BLOCK, GRID, change=lambda data, _: data.compress(RLELossless))
    (case,) = find_cases(tmp_path).cases
    monkeypatch.setattr(RLELosslessDecoder, "_available", {})
    monkeypatch.setattr(RLELosslessDecoder, "_unavailable", {"gdcm": ("gdcm>=3.0.10",)})
    with pytest.raises(VolumeError, match=r"RLE Lossless.*pip install python-gdcm"):
        read_image(case)


def test_one_file_of_a_path(tmp_path):
    path = write_enhanced(tmp_path, [BLOCK, BLOCK + 10], GRID)
    image = read_image(path, 1)
    assert image.values.max() == (BLOCK + 10).max() // 2 * 2
    with pytest.raises(VolumeError, match="no frame 2, only 2"):
        read_image(path, 2)
    assert [case.frame for case in find_cases(path).cases] == [0, 1]
    assert PATIENT.split("^")[0] not in find_cases(path).cases[0].name
