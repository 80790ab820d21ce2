"""Which planes of a DICOM series are one volume, and when each was taken."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from .dicom_planes import Plane, normal_of


def frames_of(planes: Sequence[Plane]) -> tuple[list[tuple[Plane, ...]], list[str]]:
    """The volumes of a series, in the order of time, and what had to be left out for them.

    Several slices at one place are those of several times: by the temporal position, the
    acquisition or the order in which they were taken, whichever gives each time one slice per
    place. Of a complex image the magnitude stays, of several echoes the first. Incomplete volumes
    of a series are left out. What does not fit together stays one frame, for `dicom.assemble` to
    refuse.
    """
    said: list[str] = []
    chosen = list(planes)
    if len({p.part for p in chosen}) > 1 and any(p.part == "M" for p in chosen):
        chosen = [p for p in chosen if p.part == "M"]
        said.append("phase, real or imaginary images of the series are left out")
    echoes = sorted({p.echo_ms for p in chosen})
    normal = normal_of(chosen[0])
    places = [round(float(np.dot(p.position, normal)) / 0.05) for p in chosen]
    most = max(places.count(place) for place in set(places)) if len(places) < 20000 else 2
    if len(echoes) > 1 and most > 1:
        chosen = [p for p in chosen if p.echo_ms == echoes[0]]
        said.append(f"of {len(echoes)} echoes the first is taken ({echoes[0]:g} ms)")
    frames = _by_time(chosen, normal)
    if len(frames) > 1:
        full = max(len(frame) for frame in frames)
        whole = [frame for frame in frames if len(frame) == full]
        if len(whole) < len(frames):
            said.append(f"{len(frames) - len(whole)} volumes with slices missing are left out")
        frames = whole
    return frames, said


def _by_time(planes: Sequence[Plane], normal: np.ndarray) -> list[tuple[Plane, ...]]:
    def place(plane: Plane) -> tuple[int, ...]:
        # the normal as well, so that the planes of a localizer stay together
        return tuple(round(v / 0.05) for v in plane.position)

    if len({place(p) for p in planes}) == len(planes):
        return [tuple(planes)]
    for key in (0, 1):
        groups: dict[float, list[Plane]] = {}
        for plane in planes:
            groups.setdefault(plane.order[key], []).append(plane)
        if len(groups) > 1 and all(
            len({place(p) for p in group}) == len(group) for group in groups.values()
        ):
            return [tuple(groups[k]) for k in sorted(groups)]
    ranked: list[list[Plane]] = []
    seen: dict[tuple[int, ...], int] = {}
    for plane in sorted(planes, key=lambda p: (p.order[2], p.order[3])):
        rank = seen[place(plane)] = seen.get(place(plane), -1) + 1
        if rank == len(ranked):
            ranked.append([])
        ranked[rank].append(plane)
    return [tuple(frame) for frame in ranked]


def times_s(frames: Sequence[Sequence[Plane]]) -> list[float | None]:
    """Seconds from the first frame to each, by the acquisition times, else the repetition time."""
    first = [min(p.order[2] for p in frame) for frame in frames]
    if len(frames) < 2:
        return [None] * len(frames)
    if min(first) > 0 and all(b > a for a, b in itertools.pairwise(first)):
        return [round(t - first[0], 6) for t in first]
    step = frames[0][0].repetition_s
    return [round(k * step, 6) if step > 0 else None for k in range(len(frames))]
