"""What NVFlare runs at the server: rounds of federated averaging, and the choice of the best.

A subclass of NVFlare's ModelController rather than its FedAvg, because that one adds up in the
order of arrival (so that a rerun differs), never rates the start weights nor the last ones, and
stops the job when a site sends an error.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from nvflare.apis.dxo import MetaKey
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.utils.fedprox_utils import set_fedprox_metadata
from nvflare.app_common.workflows.model_controller import ModelController

from ..files import replacing, write_json, write_tensors
from .client import PLAN, REFUSED, RELEASE, VOLUMES
from .site import BEST, HISTORY, LAST, Plan, shared_keys

Weights = Mapping[str, NDArray[np.float32]]

START_WEIGHTS = "start.pt"
# errors, so the lowest is the best
KEY_METRICS = ("rotation_deg", "rotation_mean_deg", "rotation_above_30")


@dataclass(frozen=True)
class Contribution:
    """What a site trained: the change of the shared weights, and on how many volumes."""

    site: str
    difference: Weights
    samples: int


def check_difference(
    difference: Weights, weights: Weights, share: str, samples: object = 1
) -> None:
    """ValueError unless it fits the shared part of the weights, is finite, and so is its weight."""
    expected = set(shared_keys(list(weights), share))
    if set(difference) != expected:
        wrong = sorted(expected ^ set(difference))
        raise ValueError(f"other weights than the shared ones: {wrong[:3]} ({len(wrong)} in all)")
    for key, value in difference.items():
        if value.shape != weights[key].shape:
            raise ValueError(f"{key} has shape {value.shape}, expected {weights[key].shape}")
        if not np.isfinite(value).all():
            raise ValueError(f"{key} is not finite")


def add_mean(weights: Weights, contributions: Sequence[Contribution]) -> dict[str, NDArray]:
    """Weights plus the mean difference, weighted by the volumes seen.

    As every site began from the same weights, this is the weighted mean of the sites' weights.
    Sums are in float64 and in the order of the sites' names: the order of arrival says nothing.
    """
    ordered = sorted(contributions, key=lambda contribution: contribution.site)
    total = sum(contribution.samples for contribution in ordered)
    new = dict(weights)
    for key in ordered[0].difference:
        mean = sum(c.difference[key].astype(np.float64) * (c.samples / total) for c in ordered)
        new[key] = (weights[key] + mean).astype(weights[key].dtype)
    return new


def pooled(sites: Mapping[str, Mapping[str, Any]], metric: str) -> float:
    """Mean of the sites' metric weighted by their validation volumes; NaN if no site has it."""
    rated = [site for site in sites.values() if metric in site["metrics"]]
    volumes = sum(site[VOLUMES] for site in rated)
    if not volumes:
        return math.nan
    return sum(site["metrics"][metric] * site[VOLUMES] for site in rated) / volumes


def is_better(
    sites: Mapping[str, Mapping[str, Any]],
    best: Mapping[str, Mapping[str, Any]] | None,
    metric: str,
) -> bool:
    """Whether weights with these ratings are better than the best so far (None: there are none).

    Only sites that rated both count: when a difficult site drops out, the mean of the others is
    lower, but the weights are no better.
    """
    if best is None:
        return math.isfinite(pooled(sites, metric))
    rated = {
        name for name in sites if metric in sites[name]["metrics"] and name in best
        and metric in best[name]["metrics"]
    }  # fmt: skip
    now, before = ({name: each[name] for name in rated} for each in (sites, best))
    return pooled(now, metric) < pooled(before, metric)


