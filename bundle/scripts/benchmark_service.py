"""How fast and how steady the service is: starts it, plays scanner, prints a table.

From the bundle's folder: ``python -m scripts.benchmark_service [--navigators 1000] [--busy 2]``.
Navigators are a phantom of 64 x 64 x 48 voxels of 6 mm. --busy lets that many other processes keep
cores busy meanwhile. Memory is that of the service and of its network's process (Linux).
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import random
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .phantom import make_phantom

ROOT = Path(__file__).parents[1]
SETTLED = 100  # navigators after which memory is not to grow


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of the measurement."""
    parser = argparse.ArgumentParser(prog="python -m scripts.benchmark_service")
    parser.add_argument("--navigators", type=int, default=1000)
    parser.add_argument("--repetition_s", type=float, default=0.0, help="0: as fast as it goes")
    parser.add_argument("--kills", type=int, default=50, help="sessions that vanish")
    parser.add_argument("--busy", type=int, default=0, help="other processes that keep cores busy")
    parser.add_argument("--threads", type=int, help="of the network")
    options = parser.parse_args(arguments)
    phantom = make_phantom(0, voxel_mm=(6.0, 6.0, 6.0), shape=(64, 64, 48))
    volume = phantom.image.astype(np.float32), phantom.affine
    command = [sys.executable, "-m", "scripts.service", "--port", "0"]
    if options.threads:
        command += ["--threads", str(options.threads)]
    with _service(command) as (process, port, ready_s), _busy(options.busy):
        print(f"{'start to ready':44}{ready_s:9.1f} s")
        late, counts, growth_mib = navigators(process, port, volume, options)
        middle, most = np.percentile(late, [50, 99])
        print(f"{'received to answered, p50 / p99':44}{middle:9.3f} s{most:9.3f} s")
        in_time = sum(seconds <= 1.0 for seconds in late)
        print(f"{'answered within 1 s':44}{in_time:9} of {len(late)}")
        print(f"{'statuses':44}   {dict(counts)}")
        if growth_mib is not None:
            print(f"{f'memory, from the {SETTLED}th navigator on':44}{growth_mib:+9.1f} MiB")
        worked = kills(port, volume, options.kills)
        print(f"{'sessions that vanished; the next one works':44}{worked:9} of {options.kills}")


def navigators(
    process: subprocess.Popen, port: int, volume: Any, options: argparse.Namespace
) -> tuple[list[float], Counter, float | None]:
    """Seconds from sent to answered, statuses, and how much memory grew, MiB."""
    from .scan.scanner_link import ScannerLink

    late, counts, settled = [], Counter[str](), None
    with ScannerLink(port=port) as link:
        for n in range(options.navigators):
            begun = time.perf_counter()
            link.send(*volume)
            answer = link.receive(60)
            assert answer is not None
            late.append(time.perf_counter() - begun)
            counts[answer["status"]] += 1
            if n == SETTLED:
                settled = memory_mib(process.pid)
            time.sleep(max(options.repetition_s - late[-1], 0))
        last = memory_mib(process.pid)
    grown = None if settled is None or last is None else last - settled
    return late, counts, grown


def kills(port: int, volume: Any, count: int) -> int:
    """How many of sessions killed at random points are followed by one that works."""
    from .scan.mrd_images import volume_image
    from .scan.mrd_stream import Sender
    from .scan.scanner_link import ScannerLink

    parts: list[bytes] = []
    Sender(parts.append).message(volume_image(*volume))
    dice = random.Random(0)
    worked = 0
    for _ in range(count):
        with socket.create_connection(("127.0.0.1", port), 10) as client:
            client.sendall(parts[0][: dice.randrange(len(parts[0]))])
        with ScannerLink(port=port) as link:
            link.send(*volume)
            answer = link.receive(60)
            worked += answer is not None and answer["type"] == "prescription"
    return worked


def memory_mib(pid: int) -> float | None:
    """Resident memory of a process and its children, MiB; None where /proc does not tell."""
    total = 0.0
    for number in [pid, *_children(pid)]:
        try:
            text = Path(f"/proc/{number}/status").read_text()
        except OSError:
            return None
        total += next(int(line.split()[1]) for line in text.splitlines() if "VmRSS" in line)
    return total / 1024


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += map(int, path.read_text().split())
    return found


@contextlib.contextmanager
def _service(command: list[str]) -> Iterator[tuple[subprocess.Popen, int, float]]:
    """The service as a process: its port, and seconds until it was ready."""
    begun = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    try:
        port = int(process.stdout.readline().rsplit(":", 1)[1])
        process.stdout.readline()
        yield process, port, time.perf_counter() - begun
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()


@contextlib.contextmanager
def _busy(count: int) -> Iterator[None]:
    """Processes that compute all the time."""
    context = multiprocessing.get_context("spawn")
    others = [context.Process(target=_spin, daemon=True) for _ in range(count)]
    for other in others:
        other.start()
    try:
        yield
    finally:
        for other in others:
            other.kill()


def _spin() -> None:
    while True:
        sum(range(10**6))


if __name__ == "__main__":
    main()
