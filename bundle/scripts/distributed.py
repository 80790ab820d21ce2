"""What processes agree on that train together; each works alike where there is but one.

``ignite.distributed`` tells who a process is; here is what it lacks. How processes come together is
in training/processes.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import ignite.distributed as idist
import numpy as np
from torch import Tensor, distributed

T = TypeVar("T")


def is_not_rank0() -> bool:
    """Whether another process writes the files and the log (the name that MONAI's tracking has)."""
    return idist.get_rank() > 0


def mixed_seed(*numbers: int) -> int:
    """A seed (32 bits) that differs wherever any of some numbers >= 0 does."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def mean(value: Tensor) -> Tensor:
    """Mean of a tensor over the processes, without a gradient."""
    total: Any = idist.all_reduce(value.detach().clone())  # in place
    return total / idist.get_world_size()


def from_rank0(make: Callable[[], T]) -> T:
    """What ``make`` gives on rank 0, or raises there, in every process. Tensors lie on the CPU."""
    if idist.get_world_size() == 1:
        return make()
    result: list[Any] = [None, None]
    if idist.get_rank() == 0:
        try:
            result[0] = make()
        except Exception as error:
            result[1] = error
    # ignite's broadcast knows tensors, numbers and text only
    distributed.broadcast_object_list(result)
    if result[1] is not None:
        raise result[1]
    return result[0]
