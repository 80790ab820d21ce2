"""The scanner's side, for tests and trials: replays navigators to the service as a scanner would.

From the bundle's folder, with a service running:

    python -m scripts.scanner_client FOLDER_OR_4D_FILE --port 9002 --repetition_s 2.5 --speed 1

writes one line for each answer to --answers, JSON, and a summary.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

STAMP_MS = 2.5  # length of a step of the acquisition time stamp that is sent


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


def replay(link: Any, volumes: Any, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Send volumes at their times, and give the answer to each as it comes."""
    start = time.monotonic()
    for n, (values, affine) in enumerate(volumes):
        if options.speed > 0:
            due = start + n * options.repetition_s / options.speed
            time.sleep(max(due - time.monotonic(), 0))
        stamp = round(n * options.repetition_s * 1000 / STAMP_MS)
        send = link.send_slices if options.slices_apart else link.send
        if options.slices_apart and n == 0:
            link.describe(values.shape, slices=values.shape[2])
        sent = time.monotonic()
        send(values, affine, repetition=n, acquisition_time_stamp=stamp)
        answer = link.receive(options.timeout_s)
        if answer is None:
            raise ConnectionError("the service has ended the session")
        yield {**answer, "round_trip_ms": round((time.monotonic() - sent) * 1000, 1)}
        if answer["type"] != "prescription":
            return


def summary(answers: Sequence[dict[str, Any]]) -> str:
    """Counts of statuses, and how long the answers took, in words."""
    counts = dict(Counter(answer.get("status", answer["type"]) for answer in answers))
    times = np.array([answer["round_trip_ms"] for answer in answers])
    if not len(times):
        return "no answer"
    middle, most = np.percentile(times, [50, 99])
    return f"{len(times)} answers: {counts}; sent to answered {middle:.0f} ms (99 %: {most:.0f} ms)"


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of ``replay``."""
    parser = argparse.ArgumentParser(prog="python -m scripts.scanner_client")
    parser.description = "Replays navigators to the service, as a scanner would."
    parser.add_argument("source", type=Path, help="folder of volumes, or a 4D file")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9002)
    parser.add_argument("--repetition_s", type=float, default=2.5, help="between navigators")
    parser.add_argument("--speed", type=float, default=1.0, help="0 for as fast as it goes")
    parser.add_argument("--slices_apart", action="store_true", help="a message for every slice")
    parser.add_argument("--config", default="{}", help="options of the session as JSON")
    parser.add_argument("--answers", type=Path, help="file for the answers, JSON lines")
    parser.add_argument("--timeout_s", type=float, default=30.0)
    options = parser.parse_args(arguments)
    try:
        from .scan.scanner_link import ScannerLink
    except ModuleNotFoundError as error:
        parser.error(f"the package {error.name} is missing: install the extra `scan`")
    answers: list[dict[str, Any]] = []
    try:
        config = {"time_stamp_ms": STAMP_MS, "repetition_s": options.repetition_s}
        config |= json.loads(options.config)
        with ScannerLink(options.host, options.port) as link:
            link.configure(config)
            for answer in replay(link, navigators(options.source), options):
                answers.append(answer)
                print(_line(answer), flush=True)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    finally:
        if options.answers and answers:
            from .files import write_text

            write_text(options.answers, "".join(json.dumps(one) + "\n" for one in answers))
    print(summary(answers))


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
