"""BIDS data sets: what is left out of them, and the entities of a name.

https://bids-specification.readthedocs.io: common principles, file name structure.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePath

from .formats import case_name

LEFT_OUT = ("derivatives", "sourcedata", "code", "stimuli", "phenotype")


def is_bids(root: Path) -> bool:
    """Whether a folder is the root of a BIDS data set."""
    return (root / "dataset_description.json").is_file()


def left_out_folder(name: str) -> str:
    """Why a folder at the root of a data set is not searched; "" if it is."""
    return f"{name}/ of a BIDS data set holds no raw images" if name in LEFT_OUT else ""


def entities(below: PurePath) -> dict[str, str] | None:
    """Entities of a file below the root, in their order, then "suffix" and "datatype".

    None for a name that is not of the form sub-<label>[_<key>-<label>...]_<suffix>.

    >>> entities(PurePath("sub-01/ses-2/anat/sub-01_ses-2_run-1_T2w.nii.gz"))
    {'sub': '01', 'ses': '2', 'run': '1', 'suffix': 'T2w', 'datatype': 'anat'}
    """
    *pairs, suffix = case_name(below).split("_")
    found: dict[str, str] = {}
    for pair in pairs:
        match = re.fullmatch(r"([a-z]+)-([0-9a-zA-Z+]+)", pair)
        if not match or match[1] in found:
            return None
        found[match[1]] = match[2]
    if not re.fullmatch(r"[0-9a-zA-Z]+", suffix) or next(iter(found), "") != "sub":
        return None
    datatype = below.parent.name
    inside = datatype and not re.match(r"(sub|ses)-", datatype)
    return found | {"suffix": suffix} | ({"datatype": datatype} if inside else {})
