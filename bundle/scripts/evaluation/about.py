"""What made a result: versions, weights and the command, for the report and for BIDS."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ..files import json_text
from ..reading.printable import printable

METADATA = Path(__file__).parents[2] / "configs/metadata.json"
BIDS_VERSION = "1.10.0"


def bundle_version() -> str:
    """Version of the bundle, from its metadata."""
    return str(json.loads(METADATA.read_text())["version"])


def package_version(package: str) -> str:
    """Version of an installed package, or "unknown"."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def command_line() -> str:
    """How this process was called, as one would type it, without the path of the interpreter."""
    given = sys.orig_argv
    return printable(shlex.join([Path(given[0]).name, *given[1:]])) if given else "unknown"


def made_by(
    weights: str | os.PathLike[str] | None,
    weights_sha256: str,
    outputs: Sequence[str],
    uncertain_above_deg: float | None,
) -> list[tuple[str, str]]:
    """Names and values for the end of the report."""
    return [
        ("Bundle", f"fetal_mri_head_pose {bundle_version()}"),
        ("MONAI", package_version("monai")),
        ("PyTorch", package_version("torch")),
        ("Python", platform.python_version()),
        ("Weights", printable(Path(weights).name) if weights else "not stated"),
        ("Weights, SHA-256", weights_sha256 or "not stated"),
        ("Outputs", ", ".join(outputs)),
        (
            "Uncertain above",
            "not stated" if uncertain_above_deg is None else f"{uncertain_above_deg:g} degrees",
        ),
        ("Command", command_line()),
        ("Written", f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"),
    ]


def derivative_description() -> str:
    """``dataset_description.json`` of a folder of BIDS derivatives, with what BIDS requires."""
    return json_text(
        {
            "Name": "Poses of the fetal head",
            "BIDSVersion": BIDS_VERSION,
            "DatasetType": "derivative",
            "GeneratedBy": [{"Name": "fetal_mri_head_pose", "Version": bundle_version()}],
        }
    )
