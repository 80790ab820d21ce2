"""importers/brain_atlas.py, on an atlas made here: frames, ventricles, sections, errors."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from scripts.data.datalists import datalist
from scripts.data.importers.brain_atlas import import_brain_atlas
from scripts.datasets import main
from scripts.geometry import check_rigid


def test_sections_poses_and_eyes(atlas: Path, tmp_path: Path) -> None:
    path = import_brain_atlas(
        atlas, tmp_path, test_weeks=[25], repeats=3, test_repeats=2, progress=False
    )
    content = json.loads(path.read_text())
    assert [len(content[s]) for s in ("training", "test")] == [3, 2]
    for section, subject in (("training", "fetal_GA24"), ("test", "fetal_GA25")):
        for entry, given in zip(datalist(tmp_path, section), content[section], strict=True):
            assert entry["subject"].startswith(subject)
            pose = entry["head_to_world"].numpy()
            check_rigid(entry["head_to_world"], "pose")
            image, label = nib.load(entry["image"]), nib.load(entry["label"])
            values, inside = np.asarray(image.dataobj), np.asarray(label.dataobj) == 1
            middle = image.affine[:3, :3] @ np.argwhere(inside).mean(axis=0) + image.affine[:3, 3]
            np.testing.assert_allclose(middle, pose[:3, 3], atol=0.5)
            # the eyes are right and left of the midline, before and below the brain's centre
            right, left = np.array(given["right_eye_mm"]), np.array(given["left_eye_mm"])
            assert left[0] < -10 < 10 < right[0]
            assert right[1] > 20
            assert right[2] < -10
            assert (values[~inside] == 0).all()
            if given["contrast"] == "t2" and section == "test":
                points = np.argwhere(values > np.percentile(values[inside], 80))
                front = image.affine[:3, :3] @ points.mean(axis=0) + image.affine[:3, 3] - middle
                assert np.argmax(pose[:3, :3].T @ front) == 1


def test_the_same_seed_resumes_and_another_is_refused(atlas: Path, tmp_path: Path) -> None:
    import_brain_atlas(atlas, tmp_path, repeats=1, progress=False)
    first = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.nii.gz")}
    import_brain_atlas(atlas, tmp_path, repeats=2, progress=False)
    assert all(p.stat().st_mtime_ns == time for p, time in first.items())
    with pytest.raises(ValueError, match="seed"):
        import_brain_atlas(atlas, tmp_path, repeats=1, seed=1, progress=False)


def test_what_is_no_atlas_is_said(atlas: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=str(tmp_path / "none")):
        import_brain_atlas(tmp_path / "none", tmp_path / "out")
    with pytest.raises(ValueError, match=r"no brains of \[33\] weeks, only \[24, 25\]"):
        import_brain_atlas(atlas, tmp_path / "out", test_weeks=[33])


def test_command_line(atlas: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["brain_atlas", "--source", str(atlas), "--dataset_dir", str(tmp_path / "d")]
    main([*where, "--test_weeks", "25", "--repeats", "1"])
    assert capsys.readouterr().out.strip() == str(tmp_path / "d/dataset.json")
    with pytest.raises(SystemExit):
        main([*where, "--test_weeks", "40"])
    assert "no brains of [40] weeks" in capsys.readouterr().err
