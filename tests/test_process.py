"""process.py: garbage collection after the imports, threads that wait, errors in plain words."""

from __future__ import annotations

import logging
import multiprocessing
import os
import subprocess
import sys

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from conftest import BUNDLE
from scripts import process
from scripts.geometry import check_rigid
from scripts.process import TRACEBACK_VARIABLE, is_told, reason
from scripts.weight_files import read_weights

CODE = """
import atexit, gc, weakref
from scripts.process import keep_imports
atexit.register(lambda: print("frozen at the end", gc.get_freeze_count() > before))
keep_imports()
before = gc.get_freeze_count()
class Node: pass
node = Node(); node.self = node; seen = weakref.ref(node); del node
gc.collect()
print("frozen", before > 1000, "collected", seen() is None)
"""

# Threads that wait are seen to run or to sleep by the processor time that a process takes beyond
# one thread's while its second thread has nothing to do: 2 ms after each of 300 small calls.
WAITING = """
import time, torch
from scripts import process
torch.set_num_threads(2)
x = torch.zeros(1 << 17)
def taken():
    x.add_(1)
    start, own = time.process_time(), time.thread_time()
    for _ in range(200):
        x.add_(1)
        end = time.perf_counter() + 0.002
        while time.perf_counter() < end:
            pass
    return time.process_time() - start - (time.thread_time() - own)
spinning = taken()
process.sleep_while_waiting()
made = len(process._sleepers)
process.sleep_while_waiting()  # once is enough
print(made, len(process._sleepers), spinning, taken())
"""


def run(code):
    unset = {"OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}
    kept = {key: value for key, value in os.environ.items() if key not in unset}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=BUNDLE,
        env=kept,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split("\n")


def test_imports_are_kept_and_later_garbage_is_collected():
    assert run(CODE)[:2] == ["frozen True collected True", "frozen at the end True"]


@pytest.mark.skipif(sys.platform != "linux", reason="it is about GNU libgomp")
def test_threads_that_wait_sleep():
    made, again, spinning, sleeping = map(float, run(WAITING)[0].split())
    assert made == again >= 1
    # beside busy processes both are less; that of a thread that sleeps stays a small part
    assert sleeping < 0.25 * spinning


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT"])
def test_a_wait_policy_that_was_chosen_is_kept(monkeypatch, name):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(process, "_sleepers", [])
    monkeypatch.setenv(name, "0")
    process.sleep_while_waiting()
    assert process._sleepers == []
    monkeypatch.delenv(name)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)  # nobody waits
    process.sleep_while_waiting()
    assert process._sleepers == []


def raised(call):
    try:
        call()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def wrapped(call):
    """What MONAI makes of an error: others around it."""

    def instantiate():
        try:
            call()
        except Exception as error:
            raise RuntimeError("Failed to instantiate: set '_mode_=debug'") from error

    return raised(instantiate)


def ours():
    check_rigid(torch.zeros(4, 4), "the pose")


def ours_about_another():
    """In a function of this bundle, from an error of a library."""
    read_weights(__file__)


def test_the_reason_is_the_first_in_our_own_words():
    error = wrapped(ours)
    assert is_told(error)
    assert reason(error).startswith("the pose: expected a rigid transform")
    assert reason(raised(ours)) == reason(error)
    error = wrapped(ours_about_another)
    assert error.__cause__.__cause__ is not None  # of torch
    assert reason(error).startswith(f"{__file__}: ")


def test_an_error_of_the_system_is_told_with_its_file(tmp_path):
    error = wrapped(lambda: open(tmp_path / "gone.json"))  # noqa: SIM115
    assert is_told(error)
    assert reason(error) == f"{tmp_path}/gone.json: No such file or directory"


def test_a_defect_is_told_with_its_kind_and_not_as_if_it_were_meant():
    error = wrapped(lambda: {}["x"])
    assert not is_told(error)
    assert reason(error) == "KeyError: 'x'"
    assert reason(raised(lambda: [].pop())) == "IndexError: pop from empty list"


class Broken(Dataset):
    def __init__(self, fails):
        self.fails = fails

    def __len__(self):
        return 1

    def __getitem__(self, index):
        try:
            self.fails()
        except Exception as error:
            raise RuntimeError("applying transform <object at 0x7f>") from error


@pytest.mark.parametrize(
    ("fails", "told", "text"),
    [(ours, True, "the pose: expected a rigid"), (lambda: [][1], False, "IndexError: list index")],
)
def test_an_error_in_a_worker_of_a_loader(fails, told, text):
    context = multiprocessing.get_context("fork")
    loader = DataLoader(Broken(fails), num_workers=1, multiprocessing_context=context)
    error = raised(lambda: list(loader))
    assert "Original Traceback" in str(error)
    assert is_told(error) == told
    assert reason(error).startswith(text)
    assert "\n  File" not in reason(error)


def test_only_a_command_speaks_plainly(monkeypatch):
    hook, factory = sys.excepthook, logging.getLogRecordFactory()
    process.speak_plainly()
    assert (sys.excepthook, logging.getLogRecordFactory()) == (hook, factory)
    monkeypatch.setattr(process, "is_command", lambda: True)
    try:
        process.speak_plainly()
        assert sys.excepthook is process._tell
        assert logging.getLogRecordFactory() is process._record
    finally:
        sys.excepthook = hook
        logging.setLogRecordFactory(factory)


def record(message, error=None):
    info = (type(error), error, error.__traceback__) if error else None
    return process._record("name", logging.ERROR, "file.py", 1, message, (), info)


def test_the_log_has_no_traceback_of_what_is_told(monkeypatch):
    assert record("Exception: x", wrapped(ours)).exc_info is None
    assert record("Exception: x", wrapped(ours)).getMessage().startswith("the pose: expected")
    assert record("Exception: x", wrapped(lambda: [][1])).exc_info is not None
    assert record("100 %").getMessage() == "100 %"
    monkeypatch.setenv(TRACEBACK_VARIABLE, "1")
    assert record("Exception: x", wrapped(ours)).exc_info is not None


@pytest.mark.parametrize(
    ("call", "code", "last", "traceback"),
    [
        (lambda: [][1], 1, "error: IndexError: list index out of range", True),
        (ours, 1, "error: the pose: expected a rigid transform", False),
    ],
)
def test_a_command_ends_with_its_reason(monkeypatch, capfd, call, code, last, traceback):
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    error = wrapped(call)
    process._tell(type(error), error, error.__traceback__)
    assert ended == [code]
    printed = capfd.readouterr().err
    assert [line for line in printed.splitlines() if not line.startswith(" ")][-1].startswith(last)
    assert ("Traceback" in printed) == traceback


def test_a_command_that_is_stopped_says_so(monkeypatch, capfd):
    def leave(code):
        raise SystemExit(code)

    monkeypatch.setattr(os, "_exit", leave)
    with pytest.raises(SystemExit) as raised_:
        process._tell(KeyboardInterrupt, KeyboardInterrupt())
    assert raised_.value.code == 130
    assert capfd.readouterr().err == "stopped\n"
