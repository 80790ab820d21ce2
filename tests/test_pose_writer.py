"""What is written for each case, when, and what cannot stop it."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import inference_runs
from conftest import GRIDS, head_pose
from inference_runs import prediction, run, save_head
from scripts.evaluation import case_outputs, pose_writer
from scripts.evaluation.run_folder import RunFolder
from scripts.files import write_nifti

EVERYTHING = "json,picture,mask,aligned,transform,fsl,lta,afni,report"


def records(folder: Path) -> dict[str, dict]:
    return {
        path.name.removesuffix("_pose.json"): json.loads(path.read_text())
        for path in sorted(folder.glob("*_pose.json"))
    }


def visible(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir() if not p.name.startswith(".")}


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """All outputs of a head, a volume without one, a file that is none, and their folder."""
    folder = tmp_path_factory.mktemp("everything")
    for code in ("LAS", "PIL"):
        save_head(folder / f"in/{code}.nii.gz", code)
    axcodes, voxel_mm, tilt = GRIDS["oblique"]
    save_head(folder / "in/oblique.nii.gz", axcodes, voxel_mm=voxel_mm, tilt_deg=tilt)
    save_head(folder / "in/empty.nii.gz")
    (folder / "in/text.nii").write_text("this is no NIfTI file")
    out = RunFolder(folder / "out", outputs=EVERYTHING)
    run(folder / "in", out, headless=["empty"], aligned_mm=4.0)
    return folder


def test_every_case_has_what_it_can_have(everything):
    with_pose = {"_pose.json", "_pose.png", "_mask.nii.gz", "_aligned.nii.gz"} | {
        f"_head_to_world.{end}" for end in ("tfm", "mat", "lta", "aff12.1D")
    }
    expected = {case + end for case in ("LAS", "PIL", "oblique") for end in with_pose}
    expected |= {"empty_pose.json", "empty_pose.png", "text_pose.json"}
    assert visible(everything / "out") == expected | {"report.html", "poses.tsv"}


def test_the_head_is_the_same_however_it_was_stored(everything):
    out = everything / "out"
    first = nib.load(out / "LAS_aligned.nii.gz")
    for case, least in (("PIL", 0.9999), ("oblique", 0.97)):
        other = nib.load(out / f"{case}_aligned.nii.gz")
        np.testing.assert_array_equal(other.affine, first.affine)
        a, b = (np.asarray(image.dataobj).ravel() for image in (first, other))
        assert np.corrcoef(a, b)[0, 1] > least


def test_masks_lie_on_the_input_around_the_head(everything):
    for case in ("LAS", "PIL", "oblique"):
        source = nib.load(everything / f"in/{case}.nii.gz")
        mask = nib.load(everything / f"out/{case}_mask.nii.gz")
        assert mask.shape == source.shape
        np.testing.assert_array_equal(mask.affine, source.affine)
        inside = np.argwhere(np.asarray(mask.dataobj) == 1)
        center = (source.affine @ [*inside.mean(0), 1])[:3]
        np.testing.assert_allclose(center, head_pose()[:3, 3], atol=1.5)


def test_no_mask_stands_beside_a_case_without_a_head(tmp_path, monkeypatch):
    """Nor that of an earlier run, which found one; the localizer may have marked something."""
    save_head(tmp_path / "in/a.nii.gz")
    run(tmp_path / "in", RunFolder(tmp_path / "out", outputs="mask"))
    assert (tmp_path / "out/a_mask.nii.gz").exists()

    def marked(batch, pose, confidence):
        found = prediction(batch, head_pose(), confidence)
        return found | {"head_to_grid": np.nan * found["head_to_grid"]}

    monkeypatch.setattr(inference_runs, "prediction", marked)
    run(tmp_path / "in", RunFolder(tmp_path / "out", outputs="mask"))
    record = records(tmp_path / "out")["a"]
    assert (record["status"], record["warnings"]) == ("no_head", [])
    assert record["brain_volume_ml"] > 0
    assert visible(tmp_path / "out") == {"a_pose.json"}
    # and nothing is missing: a run that goes on leaves the case as it is
    again = RunFolder(tmp_path / "out", outputs="mask", resume=True)
    run(tmp_path / "in", again)
    assert again.kept == ["a"]


@pytest.mark.parametrize("name", ["a$b$c_{", "ma<b>&'\"", "头é %#?"])
def test_names_are_no_formulas_and_no_markup(tmp_path, name):
    save_head(tmp_path / f"in/{name}.nii.gz")
    run(tmp_path / "in", RunFolder(tmp_path / "out"))
    (record,) = records(tmp_path / "out").values()
    assert record["status"] == "ok"
    assert record["warnings"] == []
    assert (tmp_path / f"out/{name}_pose.png").stat().st_size > 1000
    assert (tmp_path / "out/report.html").exists()


@pytest.mark.parametrize("raw", [b"M\xfcller\xff", b"two\nlines", b"x" * 245])
def test_names_that_are_no_text_or_too_long_are_done_all_the_same(tmp_path, raw):
    save_head(tmp_path / "in/good.nii.gz")
    odd = os.path.join(os.fsencode(tmp_path / "in"), raw + b".nii")
    os.rename(save_head(tmp_path / "in/odd.nii"), odd)
    run(tmp_path / "in", RunFolder(tmp_path / "out", outputs="picture,mask,report"))
    found = records(tmp_path / "out")
    assert len(found) == 2
    assert {record["status"] for record in found.values()} == {"ok"}
    assert all(record["warnings"] == [] for record in found.values())
    assert len(list((tmp_path / "out").glob("*.png"))) == 2
    assert (tmp_path / "out/report.html").exists()


def test_the_record_comes_first_and_a_picture_that_fails_is_told(tmp_path, monkeypatch):
    for name in ("a", "b"):
        save_head(tmp_path / f"in/{name}.nii.gz")
    seen = []

    def fail(path, finding, *_):
        seen.append((path.name, (path.parent / f"{finding.record['case']}_pose.json").exists()))
        raise ValueError("no ink")

    monkeypatch.setattr(case_outputs, "write_picture", fail)
    run(tmp_path / "in", RunFolder(tmp_path / "out", outputs="picture,mask,report"))
    assert seen == [("a_pose.png", True), ("b_pose.png", True)]
    for case, record in records(tmp_path / "out").items():
        assert record["status"] == "ok"
        assert record["warnings"] == [f"{case}_pose.png not written: ValueError: no ink"]
        assert (tmp_path / f"out/{case}_mask.nii.gz").exists()
    assert "no ink" in (tmp_path / "out/report.html").read_text()


def test_an_input_that_is_gone_when_it_is_drawn_is_told(tmp_path, monkeypatch):
    save_head(tmp_path / "in/a.nii.gz")

    def gone(_):
        raise FileNotFoundError("in/a.nii.gz: gone")

    monkeypatch.setattr(pose_writer, "read_image", gone)
    run(tmp_path / "in", RunFolder(tmp_path / "out"))
    record = records(tmp_path / "out")["a"]
    assert record["status"] == "ok"
    assert record["warnings"] == ["picture not written: FileNotFoundError: in/a.nii.gz: gone"]


def full(after: int):
    """``os.replace`` of a disk that is full once ``after`` files are written."""
    done = []
    replace = os.replace

    def write(source, target):
        if len(done) >= after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        done.append(target)
        replace(source, target)

    return write


@pytest.mark.parametrize("after", [2, 3, 5, 6])
def test_a_full_disk_ends_the_run_with_what_is_written_whole(tmp_path, monkeypatch, after):
    for name in ("a", "b"):
        save_head(tmp_path / f"in/{name}.nii.gz")
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full(after))
        with pytest.raises(OSError, match=r"json: No space left on device; .*--resume true"):
            run(tmp_path / "in", RunFolder(tmp_path / "out"))
    before = {path: path.read_bytes() for path in (tmp_path / "out").glob("*_pose.json")}
    for text in before.values():
        json.loads(text)
    assert not [p for p in (tmp_path / "out").rglob(".????????_*") if p.is_file()]
    run(tmp_path / "in", RunFolder(tmp_path / "out", resume=True))
    assert set(records(tmp_path / "out")) == {"a", "b"}
    assert len(list((tmp_path / "out").glob("*.png"))) == 2
    assert all(record["warnings"] == [] for record in records(tmp_path / "out").values())


def test_a_record_that_cannot_be_written_does_not_stop_the_others(tmp_path):
    for name in ("a", "b"):
        save_head(tmp_path / f"in/{name}.nii.gz")
    (tmp_path / "out/a_pose.json").mkdir(parents=True)
    with pytest.raises(RuntimeError, match=r"1 results could not be written to .*out: a;"):
        run(tmp_path / "in", RunFolder(tmp_path / "out"))
    assert json.loads((tmp_path / "out/b_pose.json").read_text())["status"] == "ok"


def test_a_folder_that_cannot_be_written_to_is_told_before_anything_is_computed(tmp_path):
    save_head(tmp_path / "in/a.nii.gz")
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"file/out: nothing can be written to this --output_dir"):
        run(tmp_path / "in", RunFolder(tmp_path / "file/out"))


def test_two_runs_do_not_write_to_one_folder(tmp_path, monkeypatch):
    from scripts.evaluation.folder_lock import FolderLock

    save_head(tmp_path / "in/a.nii.gz")
    folder = RunFolder(tmp_path / "out")

    def held(_):
        raise BlockingIOError(f"{folder.output_dir}: another run (process 1 on x) writes to it")

    monkeypatch.setattr(FolderLock, "take", held)
    with pytest.raises(BlockingIOError, match="another run"):
        run(tmp_path / "in", folder)
    assert records(tmp_path / "out") == {}


def test_a_series_is_one_case_of_its_surest_frame(tmp_path):
    one = nib.load(save_head(tmp_path / "one.nii.gz"))
    frames = np.stack([np.asarray(one.dataobj) * k for k in (1, 2, 3, 4)], axis=-1)
    (tmp_path / "in").mkdir()
    write_nifti(tmp_path / "in/series.nii.gz", frames, one.affine)
    save_head(tmp_path / "in/still.nii.gz")
    out = RunFolder(tmp_path / "out", outputs="picture,aligned,report")
    sure = {0: 0.3, 1: 0.7, 2: 0.95, 3: 0.5}
    engine = run(
        tmp_path / "in", out, confidence=lambda case, frame: sure[frame], batch_size=2, aligned_mm=4
    )
    record = records(tmp_path / "out")["series"]
    assert (record["frame"], record["frames"]) == (2, 4)
    assert record["confidence"] == 0.95
    assert visible(tmp_path / "out") == {
        f"{case}_{end}"
        for case in ("series", "still")
        for end in ("pose.json", "pose.png", "aligned.nii.gz")
    } | {"report.html", "poses.tsv"}
    first, third = (
        np.asarray(nib.load(tmp_path / f"out/{case}_aligned.nii.gz").dataobj)
        for case in ("still", "series")
    )
    np.testing.assert_allclose(third, 3 * first, rtol=1e-4, atol=1e-6)
    assert [record["case"] for record in engine.state.records] == ["still"]


def test_batches_of_different_sizes_give_the_poses_of_single_volumes(tmp_path):
    save_head(tmp_path / "in/a.nii.gz")
    save_head(tmp_path / "in/b.nii.gz", "PIL", shape=(50, 36, 47))
    save_head(tmp_path / "in/c.nii.gz", "RAS", shape=(30, 60, 40), voxel_mm=(5.0, 3.0, 4.0))
    (tmp_path / "in/d.nii").write_text("no volume")
    run(tmp_path / "in", RunFolder(tmp_path / "out"), batch_size=4)
    found = records(tmp_path / "out")
    for case in "abc":
        np.testing.assert_allclose(found[case]["head_to_world"], head_pose(), atol=1e-3)
    assert found["d"]["status"] == "unreadable"
