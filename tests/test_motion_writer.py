"""The motion of a series: its table, its poses and its picture, from the records of inference."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from ignite.engine import Engine
from matplotlib.image import imread
from scipy.spatial.transform import Rotation

from conftest import BUNDLE, head_pose
from scripts.evaluation.outputs import CaseFiles
from scripts.evaluation.run_folder import RunFolder
from scripts.scan.motion_files import motion_json, motion_table, pose_vector, series_motion
from scripts.scan.motion_picture import draw_motion
from scripts.scan.motion_writer import MotionWriter, in_order
from scripts.scan.pose_noise import expected_noise

TURN_DEG = np.array([10.0, -20, 30])


def turned(share: float) -> np.ndarray:
    """``head_pose()`` turned by a share of TURN_DEG about its centre and moved along x by 6 mm."""
    pose = head_pose()
    pose[:3, :3] = Rotation.from_rotvec(np.deg2rad(share * TURN_DEG)).as_matrix() @ pose[:3, :3]
    pose[0, 3] += 6 * share
    return pose


def record(frame: int, pose=None, time_s: float | None = None, frames: int = 4, **more) -> dict:
    return {
        "case": "scan",
        "status": "no_head" if pose is None else "ok",
        "head_to_world": None if pose is None else pose.tolist(),
        "confidence": 0.0 if pose is None else 0.99,
        "brain_volume_ml": 200.0,
        "message": "",
        "warnings": [],
        "frame": frame,
        "frames": frames,
        "time_s": time_s,
        **more,
    }


def series() -> list[dict]:
    """Four frames, 3 s apart; the second has no pose, the others turn little by little."""
    poses = [turned(0), None, turned(0.5), turned(1)]
    return [record(k, pose, 3.0 * k) for k, pose in enumerate(poses)]


def test_the_table_says_where_the_head_was():
    rows = list(
        csv.DictReader(io.StringIO(motion_table(series_motion("scan", series()))), delimiter="\t")
    )
    assert [float(row["time_s"]) for row in rows] == [0, 3, 6, 9]
    assert [row["status"] for row in rows] == ["ok", "no_head", "ok", "ok"]
    assert rows[1]["x_mm"] == rows[1]["rz_deg"] == "n/a"
    last = [float(rows[3][name]) for name in ("rx_deg", "ry_deg", "rz_deg")]
    np.testing.assert_allclose(last, TURN_DEG, atol=1e-3)
    assert float(rows[3]["x_mm"]) == pytest.approx(7 + 6)
    # the track goes on where there is no pose, and less surely
    assert float(rows[1]["x_mm_tracked"]) == pytest.approx(7, abs=0.01)
    assert float(rows[1]["sd_deg"]) > float(rows[0]["sd_deg"])
    assert rows[1]["track"] == "lacking"


def test_the_rotation_vector_is_that_of_the_world():
    world = np.eye(4)
    vector = pose_vector(turned(1.0), head_pose())
    np.testing.assert_allclose(vector[3:], TURN_DEG, atol=1e-9)
    np.testing.assert_allclose(vector[:3], [13, -12, 9], atol=1e-9)
    world[:3, :3] = Rotation.from_euler("z", 90, degrees=True).as_matrix()
    seen = pose_vector(world @ turned(1.0), world @ head_pose())
    np.testing.assert_allclose(seen[3:], world[:3, :3] @ TURN_DEG, atol=1e-9)


def test_the_json_holds_every_pose():
    content = json.loads(motion_json(series_motion("scan", series())))
    assert [f["head_to_world"] is None for f in content["frames"]] == [False, True, False, False]
    np.testing.assert_allclose(content["frames"][2]["head_to_world"], turned(0.5))
    tracked = np.array(content["frames"][3]["head_to_world_tracked"])
    np.testing.assert_allclose(tracked[:3, :3] @ tracked[:3, :3].T, np.eye(3), atol=1e-9)
    assert content["times_known"] is True


@pytest.mark.parametrize("times", [[None] * 4, [0, 1, None, 3], [0, 2, 2, 3], [0, math.nan, 2, 3]])
def test_times_that_are_not_told_or_do_not_rise_are_counted(times):
    records = [r | {"time_s": t} for r, t in zip(series(), times, strict=True)]
    motion = series_motion("scan", records, repetition_s=2.0)
    assert [f.time_s for f in motion.frames] == [0, 2, 4, 6]
    assert not motion.times_known
    assert json.loads(motion_json(motion))["repetition_s"] == 2.0


def test_a_series_without_any_pose_has_its_files_too(tmp_path):
    motion = series_motion("scan", [record(k, None, float(k)) for k in range(3)])
    rows = motion_table(motion).splitlines()
    assert len(rows) == 4
    assert set(rows[1].split("\t")[4:-1]) == {"n/a"}
    draw_motion(tmp_path / "none.png", motion)
    assert imread(tmp_path / "none.png").shape[0] > 500


def test_what_the_network_expects_of_its_error_counts_more_than_the_confidence():
    surer = [r | {"rotation_sd_deg": 1.0, "translation_sd_mm": 0.5} for r in series()]
    widths = [series_motion("scan", records).frames[0].tracked for records in (series(), surer)]
    assert widths[1].rotation_sd_deg < 0.5 * widths[0].rotation_sd_deg
    assert widths[1].translation_sd_mm < 0.7 * widths[0].translation_sd_mm


def test_less_confidence_is_more_noise():
    noises = [expected_noise(c) for c in (1.0, 0.95, 0.8, 0.6, 0.1)]
    for surer, less in itertools.pairwise(noises):
        assert surer <= less
    assert expected_noise(1.0, "uncertain").wrong_share > expected_noise(1.0).wrong_share


def run(writer: MotionWriter, batches: list[list[dict]], folder: RunFolder) -> None:
    """What an evaluator does: a batch of records after the other."""

    def step(engine, batch):
        engine.state.records = batch
        readings = [
            SimpleNamespace(
                frame=r.get("frame", 0), frames=r.get("frames", 1), bids=None, folder=Path()
            )
            for r in batch
        ]
        engine.state.batch = {"reading": readings}
        for r, reading in zip(batch, readings, strict=True):
            if reading.frames == 1:
                folder.finish(folder.files(r["case"]), str(folder.output_dir), r, False)
        return {}

    engine = Engine(step)
    # the engine sets state.batch before the step, and handlers come after it
    writer.attach(engine)
    engine.run(batches, max_epochs=1)


@pytest.mark.parametrize("size", [1, 3, 8])
def test_the_files_of_each_series_whatever_the_batches(tmp_path, size):
    folder = RunFolder(tmp_path)
    other = [r | {"case": "other"} for r in series()]
    single = {
        k: v for k, v in record(0, turned(0)).items() if k not in ("frame", "frames", "time_s")
    }
    records = [*series(), single | {"case": "alone"}, *other]
    batches = [records[k : k + size] for k in range(0, len(records), size)]
    run(MotionWriter(folder), batches, folder)
    written = sorted(p.name for p in tmp_path.glob("*_motion.*"))
    assert written == [f"{c}_motion.{e}" for c in ("other", "scan") for e in ("json", "png", "tsv")]
    assert (tmp_path / "scan_motion.tsv").read_text().count("\n") == 5
    assert json.loads((tmp_path / "other_motion.json").read_text())["case"] == "other"


def test_volumes_one_by_one_can_be_a_series(tmp_path):
    """In the order of the numbers in their names."""
    folder = RunFolder(tmp_path)
    records = []
    for number, share in ((10, 1.0), (9, 0.5), (1, 0.0)):
        one = {
            k: v
            for k, v in record(0, turned(share)).items()
            if k not in ("frame", "frames", "time_s")
        }
        records.append(one | {"case": f"nav_{number}"})
    run(MotionWriter(folder, as_series=True, repetition_s=2.0), [[r] for r in records], folder)
    content = json.loads((tmp_path / "series_motion.json").read_text())
    places = [f["head_to_world"][0][3] for f in content["frames"]]
    assert places == pytest.approx([7, 10, 13])
    assert [f["time_s"] for f in content["frames"]] == [0, 2, 4]


def test_nothing_is_written_that_was_not_asked_for(tmp_path):
    folder = RunFolder(tmp_path, outputs=["json", "picture"])
    run(MotionWriter(folder), [[r] for r in series()], folder)
    assert not list(tmp_path.glob("*_motion.*"))


def test_one_series_that_fails_does_not_stop_the_run(tmp_path, caplog):
    folder = RunFolder(tmp_path)
    broken = [r | {"case": "broken"} for r in series()]
    broken[2]["head_to_world"] = [[math.nan] * 4] * 4
    run(MotionWriter(folder), [[r] for r in [*broken, *series()]], folder)
    assert (tmp_path / "scan_motion.png").exists()
    assert "broken: no motion: ValueError: the pose at 6.0 s is no finite" in caplog.text


def test_the_picture_of_a_name_with_formula_signs(tmp_path):
    motion = series_motion("a$b$_{c" + "x" * 200, series())
    draw_motion(tmp_path / "m.png", motion)
    assert imread(tmp_path / "m.png").std() > 0.01


def test_the_order_of_names():
    names = ["nav_10", "nav_9", "nav_9b", "a", "2"]
    assert sorted(names, key=in_order) == ["2", "a", "nav_9", "nav_9b", "nav_10"]


def test_a_repetition_time_that_cannot_be(tmp_path):
    with pytest.raises(ValueError, match="repetition_s must be more than 0 s, got 0"):
        MotionWriter(RunFolder(tmp_path), repetition_s=0)


def test_the_command_writes_the_motion_between_the_records_and_the_report():
    config = json.loads((BUNDLE / "configs/inference.json").read_text())
    names = [handler["_target_"].split(".")[-1] for handler in config["handlers"]]
    order = [names.index(name) for name in ("PoseWriter", "MotionWriter", "ReportWriter")]
    assert order == sorted(order)
    assert (config["as_series"], config["repetition_s"]) == (False, 2.5)


def test_the_names_are_those_of_the_other_outputs(tmp_path):
    assert CaseFiles(tmp_path, "scan").motion("tsv").name == "scan_motion.tsv"
