"""The scanner's end of a session: sends navigators, receives answers. For tests and trials."""

from __future__ import annotations

import json
import logging
import queue
import socket
import threading
import time
from typing import Any

import ismrmrd
from ismrmrd.serialization import ConfigText, ProtocolDeserializer
from numpy.typing import ArrayLike, NDArray

from .mrd_images import slice_images, volume_image
from .mrd_stream import Sender

logger = logging.getLogger(__name__)

STAMP_MS = 2.5  # length of a step of the acquisition time stamp that is sent

# The least that the schema asks for.
HEADER_XML = """<?xml version="1.0"?>
<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">
 <measurementInformation><patientPosition>{position}</patientPosition></measurementInformation>
 <experimentalConditions><H1resonanceFrequency_Hz>63500000</H1resonanceFrequency_Hz>
 </experimentalConditions>
 <encoding>
  <encodedSpace><matrixSize><x>{x}</x><y>{y}</y><z>{z}</z></matrixSize>
   <fieldOfView_mm><x>1</x><y>1</y><z>1</z></fieldOfView_mm></encodedSpace>
  <reconSpace><matrixSize><x>{x}</x><y>{y}</y><z>{z}</z></matrixSize>
   <fieldOfView_mm><x>1</x><y>1</y><z>1</z></fieldOfView_mm></reconSpace>
  <encodingLimits>
   <slice><minimum>0</minimum><maximum>{last_slice}</maximum><center>0</center></slice>
  </encodingLimits>
  <trajectory>cartesian</trajectory>
 </encoding>
</ismrmrdHeader>"""


class ScannerLink:
    """A connection to the service; answers are collected by a thread of their own.

    Closing sends CLOSE. As a context manager it closes at the end.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 9002, timeout_s: float = 10.0) -> None:
        self.socket = socket.create_connection((host, port), timeout_s)
        self.socket.settimeout(None)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sender = Sender(self.socket.sendall)
        self._answers: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._receive, daemon=True)
        self._thread.start()

    def __enter__(self) -> ScannerLink:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def configure(self, options: dict[str, Any]) -> None:
        """CONFIG_TEXT: options of the session by their names."""
        self._sender.message(ConfigText(json.dumps(options)))

    def describe(
        self, shape: tuple[int, int, int], slices: int = 1, patient_position: str = "HFS"
    ) -> None:
        """HEADER: the size of navigators, and how many slices each comes in."""
        x, y, z = shape
        text = HEADER_XML.format(x=x, y=y, z=z, last_slice=slices - 1, position=patient_position)
        self._sender.message(ismrmrd.xsd.CreateFromDocument(text))

    def send(self, values: NDArray, affine: ArrayLike, **header: Any) -> None:
        """IMAGE: a navigator (i, j, k) with its voxel-to-world matrix (RAS mm), as one volume."""
        self._sender.message(volume_image(values, affine, **header))

    def send_slices(self, values: NDArray, affine: ArrayLike, **header: Any) -> None:
        """The same, one IMAGE for each slice along k."""
        for image in slice_images(values, affine, **header):
            self._sender.message(image)

    def receive(self, timeout_s: float = 10.0) -> dict[str, Any] | None:
        """The next answer; None once the service has ended the session.

        TimeoutError where there is none in time.
        """
        try:
            return self._answers.get(timeout=timeout_s)
        except queue.Empty:
            raise TimeoutError(f"no answer within {timeout_s:g} s") from None

    def close(self) -> None:
        """Say CLOSE and let go."""
        try:
            self._sender.message(None)
            self.socket.shutdown(socket.SHUT_WR)
            self._thread.join(5)
        except OSError:
            pass  # the service has gone first
        self.socket.close()

    def _receive(self) -> None:
        try:
            with self.socket.makefile("rb") as stream:
                for text in ProtocolDeserializer(stream).deserialize():
                    self._answers.put(json.loads(str(text)))
        except (EOFError, OSError, ValueError) as error:
            logger.warning("the answers break off: %s: %s", type(error).__name__, error)
        self._answers.put(None)


class PacedLink:
    """Sends navigators over a link at their times, and waits for the answer to each.

    speed : of time against that of the clock; 0 sends the next one as soon as the last is answered
    timeout_s : longest wait for an answer
    slices_apart : whether navigators go as a message for every slice
    """

    def __init__(
        self, link: ScannerLink, speed: float = 1.0, timeout_s: float = 30.0, slices_apart=False
    ) -> None:
        self.link, self.speed, self.timeout_s = link, speed, timeout_s
        self.slices_apart = slices_apart
        self._start = time.monotonic()
        self._described = False

    def ask(self, values: NDArray, affine: ArrayLike, number: int, time_s: float) -> dict[str, Any]:
        """The answer to a navigator (i, j, k) that is taken at a time; its `round_trip_ms` is new.

        ConnectionError where the service has ended the session, TimeoutError without an answer.
        """
        if self.speed > 0:
            time.sleep(max(self._start + time_s / self.speed - time.monotonic(), 0))
        send = self.link.send_slices if self.slices_apart else self.link.send
        if self.slices_apart and not self._described:
            x, y, z = values.shape
            self.link.describe((x, y, z), slices=z)
            self._described = True
        sent = time.monotonic()
        stamp = round(time_s * 1000 / STAMP_MS)
        send(values, affine, repetition=number, acquisition_time_stamp=stamp)
        answer = self.link.receive(self.timeout_s)
        if answer is None:
            raise ConnectionError("the service has ended the session")
        return {**answer, "round_trip_ms": round((time.monotonic() - sent) * 1000, 1)}
