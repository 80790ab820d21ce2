"""The pose for 3D Slicer: an OpenIGTLink server that sends it as a TRANSFORM."""

from __future__ import annotations

import signal
import threading
from typing import Any

import numpy as np

from .navigators import Navigator
from .patient import world_to_patient
from .pose_job import Found
from .session_options import SessionOptions

DEVICE = "HeadToWorld"


class SlicerLink:
    """Sends ``head_to_world`` (RAS, mm, as Slicer's transforms are) after an answer with a pose.

    The server is pyigtl's, in threads of its own, and listens on this machine alone (loopback).
    """

    def __init__(self, port: int) -> None:
        import pyigtl

        self._igtl = pyigtl
        # it takes SIGTERM and SIGINT for itself; they belong to the service
        handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        self.server = pyigtl.OpenIGTLinkServer(port=port, local_server=True)
        for number, handler in handlers.items():
            signal.signal(number, handler)

    def started(self, options: SessionOptions) -> None:
        """Nothing to tell before the first pose."""

    def answered(
        self, navigator: Navigator | None, found: Found | None, answer: dict[str, Any]
    ) -> None:
        pose = answer["head_to_patient_lps"]
        if pose is None or not self.server.is_connected():
            return
        head_to_world = world_to_patient(np.array(pose))
        message = self._igtl.TransformMessage(head_to_world, device_name=DEVICE)
        self.server.send_message(message, wait=False)

    def ended(self, reason: str) -> None:
        """The last pose stays where it is."""

    def close(self) -> None:
        """Stop listening; a client that stays does not keep the service from ending."""
        stopping = threading.Thread(target=self.server.stop, daemon=True)
        stopping.start()
        stopping.join(2)
