"""What a dataset.json says, without a look into the volumes: sections, entries, files, poses.

Faults are `Finding`s, so that a check can list all of them; `datalists.datalist` raises the first.
"""

from __future__ import annotations

import difflib
import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

from ..reading.formats import case_name
from .transforms import world_pose

SECTIONS = ("training", "validation", "test")
EYES_MM = ("left_eye_mm", "right_eye_mm")
FILES = ("image", "label")
POSES = ("head_to_world", "twin_to_world")
USED = (*FILES, *POSES, "subject", *EYES_MM)
WRITTEN = ("ga_weeks", "contrast")  # by the importers and the phantom, for people


@dataclass(frozen=True)
class Finding:
    """What does not fit together in a data set.

    Parameters
    ----------
    where : the file, and the section and number of the entry, such as "D/dataset.json: test[3]"
    message : what is wrong, with values and units
    error : whether it must not be trained on; else it is a warning
    missing : whether a file is not there
    entry : the entry, where there is one
    sections : that it concerns
    """

    where: str
    message: str
    error: bool = True
    missing: bool = False
    entry: Mapping[str, Any] | None = None
    sections: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.where}{' ' if self.message.startswith('has ') else ': '}{self.message}"


def read_dataset(dataset_dir: str | os.PathLike[str]) -> dict[str, Any]:
    """Content of ``dataset_dir/dataset.json``; UTF-8, also with a byte order mark, or UTF-16.

    FileNotFoundError if it is not there; ValueError, naming the file, if it is no JSON object.
    """
    if not isinstance(dataset_dir, str | os.PathLike):
        raise ValueError(f"dataset_dir: expected one folder with a dataset.json, got {dataset_dir}")
    path = Path(dataset_dir) / "dataset.json"
    if not path.is_file():
        found = "" if Path(dataset_dir).is_dir() else ", nor such a folder"
        raise FileNotFoundError(
            f"{path}: no such file{found}; a data set is a folder with a dataset.json "
            "(docs/data.md)"
        )
    try:
        content = json.loads(path.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected sections, got a {type(content).__name__}")
    return content


def section_of(
    content: Mapping[str, Any], dataset_dir: str | os.PathLike[str], section: str
) -> list[Any]:
    """Entries of a section as they are in the file. ValueError, naming it, for no such list."""
    path = Path(dataset_dir) / "dataset.json"
    if section not in content:
        raise ValueError(f"{path}: no section {section!r}, only {sorted(content)}")
    if not isinstance(content[section], list):
        kind = "null" if content[section] is None else f"a {type(content[section]).__name__}"
        raise ValueError(f"{path}: section {section!r} is {kind}, expected a list of entries")
    return content[section]


def located(entry: Mapping[str, Any], folder: str | os.PathLike[str]) -> dict[str, Any]:
    """An entry as it is in a file, but for the full paths of its image and label; see `read_entry`.

    >>> located({"image": "a.nii", "label": None, "ga_weeks": 30}, "D")
    {'image': 'D/a.nii', 'label': None, 'ga_weeks': 30}
    """
    return {**entry, **{key: str(Path(folder) / entry[key]) for key in FILES if entry.get(key)}}


def read_entry(
    given: Any, where: str, folder: str | os.PathLike[str]
) -> tuple[dict[str, Any] | None, list[Finding]]:
    """An entry with full paths, and what is wrong with it; None where there are errors.

    It has ``image``, ``label`` if there is one, ``case``, ``subject``, ``head_to_world``, a tensor
    (4, 4) float64 or None, and, if given, ``twin_to_world``, a tensor like it, and ``left_eye_mm``
    and ``right_eye_mm`` in the head frame.
    """
    if not isinstance(given, Mapping):
        text = f'expected an object with "image", got {_shown(given)}'
        return None, [Finding(where, text)]
    found = list(_key_findings(given, where))
    entry: dict[str, Any] = {}
    for key in FILES:
        if given.get(key) is None:
            continue
        if not isinstance(given[key], str):
            text = f"{key} must be one path, as text, got {_shown(given[key])}"
            found.append(Finding(where, text))
            continue
        entry[key] = str(Path(folder) / given[key])
        if not os.path.isfile(entry[key]):
            text = f"{key} {entry[key]} does not exist"
            if os.path.isdir(entry[key]):
                text = f"{key} {entry[key]} is a folder"
            found.append(Finding(where, text, missing=True))
    if "image" not in entry and not any(f.message.startswith("image") for f in found):
        found.append(Finding(where, f'has no "image", only {sorted(map(str, given))}'))
    entry["case"] = case_name(entry.get("image", ""))
    entry["subject"] = str(given.get("subject", entry["case"]))
    entry["head_to_world"] = given.get("head_to_world")
    if given.get("twin_to_world") is not None:
        entry["twin_to_world"] = given["twin_to_world"]
        if entry["head_to_world"] is None:
            found.append(Finding(where, "twin_to_world without head_to_world"))
    for key in POSES:
        try:
            world_pose(entry, key)  # puts a tensor in its place
        except (ValueError, TypeError) as error:
            found.append(Finding(where, str(error)))
    for key in EYES_MM:
        if given.get(key) is not None:
            entry[key] = given[key]
            if not _is_point(given[key]):
                text = f"{key} must be three numbers (mm in the head frame), got"
                found.append(Finding(where, f"{text} {_shown(given[key])}"))
    if sum(key in entry for key in EYES_MM) == 1:
        found.append(Finding(where, f"of {EYES_MM} only one is given"))
    return (None if any(f.error for f in found) else entry), found


def _is_point(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 3
        and all(isinstance(x, int | float) and math.isfinite(x) for x in value)
    )


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return f"{type(value).__name__} {text if len(text) < 60 else text[:56] + ' ...'}"


def _key_findings(given: Mapping[str, Any], where: str) -> Iterator[Finding]:
    """Keys that nothing reads; an error where they stand for a pose."""
    for key in given:
        if key in USED or key in WRITTEN:
            continue
        meant = difflib.get_close_matches(str(key), USED, n=1, cutoff=0.7)
        # head2world, headToWorld, HEAD_TO_WORLD, pose: all the same to a reader
        letters = "".join(c for c in str(key).lower() if c.isalpha())
        if letters in ("headtoworld", "headworld", "pose", "worldtohead"):
            meant = ["head_to_world"]
        if meant and meant[0] not in given:
            pose = meant[0] == "head_to_world"
            text = f"unknown key {key!r}, did you mean {meant[0]!r}?"
            if pose:
                text += " Without that one the volume counts as one that shows no head"
            yield Finding(where, text, error=pose)
        else:
            yield Finding(where, f"unknown key {key!r}, which nothing reads", error=False)


def cases_apart(entries: Sequence[dict[str, Any]], folder: str | os.PathLike[str]) -> None:
    """Call entries whose images have equal names by their paths as seen from the data set.

    >>> entries = [{"image": f"D/{name}.nii.gz", "case": "t2"} for name in ("a/t2", "b/t2")]
    >>> cases_apart(entries, "D")
    >>> [entry["case"] for entry in entries]
    ['a/t2', 'b/t2']
    """
    for name in (_without_ending, os.fspath):  # the second for a.nii beside a.nii.gz
        images: dict[str, set[str]] = {}
        for entry in entries:
            images.setdefault(entry["case"], set()).add(entry["image"])
        for entry in entries:
            if len(images[entry["case"]]) > 1:
                entry["case"] = name(os.path.relpath(entry["image"], folder))


def _without_ending(path: str) -> str:
    return str(PurePath(path).with_name(case_name(path)))


def structure(
    dataset_dir: str | os.PathLike[str],
) -> tuple[dict[str, list[dict[str, Any]]], list[Finding]]:
    """The good entries of all sections, and all findings that need no look into a volume.

    Entries have ``where``, ``section`` and ``given``, as it is in the file, besides what
    `read_entry` gives.
    Errors of the whole file are raised: see `read_dataset`.
    """
    content = read_dataset(dataset_dir)
    path = Path(dataset_dir) / "dataset.json"
    sections: dict[str, list[dict[str, Any]]] = {}
    findings: list[Finding] = []
    for section in [*SECTIONS, *(name for name in content if name not in SECTIONS)]:
        value = content.get(section)
        if section not in SECTIONS and not isinstance(value, list):
            continue  # parameters, such as those of the phantom
        if section not in content:
            findings.append(
                Finding(
                    str(path), f"no section {section!r}", section == "training", sections=(section,)
                )
            )
            continue
        try:
            given = section_of(content, dataset_dir, section)
        except ValueError as error:
            text = str(error).removeprefix(f"{path}: ")
            findings.append(Finding(str(path), text, sections=(section,)))
            continue
        if not given and section != "test":
            text = f"section {section!r} is empty"
            if section == "validation":
                text += ": training then keeps its last weights, unmeasured"
            findings.append(Finding(str(path), text, section == "training", sections=(section,)))
        sections[section] = []
        for number, one in enumerate(given):
            where = f"{path}: {section}[{number}]"
            entry, found = read_entry(one, where, dataset_dir)
            findings += [replace(finding, sections=(section,)) for finding in found]
            if entry is not None:
                entry.update(where=where, section=section, given=one)
                sections[section].append(entry)
        cases_apart(sections[section], dataset_dir)
    findings += _shared(sections, path)
    return sections, findings


def _shared(sections: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> Iterator[Finding]:
    """Subjects and images that two sections have, and images that one has twice."""
    for section, entries in sections.items():
        counts = Counter(os.path.realpath(entry["image"]) for entry in entries)
        for image, count in counts.items():
            if count > 1:
                text = f"{section} has the image {image} {count} times"
                yield Finding(str(path), text, error=False, sections=(section,))
    names = list(sections)
    for k, one in enumerate(names):
        for other in names[k + 1 :]:
            for key, what in (("subject", "subject"), ("image", "image")):
                both = {e[key] for e in sections[one]} & {e[key] for e in sections[other]}
                if both:
                    shown = ", ".join(sorted(both)[:4]) + (", ..." if len(both) > 4 else "")
                    text = f"{what} in both {one} and {other}: {shown}"
                    error = "training" in (one, other)
                    yield Finding(str(path), text, error, sections=(one, other))
                    break
