"""Whether a data set fits together, entry by entry and section by section.

Training looks at its data here before it begins, and `python -m scripts.datasets check` tells all
that was found.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from .datalists import datalist, mixture
from .dataset_entries import Finding, structure
from .entry_check import check_entry

logger = logging.getLogger(__name__)

SHOWN = 10  # findings that a message or the log names


class DatasetError(ValueError):
    """A data set that must not be trained on."""


def check_dataset(
    dataset_dir: str | os.PathLike[str], sections: Sequence[str] | None = None
) -> list[Finding]:
    """All that does not fit together in a data set, errors first.

    Parameters
    ----------
    sections : whose labels are read; all unless told otherwise

    FileNotFoundError or ValueError where dataset.json itself cannot be read.
    """
    found, problems = structure(dataset_dir)
    chosen = [
        e for s, entries in found.items() if sections is None or s in sections for e in entries
    ]
    with ThreadPoolExecutor(4) as pool:
        problems += [finding for one in pool.map(check_entry, chosen) for finding in one]
    if found.get("training") and "training" in (sections or ("training",)):
        heads = sum(entry["head_to_world"] is not None for entry in found["training"])
        if not heads:
            path = Path(dataset_dir) / "dataset.json"
            text = "no training volume shows a head"
            problems.append(Finding(str(path), text, error=False, sections=("training",)))
    return sorted(problems, key=lambda finding: not finding.error)


def summary(findings: Sequence[Finding], shown: int | None = None) -> str:
    """Findings in lines, those of many entries about the same key together."""
    lines: list[str] = []
    keys = Counter(
        f.message for f in findings if f.message.startswith("unknown key") and not f.error
    )
    said: set[str] = set()
    for finding in findings:
        if finding.message in said:
            continue
        text = str(finding)
        if keys[finding.message] > 1:
            said.add(finding.message)
            text += f" (and {keys[finding.message] - 1} entries more)"
        lines.append(("error: " if finding.error else "warning: ") + text)
    more = len(lines) - shown if shown and len(lines) > shown + 1 else 0
    if more:
        lines = [*lines[:shown], f"... and {more} more"]
    return "\n".join(lines)


def refuse_bad(dataset_dir: str | os.PathLike[str], section: str) -> None:
    """DatasetError for a data set with errors that concern a section; warnings go into the log."""
    findings = check_dataset(dataset_dir, [section])
    concerned = [f for f in findings if section in f.sections]
    errors = [f for f in concerned if f.error]
    warnings = [f for f in concerned if not f.error]
    if warnings:
        logger.warning("%s", summary(warnings, SHOWN))
    if errors:
        raise DatasetError(
            f"{len(errors)} errors in {dataset_dir}; python -m scripts.datasets check "
            f"--dataset_dir {dataset_dir} lists all:\n{summary(errors, SHOWN)}"
        )


def checked(
    dataset_dir: str | os.PathLike[str], section: str, check: bool = True, needed: bool = False
) -> list[dict[str, Any]]:
    """`datalists.datalist` of a data set that is looked at first, if ``check``: see `refuse_bad`.

    ValueError if ``needed`` and the section is empty.
    """
    return _checked([dataset_dir], section, check, needed, datalist(dataset_dir, section))


def checked_mixture(
    dataset_dirs: Sequence[str | os.PathLike[str]],
    section: str,
    check: bool = True,
    needed: bool = False,
) -> list[dict[str, Any]]:
    """`datalists.mixture` of data sets that are looked at first, as by `checked`."""
    return _checked(dataset_dirs, section, check, needed, mixture(dataset_dirs, section))


def _checked(
    dataset_dirs: Sequence[str | os.PathLike[str]],
    section: str,
    check: bool,
    needed: bool,
    entries: list[dict[str, Any]],
) -> list[dict[str, Any]]:
    if needed and not entries:
        names = ", ".join(str(Path(d) / "dataset.json") for d in dataset_dirs)
        raise DatasetError(f"{names}: section {section!r} is empty: nothing to work on")
    for dataset_dir in dict.fromkeys(map(str, dataset_dirs)) if check else ():
        refuse_bad(dataset_dir, section)
    return entries
