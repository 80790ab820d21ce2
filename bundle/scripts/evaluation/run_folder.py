"""The folder that a run of inference writes to: what is done there, and that no other run writes.

What a run did for a case is kept in ``.head_pose/cases/<case>.json`` of the folder: the record, the
input's path, size and time, the weights' SHA-256, the settings and the files. It is written last,
so a case that has it is done. The input's path stands there and nowhere else but in messages.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ignite.engine import Events

from ..files import write_text
from ..labels import Status
from ..reading.headers import check_voxel_mm
from .about import derivative_description
from .fingerprints import fingerprint, sha256
from .folder_lock import FolderLock
from .outputs import SERIES, STATE, STYLES, CaseFiles, chosen_outputs

logger = logging.getLogger(__name__)

# as ``files.replacing`` names what it writes, of a kind that a run of inference writes
PARTIAL = re.compile(r"\.[0-9a-f]{8}_.*\.(json|png|nii\.gz|tfm|mat|lta|1D|tsv|html)$", re.DOTALL)


class RunFolder:
    """Output folder of inference.

    Parameters
    ----------
    output_dir : made if it is not there
    weights : file of the weights, named by its hash in what is kept and in the report
    outputs : words of ``outputs.WORDS``
    uncertain_above_deg, voxel_mm : settings on which results depend: of ``record.conclude`` and of
        ``reading.read_image``
    resume : leave out cases that are done with the same input, weights and settings
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        weights: str | os.PathLike[str] | None = None,
        outputs: str | Iterable[str] = ("json", "picture", "report"),
        uncertain_above_deg: float | None = None,
        voxel_mm: Any = None,
        resume: bool = False,
    ) -> None:
        self.output_dir, self.weights, self.resume = Path(output_dir), weights, resume
        self.outputs = chosen_outputs(outputs)
        self.uncertain_above_deg, self.voxel_mm = uncertain_above_deg, check_voxel_mm(voxel_mm)
        self.cases: dict[str, CaseFiles] = {}  # of this run, in the order in which they are done
        self.kept: list[str] = []  # those that were done before
        self.left_aside: list[tuple[str, str]] = []  # path and reason of what is no case
        self._taken: set[Path] = set()
        self.lock = FolderLock(self.output_dir / STATE / "lock")
        self._weights_sha256: str | None = None

    @property
    def weights_sha256(self) -> str:
        """Hash of the weights; "" if there is no such file."""
        if self._weights_sha256 is None:
            self._weights_sha256 = sha256(self.weights) if self.weights else ""
        return self._weights_sha256

    def files(self, case: str, reading: Any = None) -> CaseFiles:
        """Names of the files of a case, which then belongs to this run; none is another case's."""
        if case not in self.cases:
            for style in STYLES:
                files = CaseFiles(self.output_dir, case, reading, style)
                if not self._taken.intersection(files.all()):
                    break
            self._taken.update(files.all())
            self.cases[case] = files
        return self.cases[case]

    def to_do(self, entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """``entries`` of ``volumes_in`` without those that are done, if the run resumes.

        ValueError where outputs would lie among the raw data of a BIDS data set.
        """
        self.left_aside = list(getattr(entries, "left_aside", ()))
        left = []
        again = set()
        for entry in entries:
            case, reading = entry["case"], entry.get("reading")
            files = self.files(case, reading)
            self._check_apart(files, entry["image"], reading)
            if case in self.kept:
                continue
            state = self.state(files) if self.resume else None
            if state is not None and self._is_done(state, entry["image"]):
                self.kept.append(case)
                continue
            if state is not None:
                again.add(case)
            left.append(entry)
        if self.resume:
            logger.info(
                "%s: %d cases are done, %d to do; of these %d again, because input, weights or "
                "settings have changed, or something had failed",
                self.output_dir,
                len(self.kept),
                len(self.cases) - len(self.kept),
                len(again),
            )
        return left

    def _check_apart(self, files: CaseFiles, image: str, reading: Any) -> None:
        folder = files.path("json").parent
        bids = reading is not None and reading.bids
        if bids and folder.resolve() == Path(image).parent.resolve():
            raise ValueError(
                f"{self.output_dir} is the BIDS data set that is read: outputs do not belong among "
                f"raw data; choose another --output_dir, such as {self.output_dir}/derivatives/pose"
            )

    def settings(self) -> dict[str, Any]:
        """What the run was told, as it is kept and compared."""
        return {
            "outputs": list(self.outputs),
            "uncertain_above_deg": self.uncertain_above_deg,
            "voxel_mm": None if self.voxel_mm is None else list(self.voxel_mm),
        }

    def _is_done(self, state: Mapping[str, Any], path: str) -> bool:
        settings, mine = state.get("settings", {}), self.settings()
        wanted = set(self.outputs) - {"report"}  # which is made anew in any case
        if state.get("record", {}).get("frames", 1) == 1:
            wanted -= {"motion"}
        return (
            state.get("input") == fingerprint(path)
            and state.get("weights_sha256") == self.weights_sha256
            and all(
                # a state of an earlier release may lack one
                name in settings and settings[name] == mine[name]
                for name in ("uncertain_above_deg", "voxel_mm")
            )
            and wanted <= set(settings.get("outputs", ()))
            and state.get("complete", False)
            and state.get("record", {}).get("status") != Status.FAILED
            and all((self.output_dir / name).exists() for name in state.get("files", ()))
        )

    def open(self) -> None:
        """Take the folder for this run, before anything is computed.

        BlockingIOError if another run has it, OSError (PermissionError, ...) if it cannot be
        written to; both say what to do.
        """
        try:
            self.lock.take()
            self._sweep()
            write_text(self.output_dir / STATE / "run.json", self._about_text())
            if SERIES not in self.cases:
                for path in CaseFiles(self.output_dir, SERIES).all():
                    path.unlink(missing_ok=True)
            description = self.output_dir / "dataset_description.json"
            if any(files.suffix for files in self.cases.values()) and not description.exists():
                write_text(description, derivative_description())
        except BlockingIOError:
            raise
        except OSError as error:
            raise type(error)(
                f"{self.output_dir}: nothing can be written to this --output_dir: {error}"
            ) from error

    def _sweep(self) -> None:
        """Remove what a run that was killed left half-written under a hidden name."""
        folders = {path.parent for files in self.cases.values() for path in files.all()}
        for folder in folders | {self.output_dir, self.output_dir / STATE / "cases"}:
            for path in folder.glob(".????????_*"):
                if PARTIAL.match(path.name):
                    path.unlink(missing_ok=True)

    def run(self, evaluator: Any) -> None:
        """Run inference; where every case is done already, only the report is made again."""
        if evaluator.state.epoch_length:
            evaluator.run()
            return
        for event in (Events.STARTED, Events.EPOCH_COMPLETED, Events.COMPLETED):
            evaluator.fire_event(event)

    def _about_text(self) -> str:
        about = {
            "command": sys.argv,
            "weights_sha256": self.weights_sha256,
            "settings": self.settings(),
        }
        return json.dumps(about, indent=1) + "\n"

    def close(self) -> None:
        """Let other runs write."""
        self.lock.release()

    def begin(self, files: CaseFiles) -> None:
        """Remove what an earlier run wrote for a case, but for its JSON file, which is replaced.

        So no picture or mask ever stands beside a record of another run.
        """
        files.state.unlink(missing_ok=True)
        for path in files.all():
            if path != files.path("json"):
                path.unlink(missing_ok=True)

    def finish(self, files: CaseFiles, path: str, record: Mapping[str, Any], failed: bool) -> None:
        """Note that a case is done; ``failed`` if one of its files could not be written."""
        written = [str(file.relative_to(self.output_dir)) for file in files.all() if file.exists()]
        state = {
            "record": record,
            "input": fingerprint(path),
            "weights_sha256": self.weights_sha256,
            "settings": self.settings(),
            "files": written,
            "complete": not failed,
        }
        write_text(files.state, json.dumps(state, indent=1) + "\n")

    def state(self, files: CaseFiles) -> dict[str, Any] | None:
        """What is kept of a case; None if nothing, or nothing that can be read."""
        try:
            state = json.loads(files.state.read_text())
        except (OSError, ValueError):
            return None
        return state if isinstance(state, dict) else None

    def records(self) -> list[tuple[CaseFiles, dict[str, Any]]]:
        """Files and record of every case of this run that is done, those kept included, by name."""
        found = []
        for files in self.cases.values():
            state = self.state(files)
            if state is not None:
                found.append((files, state["record"]))
        return sorted(found, key=lambda pair: pair[0].case)

    def others(self) -> list[str]:
        """Cases of earlier runs in this folder that are not of this one."""
        mine = {files.state.name for files in self.cases.values()}
        names = {path.stem for path in (self.output_dir / STATE / "cases").glob("*.json")}
        return sorted(name for name in names if f"{name}.json" not in mine)
