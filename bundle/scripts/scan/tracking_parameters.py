"""The motion of a head that the tracker assumes, and how poses err."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TrackingParameters:
    """The motion that is assumed, and how poses err.

    rest_s, move_s : mean time between moves, at first, and of a move
    learn_s : how long moves have to be watched to count as much as `rest_s` does
    rest_deg, rest_mm : drift at rest along each axis after one second; it grows with the root
    move_deg_s, move_mm_s : standard deviation of the velocity along each axis in a move
    leap_deg_s, leap_mm_s : the same in a leap
    leap_share : share of the moves that are leaps
    breathing_mm : standard deviation of the position along each axis by the mother's breathing,
        which frames 1 to 3 s apart cannot follow
    steady_share : share of the variance of a pose's error that stays the same from frame to frame
        while the head rests, so that more frames do not average it out: at least, and at first
    learn_poses : how many poses of a head at rest have to be seen to count as much as this; it then
        follows from how far they scatter
    wrong_share : how often a pose is quite wrong, where nothing else is known
    patience : so many refused poses one after the other restart the track, agreeing or not
    """

    rest_s: float = 10.0
    move_s: float = 0.8
    learn_s: float = 15.0
    rest_deg: float = 0.2
    rest_mm: float = 0.12
    move_deg_s: float = 8.0
    move_mm_s: float = 4.0
    leap_deg_s: float = 25.0
    leap_mm_s: float = 6.0
    leap_share: float = 0.15
    breathing_mm: float = 0.35
    steady_share: float = 0.4
    learn_poses: float = 1.0
    wrong_share: float = 0.02
    patience: int = 3
