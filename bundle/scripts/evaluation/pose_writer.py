"""Writes the results of inference: a JSON file of each case, a picture, and what else is wanted."""

from __future__ import annotations

import errno
import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from monai.utils import CommonKeys

from ..files import write_text
from ..labels import Status
from ..reading import read_image
from .case_outputs import writers
from .outputs import CaseFiles
from .record import Finding, conclude
from .run_folder import RunFolder
from .transform_files import check_available

logger = logging.getLogger(__name__)

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # no later file could be written either


class PoseWriter:
    """Handler that writes ``<case>_pose.json`` as soon as a case is done, then its other files.

    A series has one record and one of each file, those of the frame with the most confidence.
    The records of the frames of a batch stand in ``engine.state.records`` for later handlers of
    the same event. What goes wrong with a picture or another file is logged and stands among the
    ``warnings`` of the record; the run goes on. A run in which no volume could be read, or a record
    could not be written, ends with RuntimeError, after all files are written.

    Parameters
    ----------
    folder : of the run; it knows the outputs and settings
    spacing_mm : voxel size of the working grid
    pictures : False leaves "picture" out of the outputs
    aligned_mm : voxel size of the aligned volume
    """

    def __init__(
        self,
        folder: RunFolder,
        spacing_mm: float,
        pictures: bool = True,
        aligned_mm: float = 1.0,
    ) -> None:
        self.folder, self.spacing_mm = folder, spacing_mm
        words = [word for word in folder.outputs if word != "picture" or pictures]
        self.writers = writers(words, aligned_mm)
        check_available(list(self.writers))
        self._statuses: Counter[Status] = Counter()
        self._unwritten: list[str] = []
        self._best: Finding | None = None  # of the frames of a series so far
        self._to_finish: list[tuple[CaseFiles, str, dict[str, Any], bool]] = []

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._open)
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_STARTED, self._finish)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._write_batch)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._finish)
        engine.add_event_handler(Events.COMPLETED, self._conclude)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._give_up)

    def _open(self, engine: Engine) -> None:
        self.folder.open()

    def _start(self, engine: Engine) -> None:
        self._statuses.clear()
        self._unwritten.clear()

    def _give_up(self, engine: Engine, error: BaseException) -> None:
        self.folder.close()
        raise error

    def _write_batch(self, engine: Engine) -> None:
        state: Any = engine.state
        batch, prediction = state.batch, state.output[CommonKeys.PRED]
        state.records = []
        for k in range(len(batch["case"])):
            item = {key: values[k] for key, values in batch.items()}
            result = {key: values[k].cpu() for key, values in prediction.items() if key != "error"}
            if item["status"] == Status.OK and "error" in prediction and prediction["error"][k]:
                item["status"] = Status.FAILED
                item["message"] = f"{item['path']}: the network failed: {prediction['error'][k]}"
            finding = conclude(item, result, self.spacing_mm, self.folder.uncertain_above_deg)
            if finding.record["message"]:
                logger.warning("%s: %s", finding.record["status"], finding.record["message"])
            self._statuses[Status(finding.record["status"])] += 1
            state.records.append(finding.record)
            self._add(item, finding)

    def _add(self, item: dict[str, Any], finding: Finding) -> None:
        """Write a case with its last frame."""
        reading = item.get("reading")
        if reading is not None and reading.frames > 1:
            if reading.frame == 0 or finding.surer_than(self._best):
                self._best = finding
            if reading.frame < reading.frames - 1:
                return
            finding = self._best or finding
            self._best = None
        files = self.folder.files(item["case"], reading)
        try:
            self._write(files, str(item["path"] if reading is None else reading.path), finding)
        except OSError as error:
            stop_without_room(files.path("json"), error)
            logger.error("%s: cannot be written: %s", files.path("json"), error)
            self._unwritten.append(item["case"])

    def _write(self, files: CaseFiles, path: str, finding: Finding) -> None:
        record = finding.record
        self.folder.begin(files)
        # the JSON file first: no picture is worth a pose
        write_text(files.path("json"), json_text(record))
        failed = self._write_others(files, finding) if finding.usable else []
        if failed:
            record["warnings"] = [*record["warnings"], *failed]
            write_text(files.path("json"), json_text(record))
        self._to_finish.append((files, path, record, bool(failed)))

    def _write_others(self, files: CaseFiles, finding: Finding) -> list[str]:
        """Write all but the JSON file; what went wrong, a line each."""
        failed: list[str] = []
        if not self.writers:
            return failed
        try:
            image = read_image(finding.source)
        except Exception as error:
            failed.append(f"{', '.join(self.writers)} not written: {_reason(error)}")
        else:
            for word, write in self.writers.items():
                path = files.path(word)
                try:
                    write(path, finding, image)
                except Exception as error:
                    failed.append(f"{path.name} not written: {_reason(error)}")
        for text in failed:
            logger.warning("%s: %s", finding.record["case"], text)
        return failed

    def _finish(self, engine: Engine) -> None:
        """Note the cases as done, once later handlers have written theirs."""
        for files, path, record, failed in self._to_finish:
            try:
                self.folder.finish(files, path, record, failed)
            except OSError as error:
                stop_without_room(files.state, error)
                logger.warning("%s: not noted as done: %s", record["case"], error)
        self._to_finish.clear()

    def _conclude(self, engine: Engine) -> None:
        self.folder.close()
        counts = {str(status): number for status, number in sorted(self._statuses.items())}
        total = self._statuses.total()
        logger.info("%d volumes: %s; results in %s", total, counts, self.folder.output_dir)
        if self._unwritten:
            raise RuntimeError(
                f"{len(self._unwritten)} results could not be written to "
                f"{self.folder.output_dir}: {', '.join(self._unwritten[:5])}; the log has reasons"
            )
        if total and not any(status.usable for status in self._statuses):
            raise RuntimeError(
                f"no volume could be used: {counts}; the reasons are in {self.folder.output_dir}"
            )


def stop_without_room(path: Path, error: OSError) -> None:
    """Raise OSError, with what to do, where no other file could be written either."""
    if error.errno in NO_ROOM:
        raise OSError(
            error.errno,
            f"{path}: {error.strerror}; what is written stays, --resume true goes on from there",
        ) from error


def json_text(record: dict[str, Any]) -> str:
    """A record as it is written."""
    return json.dumps(record, indent=2) + "\n"


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
