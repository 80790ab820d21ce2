"""One run at a time in a folder."""

from __future__ import annotations

import logging
import os
import platform
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # no such locks on Windows: two runs are then not told apart
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)


class FolderLock:
    """A lock on a file, held by this process until ``release`` or its end, even by SIGKILL.

    POSIX record locks (fcntl(2)): worker processes do not inherit them, and the system drops them
    with the process, so that no lock is ever left over.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._file: IO[str] | None = None

    def take(self) -> None:
        """BlockingIOError, naming the process that holds it, if another one does."""
        if self._file is not None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = self.path.open("a+")
        try:
            if fcntl is not None:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            holder = file.read().strip() or "unknown"
            file.close()
            raise BlockingIOError(
                f"{self.path.parent.parent}: another run (process {holder}) writes to this folder; "
                "wait for it, or choose another --output_dir"
            ) from None
        except OSError as error:  # some network file systems have no locks
            logger.warning("%s: cannot be locked: %s", self.path, error)
        file.truncate(0)
        file.write(f"{os.getpid()} on {platform.node()}\n")
        file.flush()
        self._file = file

    def release(self) -> None:
        """Let others write."""
        if self._file is not None:
            self._file.close()
            self._file = None
