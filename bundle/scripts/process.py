"""What a command does for its own process."""

from __future__ import annotations

import atexit
import gc
import logging
import math
import os
import sys
import threading
import traceback
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from .command_line import is_command

SCRIPTS = Path(__file__).resolve().parent
TRACEBACK_VARIABLE = "HEAD_POSE_TRACEBACK"
# what this bundle raises to tell a user something; anything else is a defect
ON_PURPOSE = (ValueError, RuntimeError, ImportError, OSError)
# in what a loader's worker hands on
WORKER = "\nOriginal Traceback (most recent call last):"
OWN_NAMES = ("ValueError", "RuntimeError", "FileNotFoundError", "VolumeError")

_sleepers: list[threading.Thread] = []


def keep_imports() -> None:
    """Tell Python's garbage collector that the million objects of imported packages stay.

    It then no longer searches them for garbage while the command runs, nor when the process ends:
    1.2 of 6.0 s for one navigator. Garbage made later is collected as ever.
    """
    gc.freeze()
    atexit.register(gc.freeze)


def sleep_while_waiting() -> None:
    """Let threads of torch that wait for others give their core away at once.

    torch's OpenMP library, libgomp, lets a thread that waits spin for some ms, and beside other
    busy processes it spins where the thread that it waits for could run. OMP_WAIT_POLICY would
    have to be set before Python starts. But the library also stops spinning where there are more
    of its threads than processors ("GOMP_SPINCOUNT" in the manual of GNU libgomp), so here are
    some more, which sleep. Nothing where a wait policy was chosen. docs/deployment.md has times.
    """
    threads = torch.get_num_threads()
    chosen = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(os.environ)
    if _sleepers or chosen or threads < 2 or sys.platform != "linux":
        return
    # of a process that was forked the other threads are gone
    os.register_at_fork(after_in_child=_sleepers.clear)
    # each gets a team of its own, which adds threads - 1 to those of the main team
    missing = len(os.sched_getaffinity(0)) + 1 - threads
    for _ in range(max(1, math.ceil(missing / (threads - 1)))):
        ready = threading.Event()
        sleeper = threading.Thread(target=_make_team_and_sleep, args=(threads, ready), daemon=True)
        sleeper.start()
        ready.wait()
        _sleepers.append(sleeper)


def _make_team_and_sleep(threads: int, ready: threading.Event) -> None:
    torch.zeros(threads << 15).add_(1)  # torch gives each thread 32768 numbers
    ready.set()
    threading.Event().wait()


def speak_plainly() -> None:
    """End a command that fails with a line that says why, and not under a hundred others.

    An error that this bundle raises, or the system for a file, is told without a traceback; any
    other with it, before. HEAD_POSE_TRACEBACK=1 always shows it. Only in the process of a command
    line; elsewhere nothing changes.
    """
    if not is_command():
        return
    sys.excepthook = _tell
    # not a filter of a handler: MONAI makes loggers with handlers of their own, and later
    logging.setLogRecordFactory(_record)


def _record(*arguments: Any, **more: Any) -> logging.LogRecord:
    """A record of the log without tracebacks of what the command's last line says plainly."""
    record = logging.LogRecord(*arguments, **more)
    error = record.exc_info[1] if record.exc_info else None
    if os.environ.get(TRACEBACK_VARIABLE):
        return record
    if error is not None and is_told(error):
        record.exc_info = None
        record.msg, record.args = "%s", (reason(error),)
    elif isinstance(record.msg, str) and WORKER in record.msg:
        text = record.msg.partition(WORKER)[0].rstrip(".") + ": "
        record.msg, record.args = "%s", (text + _of_worker(record.msg)[0],)
    return record


def _tell(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None = None
) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print("stopped", file=sys.stderr, flush=True)
        os._exit(130)
    if os.environ.get(TRACEBACK_VARIABLE) or not is_told(error):
        traceback.print_exception(kind, error, trace)
    sys.stdout.flush()
    print(f"error: {reason(error)}", file=sys.stderr, flush=True)
    # Not the usual way out: threads of loaders that still run abort the process there, with a
    # message of their own ("terminate called without an active exception").
    os._exit(1)


def chain(error: BaseException) -> list[BaseException]:
    """An error and what it was raised from, the first cause first; MONAI wraps errors in others."""
    found = [error]
    while (cause := found[-1].__cause__) is not None:
        found.append(cause)
    return found[::-1]


def is_told(error: BaseException) -> bool:
    """Whether the reason of an error alone tells a user what to do."""
    return _culprit(error)[1]


def reason(error: BaseException) -> str:
    """What was wrong first, in the words of this bundle if it has any, in one or a few lines."""
    return _culprit(error)[0]


def _culprit(error: BaseException) -> tuple[str, bool]:
    causes = chain(error)
    for cause in causes:
        frames = traceback.extract_tb(cause.__traceback__)
        ours = bool(frames) and SCRIPTS in Path(frames[-1].filename).resolve().parents
        if ours and isinstance(cause, ON_PURPOSE):
            return str(cause), True
    first, text = causes[0], str(causes[0])
    if WORKER in text:
        return _of_worker(text)
    if isinstance(first, OSError) and first.strerror and first.filename:
        return f"{first.filename}: {first.strerror}", True
    return f"{type(first).__name__}: {text}" if text else type(first).__name__, False


def _of_worker(text: str) -> tuple[str, bool]:
    """The same out of the tracebacks, in text, that a loader's worker hands on."""
    blocks = text.split("\n\nThe above exception was the direct cause")
    for block in blocks:
        place, message = _last_of(block)
        name, _, said = message.partition(": ")
        if str(SCRIPTS) in place and said and name.rpartition(".")[2] in OWN_NAMES:
            return said, True
    return _last_of(blocks[0])[1], False


def _last_of(block: str) -> tuple[str, str]:
    """The line of a traceback's innermost frame, and the message after it."""
    lines = block.rstrip().splitlines()
    last = max((k for k, line in enumerate(lines) if line.startswith("  File ")), default=0)
    end = next((k for k in range(last + 1, len(lines)) if not lines[k].startswith(" ")), last)
    return lines[last], "\n".join(lines[end:])
