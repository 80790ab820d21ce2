"""Data sets that are written volume by volume, and go on where a run was stopped.

A folder holds

- ``<kind>.json``: the parameters, written first, so that volumes keep them with them,
- ``<section>/<name>.nii.gz``: an image,
- ``<section>_labels/<name>.nii.gz`` and ``.json``: its label, and its entry of the datalist,
- ``dataset.json``: the datalist and the parameters, when all volumes are there.

Labels lie apart, so that a section's folder can be given to inference as it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..files import write_json, write_nifti
from .dataset_entries import SECTIONS


@dataclass(frozen=True)
class DatasetFiles:
    """The files of one data set.

    Parameters
    ----------
    root : folder, made by ``start``
    kind : what the data set is, such as "phantom": the key of the parameters in its files
    parameters : all that its volumes depend on besides their section and name, as JSON holds it
    """

    root: Path
    kind: str
    parameters: Mapping[str, Any]

    def start(self) -> None:
        """Write the parameters unless they are there.

        ValueError, naming the file and the values, where the folder holds something else than a
        data set with the same parameters; it is left alone.
        """
        for path in (self._datalist, self._started):
            self._check(path)
        if not self._started.exists():
            write_json(self._started, {self.kind: self.parameters})

    def paths(self, section: str, name: str) -> dict[str, str]:
        """``image`` and ``label`` of a volume as its entry names them."""
        return {
            "image": f"{section}/{name}.nii.gz",
            "label": f"{section}_labels/{name}.nii.gz",
        }

    def record(self, section: str, name: str) -> Path:
        """The file with a volume's entry."""
        return self.root / f"{section}_labels/{name}.json"

    def recorded(self, section: str, name: str) -> dict[str, Any] | None:
        """Entry of a volume as it was written, None if it was not."""
        record = self.record(section, name)
        return json.loads(record.read_text()) if record.exists() else None

    def complete(self, entry: Mapping[str, Any]) -> bool:
        """Whether the files that an entry names are there."""
        given = [entry[key] for key in ("image", "label") if entry.get(key) is not None]
        return all((self.root / path).exists() for path in given)

    def write(
        self,
        section: str,
        name: str,
        entry: dict[str, Any],
        image: np.ndarray,
        label: np.ndarray | None,
        affine: np.ndarray,
    ) -> dict[str, Any]:
        """Write a volume (i, j, k), its label, if it has one, and its entry, which is returned."""
        write_nifti(self.root / entry["image"], image, affine)
        if label is not None:
            write_nifti(self.root / entry["label"], label, affine)
        write_json(self.record(section, name), entry)
        return entry

    def finish(self, entries: Mapping[str, list[dict[str, Any]]]) -> Path:
        """Write the datalist, by section; its path."""
        sections: dict[str, Any] = {section: [] for section in SECTIONS}
        write_json(self._datalist, {**sections, **entries, self.kind: self.parameters})
        return self._datalist

    @property
    def _datalist(self) -> Path:
        return self.root / "dataset.json"

    @property
    def _started(self) -> Path:
        return self.root / f"{self.kind}.json"

    def _check(self, path: Path) -> None:
        if not path.exists():
            return
        try:
            found = dict(json.loads(path.read_text())[self.kind])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path}: expected the parameters of a {self.kind} data set, found none: it is "
                "left alone; choose another folder"
            ) from error
        for key in {**self.parameters, **found}:
            there, wanted = found.get(key), self.parameters.get(key)
            if there != wanted:
                raise ValueError(
                    f"{path} was made with {key} = {there!r}, wanted {wanted!r}; "
                    "choose another folder or remove that one"
                )