class HeadPoseFederation(ModelController):
    """Rounds of local training and averaging, each begun by rating the global weights.

    In the job's folder at the server: ``last.pt`` after every round, ``model.pt`` the weights
    with the lowest key metric so far (start weights and last ones included), both plain
    state_dicts; ``rounds.json`` what every site reported, and which refused and why.

    Parameters
    ----------
    rounds, local_epochs, share, overrides : the `Plan` of every site
    start_round : the first one of this job; more than 0 goes on after a server was lost
    min_sites : a round with fewer contributions ends the job
    grace_s : seconds that a round waits for the others once min_sites have contributed
    fedprox_mu : weight of FedProx's proximal term, 0 for plain averaging
    key_metric : one of KEY_METRICS, the sites' values weighted by their validation volumes
    release : of who exported the job; a site with another network tells which one to install
    """

    def __init__(
        self,
        rounds: int,
        local_epochs: int = 1,
        share: str = "all",
        overrides: Mapping[str, Any] | None = None,
        start_round: int = 0,
        min_sites: int = 1,
        grace_s: float = 600.0,
        fedprox_mu: float = 0.0,
        key_metric: str = "rotation_deg",
        release: str = "",
    ) -> None:
        super().__init__(persistor_id="", ignore_result_error=True)
        if not 0 <= start_round < rounds:
            raise ValueError(f"start_round must lie in 0..{rounds - 1}, got {start_round}")
        if key_metric not in KEY_METRICS:
            raise ValueError(f"key_metric must be one of {KEY_METRICS}, got {key_metric!r}")
        # NVFlare exports a component by the attributes of its arguments' names
        self.rounds, self.local_epochs, self.share = rounds, local_epochs, share
        self.overrides = dict(overrides or {})
        self.start_round, self.min_sites, self.grace_s = start_round, min_sites, grace_s
        self.fedprox_mu, self.key_metric, self.release = fedprox_mu, key_metric, release
        self._plan = Plan(rounds, local_epochs, share, self.overrides)
        self._weights: dict[str, NDArray] = {}
        self._best: Mapping[str, Any] | None = None
        self._history: list[dict[str, Any]] = []
        self._contributions: list[Contribution] = []
        self._useful = 0
        self._late: set[str] = set()
        self._lock = threading.Lock()

    def run(self) -> None:
        """Called by NVFlare: all rounds, then the last weights are rated once more."""
        self._begin()
        for number in range(self.start_round, self.rounds):
            self._ask("train", number)
            if self.abort_signal.triggered:
                return
            if len(self._contributions) < self.min_sites:
                self.panic(
                    f"round {number}: {len(self._contributions)} contributions, "
                    f"{self.min_sites} are needed; refused: {self._history[-1]['refused']}"
                )
                return
            self._weights = add_mean(self._weights, self._contributions)
            self._save(LAST)
            self._history[-1]["averaged"] = True
            self._write_history()
        self._ask("validate", self.rounds)
        if self._best is None:
            self.panic(f"no site ever reported {self.key_metric}: there is no best model")
            return
        self.info(f"{BEST} has the weights of round {self._best['round']}")

    def _begin(self) -> None:
        """Read what the job brings: start weights, and best and history of a lost server."""
        job_id = self.fl_ctx.get_job_id()
        folder = Path(self.engine.get_workspace().get_app_config_dir(job_id))
        state = torch.load(folder / START_WEIGHTS, map_location="cpu", weights_only=True)
        self._weights = {key: value.numpy() for key, value in state.items()}
        if self.start_round:
            history = json.loads((folder / HISTORY).read_text())
            self._history = [record for record in history if record["averaged"]]
            self._best = next((r for r in reversed(self._history) if r["best"]), None)
            with replacing(self._path(BEST)) as partial:
                shutil.copyfile(folder / BEST, partial)

    def _ask(self, task: str, number: int) -> None:
        """Send the global weights to all sites, wait for them, and keep the weights if best."""
        self._contributions, self._useful = [], 0
        self._history.append({"round": number, "sites": {}, "refused": {}, "averaged": False})
        self.info(f"round {number} of {self.rounds}: {task}")
        model = FLModel(
            params_type=ParamsType.FULL,
            params={key: value.copy() for key, value in self._weights.items()},
            start_round=self.start_round,
            current_round=number,
            total_rounds=self.rounds,
            meta={PLAN: asdict(self._plan)} | ({RELEASE: self.release} if self.release else {}),
        )
        set_fedprox_metadata(model, self.fedprox_mu or None)
        targets = [
            site
            for site in sorted(client.name for client in self.engine.get_clients())
            if not self.get_client_disconnect_time(site)
        ]
        self.send_model(task_name=task, data=model, targets=targets, callback=self._receive)
        self._wait(targets)
        record = self._history[-1]
        # in the order of names, not of arrival: a rerun writes the same file
        record["sites"] = dict(sorted(record["sites"].items()))
        value = pooled(record["sites"], self.key_metric)
        record["pooled"] = value if math.isfinite(value) else None
        best = None if self._best is None else self._best["sites"]
        record["best"] = is_better(record["sites"], best, self.key_metric)
        if record["best"]:
            self._best = record
            self._save(BEST)
        self.info(f"round {number}: pooled {self.key_metric} {value:.3f}")
        self._write_history()

    def _wait(self, targets: Sequence[str]) -> None:
        """Until every site has answered or is gone, or the grace after min_sites is over.

        A site that was late once is not waited for again; if it answers in time, it counts.
        """
        enough_since = None
        while self.get_num_standing_tasks() and not self.abort_signal.triggered:
            time.sleep(self._task_check_period)
            with self._lock:
                record = self._history[-1]
                answered = {*record["sites"], *record["refused"]}
                enough = self._useful >= self.min_sites
            if not enough:
                continue
            enough_since = enough_since or time.monotonic()
            missing = set(targets) - answered
            if time.monotonic() - enough_since > self.grace_s:
                self._late |= missing
            if missing and missing <= self._late:
                self.warning(f"going on without {sorted(missing)}")
                self.cancel_all_tasks()
                break

    def _receive(self, reply: FLModel) -> bool:
        """Called by NVFlare with a site's answer; False if it is not used."""
        meta = reply.meta or {}
        site, record = meta["client_name"], self._history[-1]
        try:
            if REFUSED in meta:
                raise ValueError(meta[REFUSED])
            contribution = None
            if reply.params is not None:
                samples = meta.get(MetaKey.NUM_STEPS_CURRENT_ROUND)
                if not isinstance(samples, int) or samples < 1:
                    raise ValueError(f"expected a number of volumes, got {samples!r}")
                check_difference(reply.params, self._weights, self.share)
                contribution = Contribution(site, reply.params, samples)
        except ValueError as error:
            self.error(f"{site} does not take part in round {record['round']}: {error}")
            with self._lock:
                record["refused"][site] = str(error)
            return False
        rating: dict[str, Any] = {"metrics": reply.metrics or {}, VOLUMES: meta.get(VOLUMES, 0)}
        with self._lock:
            if contribution is not None:
                rating["samples"] = contribution.samples
                self._contributions.append(contribution)
            record["sites"][site] = rating
            self._useful += 1
            self._late.discard(site)
        return True

    def _save(self, name: str) -> None:
        state = {key: torch.from_numpy(value.copy()) for key, value in self._weights.items()}
        write_tensors(state, self._path(name))

    def _write_history(self) -> None:
        write_json(self._path(HISTORY), self._history)

    def _path(self, name: str) -> str:
        return os.path.join(self.get_run_dir(), name)
