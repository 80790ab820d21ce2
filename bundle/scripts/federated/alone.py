"""What a federation is measured against: every site by itself, and all data in one place."""

from __future__ import annotations

import math
import multiprocessing
import os
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.dataset_entries import SECTIONS, located, read_dataset, section_of
from ..files import write_json, write_tensors
from .site import BEST, HISTORY, LAST, FederatedSite, Plan, finite, read_site_file


def train_alone(
    site_files: Mapping[str, str | os.PathLike[str]],
    plan: Plan,
    weights: Mapping[str, Tensor],
    key_metric: str,
    num_workers: int = 2,
) -> None:
    """Train each site by itself, rated before every round and after the last one.

    In each site's output folder: ``model.pt``, its best weights by ``key_metric``; ``last.pt``; and
    ``rounds.json``, the metrics of each round and the volumes it went through. As in a federation,
    the start weights count too.

    SiteError for a site whose data cannot be used.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, mp_context=context) as pool:
        jobs = [
            pool.submit(_train_one, name, os.fspath(path), plan, weights, key_metric)
            for name, path in site_files.items()
        ]
        for job in jobs:
            job.result()


def pool_data(
    site_files: Mapping[str, str | os.PathLike[str]], folder: str | os.PathLike[str]
) -> Path:
    """A site file of all sites' data as those of one: the ceiling that a federation may come to.

    Written with its dataset.json, which names the volumes where they lie, into ``folder``.

    SiteError, FileNotFoundError, ValueError for a site file or a data set that cannot be used.
    """
    folder = Path(folder)
    content: dict[str, list[dict[str, Any]]] = {section: [] for section in SECTIONS}
    for name, path in site_files.items():
        dataset_dir = read_site_file(path)["dataset_dir"]
        given = read_dataset(dataset_dir)
        for section, entries in content.items():
            for number, entry in enumerate(section_of(given, dataset_dir, section)):
                subject = f"{name}/{entry.get('subject', f'{section}_{number}')}"
                entries.append({**located(entry, dataset_dir), "subject": subject})
    write_json(folder / "dataset.json", content)
    write_json(folder / "site.json", {"dataset_dir": str(folder), "output_dir": str(folder)})
    return folder / "site.json"


def _train_one(
    name: str, site_file: str, plan: Plan, weights: Mapping[str, Tensor], key_metric: str
) -> None:
    torch.set_num_threads(1)
    settings = read_site_file(site_file)
    site = FederatedSite(name, settings, plan)
    site.check_weights(weights)
    best, history = math.inf, []
    for number in range(plan.rounds + 1):
        metrics = finite(site.evaluate(weights, f"round_{number}"))
        error = metrics.get(key_metric, math.inf)
        history.append({"round": number, "metrics": metrics, "best": error < best})
        if error < best:
            best = error
            write_tensors(dict(weights), Path(settings["output_dir"]) / BEST)
        if number < plan.rounds:
            history[-1]["samples"] = site.train(weights, number)
            weights = site.weights()
    write_tensors(dict(weights), Path(settings["output_dir"]) / LAST)
    write_json(Path(settings["output_dir"]) / HISTORY, history)
