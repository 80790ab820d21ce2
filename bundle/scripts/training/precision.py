"""Training in bfloat16 where that is precise enough."""

from __future__ import annotations

import logging
from typing import Any

import torch
from monai.inferers import Inferer
from torch import Tensor
from torch.overrides import TorchFunctionMode

logger = logging.getLogger(__name__)


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
