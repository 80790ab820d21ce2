"""The motion of a head over a series, drawn: where it was, how it was turned, how sure that is."""

from __future__ import annotations

import os

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ..files import replacing
from .motion_files import SeriesMotion, pose_vector

# right, anterior, superior; told apart also without colour, by the mark
STYLES = (("#d1495b", "o", "R"), ("#2a9d8f", "s", "A"), ("#2b59c3", "^", "S"))
UNSURE, REFUSED = "#ffb703", "#6c757d"


def draw_motion(path: str | os.PathLike[str], motion: SeriesMotion) -> None:
    """PNG: the head's centre and rotation vector along the world's axes, and the confidence.

    Marks are the poses as they were found, hollow where the tracker refused one; lines are the
    track, its band the radius that 68 % of the errors lie within. Frames without a pose are grey.
    """
    figure = Figure(figsize=(9.6, 7.2), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    place, turn, sure = figure.subplots(3, 1, sharex=True, height_ratios=(3, 3, 1.2))
    first = motion.first_pose
    frames = motion.frames
    times = np.array([f.time_s for f in frames])
    found = np.full((len(frames), 6), np.nan)
    tracked, spread = np.full((len(frames), 6), np.nan), np.full((len(frames), 2), np.nan)
    if first is not None:
        for k, f in enumerate(frames):
            if f.head_to_world is not None:
                found[k] = pose_vector(f.head_to_world, first)
            if f.tracked is not None:
                tracked[k] = pose_vector(f.tracked.head_to_world, first)
                spread[k] = f.tracked.translation_sd_mm, f.tracked.rotation_sd_deg
        found[:, :3] -= first[:3, 3]
        tracked[:, :3] -= first[:3, 3]
    refused = np.array([f.track == "refused" for f in frames])
    _draw(place, times, found[:, :3], tracked[:, :3], spread[:, 0], refused)
    _draw(turn, times, found[:, 3:], tracked[:, 3:], spread[:, 1], refused)
    place.set_ylabel("moved, mm")
    turn.set_ylabel("turned, degrees")
    place.legend(loc="upper left", ncols=4, fontsize="small")
    _draw_confidence(sure, times, motion)
    for axes in (place, turn, sure):
        axes.grid(alpha=0.3)
        for time_s, f in zip(times, frames, strict=True):
            if f.head_to_world is None:
                axes.axvline(time_s, color=REFUSED, alpha=0.35, linewidth=4, zorder=0)
    lacking = sum(f.head_to_world is None for f in frames)
    name = motion.case if len(motion.case) <= 60 else motion.case[:57] + "..."
    place.set_title(
        f"{name}: {len(frames)} frames, {lacking} without a pose (grey), "
        f"{int(refused.sum())} refused by the tracker (hollow)",
        loc="left",
        fontsize=10,
        parse_math=False,
    )
    known = "" if motion.times_known else f" (not in the file: {motion.repetition_s:g} s a frame)"
    sure.set_xlabel(f"time, s{known}")
    with replacing(path) as partial:
        canvas.print_figure(os.fspath(partial), format="png", dpi=100)


def _draw(
    axes: Axes,
    times: NDArray,
    found: NDArray,
    tracked: NDArray,
    spread: NDArray,
    refused: NDArray[np.bool_],
) -> None:
    for k, (colour, mark, name) in enumerate(STYLES):
        axes.plot(times, tracked[:, k], color=colour, linewidth=1.2, label=f"{name}, tracked")
        axes.fill_between(
            times, tracked[:, k] - spread, tracked[:, k] + spread, color=colour, alpha=0.10, lw=0
        )
        used = ~refused
        axes.plot(times[used], found[used, k], mark, color=colour, markersize=3.5)
        axes.plot(times[refused], found[refused, k], mark, color=colour, markersize=6, mfc="none")


def _draw_confidence(axes: Axes, times: NDArray, motion: SeriesMotion) -> None:
    confidence = np.array([f.confidence for f in motion.frames])
    for status, colour in (("ok", "#2a9d8f"), ("uncertain", UNSURE)):
        chosen = np.array([f.status == status for f in motion.frames])
        axes.plot(times[chosen], confidence[chosen], "o", color=colour, markersize=4, label=status)
    other = np.array([f.status not in ("ok", "uncertain") for f in motion.frames])
    axes.plot(times[other], confidence[other], "x", color=REFUSED, markersize=5, label="no pose")
    axes.set_ylim(-0.05, 1.05)
    axes.set_ylabel("confidence")
    axes.legend(loc="lower left", ncols=3, fontsize="small")
