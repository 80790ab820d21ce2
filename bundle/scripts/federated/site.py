"""One site of a federation: its data set, and training and evaluation by MONAI's MonaiAlgo.

Nothing here knows of NVFlare. Weights come in, differences and summaries of errors go out.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine
from monai.engines import IterationEvents
from monai.fl.client import MonaiAlgo
from monai.fl.utils.constants import ExtraItems
from monai.fl.utils.exchange_object import ExchangeObject
from torch import Tensor, nn

from ..data.datalists import datalist
from ..data.dataset_check import DatasetError
from ..data.dataset_entries import FILES, located, read_dataset, section_of
from ..evaluation.about import bundle_version
from ..files import replacing
from ..network.head_pose_net import PARTS
from ..process import chain, reason
from ..reading import VolumeError
from ..reading.printable import printable
from ..training.optimization import go_to_step

logger = logging.getLogger(__name__)

BUNDLE_ROOT = Path(__file__).parents[2]
SHARES = ("all", *PARTS)
BEST, LAST, HISTORY = "model.pt", "last.pt", "rounds.json"
# what a federation decides; a site's own settings or a job's overrides may not
RESERVED = ("bundle_root", "epochs", "init_path", "resume", "load_weights", "section")
SECTIONS = ("training", "validation")
OWN_RELEASE = bundle_version()


class SiteError(Exception):
    """A site cannot take part.

    The message is sent to the server, so it never holds a path, a file name or a value of the
    site's data; ``detail`` does, and stays in the site's own log.
    """

    def __init__(self, message: str, detail: str = "") -> None:
        super().__init__(message)
        self.detail = detail or message


class OtherNetwork(SiteError):
    """The federation's weights are not those of the site's network, and will not be next time."""


@dataclass(frozen=True)
class Plan:
    """What a job asks of every site.

    Parameters
    ----------
    rounds : rounds of the whole federation; the learning rate falls to zero over all of them
    local_epochs : epochs of train.json that a site trains in each round
    share : part that is trained and shared: "all", "localizer", "rotation" or "landmarks". The
        others stay as they were in the start weights, at every site.
    overrides : entries of train.json by id, such as {"batch_size": 2}: numbers, truth values and
        lists of them. Text could be an expression or a path, and the plan comes from outside.
    """

    rounds: int
    local_epochs: int = 1
    share: str = "all"
    overrides: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("rounds", "local_epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if self.share not in SHARES:
            raise ValueError(f"share must be one of {SHARES}, got {self.share!r}")
        if taken := sorted(set(self.overrides) & {*RESERVED, "dataset_dir", "output_dir"}):
            raise ValueError(f"not for a job to override: {', '.join(taken)}")
        object.__setattr__(self, "overrides", dict(_flat(self.overrides)))
        for key, value in self.overrides.items():
            values = value if isinstance(value, list | tuple) else [value]
            if not all(isinstance(each, bool | int | float) for each in values):
                raise ValueError(f"override {key}: expected numbers, got {value!r}")


def install(what: str, release: str | None) -> str:
    """What a site does about a federation of another release; "" if it is of the same.

    Parameters
    ----------
    what : that comes from the federation, such as "weights"
    release : the federation's; None where it says none, as releases before 0.10.0

    >>> install("weights", "99.0")[:60]
    "the federation's weights are of release 99.0, this site has "
    """
    where = "(make federated-setup in a checkout of it)"
    if release is None:
        return (
            f"the federation's release is older than this site's, which is {OWN_RELEASE}: ask its "
            f"lead which one it is, and install that {where}"
        )
    if release == OWN_RELEASE:
        return ""
    return (
        f"the federation's {what} are of release {release}, this site has {OWN_RELEASE}: install "
        f"release {release} {where}"
    )


def read_release(given: object) -> str | None:
    """The release that a job names, None if it names none.

    SiteError for what is no name of a release: it would be repeated in logs and messages.
    """
    if given is None:
        return None
    if not isinstance(given, str) or not re.fullmatch(r"[\w.+-]{1,32}", given):
        raise SiteError("the job names no release that could be one")
    return given


def read_plan(given: object, release: str | None) -> Plan:
    """The plan that a job brings.

    SiteError, with what to install, for a plan that this release does not understand.
    """
    advice = install("jobs", release)
    advice = advice and f"; {advice}"
    if not isinstance(given, Mapping):
        raise SiteError(f"the job brings no plan{advice}")
    if unknown := sorted(map(str, set(given) - {entry.name for entry in fields(Plan)})):
        raise SiteError(f"the job asks what this site does not know: {unknown[:4]}{advice}")
    try:
        return Plan(**given)
    except (ValueError, TypeError) as error:
        raise SiteError(f"the job's plan is not one of this release: {error}{advice}") from error


def shared_keys(keys: Sequence[str], share: str) -> list[str]:
    """Those of a state_dict's keys that belong to the shared part."""
    return [key for key in keys if share == "all" or key.split(".", 1)[0] == share]


