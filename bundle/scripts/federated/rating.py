"""Every model of a comparison on every site's volumes, those of a section that chose none of them.

Only where the sites share a machine: in a federation no site sees the volumes of another.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigWorkflow
from tqdm import tqdm

from ..files import replacing
from ..weight_files import load_weights
from .site import BEST, BUNDLE_ROOT, read_site_file

CONFIGS = [str(BUNDLE_ROOT / "configs" / name) for name in ("train.json", "evaluate.json")]


def models_of(named: Mapping[str, str | os.PathLike[str]], sites: list[str]) -> dict[str, Path]:
    """Files of weights by name; a folder stands for one model of each site, "folder/site".

    FileNotFoundError for a file that is not there.

    >>> models_of({"alone": "O/alone"}, [])
    {}
    """
    models = {}
    for name, place in named.items():
        path = Path(place)
        parts = {f"{name}/{site}": path / site / BEST for site in sites}
        models.update(parts if path.is_dir() else {name: path})
    for path in models.values():
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file of weights")
    return models


def rate(
    site_files: Mapping[str, str | os.PathLike[str]],
    models: Mapping[str, str | os.PathLike[str]],
    output_dir: str | os.PathLike[str],
    section: str = "test",
    num_workers: int = 2,
) -> None:
    """Write ``output_dir/section/model/site.csv`` for every model and site, as evaluate.json does.

    What is newer than its model stays, so that a run which was stopped goes on.

    Parameters
    ----------
    site_files : see `read_site_file`
    models : files of weights by the names of their folders
    section : of the sites' data sets

    Raises
    ------
    SiteError, ValueError, FileNotFoundError : a site file, a data set or weights cannot be used
    """
    output = Path(output_dir) / section
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, mp_context=context) as pool:  # starts what it needs
        jobs = [
            pool.submit(_rate_site, name, os.fspath(path), todo, output, section)
            for name, path in site_files.items()
            if (todo := _not_rated(name, models, output))
        ]
        for job in tqdm(jobs, desc=f"rating on {section}", unit="site"):
            job.result()


def _rate_site(
    name: str,
    site_file: str,
    models: Mapping[str, str | os.PathLike[str]],
    output: Path,
    section: str,
) -> None:
    torch.set_num_threads(1)
    own = output / f".{name}"
    settings: dict[str, Any] = {
        **read_site_file(site_file),
        "bundle_root": str(BUNDLE_ROOT),
        "output_dir": str(own),
        "section": section,
        "load_weights": False,
        "num_workers": 0,
        "validate#dataset#cache_rate": 1.0,
    }
    workflow = ConfigWorkflow(
        CONFIGS,
        logging_file=False,
        workflow_type="train",
        **settings,
    )
    workflow.initialize()
    logging.getLogger("ignite").setLevel(logging.WARNING)
    evaluator = workflow.parser.get_parsed_content("validate#evaluator")
    network = workflow.parser.get_parsed_content("network")
    for model, weights in models.items():
        load_weights(network, weights)
        evaluator.run()
        with replacing(_rating_file(name, model, output)) as partial:
            shutil.copyfile(own / "cases.csv", partial)
    shutil.rmtree(own)


def _not_rated(
    name: str, models: Mapping[str, str | os.PathLike[str]], output: Path
) -> dict[str, str | os.PathLike[str]]:
    """The models whose file for this site is missing, or older than they are."""
    return {
        model: weights
        for model, weights in models.items()
        if not _is_newer(_rating_file(name, model, output), weights)
    }


def _is_newer(path: Path, model: str | os.PathLike[str]) -> bool:
    return path.exists() and path.stat().st_mtime >= Path(model).stat().st_mtime


def _rating_file(name: str, model: str, output: Path) -> Path:
    return output / model / f"{name}.csv"
