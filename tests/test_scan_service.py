"""scan/scan_service.py and scan_session.py: real sockets and processes, a stub for a network."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ismrmrd", reason="the extra `scan` is not installed")

import service_stub as stub
from scripts.scan.mrd_images import volume_image
from scripts.scan.mrd_stream import Sender
from scripts.scan.scan_service import ScanService
from scripts.scan.scanner_link import ScannerLink
from scripts.scan.session_options import SessionOptions

KEYS = {
    "type", "navigator", "status", "head_to_patient_lps", "confidence", "slice",
    "navigator_fov_centre_lps", "age_ms", "latency_ms", "message",
}  # fmt: skip

DEADLINE_MS = 800.0
IN_TIME_MS = 1.5 * DEADLINE_MS  # tests may have to share their cores


class Running:
    """A service in a thread, with its processes."""

    def __init__(self, target=stub.stub, **more):
        self.service = ScanService(target, port=0, **more)
        self.port = self.service.address[1]
        self.thread = threading.Thread(target=self.service.serve, daemon=True)
        self.thread.start()

    def link(self):
        return ScannerLink(port=self.port)

    def close(self):
        self.service.stop()
        self.thread.join(15)
        assert not self.thread.is_alive()


@pytest.fixture(scope="module")
def running():
    found = Running(options=SessionOptions(deadline_ms=DEADLINE_MS), longest_s=3.0)
    assert found.service.worker.wait_ready(30)
    yield found
    found.close()


@pytest.fixture
def link(running):
    """A session of a service whose network is ready, after the one before has ended."""
    wait_for(lambda: running.service._thread is None or not running.service._thread.is_alive())
    assert running.service.worker.wait_ready(30)
    with running.link() as found:
        yield found


def wait_for(condition, timeout_s=60.0):
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def ask(link, what=0.0, shift_mm=(0.0, 0.0, 0.0), **header):
    link.send(*stub.navigator(what, shift_mm), **header)
    return link.receive()


def test_every_navigator_has_its_answer_with_the_next_slice(link):
    link.configure({"plane": "coronal", "thickness_mm": 4.0, "interleave": 2})
    orders, numbers = [], []
    for n in range(6):
        answer = ask(link, shift_mm=(1.0 * n, 0, 0))
        assert set(answer) >= KEYS
        assert (answer["type"], answer["navigator"], answer["status"]) == ("prescription", n, "ok")
        assert answer["latency_ms"] < IN_TIME_MS
        assert answer["age_ms"] == answer["latency_ms"]
        orders.append(answer["slice"]["order"])
        numbers.append(answer["slice"]["number"])
        assert (answer["slice"]["plane"], answer["slice"]["thickness_mm"]) == ("coronal", 4.0)
    assert orders == [0, 1, 2, 3, 4, 5]
    assert numbers == [0, 2, 4, 6, 8, 10]
    # the stub's head lies in the middle of the volume; 85 mm along y, and two slices on either side
    values, affine = stub.navigator(shift_mm=(5.0, 0, 0))
    middle = affine[:3, :3] @ (np.array(values.shape) - 1) / 2 + affine[:3, 3]
    lps = np.array([-1, -1, 1]) * middle
    np.testing.assert_allclose(np.array(answer["head_to_patient_lps"])[:3, 3], lps, atol=1e-3)
    assert answer["slice"]["of"] == int(np.ceil(85 / 4)) + 4
    assert np.linalg.norm(np.array(answer["navigator_fov_centre_lps"]) - lps) < 20


def test_the_brain_is_measured_along_the_axes_that_the_session_asks_for(running, link, monkeypatch):
    """Whatever tilt the service was started with."""
    worker, jobs = running.service.worker, []
    submit = worker.submit
    monkeypatch.setattr(worker, "submit", lambda job: jobs.append(job) or submit(job))
    link.configure({"tilt_deg": [0.0, 0.0, 25.0]})
    assert ask(link)["status"] == "ok"
    assert [job.tilt_deg for job in jobs] == [(0.0, 0.0, 25.0)]


def test_a_slow_network_is_not_waited_for(link):
    assert ask(link)["status"] == "ok"
    answer = ask(link, stub.SLOW)
    assert answer["status"] == "predicted"
    assert answer["message"] == "no pose within 800 ms"
    assert answer["slice"]["order"] == 1
    assert DEADLINE_MS - 51 <= answer["latency_ms"] < IN_TIME_MS
    assert answer["age_ms"] > answer["latency_ms"]


def test_only_the_newest_of_those_that_wait_is_looked_at(running, link):
    ask(link)
    link.send(*stub.navigator(stub.SLOW))
    wait_for(lambda: running.service.worker._busy)
    for _ in range(3):
        link.send(*stub.navigator())
    answers = {answer["navigator"]: answer for answer in (link.receive() for _ in range(4))}
    assert sorted(answers) == [1, 2, 3, 4]
    assert answers[2]["message"] == "skipped: navigator 3 is newer"
    assert answers[3]["message"] == "skipped: navigator 4 is newer"
    assert {answers[n]["status"] for n in (1, 2, 3)} == {"predicted"}
    # the newest has to wait for the slow one, its answer does not
    assert answers[4]["latency_ms"] < IN_TIME_MS
    assert ask(link)["navigator"] == 5


def test_before_a_first_pose_there_is_nothing_to_predict(link):
    answer = ask(link, stub.NO_HEAD)
    assert (answer["status"], answer["slice"], answer["age_ms"]) == ("no_pose", None, None)
    assert "no head found" in answer["message"]
    values, affine = stub.navigator()
    middle = affine[:3, :3] @ (np.array(values.shape) - 1) / 2 + affine[:3, 3]
    expected = np.array([-1, -1, 1]) * middle  # the field of view stays
    np.testing.assert_allclose(answer["navigator_fov_centre_lps"], expected, atol=1e-3)
    assert ask(link, stub.UNCERTAIN)["status"] == "uncertain"
    assert ask(link)["slice"]["order"] == 0
    answer = ask(link, stub.NO_HEAD)
    assert (answer["status"], answer["slice"]["order"]) == ("predicted", 1)


def test_a_process_that_dies_is_started_anew(running, link):
    ask(link)
    starts = running.service.worker.starts
    answer = ask(link, stub.DIES)
    assert (answer["status"], answer["message"]) == (
        "predicted",
        "the process of the network died",
    )
    wait_for(lambda: running.service.worker.ready)
    assert running.service.worker.starts == starts + 1
    assert ask(link)["status"] == "ok"


def test_a_process_that_is_killed_from_outside_is_started_anew(running, link):
    ask(link)
    os.kill(running.service.worker.pid, signal.SIGKILL)
    answer = ask(link)
    assert answer["status"] in ("predicted", "ok")
    wait_for(lambda: running.service.worker.ready)
    wait_for(lambda: ask(link)["status"] == "ok")


def test_a_process_that_hangs_is_killed(running, link):
    ask(link)
    pid = running.service.worker.pid
    assert ask(link, stub.HANGS)["status"] == "predicted"
    wait_for(lambda: running.service.worker.pid != pid)
    wait_for(lambda: ask(link)["status"] == "ok")


def test_a_process_that_stands_still_does_not_keep_answers_back(running, link):
    ask(link)
    pid = running.service.worker.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        values = np.zeros((64, 64, 48), np.float32)  # more than a pipe holds
        for _ in range(2):
            link.send(values, stub.AFFINE)
            answer = link.receive()
            assert answer["status"] == "predicted"
            assert answer["latency_ms"] < IN_TIME_MS
        wait_for(lambda: running.service.worker.pid != pid)
    finally:
        if running.service.worker.pid == pid:
            os.kill(pid, signal.SIGCONT)
    wait_for(lambda: ask(link)["status"] == "ok")


def test_a_second_client_is_told_busy(running, link):
    ask(link)
    with running.link() as second:
        assert second.receive() == {"type": "error", "message": "busy: another session is open"}
        assert second.receive() is None
    assert ask(link)["status"] == "ok"


def test_slices_are_put_together(link):
    link.describe(stub.SHAPE, slices=stub.SHAPE[2])
    values, affine = stub.navigator()
    link.send_slices(values, affine, repetition=7)
    answer = link.receive()
    whole = ask(link)
    assert answer["status"] == whole["status"] == "ok"
    np.testing.assert_allclose(
        answer["head_to_patient_lps"], whole["head_to_patient_lps"], atol=1e-3
    )


def test_an_incomplete_repetition_is_said_and_the_next_one_complete(link):
    link.configure({"navigator_slices": 10})
    values, affine = stub.navigator()
    link.send_slices(values[:, :, :4], affine, repetition=0)
    link.send_slices(values, affine, repetition=1)
    first, second = link.receive(), link.receive()
    assert first["status"] == "no_pose"
    assert first["message"] == "refused: repetition 0 ended with 4 of 10 slices"
    assert second["status"] == "ok"


@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.float32, np.float64, np.complex64])
def test_types_of_images(link, dtype):
    values, affine = stub.navigator()
    link.send(values.astype(dtype), affine)
    assert link.receive()["status"] == "ok"


def message_of(image):
    parts = []
    Sender(parts.append).message(image)
    return b"".join(parts)


def test_images_that_are_no_navigators_are_refused_with_a_reason(link):
    values, affine = stub.navigator()
    image = volume_image(values, affine)
    head = image.getHead()
    head.channels = 3
    image.setHead(head)
    link.socket.sendall(message_of(image))
    assert "3 channels" in link.receive()["message"]
    image = volume_image(values, affine)
    image.read_dir = image.phase_dir
    link.socket.sendall(message_of(image))
    assert "not orthonormal" in link.receive()["message"]
    image = volume_image(values, affine)
    image.field_of_view = (0.0, 100.0, 100.0)
    link.socket.sendall(message_of(image))
    assert "field of view" in link.receive()["message"]
    link.send(values[:, :, :1], affine)
    assert "the number of a navigator's slices is not known" in link.receive()["message"]
    answer = ask(link)
    assert (answer["status"], answer["navigator"]) == ("ok", 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"plane": "oblique"}, "plane 'oblique' is none of"),
        ({"plain": "axial"}, "unknown options ['plain']"),
        ({"thickness_mm": "3"}, "a value of the configuration"),
        ({"deadline_ms": -1}, "deadline_ms must be a number above 0, got -1"),
        ({"patient_position": "SITTING"}, "patient_position 'SITTING' is none of HFS"),
        ([1], "no JSON object"),
    ],
)
def test_a_configuration_that_cannot_be_meant_ends_the_session(link, options, message):
    link.configure(options)
    answer = link.receive()
    assert answer["type"] == "error"
    assert message in answer["message"]
    assert link.receive() is None


def whole_image():
    return message_of(volume_image(*stub.navigator()))


BAD_BYTES = {
    "an unknown message": struct.pack("<H", 77),
    "noise": random.Random(0).randbytes(5000),
    "a web browser": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a text without end": struct.pack("<HI", 5, 2**32 - 1),
    "a header that is no XML": struct.pack("<HI", 3, 8) + b"<no xml>",
    "attributes without end": whole_image()[:200] + struct.pack("<Q", 2**60),
    "a data type of its own": whole_image()[:4] + b"\x63\x00" + whole_image()[6:],
    "sizes beyond memory": whole_image()[:18] + b"\xff" * 6 + whole_image()[24:],
    "an array without end": struct.pack("<HHHHQ", 1030, 5, 0, 1, 2**62),
    "a text that is no UTF-8": struct.pack("<HI", 5, 4) + b"\xff\xfe\xfd\xfc",
}


@pytest.mark.parametrize("name", BAD_BYTES)
def test_what_is_no_session_is_told_so_and_the_service_goes_on(running, link, name):
    ask(link)
    link.socket.sendall(BAD_BYTES[name])
    answer = link.receive()
    assert answer is None or answer["type"] == "error" or "refused" in answer["message"]
    link.close()
    wait_for(lambda: not running.service._thread.is_alive())
    with running.link() as after:
        assert ask(after)["status"] == "ok"


def test_clients_that_vanish_at_any_point_leave_a_service_that_works(running):
    """Half of them reset the connection, in the middle of any message."""
    wait_for(lambda: running.service._thread is None or not running.service._thread.is_alive())
    stream = whole_image() * 2
    dice = random.Random(1)
    for k in range(50):
        client = socket.create_connection(("127.0.0.1", running.port), 5)
        client.sendall(stream[: dice.randrange(len(stream))])
        if k % 2:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
    with running.link() as after:
        assert ask(after)["status"] == "ok"


def test_a_client_that_does_not_read_is_let_go(running, monkeypatch):
    monkeypatch.setattr("scripts.scan.connections.SEND_TIMEOUT_S", 0.3)
    wait_for(lambda: running.service._thread is None or not running.service._thread.is_alive())
    before = running.service.session
    client = socket.socket()
    # before it connects, or the system makes the buffer as large as it likes
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", running.port))
    wait_for(lambda: running.service.session is not before)
    wait_for(lambda: running.service._thread.is_alive())
    client.settimeout(0.2)
    end = time.monotonic() + 90
    bad = volume_image(*stub.navigator())
    bad.field_of_view = (0.0, 1.0, 1.0)  # refused at once: an answer for every one
    stream, sent = message_of(bad) * 200, 0
    while running.service._thread.is_alive() and time.monotonic() < end:
        with contextlib.suppress(OSError):  # full: the service does not read either
            sent = (sent + client.send(stream[sent:])) % len(stream)
    assert not running.service._thread.is_alive()
    assert "the client is gone" in running.service.session.reason
    client.close()


def test_answers_that_break_off_are_told_with_the_reason(caplog):
    server = socket.create_server(("127.0.0.1", 0))
    with server, ScannerLink(port=server.getsockname()[1]) as link:
        service, _ = server.accept()
        service.sendall(struct.pack("<HI", 5, 100) + b"half a message")
        service.close()
        assert link.receive() is None
    assert "the answers break off: EOFError" in caplog.text


def test_times_of_the_scanner_give_the_same_slices_however_fast(link):
    link.configure({"time_stamp_ms": 2.5})
    found = []
    for n in range(3):
        found.append(ask(link, shift_mm=(3.0 * n, 0, 0), acquisition_time_stamp=1000 * n))
    link.close()
    assert [answer["status"] for answer in found] == ["ok"] * 3
    # 3 mm in 2.5 s: the track sees a velocity, which it would not at 3 mm in some ms
    assert found[2]["translation_sd_mm"] < 15


def test_without_a_network_there_are_answers_all_the_same():
    running = Running(stub.never_ready, options=SessionOptions(deadline_ms=150.0))
    try:
        with running.link() as link:
            answer = ask(link)
            assert answer["status"] == "no_pose"
            assert answer["message"] == "the network is not ready"
            assert 100 <= answer["latency_ms"] < IN_TIME_MS
    finally:
        running.close()


def test_a_network_that_cannot_be_loaded_is_tried_again_and_again(monkeypatch):
    monkeypatch.setattr("scripts.scan.pose_worker.LONGEST_PAUSE_S", 0.1)
    running = Running(stub.breaks, options=SessionOptions(deadline_ms=100.0))
    try:
        wait_for(lambda: running.service.worker.starts >= 2, 20)
        with running.link() as link:
            assert ask(link)["status"] == "no_pose"
    finally:
        running.close()


def test_sigterm_ends_the_service_and_tells_the_session():
    process = subprocess.Popen(
        [sys.executable, Path(stub.__file__)], stdout=subprocess.PIPE, text=True
    )
    port = int(process.stdout.readline())
    with ScannerLink(port=port) as link:
        link.send(*stub.navigator(stub.NO_HEAD))
        assert link.receive(30)["status"] == "no_pose"
        process.send_signal(signal.SIGTERM)
        assert link.receive() == {"type": "end", "message": "the service is shutting down"}
        assert link.receive() is None
        assert process.wait(30) == 0
    assert process.stdout.read().endswith("ended\n")
