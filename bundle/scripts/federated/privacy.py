"""What a privacy filter costs: the same changes of the same sites, averaged through each filter.

One round of a federation without its training: the changes are those that `alone.train_alone` left.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nvflare.apis.dxo import DXO, DataKind, MetaKey
from nvflare.apis.dxo_filter import DXOFilter
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.filters.percentile_privacy import PercentilePrivacy
from nvflare.app_common.filters.svt_privacy import SVTPrivacy
from torch import Tensor

from ..files import write_tensors
from ..weight_files import read_weights
from .report import read_history
from .server import Contribution, add_mean
from .site import LAST

# NVFlare's filters of what leaves a site
FILTERS: Mapping[str, type[DXOFilter]] = {"percentile": PercentilePrivacy, "svt": SVTPrivacy}


@dataclass(frozen=True)
class Privacy:
    """A filter by its name in ``FILTERS``, with its arguments.

    >>> Privacy("percentile", {"percentile": 50}).label
    'percentile_percentile50'
    """

    name: str
    settings: Mapping[str, Any]

    @property
    def label(self) -> str:
        """Of files and tables."""
        return "_".join([self.name, *(f"{key}{value:g}" for key, value in self.settings.items())])

    def filter(self) -> DXOFilter:
        """A new one. ValueError for arguments that it does not take."""
        try:
            return FILTERS[self.name](**self.settings)
        except TypeError as error:
            raise ValueError(f"privacy filter {self.name}: {error}") from error


# weak to strong; a change counts per volume that was trained on, as NVFlare has it
STRENGTHS = (
    Privacy("percentile", {"percentile": 10}),
    Privacy("percentile", {"percentile": 50}),
    Privacy("percentile", {"percentile": 90}),
    Privacy("svt", {"fraction": 0.5, "gamma": 1e-3, "noise_var": 100.0}),
    Privacy("svt", {"fraction": 0.5, "gamma": 1e-3, "noise_var": 10.0}),
    Privacy("svt", {"fraction": 0.1, "gamma": 1e-5, "noise_var": 0.1}),
)


def write_filtered(
    sites: Sequence[str],
    alone_dir: str | os.PathLike[str],
    weights: Mapping[str, Tensor],
    output_dir: str | os.PathLike[str],
    strengths: Sequence[Privacy] = STRENGTHS,
    seed: int = 0,
) -> dict[str, Path]:
    """The mean of the sites' weights, unfiltered and through each filter, by label.

    Parameters
    ----------
    alone_dir : where `train_alone` put ``site/last.pt`` and ``site/rounds.json``
    weights : that all of them began from
    seed : of the filters' noise

    Raises
    ------
    FileNotFoundError, ValueError : weights or a history that are not there or do not fit
    """
    start = {key: value.numpy() for key, value in weights.items()}
    changes = []
    for site in sites:
        folder = Path(alone_dir) / site
        trained = read_weights(folder / LAST)
        samples = sum(record.get("samples", 0) for record in read_history(folder))
        if not samples or set(trained) != set(start):
            raise ValueError(f"{folder}: not trained alone from these start weights")
        change = {key: value.numpy() - start[key] for key, value in trained.items()}
        changes.append(Contribution(site, change, samples))
    written = {}
    for privacy in (None, *strengths):
        label = "unfiltered" if privacy is None else privacy.label
        np.random.seed(seed)  # noqa: NPY002 (NVFlare's filters draw from the global generator)
        left = [change if privacy is None else leaving(change, privacy) for change in changes]
        mean = {key: torch.from_numpy(value) for key, value in add_mean(start, left).items()}
        written[label] = Path(output_dir) / f"{label}.pt"
        write_tensors(mean, written[label])
    return written


def leaving(change: Contribution, privacy: Privacy) -> Contribution:
    """What of a site's change the filter lets out. ValueError for arguments it cannot work with."""
    data = {key: value.copy() for key, value in change.difference.items()}
    dxo = DXO(DataKind.WEIGHT_DIFF, data, {MetaKey.NUM_STEPS_CURRENT_ROUND: change.samples})
    found = privacy.filter().process_dxo(dxo, Shareable(), FLContext())
    if found is None:  # NVFlare then sends the change as it is
        raise ValueError(f"privacy filter {privacy.label} lets everything out: check its arguments")
    return Contribution(change.site, found.data, change.samples)
