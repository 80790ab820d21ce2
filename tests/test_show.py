"""The picture of a case again, larger and in other planes."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image as Picture

from inference_runs import run, save_head
from scripts.evaluation.run_folder import RunFolder
from scripts.show import main, show


@pytest.fixture(scope="module")
def poses(tmp_path_factory):
    """A run with masks over a head and a volume without one."""
    folder = tmp_path_factory.mktemp("shown")
    for name in ("a", "none"):
        save_head(folder / f"in/{name}.nii.gz")
    run(folder / "in", RunFolder(folder / "out", outputs="mask,picture"), headless=["none"])
    return folder


@pytest.mark.parametrize("case", ["a", "none"])
def test_slices_of_a_case_from_its_record_alone(poses, case, capsys):
    main([str(poses / f"out/{case}_pose.json"), "--slices", "3", "--planes", "axial,coronal"])
    path = poses / f"out/{case}_slices.png"
    assert capsys.readouterr().out.strip() == str(path)
    assert Picture.open(path).size == (900, 645)


def test_outlines_are_those_of_the_mask(poses, tmp_path):
    def yellow(path):
        picture = np.asarray(Picture.open(path).convert("RGB")).astype(int)
        return ((picture[..., 0] - picture[..., 2]) > 100).sum()

    record = poses / "out/a_pose.json"
    assert yellow(show(record, tmp_path / "with.png", slices=1)) > 100
    mask = poses / "out/a_mask.nii.gz"
    kept = mask.read_bytes()
    mask.unlink()
    assert yellow(show(record, tmp_path / "without.png", slices=1)) == 0
    mask.write_bytes(kept)


def test_another_width_shows_another_part(poses, tmp_path):
    record = poses / "out/a_pose.json"
    pictures = [
        np.asarray(Picture.open(show(record, tmp_path / "s.png", slices=1, width_mm=w)))
        for w in (160, 80)
    ]
    assert pictures[0].shape == pictures[1].shape
    assert (pictures[0] != pictures[1]).any()


def test_a_record_that_was_carried_away_needs_the_volume(poses, tmp_path):
    record = tmp_path / "a_pose.json"
    record.write_bytes((poses / "out/a_pose.json").read_bytes())
    with pytest.raises(ValueError, match=r"a_pose.json: .* give it by --image"):
        show(record)
    assert show(record, image=poses / "in/a.nii.gz", slices=1) == tmp_path / "a_slices.png"


def test_a_volume_that_has_moved_is_asked_for(poses):
    (poses / "in/a.nii.gz").rename(poses / "in/b.nii.gz")
    with pytest.raises(FileNotFoundError, match=r"in/a.nii.gz: .* is not there: give it by --imag"):
        show(poses / "out/a_pose.json")
    (poses / "in/b.nii.gz").rename(poses / "in/a.nii.gz")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read"),
        ("[1]", "is no record of a pose"),
        ('{"case": "a", "status": "ok", "head_to_world": [[1]]}', "expected a finite 4 x 4"),
        (
            json.dumps(
                {"case": "a", "status": "ok", "head_to_world": np.diag([-1.0, 1, 1, 1]).tolist()}
            ),
            "det -1",
        ),
    ],
)
def test_a_file_that_is_no_record_is_told(tmp_path, capsys, content, message):
    path = tmp_path / "a_pose.json"
    path.write_text(content)
    with pytest.raises(SystemExit):
        main([str(path)])
    told = capsys.readouterr().err
    assert message in told
    assert "a_pose.json" in told
    assert "Traceback" not in told


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--planes", "axial,sagital"], "'sagital' is none of sagittal, coronal, axial"),
        (["--slices", "0"], "--slices: 1 to 40, got 0"),
        (["--step_mm", "nan"], "--step_mm must be above 0"),
        (["--width_mm", "1e9"], "between 10 and 500"),
    ],
)
def test_options_that_make_no_sense_are_refused(poses, capsys, options, message):
    with pytest.raises(SystemExit):
        main([str(poses / "out/a_pose.json"), *options])
    assert message in capsys.readouterr().err
