"""The scanner's side, for tests and trials: sends navigators to the service as a scanner would.

From the bundle's folder, with a service running:

    python -m scripts.scanner_client FOLDER_OR_4D_FILE --port 9002 --repetition_s 2.5 --speed 1
    python -m scripts.scanner_client --closed_loop --port 9002 --speed 0 --output_dir O

The first replays volumes. The second simulates a scanner that looks, and takes slices of a phantom
that moves, where the service asks for it (docs/closed_loop.md). Both write one line for each answer
to --answers, JSON, and print a summary.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .scan.slices import PLANES

Answers = list[dict[str, Any]]


def navigators(path: Path) -> Iterator[tuple[NDArray, NDArray[np.float64]]]:
    """Volumes (i, j, k) and affines of a folder in the order of their names, or of a 4D file.

    Raises ValueError where there is none, or one cannot be read.
    """
    from .reading import find_cases, read_image

    found = find_cases(path)
    if not found.cases:
        raise ValueError(f"{path}: no volumes; left aside: {found.left_aside[:3]}")
    for case in found.cases:
        image = read_image(case)
        yield image.values, image.affine


@contextlib.contextmanager
def session(options: argparse.Namespace, config: dict[str, Any]) -> Iterator[Any]:
    """A ``PacedLink`` to the service, configured with `config`, over which --config goes."""
    from .scan.scanner_link import STAMP_MS, PacedLink, ScannerLink

    with ScannerLink(options.host, options.port) as link:
        link.configure({"time_stamp_ms": STAMP_MS, **config, **options.config})
        yield PacedLink(link, options.speed, options.timeout_s, options.slices_apart)


def replay(options: argparse.Namespace, answers: Answers) -> str:
    """Send the volumes of a folder or file at their times; the answers are added as they come."""
    with session(options, {"repetition_s": options.repetition_s}) as link:
        for n, (values, affine) in enumerate(navigators(options.source)):
            answers.append(link.ask(values, affine, n, n * options.repetition_s))
            print(_line(answers[-1]), flush=True)
            if answers[-1]["type"] != "prescription":
                break
    return summary(answers)


def closed_loop(options: argparse.Namespace, answers: Answers) -> str:
    """Scan phantoms through the service; the answers are added as they come.

    ValueError for a --config that would make it another stack than that of the closed loop.
    """
    from .scan.loop_cases import PhantomCases
    from .scan.served_loop import ServedLoop, session_options
    from .scan.taken_stack import Protocol

    protocol = Protocol(repetition_s=options.repetition_s, plane=options.plane)
    fixed = set(session_options(protocol)) - {"max_age_s"}
    if unfit := sorted(fixed & set(options.config)):
        raise ValueError(f"--config names {unfit}: the closed loop decides on these itself")
    # as fast as it goes, the simulated time stands still until there is an answer
    wait_s = protocol.delay_s / options.speed if options.speed > 0 else 0.9 * options.timeout_s

    @contextlib.contextmanager
    def connect(case: str, config: dict[str, Any]) -> Iterator[Any]:
        with session(options, {"deadline_ms": 1000 * wait_s, **config}) as link:

            def ask(navigator: Any, number: int, time_s: float) -> dict[str, Any]:
                answer = link.ask(navigator.image, navigator.affine, number, time_s)
                answers.append({"case": case, **answer})
                print(_line(answers[-1]), flush=True)
                return answers[-1]

            yield ask

    loop = ServedLoop(
        PhantomCases(options.phantoms, options.seed),
        connect,
        options.output_dir,
        options.motion,
        options.seed,
        options.image_cases,
        protocol,
    )
    text = loop.run()
    return f"{summary(answers)}\n{text}"


def summary(answers: Sequence[dict[str, Any]]) -> str:
    """Counts of statuses, and how long the answers took, in words."""
    counts = dict(Counter(answer.get("status", answer["type"]) for answer in answers))
    times = np.array([answer["round_trip_ms"] for answer in answers])
    if not len(times):
        return "no answer"
    middle, most = np.percentile(times, [50, 99])
    return f"{len(times)} answers: {counts}; sent to answered {middle:.0f} ms (99 %: {most:.0f} ms)"


def parser_of_options() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m scripts.scanner_client")
    parser.description = "Sends navigators to the service, as a scanner would."
    parser.add_argument("source", type=Path, nargs="?", help="folder of volumes, or a 4D file")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9002)
    parser.add_argument("--repetition_s", type=float, default=2.5, help="between navigators")
    parser.add_argument("--speed", type=float, default=1.0, help="0 for as fast as it goes")
    parser.add_argument("--slices_apart", action="store_true", help="a message for every slice")
    parser.add_argument("--config", default="{}", help="options of the session as JSON")
    parser.add_argument("--answers", type=Path, help="file for the answers, JSON lines")
    parser.add_argument("--timeout_s", type=float, default=30.0)
    loop = parser.add_argument_group("a simulated scan, as configs/closed_loop.json has it")
    loop.add_argument("--closed_loop", action="store_true", help="in place of a folder or file")
    loop.add_argument("--phantoms", type=int, default=1)
    loop.add_argument("--seed", type=int, default=0)
    loop.add_argument("--motion", default="typical", help="still, typical, restless or a CSV file")
    loop.add_argument("--plane", choices=PLANES, default="axial")
    loop.add_argument("--image_cases", type=int, default=1, help="whose slices are imaged")
    loop.add_argument("--output_dir", type=Path, help="folder for slices.csv and the images")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of ``replay`` and ``closed_loop``."""
    parser = parser_of_options()
    options = parser.parse_args(arguments)
    if (options.source is None) != options.closed_loop:
        parser.error("give a folder or file of navigators, or --closed_loop, not both")
    try:
        from .scan.scanner_link import ScannerLink  # noqa: F401
    except ModuleNotFoundError as error:
        parser.error(f"the package {error.name} is missing: install the extra `scan`")
    answers: Answers = []
    send: Callable[..., str] = closed_loop if options.closed_loop else replay
    try:
        options.config = json.loads(options.config)
        if not isinstance(options.config, dict):
            raise ValueError(f"--config must be a JSON object, got {options.config!r}")
        text = send(options, answers)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    finally:
        if options.answers and answers:
            from .files import write_text

            write_text(options.answers, "".join(json.dumps(one) + "\n" for one in answers))
    print(text)


def _line(answer: dict[str, Any]) -> str:
    if answer["type"] != "prescription":
        return f"{answer['type']}: {answer['message']}"
    given = answer["slice"]
    text = f"navigator {answer['navigator']}: {answer['status']}, {answer['latency_ms']:.0f} ms"
    if given is not None:
        text += f", slice {given['number']} ({given['order'] + 1} of {given['of']})"
    return text + (f"; {answer['message']}" if answer["message"] else "")


if __name__ == "__main__":
    main(sys.argv[1:])
