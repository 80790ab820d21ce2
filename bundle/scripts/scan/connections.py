"""What a connection to the service needs besides the protocol."""

from __future__ import annotations

import contextlib
import socket
import struct

from .mrd_stream import Sender

SEND_TIMEOUT_S = 5.0  # a client that does not read for so long is gone


def prepare(connection: socket.socket) -> None:
    """Small answers at once; a reader may wait for ever, but a dead client is noticed."""
    connection.settimeout(None)
    limit = struct.pack("@ll", int(SEND_TIMEOUT_S), int(SEND_TIMEOUT_S % 1 * 1e6))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
    # some hundred answers: a client that does not read is not kept for ever
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**17)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 2), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, option):  # Linux
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def turn_away(connection: socket.socket) -> None:
    """Tell a second client that the service is busy."""
    with contextlib.suppress(OSError), connection:
        connection.settimeout(1.0)
        sender = Sender(connection.sendall)
        sender.message({"type": "error", "message": "busy: another session is open"})
        sender.message(None)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(1 << 16):  # else what it has sent resets the connection
            pass
