"""Runs over existing output: resumed, replaced, killed, beside others."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from conftest import head_pose
from inference_runs import run, save_head
from scripts.data.datalists import volumes_in
from scripts.evaluation.fingerprints import fingerprint, sha256
from scripts.evaluation.run_folder import RunFolder


def out(tmp_path: Path, **options) -> RunFolder:
    """A folder whose weights are the file w.pt."""
    if not (tmp_path / "w.pt").exists():
        (tmp_path / "w.pt").write_bytes(b"weights")
    return RunFolder(tmp_path / "out", weights=tmp_path / "w.pt", **options)


def left(folder: Path, **options) -> list[str]:
    """Cases that a resumed run would compute."""
    resumed = out(folder, resume=True, **options)
    entries = resumed.to_do(volumes_in(folder / "in", folder / "out"))
    return sorted({entry["case"] for entry in entries})


@pytest.fixture(scope="module")
def a_run(tmp_path_factory):
    """A run over a and b that is through."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    for name in ("a", "b"):
        save_head(folder / f"in/{name}.nii.gz")
    run(folder / "in", out(folder))
    return folder


@pytest.fixture
def finished(a_run):
    """The same, to be changed: at the same path, which counts, and put back afterwards."""
    kept = a_run.with_name("kept")
    shutil.copytree(a_run, kept)
    yield a_run
    shutil.rmtree(a_run)
    kept.rename(a_run)


def touched(folder: Path) -> None:
    path = folder / "in/a.nii.gz"
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))


def other_size(folder: Path) -> None:
    stamp = (folder / "in/a.nii.gz").stat().st_mtime_ns
    save_head(folder / "in/a.nii.gz", shape=(40, 44, 37))
    os.utime(folder / "in/a.nii.gz", ns=(stamp, stamp))


CHANGES = {
    "nothing": (lambda folder: None, {}, []),
    "a new case": (lambda folder: save_head(folder / "in/c.nii.gz"), {}, ["c"]),
    "time of an input": (touched, {}, ["a"]),
    "size of an input": (other_size, {}, ["a"]),
    "weights": (lambda folder: (folder / "w.pt").write_bytes(b"others"), {}, ["a", "b"]),
    "a picture is gone": (lambda folder: (folder / "out/b_pose.png").unlink(), {}, ["b"]),
    "a record is gone": (lambda folder: (folder / "out/b_pose.json").unlink(), {}, ["b"]),
    "another output": (lambda folder: None, {"outputs": "picture,mask"}, ["a", "b"]),
    "fewer outputs": (lambda folder: None, {"outputs": "json"}, []),
    "another bound": (lambda folder: None, {"uncertain_above_deg": 20.0}, ["a", "b"]),
    "another voxel size": (lambda folder: None, {"voxel_mm": (4, 4, 4)}, ["a", "b"]),
    "a state that is no JSON": (
        lambda folder: (folder / "out/.head_pose/cases/a.json").write_text("{"),
        {},
        ["a"],
    ),
}


def test_a_state_of_a_release_without_this_setting_is_not_done(finished):
    state = finished / "out/.head_pose/cases/a.json"
    content = json.loads(state.read_text())
    del content["settings"]["uncertain_above_deg"]
    state.write_text(json.dumps(content))
    assert left(finished) == ["a"]


@pytest.mark.parametrize("change", CHANGES)
def test_resume_does_what_is_not_done_with_the_same(finished, change):
    make, options, expected = CHANGES[change]
    make(finished)
    assert left(finished, **options) == expected


def test_the_report_of_a_resumed_run_has_all_cases(finished):
    (finished / "out/report.html").unlink()
    (finished / "out/poses.tsv").unlink()
    save_head(finished / "in/c.nii.gz")
    run(finished / "in", out(finished, resume=True), confidence=0.77)
    rows = (finished / "out/poses.tsv").read_text().splitlines()
    assert [row.split("\t")[0] for row in rows] == ["case", "a", "b", "c"]
    assert [row.split("\t")[2] for row in rows[1:]] == ["0.99", "0.99", "0.77"]
    (finished / "out/report.html").unlink()
    run(finished / "in", out(finished, resume=True))  # nothing to compute
    assert (finished / "out/report.html").exists()
    assert (finished / "out/poses.tsv").read_text().splitlines() == rows


def test_a_case_that_has_failed_is_tried_again(finished):
    state = finished / "out/.head_pose/cases/a.json"
    content = json.loads(state.read_text())
    content["record"]["status"] = "failed"
    state.write_text(json.dumps(content))
    assert left(finished) == ["a"]


def test_a_second_run_leaves_nothing_of_the_first_beside_its_records(tmp_path):
    save_head(tmp_path / "in/a.nii.gz")
    run(tmp_path / "in", out(tmp_path, outputs="picture,mask,aligned,lta"), aligned_mm=4.0)
    (tmp_path / "out/a_slices.png").write_bytes(b"made of the first pose")
    (tmp_path / "out/a_motion.tsv").write_text("of a series that it was")
    (tmp_path / "in/a.nii.gz").write_bytes(b"broken")
    save_head(tmp_path / "in/b.nii.gz")
    run(tmp_path / "in", out(tmp_path, outputs="picture"))
    assert json.loads((tmp_path / "out/a_pose.json").read_text())["status"] == "unreadable"
    names = {p.name for p in (tmp_path / "out").iterdir() if p.name[0] != "."}
    assert names == {"a_pose.json", "b_pose.json", "b_pose.png"}


