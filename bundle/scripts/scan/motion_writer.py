"""Writes the motion of the head over the frames of a series, after the records of inference."""

from __future__ import annotations

import logging
import re
from typing import Any

from ignite.engine import Engine, Events

from ..evaluation.outputs import CaseFiles
from ..evaluation.pose_writer import stop_without_room
from ..evaluation.run_folder import RunFolder
from ..files import write_text
from .motion_files import motion_json, motion_table, series_motion
from .motion_picture import draw_motion

logger = logging.getLogger(__name__)

SERIES = "series"  # name of the cases of a run as one series


class MotionWriter:
    """Handler that writes ``<case>_motion.tsv``, ``.json``, ``.png`` for cases of several frames.

    It comes after `PoseWriter`, whose records it reads. What goes wrong with one series is logged,
    and the run goes on.

    Parameters
    ----------
    folder : of the run; nothing is written unless "motion" is among its outputs
    as_series : the cases of one frame are one series, in the order of their names, with numbers in
        them read as numbers: navigators that were stored one by one. Its files are
        ``series_motion.tsv`` and so on.
    repetition_s : time from frame to frame where the files do not tell
    """

    def __init__(
        self, folder: RunFolder, as_series: bool = False, repetition_s: float = 2.5
    ) -> None:
        if not repetition_s > 0:
            raise ValueError(f"repetition_s must be more than 0 s, got {repetition_s}")
        self.folder, self.as_series, self.repetition_s = folder, as_series, float(repetition_s)
        self._records: list[dict[str, Any]] = []  # of the series that is being read

    def attach(self, engine: Engine) -> None:
        if "motion" not in self.folder.outputs:
            return
        engine.add_event_handler(Events.EPOCH_STARTED, lambda _: self._records.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        if self.as_series:
            engine.add_event_handler(Events.EPOCH_COMPLETED, self._write_series)

    def _collect(self, engine: Engine) -> None:
        """Take in the batch's frames; write a case with its last one."""
        state: Any = engine.state
        readings = state.batch.get("reading", [None] * len(state.records))
        for record, reading in zip(state.records, readings, strict=True):
            if reading is None or reading.frames == 1:
                continue
            if reading.frame == 0:
                self._records.clear()
            self._records.append(record)
            if reading.frame == reading.frames - 1:
                files = self.folder.files(record["case"], reading)
                self._write(files, record["case"], list(self._records))
                self._records.clear()

    def _write_series(self, engine: Engine) -> None:
        records = [r for _, r in self.folder.records() if r.get("frames", 1) == 1]
        if len(records) < 2:
            logger.warning("a series needs two volumes or more, got %d", len(records))
            return
        records.sort(key=lambda record: in_order(record["case"]))
        self._write(CaseFiles(self.folder.output_dir, SERIES), SERIES, records)

    def _write(self, files: CaseFiles, case: str, records: list[dict[str, Any]]) -> None:
        try:
            motion = series_motion(case, records, self.repetition_s)
            write_text(files.motion("tsv"), motion_table(motion))
            write_text(files.motion("json"), motion_json(motion))
            draw_motion(files.motion("png"), motion)
        except OSError as error:
            stop_without_room(files.motion("tsv"), error)
            logger.warning("%s: the motion is not written: %s", case, error)
        except Exception as error:
            logger.warning("%s: no motion: %s: %s", case, type(error).__name__, error)


def in_order(name: str) -> list[tuple[int, int, str]]:
    """Key that sorts names with numbers in them by these.

    >>> sorted(["nav_10", "nav_9", "nav_b"], key=in_order)
    ['nav_9', 'nav_10', 'nav_b']
    """
    parts = re.split(r"([0-9]+)", name)
    return [(0, int(p), "") if p.isascii() and p.isdigit() else (1, 0, p) for p in parts]
