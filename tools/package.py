"""Pack the bundle as the MONAI Model Zoo lays bundles out: a zip that holds one folder.

    python tools/package.py --output_dir dist

writes ``dist/fetal_mri_head_pose_v<version>.zip`` and its SHA-256 beside it. The same commit gives
the same bytes on every machine. Needs Python and git, nothing else.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

NAME = "fetal_mri_head_pose"
BUNDLE = Path(__file__).resolve().parents[1] / "bundle"
# what the zoo asks of every bundle, and what monai.bundle opens in this one
REQUIRED = (
    "LICENSE",
    "configs/inference.json",
    "configs/logging.conf",
    "configs/metadata.json",
    "configs/train.json",
    "docs/README.md",
    "models/model.pt",
)
# made from tracked files; packed if there, tracked or not
BUILT = ("models/model.ts",)
MAX_BYTES = 25_000_000  # the zoo's limit for a file
EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip can hold


class PackageError(Exception):
    """The bundle cannot be packed; the message names the file."""


def _git(bundle: Path, *arguments: str) -> list[str]:
    """Entries of NUL-separated output of git, run in the bundle's folder."""
    command = ["git", *arguments, "-z", "--", "."]
    done = subprocess.run(command, cwd=bundle, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PackageError(f"{bundle}: {' '.join(command)} failed: {done.stderr.strip()}")
    return [entry for entry in done.stdout.split("\0") if entry]


def uncommitted(bundle: Path) -> list[str]:
    """Lines of ``git status --short`` for the bundle, without what is built."""
    changes = _git(bundle, "status", "--porcelain", "--no-renames", "--untracked-files=all")
    return [line for line in changes if not line.endswith(BUILT)]


def package_files(bundle: Path) -> list[str]:
    """Names, relative to the bundle, of what is packed: tracked files and what is built of them.

    ``PackageError`` if a file is missing or above the zoo's limit.
    """
    built = [name for name in BUILT if (bundle / name).exists()]
    names = sorted({*_git(bundle, "ls-files"), *built})
    missing = [name for name in REQUIRED if name not in names]
    missing += [name for name in names if not (bundle / name).is_file()]
    if missing:
        raise PackageError(f"{bundle}: no such tracked file: {', '.join(missing)}")
    for name in names:
        size = (bundle / name).stat().st_size
        if size > MAX_BYTES:
            raise PackageError(f"{bundle / name}: at most {MAX_BYTES} bytes, got {size}")
    return names


def zip_bytes(bundle: Path) -> bytes:
    """The zip: sorted names below one folder, fixed times and modes, nothing compressed.

    Compressed bytes would depend on the machine's zlib; the weights hardly shrink anyway.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in package_files(bundle):
            entry = zipfile.ZipInfo(f"{NAME}/{name}", EPOCH)
            entry.create_system, entry.external_attr = 3, 0o100644 << 16  # Unix, rw-r--r--
            archive.writestr(entry, (bundle / name).read_bytes())
    return buffer.getvalue()


def write_package(bundle: Path, output_dir: Path) -> Path:
    """Write the zip and ``<zip>.sha256``, each through a temporary name; return the zip's path."""
    content = zip_bytes(bundle)
    version = json.loads((bundle / "configs/metadata.json").read_text())["version"]
    path = output_dir / f"{NAME}_v{version}.zip"
    checksum = f"{hashlib.sha256(content).hexdigest()}  {path.name}\n"
    output_dir.mkdir(parents=True, exist_ok=True)
    for target, data in ((path, content), (Path(f"{path}.sha256"), checksum.encode())):
        partial = target.with_name(f".{os.getpid()}_{target.name}")
        partial.write_bytes(data)
        os.replace(partial, target)
    return path


def main(arguments: Sequence[str] | None = None, bundle: Path = BUNDLE) -> None:
    """Command line: packs committed files only, and ends with a message where it cannot."""
    parser = argparse.ArgumentParser(prog="python tools/package.py", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--output_dir", type=Path, default=BUNDLE.parent / "dist")
    output_dir = parser.parse_args(arguments).output_dir
    try:
        changes = uncommitted(bundle)
        if changes:
            raise PackageError("commit these first, or remove them: " + ", ".join(changes))
        path = write_package(bundle, output_dir)
    except PackageError as error:
        sys.exit(f"package: {error}")
    print(f"{path}: {path.stat().st_size} bytes")
    print(Path(f"{path}.sha256").read_text(), end="")


if __name__ == "__main__":
    main()