def read_site_file(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Settings of a site: "dataset_dir", "output_dir", and entries of train.json by id.

    Relative folders are as seen from the file. SiteError if it is not there, is not JSON, lacks
    one of the two folders or sets what the federation decides.
    """
    path = Path(path)
    try:
        settings = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise SiteError("the site file cannot be read", f"{path}: {error}") from error
    if not isinstance(settings, dict):
        raise SiteError("the site file is not an object", f"{path}: {type(settings).__name__}")
    for key in ("dataset_dir", "output_dir"):
        if not isinstance(settings.get(key), str):
            raise SiteError(f'the site file has no "{key}"', f"{path}: only {sorted(settings)}")
        settings[key] = str((path.parent / settings[key]).resolve())
    if taken := sorted(set(settings) & set(RESERVED)):
        raise SiteError(f"not for a site to set: {', '.join(taken)}", f"{path}: {taken}")
    return settings


def _flat(entries: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Entries under ids such as "network_def#crop_size"; `nvflare job submit` nests them.

    >>> dict(_flat({"batch_size": 2, "network_def": {"rotation": {"levels": 2}}}))
    {'batch_size': 2, 'network_def#rotation#levels': 2}
    """
    for key, value in entries.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}#")
        else:
            yield f"{prefix}{key}", value


