"""e3nn's ``o3``, imported without torch's compiler.

e3nn marks one function, which only runs while a network is built, as not to be compiled. torch
imports all of its compiler to set that mark: half a second at every start of a command.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["o3"]


def _unmarked(fn: Callable | None = None, *_: Any, **__: Any) -> Callable:
    return _unmarked if fn is None else fn


if "torch._dynamo" in sys.modules:
    from e3nn import o3
else:
    _disable = torch.compiler.disable
    torch.compiler.disable = _unmarked  # type: ignore[assignment]
    try:
        from e3nn import o3
    finally:
        torch.compiler.disable = _disable
