"""Messages of an ISMRMRD session from a stream that may hold anything.

The protocol is read by the package ``ismrmrd``; the stream that it reads from gives what is asked
for or fails, and gives no message more memory than a navigator needs.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeAlias

from ismrmrd.image import Image, ImageHeader
from ismrmrd.serialization import (
    ConfigFile,
    ConfigText,
    ISMRMRDMessageID,
    ProtocolDeserializer,
    ProtocolSerializer,
)
from ismrmrd.xsd import ismrmrdHeader

from .mrd_images import ImageRefused, check_header

MAX_BYTES = 2**28  # of one read: MAX_VOXELS complex numbers of double precision
MAX_TEXT_BYTES = 2**20
HEADER_BYTES = ctypes.sizeof(ImageHeader)


class ProtocolError(Exception):
    """What came is no message of the protocol: what follows cannot be read either."""


@dataclass(frozen=True)
class Config:
    """How the session begins: text of a CONFIG message, and whether it is only a file's name."""

    text: str
    is_name: bool


@dataclass(frozen=True)
class Geometry:
    """What is used of the HEADER message: slices of a navigator, and the patient's position."""

    slices: int | None
    patient_position: str | None
    message: str = ""


@dataclass(frozen=True)
class Refused:
    """An image that was read, and why it is of no use."""

    message: str


@dataclass(frozen=True)
class Ignored:
    """A message of a kind that a navigator does not come in."""

    kind: str


Message: TypeAlias = Config | Geometry | Image | Refused | Ignored


class ExactStream:
    """Reads exactly as many bytes as asked for; refuses to read too many at once."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.last = b""
        self.limit = MAX_BYTES

    def read(self, count: int) -> bytes:
        """ProtocolError beyond the limit; EOFError where the stream ends before."""
        if count > self.limit:
            raise ProtocolError(f"a message of {count} bytes, more than {self.limit}")
        self.last = self._stream.read(int(count)) if count else b""
        if len(self.last) < count:
            raise EOFError(f"the connection ended {count - len(self.last)} bytes too early")
        return self.last


def messages(stream: BinaryIO) -> Iterator[Message]:
    """The messages of a session, until CLOSE.

    EOFError where the connection ends without one, ProtocolError where it cannot be understood.
    """
    exact = ExactStream(stream)
    reader = ProtocolDeserializer(exact)  # type: ignore[arg-type]
    items = reader.deserialize()
    while True:
        exact.limit = MAX_BYTES
        kind = reader.peek()
        refusal = ""
        if kind == ISMRMRDMessageID.IMAGE:
            try:
                check_header(ImageHeader.from_buffer_copy(exact.last))
            except ImageRefused as error:
                refusal = str(error)
        elif kind not in tuple(ISMRMRDMessageID):
            raise ProtocolError(f"no message has the number {kind}")
        else:
            exact.limit = MAX_TEXT_BYTES if kind <= ISMRMRDMessageID.TEXT else MAX_BYTES
        try:
            item = next(items)
        except StopIteration:
            return
        except (EOFError, OSError, ProtocolError):
            raise
        except Exception as error:  # whatever a package makes of bytes that it did not expect
            name = ISMRMRDMessageID(kind).name
            raise ProtocolError(f"a message {name} that cannot be read: {error!r}") from error
        yield Refused(refusal) if refusal else _message(item, kind)


def _message(item: Any, kind: int) -> Message:
    if isinstance(item, Image):
        return item
    if isinstance(item, ConfigFile | ConfigText):
        return Config(str(item), isinstance(item, ConfigFile))
    if isinstance(item, ismrmrdHeader):
        return _geometry(item)
    return Ignored(ISMRMRDMessageID(kind).name)


def _geometry(header: ismrmrdHeader) -> Geometry:
    position = slices = None
    information = header.measurementInformation
    if information is not None and information.patientPosition is not None:
        position = str(getattr(information.patientPosition, "value", information.patientPosition))
    if header.encoding and header.encoding[0].encodingLimits is not None:
        limit = header.encoding[0].encodingLimits.slice
        if limit is not None:
            slices = int(limit.maximum) + 1
    return Geometry(slices, position)


class Sender:
    """Writes messages whole: one call, one message on the wire."""

    def __init__(self, send: Callable[[bytes], Any]) -> None:
        self._send = send

    def write(self, data: Any) -> int:
        self._parts.append(bytes(data))
        return len(self._parts[-1])

    def flush(self) -> None:
        """The serializer asks for it after CLOSE; everything is sent at once anyway."""

    def message(self, item: Any) -> None:
        """Send an object of ismrmrd, a text, or a dictionary as JSON; None for CLOSE."""
        self._parts: list[bytes] = []
        writer = ProtocolSerializer(self)  # type: ignore[arg-type]
        if item is None:
            writer.close()
        else:
            writer.serialize(json.dumps(item) if isinstance(item, dict) else item)
        self._send(b"".join(self._parts))