class ProximalTerm:
    """Handler of a trainer that adds the gradient of FedProx, mu (w - w_global), to every step.

    It is the gradient of mu / 2 |w - w_global|^2 (Li et al. 2020, arXiv 1812.06127).

    Parameters
    ----------
    network : whose gradients
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.mu = 0.0
        self.anchor: Mapping[str, Tensor] = {}

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self._add)

    @torch.no_grad()
    def _add(self, engine: Engine) -> None:
        if not self.mu:
            return
        for name, parameter in self.network.named_parameters():
            # no gradient: a part that is not shared, or a step that is skipped
            if parameter.grad is not None:
                parameter.grad.add_(parameter - self.anchor[name].to(parameter), alpha=self.mu)


class FederatedSite:
    """Trains and evaluates global weights on a site's data, by train.json and evaluate.json.

    Parameters
    ----------
    name : name of the site
    settings : "dataset_dir", "output_dir", and entries of train.json by id
    plan : what the job asks

    Raises
    ------
    SiteError : the data set cannot be used; its network is checked with the first weights
    """

    def __init__(self, name: str, settings: Mapping[str, Any], plan: Plan) -> None:
        self.name, self.plan = name, plan
        self.dataset_dir = settings["dataset_dir"]
        self.output_dir = Path(settings["output_dir"])
        self.volumes = {section: _volumes(self.dataset_dir, section) for section in SECTIONS}
        common = {
            "bundle_root": str(BUNDLE_ROOT),
            **plan.overrides,
            **settings,
            "epochs": plan.rounds * plan.local_epochs,
            "num_workers": settings.get("num_workers", 0),
        }
        # the server's weights are validated instead, before every round
        training = {**common, "val_interval": 0}
        training["validate#dataset#cache_rate"] = 0.0
        self.algorithm = MonaiAlgo(
            bundle_root=str(BUNDLE_ROOT),
            local_epochs=plan.local_epochs,
            train_kwargs=training,
            eval_kwargs={**common, "section": "validation"},
            best_model_filepath=None,
            final_model_filepath=None,
        )
        with telling_which(self.dataset_dir):
            self.algorithm.initialize({ExtraItems.CLIENT_NAME: name})
        assert self.algorithm.trainer is not None
        self.network: nn.Module = self.algorithm.trainer.network
        for key, parameter in self.network.named_parameters():
            parameter.requires_grad_(bool(shared_keys([key], plan.share)))
        self.proximal = ProximalTerm(self.network)
        self.proximal.attach(self.algorithm.trainer)
        self._trained = False

    def check_weights(
        self, weights: Mapping[str, Tensor], release: str | None = OWN_RELEASE
    ) -> None:
        """OtherNetwork unless the weights are those of this site's network, key by key.

        Parameters
        ----------
        release : of the federation, None if it names none; the message says what to install
        """
        own = {key: tuple(value.shape) for key, value in self.network.state_dict().items()}
        given = {key: tuple(value.shape) for key, value in weights.items()}
        for key in sorted({*own, *given}):
            if own.get(key) != given.get(key):
                differing = (
                    f"another architecture: {key} has shape {given.get(key, 'none')} in the "
                    f"federation and {own.get(key, 'none')} at this site"
                )
                advice = install("weights", release)
                raise OtherNetwork(f"{differing}; {advice}" if advice else differing)

    def evaluate(self, weights: Mapping[str, Tensor], tag: str) -> dict[str, float]:
        """Metrics of weights on the site's validation volumes.

        The table of the cases stays at the site, as ``cases_<tag>.csv`` in its output folder.

        SiteError if a volume cannot be read.
        """
        with telling_which(self.dataset_dir):
            found = self.algorithm.evaluate(ExchangeObject(weights=dict(weights))).metrics
        assert found is not None
        with replacing(self.output_dir / f"cases_{tag}.csv") as partial:
            shutil.copyfile(self.output_dir / "cases.csv", partial)
        return {key: float(value) for key, value in found.items()}

    def train(self, weights: Mapping[str, Tensor], round_number: int, mu: float = 0.0) -> int:
        """Train from global weights for the local epochs; the number of volumes seen.

        Parameters
        ----------
        round_number : from 0. A site that begins late takes up the learning rate of its round.
        mu : weight of the proximal term, 0 for none

        SiteError if a volume cannot be read, or the weights are not finite afterwards.
        """
        trainer = self.algorithm.trainer
        assert trainer is not None
        if not self._trained and round_number:
            parser = self.algorithm.train_workflow.parser  # type: ignore[union-attr]
            epoch_steps = len(parser.get_parsed_content("train#dataloader"))
            scheduler = parser.get_parsed_content("lr_scheduler")
            go_to_step(scheduler, round_number * self.plan.local_epochs * epoch_steps)
        self._trained = True
        self.proximal.mu = mu
        self.proximal.anchor = {key: value.clone() for key, value in weights.items()}
        with telling_which(self.dataset_dir):
            self.algorithm.train(ExchangeObject(weights=dict(weights)))
        if not all(value.isfinite().all() for value in self.network.state_dict().values()):
            raise SiteError("training ended in weights that are not finite")
        return self.volumes["training"] * self.plan.local_epochs

    def weights(self) -> dict[str, Tensor]:
        """A copy of the site's weights as its last training left them, on the CPU."""
        return {key: value.cpu().clone() for key, value in self.network.state_dict().items()}

    def difference(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the last training changed in the shared part of the global ``weights``."""
        own = self.network.state_dict()
        keys = shared_keys(list(own), self.plan.share)
        return {key: own[key].cpu() - weights[key].cpu() for key in keys}


def _volumes(dataset_dir: str, section: str) -> int:
    """Number of volumes of a section; SiteError without any, or for a bad dataset.json."""
    try:
        entries = datalist(dataset_dir, section)
    except FileNotFoundError as error:
        where = _place(error)
        message = f"a file of {where} is missing" if where else "there is no dataset.json"
        raise SiteError(f"no usable data: {message}", str(error)) from error
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise SiteError(
            f"bad data set: {_place(error) or 'dataset.json'} is not as docs/data.md says",
            f"{dataset_dir}: {error}",
        ) from error
    if not entries:
        raise SiteError(f"no usable data: no {section} volumes", f"{dataset_dir}: no {section}")
    return len(entries)


def _place(error: BaseException) -> str:
    """ "training[3]" out of a message of ``datalist``, which may name files of the site."""
    found = re.search(r"(training|validation)\[\d+\]", str(error))
    return found.group() if found else ""


@contextmanager
def telling_which(dataset_dir: str) -> Iterator[None]:
    """Raise a SiteError that names the entry, and no file, for an error that a volume causes.

    What no volume causes passes as it is.
    """
    try:
        yield
    except Exception as error:
        causes, detail = chain(error), f"{dataset_dir}: {reason(error)}"
        for cause in causes:
            if isinstance(cause, DatasetError):
                where = f", first in {_place(cause)}" if _place(cause) else ""
                raise SiteError(
                    f"bad data set: its check finds errors{where}; python -m scripts.datasets "
                    "check, at the site, lists all",
                    detail,
                ) from error
        if entry := _entry_named("\n".join(map(str, causes)), dataset_dir):
            kinds = [str(cause.status) for cause in causes if isinstance(cause, VolumeError)]
            kind = f" ({kinds[0]})" if kinds else ""
            raise SiteError(f"bad data: {entry} cannot be read or used{kind}", detail) from error
        raise


def _entry_named(text: str, dataset_dir: str) -> str:
    """ "training[3]", whose file a message names; "" if it names none.

    From the text, because a loader's worker hands on nothing else.
    """
    named, length = "", 0
    content = read_dataset(dataset_dir)
    for section in SECTIONS:
        for number, entry in enumerate(section_of(content, dataset_dir, section)):
            full = located(entry, dataset_dir)
            for path in (printable(full[key]) for key in FILES if full.get(key)):
                # the longest: a.nii is part of a.nii.gz, and the folder of all
                if path in text and len(path) > length:
                    named, length = f"{section}[{number}]", len(path)
    return named


def finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics that are numbers; what is undefined at a site is not reported."""
    return {key: value for key, value in metrics.items() if math.isfinite(value)}
