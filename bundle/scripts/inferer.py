"""Between MONAI's engines and HeadPoseNet: what goes in, and what comes out at evaluation."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from monai.engines import PrepareBatch
from monai.inferers import Inferer
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .crop import Box
from .geometry import no_head
from .network import HeadPoseNet

logger = logging.getLogger(__name__)


class PrepareHeadBatch(PrepareBatch):
    """Volumes, targets and the cubes around the reference brains, from a batch of training data.

    Gives ``image``; ``label``, ``head_to_grid``, ``has_head`` and the targets of the landmarks as
    one dictionary; and the ``Box`` and, if the batch has them, the cubes for the landmarks, which
    engines hand to the inferer after the network.
    """

    def __call__(  # type: ignore[override]
        self,
        batchdata: dict[str, Tensor],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **_: Any,
    ) -> tuple[Tensor, dict[str, Tensor], tuple[Any, ...], dict]:
        def move(key: str) -> Tensor:
            return torch.as_tensor(batchdata[key]).to(device, non_blocking=non_blocking)

        target = {key: move(key) for key in ("label", "head_to_grid", "has_head")}
        inputs: tuple[Any, ...] = (Box(move("center_mm"), move("side_mm")),)
        if "crop" in batchdata:
            cubes, cube_target = _cubes(move)
            inputs += (cubes,)
            target |= cube_target
        return move("image"), target, inputs, {}


class PrepareLabelBatch(PrepareBatch):
    """``image`` and ``label`` from a batch of training data, for the localizer alone."""

    def __call__(  # type: ignore[override]
        self,
        batchdata: dict[str, Tensor],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **_: Any,
    ) -> tuple[Tensor, Tensor]:
        image, label = (
            torch.as_tensor(batchdata[key]).to(device, non_blocking=non_blocking)
            for key in ("image", "label")
        )
        return image, label


class PrepareCubeBatch(PrepareBatch):
    """The cubes for the landmarks, and their targets, from a batch of training data."""

    def __call__(  # type: ignore[override]
        self,
        batchdata: dict[str, Tensor],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **_: Any,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return _cubes(lambda key: batchdata[key].to(device, non_blocking=non_blocking))


def _cubes(get: Callable[[str], Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Those of all items, (batch, n, ...), as one batch."""
    targets = ("crop_point", "crop_aligned")
    return get("crop").flatten(0, 1), {key: get(key).flatten(0, 1) for key in targets}


class SmallInFloat32(TorchFunctionMode):
    """Within it conv3d of a kernel larger than its input is done in float32, also under autocast.

    torch 2.13 computes its gradient in bfloat16 on a CPU from memory that nobody has written.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is not torch.conv3d or min(args[0].shape[2:]) >= max(args[1].shape[2:]):
            return func(*args, **(kwargs or {}))
        args = tuple(a.float() if isinstance(a, Tensor) else a for a in args)
        with torch.autocast(args[0].device.type, enabled=False):
            return func(*args, **(kwargs or {}))


def lacks_bfloat16() -> bool:
    """Whether this is an x86 processor that has to emulate bfloat16."""
    found = torch.cpu.get_capabilities()
    x86 = found.get("architecture") == "x86_64"
    return x86 and not (found["avx512_bf16"] or found["amx_bf16"])


class TrainingInferer(Inferer):
    """Calls the network, in bfloat16 where that is precise enough if ``mixed_precision``.

    MONAI's own ``amp`` knows CUDA only. Weights, losses and poses stay float32; no loss scaling
    is needed, because bfloat16 has the range of float32. Logs a warning where that is slower.
    """

    def __init__(self, mixed_precision: bool = False) -> None:
        self.mixed_precision = mixed_precision
        self.checked = False

    def __call__(  # type: ignore[override]
        self, inputs: Tensor, network: torch.nn.Module, *args: Any, **kwargs: Any
    ) -> Any:
        inputs = torch.as_tensor(inputs)
        if not self.mixed_precision:
            return network(inputs, *args, **kwargs)
        if not self.checked and inputs.device.type == "cpu" and lacks_bfloat16():
            logger.warning(
                "mixed_precision: this processor has no instructions for bfloat16; training with "
                "--mixed_precision False is about twice as fast"
            )
        self.checked = True
        with torch.autocast(inputs.device.type, torch.bfloat16), SmallInFloat32():
            return network(inputs, *args, **kwargs)


class HeadPoseInferer(Inferer):
    """``HeadPoseNet.predict`` as a dictionary, without gradients; no head is looked for again.

    A volume in which no head is found is turned by 120 degrees about its diagonal, which no more
    than exchanges its axes, and looked at again, perhaps once more at 240. The localizer is not
    equivariant: turned, it often sees a head that it had missed. But each look is another chance
    to take something else for a head, so a later one counts only if it is sure. The result is that
    of the first look that counts, in the axes of the volume as it came, or else that of the very
    first.

    With the reference ``box`` there is also ``reference_crop``, the pose when the crop is placed by
    the reference: the error of the rotation network alone, whatever the localizer does.

    Parameters
    ----------
    looks : at each volume at the most, 1 to 3; each takes as long as the first
    sure : least confidence of a head that a later look finds

    Raises
    ------
    ValueError : another number of looks
    """

    def __init__(self, looks: int = 2, sure: float = 0.95) -> None:
        if looks not in (1, 2, 3):
            raise ValueError(f"looks must be 1, 2 or 3, got {looks!r}")
        self.looks, self.sure = looks, sure

    @torch.no_grad()
    def __call__(  # type: ignore[override]
        self, inputs: Tensor, network: HeadPoseNet, box: Box | None = None
    ) -> dict[str, Tensor]:
        inputs = torch.as_tensor(inputs)
        output = network.predict(inputs)._asdict()
        for turns in range(1, self.looks):
            missed = no_head(output["head_to_grid"]).nonzero()[:, 0]
            if not len(missed):
                break
            again = _predict_turned(inputs[missed], network, turns)
            found = ~no_head(again["head_to_grid"]) & (again["confidence"] >= self.sure)
            for key, value in again.items():
                output[key] = output[key].index_put((missed[found],), value[found])
        if box is not None:
            output["reference_crop"] = network.predict(inputs, box).head_to_grid
        return output


def _predict_turned(volume: Tensor, network: HeadPoseNet, turns: int) -> dict[str, Tensor]:
    """What the network predicts of volumes whose axes are exchanged, in those they had before.

    Each turn puts the first axis last: by 120 degrees about the diagonal, around the middle.
    """
    for _ in range(turns):
        volume = volume.movedim(2, -1)
    output = network.predict(volume.contiguous())._asdict()
    pose = output["head_to_grid"]
    output["head_to_grid"] = torch.cat([pose[:, :3].roll(turns, dims=1), pose[:, 3:]], dim=1)
    for _ in range(turns):
        output["label"] = output["label"].movedim(-1, 2)
    return output
