"""Whose heads the simulated scan follows: phantoms, or volumes of a data set that are moved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ..data.datalists import datalist
from ..data.volumes import LoadVolumed
from ..labels import BRAIN
from ..simulation.motion import Motion, motion_of
from ..simulation.scene import Scene, paint_scene, scene_of_volume
from ..simulation.volume import PhantomGenerator
from .slices import PLANES

LONGEST_S = 240.0  # of a drawn motion: 10 navigators to begin with and 80 slices


class Cases(Protocol):
    """Heads by number; `settings` says what they are drawn from, as plain values."""

    settings: dict[str, Any]

    def __len__(self) -> int: ...

    def name(self, number: int) -> str: ...

    def scene(self, number: int) -> Scene: ...


def random_state(seed: int, number: int, *use: int) -> np.random.RandomState:
    """What is random about a case; every `use` has its own."""
    # 19: apart from the seeds that phantoms of data sets are drawn from
    sequence = np.random.SeedSequence([seed, 19, number, *use])
    return np.random.RandomState(np.random.MT19937(sequence))


class Drawn(NamedTuple):
    """What is random about a stack.

    How the head moves, where the first field of view lies beside it (3,), in mm, and what noise is
    drawn from.
    """

    motion: Motion
    fov_offset_mm: NDArray[np.float64]
    noise: np.random.RandomState


def draw_stack(seed: int, number: int, motion: str, plane: str) -> Drawn:
    """The stack of a case in a plane, with a motion that `motion_of` knows (and its errors)."""
    # one head, motion and first field of view for all planes; noise of each stack's own
    return Drawn(
        motion_of(motion, LONGEST_S, random_state(seed, number, 1)),
        random_state(seed, number, 2).uniform(-15, 15, size=3),
        random_state(seed, number, 3, sorted(PLANES).index(plane)),
    )


class PhantomCases:
    """Phantoms of an age uniform in `ga_weeks`; a case depends on the seed and its number only.

    ValueError for arguments outside their range.
    """

    def __init__(
        self, phantoms: int = 1, seed: int = 0, ga_weeks: Sequence[float] = (20.0, 36.0)
    ) -> None:
        if seed < 0 or phantoms < 1:
            raise ValueError(f"expected seed >= 0 and phantoms >= 1, got {seed} and {phantoms}")
        self._count, self._seed = phantoms, seed
        self._generator = PhantomGenerator((float(ga_weeks[0]), float(ga_weeks[1])))
        self.settings = {"phantoms_of_seed": seed, "ga_weeks": [float(age) for age in ga_weeks]}

    def __len__(self) -> int:
        return self._count

    def name(self, number: int) -> str:
        return f"phantom_{number:03d}"

    def scene(self, number: int) -> Scene:
        self._generator.set_random_state(state=random_state(self._seed, number, 0))
        return paint_scene(self._generator.draw_anatomy(), random_state(self._seed, number, 4))


class VolumeCases:
    """The volumes of a section of a data set that have a pose and a label.

    ValueError where there is none, and for what `datalist` refuses.
    """

    def __init__(self, dataset_dir: str, section: str = "test") -> None:
        self._entries: list[Any] = [
            entry
            for entry in datalist(dataset_dir, section)
            if entry["head_to_world"] is not None and "label" in entry
        ]
        if not self._entries:
            raise ValueError(f"{dataset_dir}: no volume of {section!r} has a pose and a label")
        self.settings = {"dataset_dir": str(dataset_dir), "section": section}

    def __len__(self) -> int:
        return len(self._entries)

    def name(self, number: int) -> str:
        return self._entries[number]["case"]

    def scene(self, number: int) -> Scene:
        entry = self._entries[number]
        data: Any = LoadVolumed(["image", "label"])(entry)
        return scene_of_volume(
            data["image"][0].numpy(),
            np.asarray(data["image"].affine, dtype=np.float64),
            data["label"][0].numpy() == BRAIN,
            entry["head_to_world"].double().numpy(),
            float(entry.get("ga_weeks") or np.nan),
        )


def loop_cases(
    dataset_dir: str | None = None,
    section: str = "test",
    phantoms: int = 1,
    seed: int = 0,
    ga_weeks: Sequence[float] = (20.0, 36.0),
) -> Cases:
    """The volumes of a data set where one is named, else phantoms."""
    if dataset_dir is None:
        return PhantomCases(phantoms, seed, ga_weeks)
    return VolumeCases(dataset_dir, section)
