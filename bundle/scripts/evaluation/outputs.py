"""What inference writes for a case, by the words of ``--outputs``, and under which names."""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path, PurePath
from typing import Any

# word: (end of the name, the same below BIDS derivatives, where {suffix} is the input's own)
ENDINGS = {
    "json": ("_pose.json", "_desc-{suffix}_pose.json"),
    "picture": ("_pose.png", "_desc-{suffix}_pose.png"),
    "mask": ("_mask.nii.gz", "_desc-brain_mask.nii.gz"),
    "aligned": ("_aligned.nii.gz", "_space-head_{suffix}.nii.gz"),
    "transform": ("_head_to_world.tfm", "_from-{suffix}_to-head_mode-image_xfm.tfm"),
    "fsl": ("_head_to_world.mat", "_from-{suffix}_to-head_mode-image_xfm.mat"),
    "lta": ("_head_to_world.lta", "_from-{suffix}_to-head_mode-image_xfm.lta"),
    "afni": ("_head_to_world.aff12.1D", "_from-{suffix}_to-head_mode-image_xfm.aff12.1D"),
}
MOTION = {
    "tsv": ("_motion.tsv", "_desc-{suffix}_motion.tsv"),
    "json": ("_motion.json", "_desc-{suffix}_motion.json"),
    "png": ("_motion.png", "_desc-{suffix}_motion.png"),
}
# what other commands make of a pose: worth nothing once it is replaced
LATER = (
    ("_slices.png", "_desc-{suffix}_slices.png"),
    ("_prescription.json", "_desc-{suffix}_prescription.json"),
    ("_prescription.png", "_desc-{suffix}_prescription.png"),
)
SERIES = "series"  # in place of a case's name: cases of one frame as a series (scan.motion_writer)
WORDS = (*ENDINGS, "motion", "report")
DEFAULT = ("json", "picture", "report")
TRANSFORMS = ("transform", "fsl", "lta", "afni")
STATE = ".head_pose"  # hidden folder of the output folder
STYLES = ("bids", "suffix", "plain")
NO_ENTITIES = ("suffix", "datatype")
NAME_BYTES = 255  # of a file's name, on the file systems in use
SHORT_BYTES = 180  # of a name that has to be cut, so that every ending fits


def chosen_outputs(outputs: str | Iterable[str]) -> tuple[str, ...]:
    """The words of ``--outputs``, each once, in the order of ``WORDS``.

    Text is taken apart at commas. ``json`` is written always: without it nothing tells what became
    of a case. The default also stands for ``motion``, which needs several frames.
    ValueError for an unknown word, with the nearest known one.

    >>> chosen_outputs("mask,transform")
    ('json', 'mask', 'transform')
    >>> chosen_outputs(["json", "picture", "report"])
    ('json', 'picture', 'motion', 'report')
    >>> chosen_outputs("masks")
    Traceback (most recent call last):
    ValueError: --outputs: 'masks' is not known; did you mean 'mask'? All: json, picture, mask, \
aligned, transform, fsl, lta, afni, motion, report
    """
    given = outputs.split(",") if isinstance(outputs, str) else [str(word) for word in outputs]
    words = {word.strip(" []'\"").lower() for word in given} - {""}
    for word in sorted(words - set(WORDS)):
        near = difflib.get_close_matches(word, WORDS, 1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise ValueError(f"--outputs: {word!r} is not known{hint} All: {', '.join(WORDS)}")
    if words == set(DEFAULT):
        words.add("motion")
    return tuple(word for word in WORDS if word in words | {"json"})


def short_stem(stem: str, longest: int = SHORT_BYTES) -> str:
    """``stem``, or its beginning and a hash of the whole where its bytes are too many for a name.

    >>> short_stem("sub-01"), len(short_stem("x" * 300))
    ('sub-01', 180)
    """
    name = os.fsencode(stem)
    if len(name) <= NAME_BYTES - max(len(end) for end, _ in (*ENDINGS.values(), *MOTION.values())):
        return stem
    digest = hashlib.sha256(name).hexdigest()[:8]
    # not in the middle of a character
    return name[: longest - 9].decode(errors="ignore") + "-" + digest


class CaseFiles:
    """Names of all files of a case, in ``output_dir`` or, for BIDS input, in the same folder below.

    Parameters
    ----------
    output_dir : folder of the run
    case : name of the case, unique in its run
    reading : the case as ``scripts.reading`` found it: ``bids`` and ``folder`` count. None where it
        was not found that way.
    style : "bids" as derivatives are named; "suffix" the same with the input's suffix in the name
        of the mask; "plain" by the name of the case. BIDS input that has no BIDS name is plain.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        case: str,
        reading: Any = None,
        style: str = "bids",
    ) -> None:
        self.output_dir, self.case = Path(output_dir), case
        self.stem, self.folder, self.suffix = short_stem(case), PurePath(), ""
        self.style = style
        if reading is not None and reading.bids:
            self.folder = PurePath(reading.folder)
            if style != "plain":
                entities = {k: v for k, v in reading.bids.items() if k not in NO_ENTITIES}
                self.stem = short_stem("_".join(f"{k}-{v}" for k, v in entities.items()))
                self.suffix = reading.bids["suffix"]

    def _path(self, plain: str, bids: str) -> Path:
        if self.style == "suffix":
            bids = bids.replace("desc-brain_", "desc-brain{suffix}_")
        end = bids.format(suffix=self.suffix) if self.suffix else plain
        return self.output_dir / self.folder / (self.stem + end)

    def path(self, word: str) -> Path:
        """File of one of the words of ``ENDINGS``."""
        return self._path(*ENDINGS[word])

    def motion(self, kind: str) -> Path:
        """File of the motion of a series: "tsv", "json" or "png"."""
        return self._path(*MOTION[kind])

    def all(self) -> list[Path]:
        """Every file that may have been written for this case, there or not."""
        ends = (*ENDINGS.values(), *MOTION.values(), *LATER)
        return [self._path(*end) for end in ends]

    @property
    def state(self) -> Path:
        """Where the run keeps what it did for this case (``run_folder``)."""
        return self.output_dir / STATE / "cases" / f"{short_stem(self.case)}.json"
