"""Processes that torchrun starts: how they come together, train one network, and part again."""

from __future__ import annotations

import logging
import os
import weakref
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine
from monai.engines import IterationEvents
from monai.utils import CommonKeys, set_determinism
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from ..distributed import is_not_rank0, mean, mixed_seed

_wrapped: weakref.WeakSet[DistributedDataParallel] = weakref.WeakSet()


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
        _join("nccl" if device.type == "cuda" else "gloo")
    rank = idist.get_rank()
    set_determinism(mixed_seed(seed, rank) if rank else seed)
    if is_not_rank0():
        logging.getLogger().setLevel(logging.WARNING)


def _join(backend: str) -> None:
    """Make the group of all processes and tell ignite of it."""
    # not idist.initialize, and nothing of SLURM for ignite to see: it takes the numbers of SLURM's
    # tasks for those of the processes, but torchrun is one task that starts several
    distributed.init_process_group(backend)
    job = os.environ.pop("SLURM_JOB_ID", None)
    # now, where all of them are: it is a collective, at which one that asks later waits for ever
    idist.sync()
    if job is not None:
        os.environ["SLURM_JOB_ID"] = job


def parallel(network: nn.Module, device: torch.device) -> DistributedDataParallel:
    """``network`` whose ``forward`` averages the gradients over the processes on the way back.

    The weights are those of rank 0. For the trainer only: ``network`` itself, which shares its
    weights, stays what is saved, loaded, validated and optimised, so that files of one process and
    of several are the same.
    """
    # not idist.auto_model, which keeps no hold of the wrapper for ``stop``
    wrapper = DistributedDataParallel(
        network,
        device_ids=[device] if device.type == "cuda" else None,
        broadcast_buffers=False,  # they are constants: no running statistics
    )
    _wrapped.add(wrapper)
    return wrapper


def stop() -> None:
    """Leave the other processes; nothing if there are none.

    What ``parallel`` has wrapped can no longer be trained.
    """
    # the group's threads run for as long as anything holds it, and a thread that still runs
    # when Python ends may abort the process
    while _wrapped:
        wrapper = _wrapped.pop()
        del wrapper.reducer, wrapper.logger, wrapper.process_group
    idist.finalize()


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
