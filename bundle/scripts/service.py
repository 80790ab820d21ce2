"""A service at the scanner: answers every navigator of an ISMRMRD session with the next slice.

From the bundle's folder, with the extra `scan` installed:

    python -m scripts.service --port 9002 --plane axial --thickness_mm 3

Listens on this machine alone unless --host names another address. docs/scanner.md tells how to
connect a scanner, and what the protocol does not protect from.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .argument_types import three_numbers
from .scan.patient import PATIENT_POSITIONS
from .scan.session_options import SessionOptions
from .scan.slices import PLANES

MODEL = Path(__file__).parents[1] / "models" / "model.pt"
LOADING_S = 600.0
WRITING_S = 60.0  # that the end of the service waits for the folder of a session
LOOPBACK = ("127.0.0.1", "::1", "localhost")


def parser_of_options() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m scripts.service")
    parser.description = "Answers navigators of an ISMRMRD session with slices."
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=9002)
    parser.add_argument("--weights", type=Path, default=MODEL)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="of the network")
    parser.add_argument("--session_dir", type=Path, help="keep every session: patient data")
    parser.add_argument("--console_port", type=int, help="a page to look at, on this machine")
    parser.add_argument("--igtl_port", type=int, help="the pose as OpenIGTLink TRANSFORM")
    session = parser.add_argument_group("sessions that do not say otherwise")
    defaults = SessionOptions()
    session.add_argument("--plane", choices=PLANES, default=defaults.plane)
    session.add_argument("--tilt_deg", type=three_numbers, default=defaults.tilt_deg)
    session.add_argument("--patient_position", choices=PATIENT_POSITIONS)
    for name in ("slices", "navigator_slices"):
        session.add_argument(f"--{name}", type=int)
    for name in ("matrix", "interleave"):
        session.add_argument(f"--{name}", type=int, default=getattr(defaults, name))
    session.add_argument("--time_stamp_ms", type=float)
    for name in (
        "thickness_mm", "gap_mm", "in_plane_mm", "fov_step_mm", "slice_delay_s", "repetition_s",
        "deadline_ms", "max_age_s",
    ):  # fmt: skip
        session.add_argument(f"--{name}", type=float, default=getattr(defaults, name))
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of ``ScanService``: serves until SIGTERM or Ctrl+C."""
    started = time.monotonic()
    parser = parser_of_options()
    options = vars(parser.parse_args(arguments))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        from .scan.pose_process import NetworkPart
        from .scan.scan_service import ScanService
    except ModuleNotFoundError as error:
        parser.error(f"the package {error.name} is missing: install the extra `scan`")
    names = SessionOptions.__dataclass_fields__
    try:
        session = SessionOptions(**{name: options[name] for name in names})
        if not options["weights"].is_file():
            raise ValueError(f"no weights at {options['weights']}")
        target = NetworkPart(
            str(options["weights"]), threads=options["threads"], device=options["device"]
        )
        lookers = Lookers(options)
        service = ScanService(target, options["host"], options["port"], session, listeners=lookers)
    except (ValueError, OSError, OverflowError) as error:
        parser.error(str(error))
    if options["host"] not in LOOPBACK:
        logging.warning("listening on %s: the protocol has no authentication", options["host"])
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: service.stop())
    print("listening on {}:{}".format(*service.address), flush=True)
    threading.Thread(target=_announce, args=(service, started), daemon=True).start()
    service.serve()
    lookers.close()
    if service.worker.failure:
        parser.error(f"the network cannot be loaded: {service.worker.failure}")
    print("ended", flush=True)


def _announce(service: Any, started: float) -> None:
    if service.worker.wait_ready(LOADING_S):
        print(f"ready after {time.monotonic() - started:.1f} s", flush=True)
    elif service.worker.failure:  # it never was: started again it would not be either
        service.stop()


class Lookers:
    """Those who look on at every session of a service, as the options ask for."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.session_dir: Path | None = options["session_dir"]
        self._folders: list[Any] = []  # that are still written to
        self.board: Any = None
        self.slicer: Any = None
        if options["console_port"] is not None:
            from .scan.console import Console

            self.board = Console(options["console_port"])
            print(f"console: {self.board.url}", flush=True)
        if options["igtl_port"] is not None:
            from .scan.slicer_link import SlicerLink

            self.slicer = SlicerLink(options["igtl_port"])

    def __call__(self, number: int) -> tuple[Any, ...]:
        """The listeners of one session."""
        found = [looker for looker in (self.board, self.slicer) if looker is not None]
        if self.session_dir is not None:
            from .scan.session_folder import SessionFolder

            folder = SessionFolder(self.session_dir, number)
            self._folders = [*(each for each in self._folders if each.writing), folder]
            found.append(folder)
        return tuple(found)

    def close(self) -> None:
        """End what listens, when the folders of all sessions are written."""
        for folder in self._folders:
            folder.wait(WRITING_S)
        for looker in (self.board, self.slicer):
            if looker is not None:
                looker.close()


if __name__ == "__main__":
    main(sys.argv[1:])
