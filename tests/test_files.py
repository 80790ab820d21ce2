"""files.py: what is written is there whole or not at all, whatever its name."""

from __future__ import annotations

import json
import os
import unicodedata

import nibabel as nib
import numpy as np
import pytest

from scripts.files import replacing, write_json, write_nifti, write_text

NAMES = [
    "README",
    "pose.json",
    "mask.nii.gz",
    "sub-01_ses.2_T2w.nii.gz",
    "fœtus à 30 semaines 胎児.nii.gz",
    unicodedata.normalize("NFD", "é" * 20) + ".json",
    "a" * 248 + ".nii.gz",  # as long as a name may be, in bytes: 255
    "胎" * 83 + ".nii",  # 3 bytes each, 253
    "a." + "b" * 253,
]


@pytest.mark.parametrize("name", NAMES)
def test_a_file_appears_under_its_name_alone(tmp_path, name):
    path = tmp_path / "new" / "folder" / name
    for content in (b"old", b"newer"):
        with replacing(path) as partial:
            assert partial.parent == path.parent
            assert partial.name.startswith(".")
            partial.write_bytes(content)
            assert not path.exists() or path.read_bytes() == b"old"
        assert path.read_bytes() == content
        assert os.listdir(path.parent) == [name]


@pytest.mark.parametrize("name", NAMES[:-1])
def test_the_suffix_is_kept(tmp_path, name):
    path = tmp_path / name
    with replacing(path) as partial:
        partial.touch()
        assert partial.suffix == path.suffix
        assert partial.name.endswith(".nii.gz") == name.endswith(".nii.gz")


@pytest.mark.parametrize("raised", [OSError("disk full"), KeyboardInterrupt(), SystemExit(1)])
@pytest.mark.parametrize("begun", [True, False])
def test_an_interruption_leaves_the_old_file_and_nothing_else(tmp_path, raised, begun):
    def write(path):
        with replacing(path) as partial:
            if begun:
                partial.write_text("a longer te")
            raise raised

    write_text(tmp_path / "old.txt", "old")
    for name in ("old.txt", "other.txt"):
        with pytest.raises(type(raised)):
            write(tmp_path / name)
    assert os.listdir(tmp_path) == ["old.txt"]
    assert (tmp_path / "old.txt").read_text() == "old"


def test_a_file_that_cannot_be_replaced_leaves_nothing(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        write_text(tmp_path / "folder", "text")
    assert os.listdir(tmp_path) == ["folder"]


def test_two_at_a_time_do_not_meet(tmp_path):
    path = tmp_path / "a.txt"
    with replacing(path) as first, replacing(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"  # the last to end


def test_permissions_are_those_of_any_new_file(tmp_path):
    (tmp_path / "plain").touch()
    write_text(str(tmp_path / "text"), "text")
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(modes) == 1


def test_json_that_is_there_is_not_written_again(tmp_path):
    path, content = tmp_path / "a.json", {"a": [1, 2.5, None], "b": "é"}
    write_json(path, content)
    assert json.loads(path.read_text()) == content
    before = path.stat().st_ino
    write_json(path, content)
    assert path.stat().st_ino == before
    write_json(path, {})
    assert json.loads(path.read_text()) == {}


def test_a_volume_keeps_values_type_affine_and_unit(tmp_path):
    values = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    affine = np.array([[0, 3.0, 0, -5], [2, 0, 0, 1], [0, 0, 4, 2], [0, 0, 0, 1]])
    bytes_written = []
    for name in ("a.nii.gz", "b.nii.gz"):
        write_nifti(tmp_path / name, values, affine)
        image = nib.load(tmp_path / name)
        np.testing.assert_array_equal(np.asarray(image.dataobj), values)
        np.testing.assert_array_equal(image.affine, affine)
        assert image.get_data_dtype() == np.int16
        assert image.header.get_xyzt_units()[0] == "mm"
        bytes_written.append((tmp_path / name).read_bytes())
    assert bytes_written[0] == bytes_written[1]  # they know neither name nor time
