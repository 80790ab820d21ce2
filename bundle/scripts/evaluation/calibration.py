"""Weights of the expected error, fitted so that a given share of the errors lies below it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import linprog
from torch import Tensor

from ..network.chain import PoseChain
from ..network.expected_error import FEATURES, Spread

WITHIN = 0.68  # share of the errors within one standard deviation
# more spread, a worse score or flatter heat maps never mean a smaller error
BOUNDS = ((None, None), (0, None), (0, None), (0, None), (None, 0), (None, None))


class Looked(NamedTuple):
    """What is known of n poses that were found, of n volumes with a head."""

    features: NDArray[np.float64]  # (n, FEATURES)
    rotation_deg: NDArray[np.float64]  # (n,) errors
    translation_mm: NDArray[np.float64]


class Features(torch.nn.Module):
    """Stands in for ``ExpectedError`` and keeps the features of every pass, with what it says."""

    def __init__(self, given: Any) -> None:
        super().__init__()
        self.given = given
        self.kept: list[tuple[Tensor, Tensor]] = []

    def forward(self, spread: Spread) -> tuple[Tensor, Tensor]:
        said: tuple[Tensor, Tensor] = self.given(spread)
        self.kept.append((self.given.features(spread), said[0]))
        return said


def features_of(chain: PoseChain, volume: Tensor) -> tuple[NDArray[np.float64], Any]:
    """Features (FEATURES,) of the pose of one volume (1, 1, x, y, z), and the prediction.

    The features are those of the pass whose pose it is; without a pose, of the last one.
    """
    search: Any = chain.search
    given = search.expected_error
    search.expected_error = recorder = Features(given)
    try:
        with torch.no_grad():
            found = chain.predict(volume)
    finally:
        search.expected_error = given
    # of passes that say the same the second did not count: it has to be surer than the first
    of_pose = (kept for kept, sd_deg in recorder.kept if sd_deg.equal(found.rotation_sd_deg))
    return next(of_pose, recorder.kept[-1][0])[0].double().numpy(), found


def fit(
    features: NDArray[np.float64], errors: NDArray[np.float64], counts: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Weights (FEATURES,) of log(sd): the quantile regression of log(error) at ``WITHIN``.

    Parameters
    ----------
    features, errors : (n, FEATURES) and (n,), the errors above 0
    counts : (n,) how much each pose counts
    """
    n = len(errors)
    target = np.log(np.maximum(errors, 1e-3))
    # Koenker and Bassett 1978: least sum of WITHIN * over + (1 - WITHIN) * under
    cost = np.concatenate([np.zeros(FEATURES), WITHIN * counts, (1 - WITHIN) * counts])
    equal = sparse.hstack([features, sparse.eye(n), -sparse.eye(n)])
    bounds = [*BOUNDS, *[(0, None)] * (2 * n)]
    solved = linprog(cost, A_eq=equal, b_eq=target, bounds=bounds, method="highs")
    if not solved.success:
        raise RuntimeError(f"no weights fit {n} poses: {solved.message}")
    return np.asarray(solved.x[:FEATURES])


def coverage(
    weights: Sequence[float], features: NDArray[np.float64], errors: NDArray[np.float64]
) -> tuple[float, float]:
    """Share of the errors within one and within two standard deviations."""
    sd = np.exp(features @ np.asarray(weights))
    return float(np.mean(errors <= sd)), float(np.mean(errors <= 2 * sd))
