"""Whether a site's start-up kit is ready and its certificates are valid, and the server answers.

NVFlare is imported late: without it the rest of a site's check still runs.
"""

from __future__ import annotations

import json
import os
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

OK, WARNING, WRONG = "ok", "warning", "wrong"
LAST_DAYS = 30  # a new certificate has to be made and brought by people
TIMEOUT_S = 5.0
# a refusal comes a round trip after the handshake (TLS 1.3); who takes the certificate is silent
ANSWER_S = 2.0


@dataclass(frozen=True)
class Line:
    """What a check found: ``level`` is OK, WARNING or WRONG."""

    level: str
    text: str

    def __str__(self) -> str:
        return f"{self.level}: {self.text}"


def check_kit(kit: str | os.PathLike[str]) -> Iterator[Line]:
    """What is wrong with a site's start-up kit, and whether its server can be reached with it."""
    startup = Path(kit) / "startup"
    place = startup / "fed_client.json"
    if not place.exists():
        yield Line(WRONG, f"{place}: no such file, {kit} is not the start-up kit of a site")
        return
    yield _ready(kit)
    yield from _certificates(startup)
    try:
        server = json.loads(place.read_text())["servers"][0]
        host, _, port = server["service"]["target"].rpartition(":")
        address, identity = (host, int(port)), str(server.get("identity", host))
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        yield Line(WRONG, f"{place} names no server ({error!r}): ask for the kit again")
        return
    yield try_server(address, identity, startup)