def test_cases_of_another_run_are_named(finished, caplog):
    shutil.rmtree(finished / "in")
    save_head(finished / "in/c.nii.gz")
    run(finished / "in", out(finished))
    assert "also holds 2 cases of earlier runs, which are not in this one's report: a, b" in (
        caplog.text
    )
    assert (
        "cases of earlier runs, which are not on this page: a, b"
        in (finished / "out/report.html").read_text()
    )


def test_what_a_killed_run_left_half_written_is_removed_and_nothing_else_is(finished):
    half = [".0123abcd_a_pose.png", ".head_pose/cases/.89abcdef_a.json"]
    kept = [".hidden_a_pose.png", ".0123abcd_notes.txt", "0123abcd_a_pose.png"]
    for name in half + kept:
        (finished / "out" / name).write_text("half")
    out(finished).open()
    assert [name for name in half + kept if (finished / "out" / name).exists()] == kept


def bids_tree(folder: Path) -> None:
    for name in ("anat/sub-01_run-1_T2w", "anat/sub-01_run-1_T1w", "func/sub-01_bold"):
        save_head(folder / f"in/sub-01/{name}.nii.gz")
    (folder / "in/dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.9.0"}')


def test_bids_input_gives_bids_derivatives(tmp_path):
    bids_tree(tmp_path)
    run(tmp_path / "in", out(tmp_path, outputs="mask,aligned,transform,report"), aligned_mm=4.0)
    found = {
        str(p.relative_to(tmp_path / "out"))
        for p in (tmp_path / "out").rglob("*")
        if p.is_file() and ".head_pose" not in p.parts
    }
    start = "sub-01/anat/sub-01_run-1"
    expected = {
        f"{start}_{end}"
        for suffix in ("T1w", "T2w")
        for end in (
            f"desc-{suffix}_pose.json",
            f"space-head_{suffix}.nii.gz",
            f"from-{suffix}_to-head_mode-image_xfm.tfm",
        )
    }
    # two masks of one run: the second says of which image it is
    expected |= {f"{start}_desc-brain_mask.nii.gz", f"{start}_desc-brainT2w_mask.nii.gz"}
    expected |= {
        f"sub-01/func/sub-01_{end}"
        for end in (
            "desc-bold_pose.json",
            "space-head_bold.nii.gz",
            "from-bold_to-head_mode-image_xfm.tfm",
            "desc-brain_mask.nii.gz",
        )
    }
    assert found == expected | {"dataset_description.json", "poses.tsv", "report.html"}
    described = json.loads((tmp_path / "out/dataset_description.json").read_text())
    assert described["DatasetType"] == "derivative"
    assert described["GeneratedBy"][0]["Version"]
    assert (
        "sub-01/anat/sub-01_run-1_desc-T2w_pose.json" in (tmp_path / "out/report.html").read_text()
    )


def test_outputs_do_not_go_among_raw_data(tmp_path):
    bids_tree(tmp_path)
    folder = RunFolder(tmp_path / "in", outputs="mask")
    with pytest.raises(ValueError, match=r"in is the BIDS data set that is read: .*--output_dir"):
        run(tmp_path / "in", folder)
    below = RunFolder(tmp_path / "in/derivatives/pose", outputs="mask")
    run(tmp_path / "in", below)
    run(tmp_path / "in", RunFolder(tmp_path / "in/derivatives/pose", resume=True))  # finds as many
    assert len(list((tmp_path / "in").rglob("*_pose.json"))) == 3


def test_output_beside_the_inputs_does_not_become_input(tmp_path):
    save_head(tmp_path / "in/a.nii.gz")
    for _ in range(2):
        run(tmp_path / "in", RunFolder(tmp_path / "in", outputs="mask,aligned"), aligned_mm=4.0)
    assert {p.name for p in (tmp_path / "in").glob("*_pose.json")} == {"a_pose.json"}


def test_a_fingerprint_is_of_all_files_of_an_input(tmp_path):
    for name in ("x.hdr", "x.img", "series/1.dcm", "series/2.dcm"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"12345")
    assert fingerprint(tmp_path / "x.hdr")["bytes"] == 10
    assert fingerprint(tmp_path / "series")["bytes"] == 10
    assert fingerprint(tmp_path / "gone")["bytes"] == 0
    assert sha256(tmp_path / "gone") == ""
    assert sha256(tmp_path / "x.hdr").startswith("5994471abb01112a")


def test_where_the_input_was_stands_in_the_hidden_folder_only(tmp_path):
    save_head(tmp_path / "Jane_Doe/a.nii.gz")
    run(tmp_path / "Jane_Doe", RunFolder(tmp_path / "out"), pose=head_pose())
    told = [
        p.name
        for p in (tmp_path / "out").rglob("*")
        if p.is_file() and b"Jane_Doe" in p.read_bytes()
    ]
    assert told == ["a.json"]
