"""Checkpoints of the authors as a model.pt of this bundle, and their network as a config."""

from __future__ import annotations

import logging
import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint

from ..files import json_text, write_json, write_tensors
from .network import E3PoseNet
from .weights import import_localizer, import_rotation

logger = logging.getLogger(__name__)


OTHER = "{} has other content and is left alone; choose another folder"


# all that the pickle of a state_dict calls
TENSOR_PARTS = {
    ("collections", "OrderedDict"),
    ("torch._utils", "_rebuild_parameter"),
    ("torch._utils", "_rebuild_tensor_v2"),
}


class _Skipped:
    """Stands for a pickled object that is not wanted: takes whatever comes and does nothing."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __call__(self, *_: Any, **__: Any) -> _Skipped:
        return self

    __setstate__ = __setitem__ = append = extend = __init__


class _TensorPickle:
    """What torch.load uses in place of the module pickle; torch itself adds the storages."""

    class Unpickler(pickle.Unpickler):
        """Makes tensors only (documentation of pickle, "Restricting Globals")."""

        def find_class(self, module: str, name: str) -> Any:
            return super().find_class(module, name) if (module, name) in TENSOR_PARTS else _Skipped


def read_state(
    path: str | os.PathLike[str], entry: str, skip_objects: bool = False
) -> dict[str, Tensor]:
    """The state_dict under ``entry`` of a checkpoint, read with ``weights_only=True``.

    Parameters
    ----------
    skip_objects : pass over Python objects beside the tensors (such as hyperparameters in
        Lightning files), which ``weights_only`` refuses. Such a file is read by an unpickler that
        makes tensors only; the code of other objects is neither imported nor run.

    FileNotFoundError if there is no such file; ValueError, naming the file, if it cannot be read,
    holds such objects, has no state_dict under ``entry`` or values that are not finite.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: no such file")
    objects: list[str] = []
    try:
        if zipfile.is_zipfile(path):
            objects = get_unsafe_globals_in_checkpoint(path)
        other = objects and skip_objects
        reader: Any = {"pickle_module": _TensorPickle} if other else {}
        content = torch.load(path, map_location="cpu", weights_only=not other, **reader)
    except Exception as error:  # torch raises many types for a broken file
        # around its reason PyTorch puts advice to run the code
        reason = str(error).rpartition("WeightsUnpickler error: ")[2].partition("\n")[0]
        reason = f"truncated, or no checkpoint of tensors: {reason or type(error).__name__}"
        if objects and not skip_objects:
            reason = (
                "besides tensors it holds Python objects, which could run code when loaded: "
                f"{', '.join(sorted(objects))}; --skip_objects passes over them"
            )
        raise ValueError(f"{path}: cannot be read: {reason}") from error
    if objects:
        logger.warning("%s: passed over objects of %s", path, ", ".join(sorted(objects)))
    state = content.get(entry) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping):
        found = sorted(map(str, content)) if isinstance(content, Mapping) else type(content)
        raise ValueError(f"{path}: expected a state_dict under {entry!r}, found only {found}")
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"{path}: {key}: expected a tensor, got a {type(value).__name__}")
        if not value.isfinite().all():
            raise ValueError(f"{path}: {key}: has values that are NaN or infinite")
    return dict(state)


def import_e3pose(
    rotation: str | os.PathLike[str],
    localizer: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    spacing_mm: float = 3.0,
    crop_size: int = 64,
    canonical_axes: str = "RAS",
    skip_objects: bool = False,
) -> Path:
    """Write ``model.pt`` and ``e3pose.json`` into ``output_dir``; return the path of the latter.

    Parameters
    ----------
    rotation : the E(3)-CNN's .pth, ``{"net_state_dict": ...}``
    localizer : the U-Net's .ckpt of Lightning, ``{"state_dict": ...}``
    output_dir : made if need be; files of other content in it are never overwritten
    spacing_mm, crop_size : of the grid and the crop that the weights were trained on; these cannot
        be read from them
    canonical_axes : to which sides of the head the three axes point that they were trained for
    skip_objects : as for ``read_state``

    FileNotFoundError and ValueError, naming the file and the key, for what cannot be used.
    """
    if not spacing_mm > 0:
        raise ValueError(f"spacing_mm must be a length in mm, got {spacing_mm}")
    state = read_state(rotation, "net_state_dict", skip_objects)
    rotation_net, rotation_config = import_rotation(state, rotation, canonical_axes)
    multiple = 2 ** (rotation_net.levels - 1)
    if crop_size <= 0 or crop_size % multiple:
        raise ValueError(
            f"{rotation}: its {rotation_net.levels} levels need a crop_size that is a multiple of "
            f"{multiple} voxels, got {crop_size}"
        )
    state = read_state(localizer, "state_dict", skip_objects)
    localizer_net, localizer_config = import_localizer(state, localizer)
    root = Path(output_dir).absolute()
    config = {
        "weights_dir": str(root),
        "ckpt_path": "$@weights_dir + '/model.pt'",
        "init_path": "$@weights_dir + '/model.pt'",
        "spacing_mm": spacing_mm,
        "crop_fill": 0.6,
        "uncertain_above_deg": None,
        "patch_voxels": 128,
        "rotation_lr": 0.001,
        "localizer_lr": 0.0001,
        "network_def": {
            "_target_": "scripts.e3pose.network.E3PoseNet",
            "spacing_mm": "@spacing_mm",
            "crop_size": crop_size,
            "crop_fill": "@crop_fill",
            "min_brain_ml": 10.0,
            "localizer": {"_target_": "scripts.e3pose.unet.UNet", **localizer_config},
            "rotation": {"_target_": "scripts.network.E3CNN", **rotation_config},
        },
    }
    _write(E3PoseNet(localizer_net, rotation_net).state_dict(), config, root)
    return root / "e3pose.json"


def _write(state: Mapping[str, Tensor], config: dict[str, Any], root: Path) -> None:
    """Both files or, where either is there with other content, neither."""
    model, declared = root / "model.pt", root / "e3pose.json"
    if model.exists() and not _holds(model, state):
        raise ValueError(OTHER.format(model))
    if declared.exists() and declared.read_text() != json_text(config):
        raise ValueError(OTHER.format(declared))
    if not model.exists():
        write_tensors(dict(state), model)
    write_json(declared, config)


def _holds(path: Path, state: Mapping[str, Tensor]) -> bool:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # whatever it is, it is not this
        return False
    return (
        isinstance(found, Mapping)
        and set(found) == set(state)
        and all(isinstance(v, Tensor) and v.equal(state[key]) for key, v in found.items())
    )
