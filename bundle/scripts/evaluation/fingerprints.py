"""Whether a file is still the one that it was."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any


def sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, in hexadecimal digits; "" if there is none to read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def fingerprint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Path, bytes and time of change (ns) of an input; of a folder those of all files in it."""
    path = Path(path)
    files = [path] if not path.is_dir() else sorted(p for p in path.rglob("*") if p.is_file())
    if path.suffix.lower() in (".hdr", ".img"):  # one image in two files
        files = sorted(p for p in path.parent.glob(f"{path.stem}.*") if p.is_file())
    try:
        found = [file.stat() for file in files]
    except OSError:
        found = []
    return {
        "path": os.path.abspath(path),
        "bytes": sum(stat.st_size for stat in found),
        "modified_ns": max((stat.st_mtime_ns for stat in found), default=0),
    }