def _ready(kit: str | os.PathLike[str]) -> Line:
    from .kit import FORBIDDEN, LOG_STREAMER, prepared

    prepare = f"python -m scripts.federated.job prepare --kit {kit}"
    try:
        for name, expected in prepared(kit).items():
            path = Path(kit) / "local" / f"{name}.json"
            own: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
            if own == expected:
                continue
            reasons = [] if own else [f"there is no local/{name}.json"]
            if own and LOG_STREAMER in {each["path"] for each in own.get("components", ())}:
                reasons.append("it sends the site's error log to the server")
            if own.get("class_allow_list", []) != expected.get("class_allow_list", []) and own:
                reasons.append("it does not allow this bundle's classes")
            allowed = [
                right
                for right in FORBIDDEN
                for role in own.get("permissions", {}).values()
                if not isinstance(role, dict) or role.get(right) != "none"
            ]
            reasons += [f"it allows {right}" for right in dict.fromkeys(allowed)]
            why = ", ".join(reasons) or f"local/{name}.json is another"
            return Line(WRONG, f"start-up kit {kit} is not prepared, {why}: {prepare}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        return Line(WRONG, f"start-up kit {kit} is not whole ({error}): ask for it again")
    return Line(
        OK, f"start-up kit {kit} is prepared: no job brings code, no log is sent to the server"
    )


def _certificates(startup: Path) -> Iterator[Line]:
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature

    found = {}
    for name in ("rootCA.pem", "client.crt"):
        try:
            found[name] = x509.load_pem_x509_certificate((startup / name).read_bytes())
        except (OSError, ValueError) as error:
            yield Line(WRONG, f"certificate {startup / name}: {error}; ask for the kit again")
            return
    own, root = found["client.crt"], found["rootCA.pem"]
    try:
        own.verify_directly_issued_by(root)
    except (InvalidSignature, ValueError, TypeError):
        yield Line(
            WRONG, "client.crt was not issued by the kit's rootCA.pem: ask for the kit again"
        )
    # the certificate of NVFlare's authority ends too, and with it all others
    end = min(own.not_valid_after_utc, root.not_valid_after_utc)
    begin, now = max(own.not_valid_before_utc, root.not_valid_before_utc), datetime.now(UTC)
    days = (end - now).days
    text = (
        f"certificate of {own.subject.rfc4514_string()}, issued by "
        f"{own.issuer.rfc4514_string()}, valid until {end:%Y-%m-%d}"
    )
    if now < begin:
        text += f", but only from {begin:%Y-%m-%d %H:%M} UTC on: is this machine's clock right?"
        yield Line(WRONG, text)
    elif now >= end:
        yield Line(WRONG, f"{text}: it has expired; whoever runs the server must make a new kit")
    elif days < LAST_DAYS:
        text += f", {days} days from now: ask whoever runs the server for a new kit"
        yield Line(WARNING, text)
    else:
        yield Line(OK, text)
    if (startup / "client.key").exists() and (startup / "client.key").stat().st_mode & 0o077:
        text = f"{startup / 'client.key'} can be read by other users of this machine: chmod 600"
        yield Line(WARNING, text)


def try_server(address: tuple[str, int], identity: str, startup: Path) -> Line:
    """Whether the federation's server answers, shows the right certificate and takes this site's.

    Parameters
    ----------
    address : host and port
    identity : name in the server's certificate, which is what NVFlare goes by, not by the host
    startup : folder with rootCA.pem, client.crt and client.key

    A TLS handshake and nothing more: the site is not registered.
    """
    where = f"server {address[0]}:{address[1]}"
    try:
        context = ssl.create_default_context(cafile=str(startup / "rootCA.pem"))
        context.check_hostname = False
        context.load_cert_chain(startup / "client.crt", startup / "client.key")
    except OSError as error:  # ssl's errors are such, too
        text = f"{where} not tried: client.crt, client.key and rootCA.pem do not fit together"
        return Line(WRONG, f"{text} ({error}): ask for the kit again")
    try:
        plain = socket.create_connection(address, TIMEOUT_S)
    except socket.gaierror as error:
        text = f"{where}: its name is not known here ({error.strerror})"
        return Line(WRONG, f"{text}: ask your IT for DNS, and the lead whether the name is right")
    except TimeoutError:
        text = f"{where}: no answer within {TIMEOUT_S:g} s"
        return Line(WRONG, f"{text}: a firewall must let this machine out to that port")
    except OSError as error:
        text = f"{where}: {error.strerror or error}"
        return Line(WRONG, f"{text}: the server is not running, or a firewall refuses")
    with plain:
        return _handshake(plain, context, where, identity)


def _handshake(plain: socket.socket, context: ssl.SSLContext, where: str, identity: str) -> Line:
    foreign = f"{where} is reachable, but is not the project's server"
    refused = (
        f"{where} is reachable, but refuses this site's certificate: it has expired or the server "
        "is of another project; ask whoever runs the server"
    )
    try:
        with context.wrap_socket(plain) as secure:
            shown: Any = secure.getpeercert()
            names = [v for pair in shown["subject"] for key, v in pair if key == "commonName"]
            if identity not in names:
                text = f"{foreign} {identity}: it shows the certificate of {', '.join(names)}"
                return Line(WRONG, text)
            secure.settimeout(ANSWER_S)
            try:
                if not secure.recv(1):
                    return Line(WRONG, refused)
            except TimeoutError:
                pass  # it waits for a request
    except ssl.SSLCertVerificationError as error:
        text = f"{foreign}, or its certificate has ended ({error.verify_message})"
        return Line(
            WRONG, f"{text}: something between that opens TLS, or a kit of another project?"
        )
    except ssl.SSLError as error:
        # an alert comes from the other side, anything else is no TLS at all
        if "ALERT" in (error.reason or ""):
            return Line(WRONG, f"{refused} ({error.reason})")
        return Line(WRONG, f"{foreign}: it does not speak TLS ({error.reason or error})")
    except TimeoutError:
        return Line(WRONG, f"{foreign}: it does not begin TLS within {TIMEOUT_S:g} s")
    except OSError as error:
        return Line(WRONG, f"{refused} ({error.strerror or error})")
    return Line(OK, f"{where} answers as {identity}, and takes this site's certificate")
