"""Weights out of the files in which people keep them, checked before a network gets them.

A file is a plain state_dict, as ``models/model.pt``; or a dictionary that holds one under "network"
(``checkpoint.pt`` of this bundle's training), "state_dict" or "model" (Lightning, MONAI). The
prefix ``module.`` that DataParallel leaves is taken off.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn

INSIDE = ("network", "state_dict", "model", "model_state_dict")
PREFIX = "module."
SHOWN = 4
# how a file begins that is something else
OTHERS = (
    (b"version https://git-lfs", "a pointer of git-lfs, not the weights: run `git lfs pull`"),
    (b"<!DOCTYPE", "an HTML page, not weights: the download went wrong"),
    (b"<!doctype", "an HTML page, not weights: the download went wrong"),
    (b"<html", "an HTML page, not weights: the download went wrong"),
)


class WeightsError(ValueError):
    """A file that holds no weights for a network; the message names the file."""


def read_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The state_dict in a file, on the CPU, under the names of the network itself.

    No code of the file runs (``weights_only=True``). FileNotFoundError if there is none;
    WeightsError for what is no file of weights, or has weights that are NaN or infinite.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file of weights")
    if path.is_dir():
        raise WeightsError(f"{path}: a folder, not a file of weights")
    with open(path, "rb") as file:
        start = file.read(64).lstrip()
    if not start:
        raise WeightsError(f"{path}: an empty file")
    for beginning, what in OTHERS:
        if start.startswith(beginning):
            raise WeightsError(f"{path}: {what}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise WeightsError(
            f"{path}: holds other objects than tensors, which are not loaded because they can run "
            "code, or is no file of weights"
        ) from error
    except Exception as error:  # torch and zip raise many types for a broken file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{path}: cut short, or no file of weights: {reason}") from error
    state = _state_dict(content, path)
    bad = [key for key, value in state.items() if not value.isfinite().all()]
    if bad:
        raise WeightsError(f"{path}: {len(bad)} weights are NaN or infinite, first {bad[0]}")
    return state


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    if isinstance(content, Mapping):
        for key in INSIDE:
            if isinstance(content.get(key), Mapping):
                content = content[key]
                break
    if not isinstance(content, Mapping) or not content:
        raise WeightsError(f"{path}: no state_dict, but a {type(content).__name__}")
    others = [key for key, value in content.items() if not isinstance(value, Tensor)]
    if others:
        raise WeightsError(
            f"{path}: no state_dict: {others[0]!r} is a {type(content[others[0]]).__name__}"
        )
    if all(str(key).startswith(PREFIX) for key in content):
        content = {str(key).removeprefix(PREFIX): value for key, value in content.items()}
    return dict(content)


def difference(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    """By which weights two state_dicts differ in names or shapes, in words; empty if by none.

    >>> difference({"a": torch.zeros(2), "b": torch.zeros(1)}, {"a": torch.zeros(3)})
    '2 of 2 weights differ: a is (3,), here (2,); b is missing, here (1,)'
    """
    keys, differing = sorted({*own, *given}), []
    for key in keys:
        shapes = [tuple(s[key].shape) if key in s else "missing" for s in (given, own)]
        if shapes[0] != shapes[1]:
            differing.append(f"{key} is {shapes[0]}, here {shapes[1]}")
    if not differing:
        return ""
    more = "; ..." if len(differing) > SHOWN else ""
    shown = "; ".join(differing[:SHOWN])
    return f"{len(differing)} of {len(keys)} weights differ: {shown}{more}"


def part_of(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The weights of one part of a network, by their names in it.

    >>> part_of({"localizer.w": torch.zeros(1), "rotation.w": torch.zeros(1)}, "localizer")
    {'w': tensor([0.])}
    """
    prefix = f"{name}."
    return {
        key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)
    }


def for_network(network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``state`` in the shapes of ``network`` where an older release had others (``of_older``)."""
    found = dict(state)
    for name, module in network.named_modules():
        if hasattr(module, "of_older"):
            found = dict(module.of_older(found, f"{name}." if name else ""))  # type: ignore[operator]
    return found


def load_weights(network: nn.Module, path: str | os.PathLike[str]) -> None:
    """Give a network the weights of a file.

    Those of ``read_weights``, and WeightsError for a file of another network: the network stays as
    it was.
    """
    state = for_network(network, read_weights(path))
    if differing := difference(network.state_dict(), state):
        raise WeightsError(f"{path}: of another network; {differing}")
    network.load_state_dict(state)


class CheckpointLoader:
    """Handler that loads weights when an engine starts, from any file that ``read_weights`` knows.

    MONAI's handler of this name wants the very dictionary that it is told of, and loads NaN.
    (Federated training finds such handlers by that name, and leaves them out.)

    Parameters
    ----------
    load_path : file
    network : gets the weights; see ``load_weights`` for what is raised
    """

    def __init__(self, load_path: str | os.PathLike[str], network: nn.Module) -> None:
        self.load_path, self.network = load_path, network

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._load)

    def _load(self, _: Engine) -> None:
        load_weights(self.network, self.load_path)
