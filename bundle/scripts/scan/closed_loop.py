"""A scan that follows the head, simulated whole: stacks, their tables, slices and a picture."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from tqdm import tqdm

from ..files import json_text, write_text
from ..simulation.motion import Motion, motion_of
from ..simulation.scanner import Scanner
from ..simulation.scene import Scene
from .closed_loop_picture import draw_closed_loop
from .closed_loop_tables import LoopTables, summary_text, write_images
from .loop_cases import Cases, draw_stack, random_state
from .prescription import PLANES
from .stack_scan import Estimator, NotStarted, Run, scan_stack
from .taken_stack import Protocol
from .tracking import TrackingParameters

logger = logging.getLogger(__name__)

# Raised whenever the same settings give other numbers, so that old and new ones never mix.
VERSION = 3


class ClosedLoop:
    """Scans every case in every plane with every motion, each stack in four ways.

    Into `output_dir` go slices.csv (a row for every slice and way), stacks.csv (for every stack and
    way), summary.csv (over the cases), closed_loop.png of the first stack, settings.json, and
    slices/<case>_<motion>_<plane>/<way>/slice_NN.nii.gz of the first `image_cases` cases. A stack's
    files are written when it is done, and a run that was stopped goes on after the last one.

    Parameters
    ----------
    cases : whose heads
    estimator : finds them
    motion : presets of `simulation.motion`, or CSV files; one or several
    plane : "axial", "coronal", "sagittal"; one or several
    seed : motion, noise and first field of view follow from it and from the number of the case
    image_cases : cases whose slices are written as images
    protocol, parameters : of the stacks and of the tracker; `plane` stands in place of the
        protocol's

    Raises ValueError for settings that cannot be, and for a folder with a run of other settings.
    """

    def __init__(
        self,
        cases: Cases,
        estimator: Estimator,
        output_dir: str | os.PathLike[str],
        motion: str | Sequence[str] = "typical",
        plane: str | Sequence[str] = "axial",
        seed: int = 0,
        image_cases: int = 1,
        protocol: Protocol | None = None,
        parameters: TrackingParameters | None = None,
    ) -> None:
        self.cases, self.estimator, self.output_dir = cases, estimator, Path(output_dir)
        self.motions = [motion] if isinstance(motion, str) else list(motion)
        self.planes = [plane] if isinstance(plane, str) else list(plane)
        self.seed, self.image_cases = seed, image_cases
        self.protocol, self.parameters = protocol or Protocol(), parameters or TrackingParameters()
        for name in self.planes:
            if name not in PLANES:
                raise ValueError(f"plane must be one of {sorted(PLANES)}, got {name!r}")
        for name in self.motions:  # before anything takes time
            motion_of(name, 1.0, random_state(seed, 0))
        self._tables = LoopTables(self.output_dir)

    def run(self) -> None:
        """Scan what is not there yet, and write the tables."""
        path, settings = self.output_dir / "settings.json", self._settings()
        if path.exists() and path.read_text() != settings:
            raise ValueError(f"{path}: a run with other settings is in this folder; choose another")
        write_text(path, settings)
        done = self._tables.read()
        jobs = [
            (n, m, p) for n in range(len(self.cases)) for m in self.motions for p in self.planes
        ]
        scene: tuple[int, Scene] | None = None
        with tqdm(jobs, desc="closed loop", unit="stack") as bar:
            for number, motion, plane in bar:
                if (self.cases.name(number), Path(motion).name, plane) in done:
                    continue
                bar.set_postfix_str(f"{self.cases.name(number)}: painting")
                if scene is None or scene[0] != number:
                    scene = number, self.cases.scene(number)
                self._scan(number, scene[1], motion, plane, bar)
        text = summary_text(self._tables.summary())
        logger.info("%s:\n%s", self.output_dir / "summary.csv", text)

    def _scan(self, number: int, scene: Scene, motion: str, plane: str, bar: tqdm) -> None:
        """Scan one stack and write everything that is known by then."""
        moving, offset_mm, noise = draw_stack(self.seed, number, motion, plane)
        key = {"case": self.cases.name(number), "motion": Path(motion).name, "plane": plane}
        key_text = " ".join(key.values())
        scan = scan_stack(
            Scanner(scene, noise),
            moving,
            self.estimator,
            replace(self.protocol, plane=plane),
            self.parameters,
            offset_mm,
            number < self.image_cases,
        )
        runs: list[Run] = []
        try:
            for runs in scan:
                bar.set_postfix_str(f"{key_text}, slice {len(runs[0].rows)}")
        except NotStarted as reason:
            logger.warning("%s: %s", key_text, reason)
        self._tables.add(key, scene.ga_weeks, runs, self.protocol.thickness_mm)
        if runs and number < self.image_cases:
            self._write_images(runs, scene, moving, key)
        self._tables.write()

    def _write_images(
        self, runs: list[Run], scene: Scene, motion: Motion, key: dict[str, str]
    ) -> None:
        for run in runs:
            write_images(self.output_dir, key, run)
        picture = self.output_dir / "closed_loop.png"
        if not picture.exists():
            draw_closed_loop(picture, runs, scene, motion, self.protocol, key["plane"], key["case"])

    def _settings(self) -> str:
        # more cases, motions and planes may follow; what they are drawn from may not change
        return json_text(
            {
                "version": VERSION,
                "seed": self.seed,
                "cases": self.cases.settings,
                "protocol": asdict(self.protocol),
                "tracking": asdict(self.parameters),
                "weights": getattr(self.estimator, "weights", ""),
            }
        )
