"""One run at a time in a folder."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from scripts.evaluation import folder_lock
from scripts.evaluation.folder_lock import FolderLock

HOLD = """
import importlib.util, sys, time
spec = importlib.util.spec_from_file_location("folder_lock", sys.argv[1])  # without torch
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
lock = module.FolderLock(sys.argv[2])
lock.take()
print("taken", flush=True)
time.sleep(60)
"""


def test_another_process_is_named_and_its_end_by_any_means_frees_the_folder(tmp_path):
    path = tmp_path / "out/.head_pose/lock"
    command = [sys.executable, "-c", HOLD, folder_lock.__file__, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "taken\n"
        with pytest.raises(BlockingIOError, match=rf"out: another run \(process {other.pid} on"):
            FolderLock(path).take()
        other.send_signal(signal.SIGKILL)
        other.wait()
        lock = FolderLock(path)
        lock.take()
        lock.take()  # once is enough
        lock.release()
        lock.release()


def test_a_file_system_without_locks_is_no_obstacle(tmp_path, monkeypatch, caplog):
    import fcntl

    def refuse(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    lock = FolderLock(tmp_path / "out/.head_pose/lock")
    lock.take()
    assert "cannot be locked" in caplog.text
    lock.release()
