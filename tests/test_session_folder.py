"""scan/session_folder.py and session_report.py: what a session leaves behind, and full disks."""

from __future__ import annotations

import json
import stat
import time

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("ismrmrd", reason="the extra `scan` is not installed")

import service_stub as stub
from scripts.scan.navigators import Navigator
from scripts.scan.pose_job import Found
from scripts.scan.session_folder import SessionFolder
from scripts.scan.session_options import SessionOptions
from scripts.scan.session_report import session_report
from scripts.scan.stack_session import StackSession
from scripts.service import Lookers


def record(folder, messages=("",) * 4):
    """A session of some navigators, the second without a pose, as ScanSession tells of it."""
    stack = StackSession(SessionOptions())
    folder.started(stack.options)
    for n, message in enumerate(messages):
        navigator = Navigator(n, *stub.navigator(shift_mm=(n, 0, 0)), 100.0 + 2.5 * n, 0)
        pose = np.eye(4)
        pose[:3, 3] = navigator.centre_mm
        found = Found("ok", pose, 0.98, stub.EXTENT_MM, 6.0, 4.0, 0.01)
        if n == 1:
            found = Found("no_head")
        stack.started(navigator)
        stack.learn(n, found)
        answer = stack.answer(navigator, found, navigator.received_s + 0.2, message)
        folder.answered(navigator, found, answer)
    folder.answered(None, None, {**answer, "navigator": 99, "status": "no_pose", "slice": None})
    folder.ended("closed by the client")
    folder.wait(60)


@pytest.fixture
def no_picture(monkeypatch):
    """Drawing takes a second."""
    monkeypatch.setattr(
        "scripts.scan.motion_picture.draw_motion", lambda path, _: path.write_bytes(b"")
    )


def test_everything_is_there_and_only_for_its_owner(tmp_path):
    folder = SessionFolder(tmp_path / "sessions", 7)
    record(folder)
    assert folder.failures == 0
    assert folder.path.name.endswith("_session_7")
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    names = {path.name for path in folder.path.iterdir()}
    volumes = {f"navigator_{n:04d}.nii.gz" for n in range(4)}
    files = {"answers.jsonl", "options.json", "motion.tsv", "motion.png", "report.html"}
    assert names == volumes | files
    image = nib.load(folder.path / "navigator_0002.nii.gz")
    values, affine = stub.navigator(shift_mm=(2, 0, 0))
    np.testing.assert_array_equal(image.get_fdata(), values)
    np.testing.assert_allclose(image.affine, affine)
    answers = [json.loads(line) for line in (folder.path / "answers.jsonl").open()]
    assert [answer["status"] for answer in answers] == ["ok", "predicted", "ok", "ok", "no_pose"]
    rows = [line.split("\t") for line in (folder.path / "motion.tsv").read_text().splitlines()]
    assert len(rows) == 5
    assert rows[2][rows[0].index("x_mm")] == "n/a"
    x = [float(rows[k][rows[0].index("x_mm")]) for k in (1, 3, 4)]
    np.testing.assert_allclose(np.diff(x), [2, 1])
    assert json.loads((folder.path / "options.json").read_text())["plane"] == "axial"


@pytest.mark.usefixtures("no_picture")
def test_what_is_said_is_escaped_and_counted_on_the_page(tmp_path):
    folder = SessionFolder(tmp_path, 1)
    record(folder, ["", "", "<script>alert(1)</script>", ""])
    page = (folder.path / "report.html").read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "5 answers: 3 ok, 1 predicted, 1 no_pose" in page
    assert "200 ms (median)" in page
    assert "data:image/png;base64," in page
    assert "http" not in page


def test_a_page_without_answers():
    assert "0 answers" in session_report("name", [], None, "closed")


@pytest.mark.usefixtures("no_picture")
def test_a_full_disk_is_logged_and_disturbs_nobody(tmp_path, monkeypatch, caplog):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("scripts.files.write_nifti", full)
    folder = SessionFolder(tmp_path, 1)
    record(folder)
    assert folder.failures == 4
    assert "No space left on device" in caplog.text
    assert "navigator_0000.nii.gz" not in {path.name for path in folder.path.iterdir()}
    # what could be written is there
    assert (folder.path / "report.html").exists()


def test_a_folder_that_cannot_be_made_disturbs_nobody(tmp_path):
    (tmp_path / "file").write_text("")
    folder = SessionFolder(tmp_path / "file", 1)
    record(folder)
    assert folder.failures > 0
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_service_that_ends_waits_until_its_folders_are_written(tmp_path):
    """What a thread imports after the end of the main thread fails, and may crash the process."""
    lookers = Lookers({"session_dir": tmp_path, "console_port": None, "igtl_port": None})
    (folder,) = lookers(1)
    lookers.close()  # a session that never started
    folder._put(lambda: time.sleep(1))
    folder.started(SessionOptions())
    folder.ended("the client closed")
    assert folder.writing
    lookers.close()
    assert not folder.writing
    assert (folder.path / "options.json").exists()
