"""Training in several processes that torchrun starts: who a process is, and what all agree on.

Everything here also works in one process without torchrun, but for ``start`` and ``local_device``.
"""

from __future__ import annotations

import contextlib
import logging
import os
import weakref
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed.nn.functional
from ignite.engine import Engine
from monai.engines import IterationEvents
from monai.utils import CommonKeys, set_determinism
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")


_wrapped: weakref.WeakSet[DistributedDataParallel] = weakref.WeakSet()


def _together() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def rank() -> int:
    """Number of this process among all; 0 where there is one."""
    return distributed.get_rank() if _together() else 0


def world_size() -> int:
    """Number of processes."""
    return distributed.get_world_size() if _together() else 1


def is_not_rank0() -> bool:
    """Whether another process writes the files and the log (the name that MONAI's tracking has)."""
    return rank() > 0


def local_device() -> torch.device:
    """The GPU with this process's number on its node, or the CPU where there is no GPU.

    RuntimeError if torchrun did not start the process, or for more processes than GPUs.
    """
    if "LOCAL_RANK" not in os.environ:
        raise RuntimeError(
            "LOCAL_RANK is not set: configs/multi_gpu_train.json is for processes that torchrun "
            "starts (docs/training.md)"
        )
    number = int(os.environ["LOCAL_RANK"])
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if number >= torch.cuda.device_count():
        raise RuntimeError(
            f"process {number} of this node has no GPU: --nproc_per_node may be at most "
            f"{torch.cuda.device_count()}"
        )
    return torch.device("cuda", number)


def mixed_seed(*numbers: int) -> int:
    """A seed (32 bits) that differs wherever any of some numbers >= 0 does."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def start(seed: int) -> None:
    """Join the processes that torchrun started: NCCL between GPUs, gloo between CPUs.

    Every process draws other random numbers, which follow from ``seed`` and its rank; those of
    rank 0, and with them the first weights, are those of a single process. What is not worth a
    warning only rank 0 says.
    """
    device = local_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not distributed.is_initialized():
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    set_determinism(mixed_seed(seed, rank()) if rank() else seed)
    if is_not_rank0():
        logging.getLogger().setLevel(logging.WARNING)


def stop() -> None:
    """Leave the other processes; nothing if there are none.

    What ``parallel`` has wrapped can no longer be trained.
    """
    if _together():
        # the group's threads run for as long as anything holds it, and a thread that still runs
        # when Python ends may abort the process
        while _wrapped:
            wrapper = _wrapped.pop()
            del wrapper.reducer, wrapper.logger, wrapper.process_group
        distributed.destroy_process_group()


def parallel(network: nn.Module, device: torch.device) -> DistributedDataParallel:
    """``network`` whose ``forward`` averages the gradients over the processes on the way back.

    The weights are those of rank 0. For the trainer only: ``network`` itself, which shares its
    weights, stays what is saved, loaded, validated and optimised, so that files of one process and
    of several are the same.
    """
    wrapper = DistributedDataParallel(
        network,
        device_ids=[device] if device.type == "cuda" else None,
        broadcast_buffers=False,  # they are constants: no running statistics
    )
    _wrapped.add(wrapper)
    return wrapper


def mean(value: Tensor) -> Tensor:
    """Mean of a tensor over the processes, without a gradient."""
    result = value.detach().clone()
    if world_size() > 1:
        distributed.all_reduce(result)
        result /= world_size()
    return result


def from_rank0(make: Callable[[], T]) -> T:
    """What ``make`` gives on rank 0, or raises there, in every process. Tensors lie on the CPU."""
    if world_size() == 1:
        return make()
    result: list[Any] = [None, None]
    if rank() == 0:
        try:
            result[0] = make()
        except Exception as error:
            result[1] = error
    distributed.broadcast_object_list(result)
    if result[1] is not None:
        raise result[1]
    return result[0]


@contextlib.contextmanager
def one_by_one() -> Iterator[None]:
    """A block that the processes enter one after the other, in the order of their ranks."""
    for turn in range(world_size()):
        if turn == rank():
            yield
        if world_size() > 1:
            distributed.barrier()


class StepLoss:
    """Handler that leaves of a trainer's output the loss, its mean over the processes.

    In the form of a decollated batch, ``[{"loss": loss}]``, as MONAI's own handlers expect it
    (``--tracking mlflow`` fails on another one). After the step: gradients are those of the loss
    of each process, and DDP has averaged them.
    """

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(IterationEvents.MODEL_COMPLETED, self._reduce)

    def _reduce(self, engine: Engine) -> None:
        state: Any = engine.state
        state.output = [{CommonKeys.LOSS: mean(state.output[CommonKeys.LOSS])}]
