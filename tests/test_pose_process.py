"""pose_process.py: what the process that finds heads says of a volume."""

from __future__ import annotations

import queue
import sys

import numpy as np
import pytest
import torch

from chains import Answering
from conftest import BUNDLE
from scripts import process
from scripts.labels import Status
from scripts.scan import estimator
from scripts.scan.estimator import Estimate, HeadPoseEstimator
from scripts.scan.pose_job import Found, Job
from scripts.scan.pose_noise import Noise
from scripts.scan.pose_process import NetworkPart
from scripts.scan.pose_worker import PoseWorker
from scripts.weight_files import WeightsError


class Blind(Answering):
    """A network that finds no head."""

    def fields(self, volume):
        n = len(volume)
        return {
            "head_to_grid": torch.full((n, 4, 4), float("nan")),
            "confidence": torch.zeros(n),
            "label": torch.zeros_like(volume, dtype=torch.uint8),
        }


def found(values):
    job = Job(1, 7, values.astype(np.float32), np.diag([4.0, 4.0, 4.0, 1.0]))
    return NetworkPart("").found(HeadPoseEstimator(Blind()), job)


def test_the_brain_is_measured_along_the_axes_of_the_job():
    class Seen:
        def __call__(self, volumes):
            ((values, affine),) = volumes
            brain = np.zeros(values.shape, bool)
            brain[2:18, 8:12, 8:12] = True  # longer along x
            noise = Noise(1.0, 1.0, 0.0)
            return [Estimate(Status.OK, np.eye(4), 0.9, noise, brain, affine)]

    sizes = []
    for tilt_deg in ((0.0, 0.0, 0.0), (0.0, 0.0, 90.0)):
        job = Job(1, 7, noise().astype(np.float32), np.diag([4.0, 4.0, 4.0, 1.0]), tilt_deg)
        extent = NetworkPart("").found(Seen(), job).extent_mm
        sizes.append(np.ptp(extent, axis=1).round(3).tolist())
    assert sizes == [[64.0, 16.0, 16.0], [16.0, 64.0, 16.0]]


def noise():
    return np.random.default_rng(0).random((20, 20, 20))


def hole():
    """A voxel out of all measure, which is told, and numbers missing in the middle."""
    values = noise()
    values[8:13, 8:13, 8:13] = np.nan
    values[0, 0, 0] = 1e35
    return values


@pytest.mark.parametrize(
    ("values", "status", "message"),
    [
        (np.zeros((20, 20, 20)), "empty", "volume: every voxel is 0"),
        (
            hole(),
            "not_finite",
            "values beyond 1e+30: all are divided by 2^30; navigator 7: has voxels that are NaN or "
            "infinite: 125 of 8000 (8 ml) within the volume",
        ),
        (noise(), "no_head", "no head found (no_head)"),
    ],
    ids=["zeros", "hole", "no head"],
)
def test_an_answer_without_a_pose_says_why(values, status, message):
    seen = found(values)
    assert (seen.status, seen.head_to_world) == (status, None)
    assert seen.message == message


def test_what_goes_wrong_in_the_network_is_said():
    class Breaks(Blind):
        def predict(self, volume):
            raise RuntimeError("no memory")

    job = Job(1, 7, noise().astype(np.float32), np.eye(4))
    seen = NetworkPart("").found(HeadPoseEstimator(Breaks()), job)
    assert (seen.status, seen.message) == ("failed", "RuntimeError: no memory")


def test_weights_that_are_none_are_told_by_name(tmp_path):
    (tmp_path / "model.pt").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(WeightsError, match=r"model\.pt: a pointer of git-lfs"):
        NetworkPart(str(tmp_path / "model.pt"))(None)


class Closed:
    """A link whose other end goes at once."""

    def __init__(self):
        self.sent = []

    def send(self, item):
        self.sent.append(item)

    def recv(self):
        raise EOFError


def test_threads_that_wait_sleep_before_the_first_volume(monkeypatch):
    """After the number of threads is set, on which it depends."""
    order = []

    def note(name):
        return lambda *_, **__: order.append(name)

    monkeypatch.setattr(torch, "set_num_threads", note("threads"))
    monkeypatch.setattr(process, "sleep_while_waiting", note("sleep"))
    monkeypatch.setattr(process, "keep_imports", note("keep"))
    monkeypatch.setattr(
        estimator, "HeadPoseEstimator", lambda *_, **__: lambda _: order.append("volume")
    )
    link = Closed()
    NetworkPart(str(BUNDLE / "models/model.pt"), threads=2)(link)
    assert link.sent == ["ready"]
    assert order == ["threads", "sleep", "keep", "volume"]


def count_sleepers(link):
    """In the place of NetworkPart."""
    torch.set_num_threads(2)
    process.sleep_while_waiting()
    link.send("ready")
    link.recv()
    link.send(Found(str(len(process._sleepers))))
    link.recv()


@pytest.mark.skipif(sys.platform != "linux", reason="it is about GNU libgomp")
def test_the_worker_leaves_it_to_its_process_how_threads_wait(monkeypatch):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    answers = queue.Queue()
    worker = PoseWorker(count_sleepers, lambda _, found: answers.put(found))
    worker.start()
    try:
        assert worker.wait_ready(120), worker.failure
        worker.submit(Job(1, 0, np.zeros((2, 2, 2), np.float32), np.eye(4)))
        assert int(answers.get(timeout=60).status) >= 1
    finally:
        worker.close()
