"""scan/slicer_link.py: a real client of pyigtl receives the pose."""

from __future__ import annotations

import signal
import socket
import time

import numpy as np
import pytest

pytest.importorskip("pyigtl", reason="the extra `scan` is not installed")

import pyigtl

from conftest import head_pose
from scripts.scan.patient import world_to_patient
from scripts.scan.session_options import SessionOptions
from scripts.scan.slicer_link import DEVICE, SlicerLink


def test_slicer_gets_head_to_world_and_signals_stay_ours():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    before = signal.getsignal(signal.SIGTERM)
    link = SlicerLink(port)
    assert signal.getsignal(signal.SIGTERM) is before
    client = pyigtl.OpenIGTLinkClient("127.0.0.1", port)
    try:
        end = time.monotonic() + 20
        while not link.server.is_connected():
            assert time.monotonic() < end
            time.sleep(0.05)
        pose = head_pose()
        link.started(SessionOptions())
        link.answered(None, None, {"head_to_patient_lps": None})
        link.answered(None, None, {"head_to_patient_lps": world_to_patient(pose).tolist()})
        message = client.wait_for_message(DEVICE, timeout=20)
        assert message is not None
        np.testing.assert_allclose(message.matrix, pose, atol=1e-4)
        link.ended("closed")
    finally:
        client.stop()
        link.close()
