"""Which cases a process sees in an epoch, and in which order.

All of it follows from the seed, the epoch and the number of processes. Every process takes each
``world_size``-th case of one list that all draw alike, so that with the global batch the curve of
training stays the same, however many processes share it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence, Sized
from typing import Any

import ignite.distributed as idist
import torch
from torch.utils.data import Dataset, DistributedSampler


def shuffled(dataset: Dataset, seed: int) -> DistributedSampler:
    """All cases in an order that is new in every epoch, in parts of equal size.

    Where their number is no multiple of the processes, the last parts are filled up with cases
    from the beginning: all processes must take as many steps.
    """
    return DistributedSampler(
        dataset,
        num_replicas=idist.get_world_size(),
        rank=idist.get_rank(),
        shuffle=True,
        seed=seed,
    )


def in_order(dataset: Sized) -> range:
    """All cases, each in one process only, so that none counts twice in a metric.

    ValueError for fewer cases than processes: one without a case cannot take part in the metrics.
    """
    if 1 < idist.get_world_size() > len(dataset):
        raise ValueError(
            f"{len(dataset)} cases to evaluate are too few for {idist.get_world_size()} processes: "
            "give more cases or start fewer processes"
        )
    return range(idist.get_rank(), len(dataset), idist.get_world_size())


def mixture_weights(entries: Sequence[dict[str, Any]], shares: Sequence[float]) -> list[float]:
    """Probability of every entry of a ``datasets.mixture`` (they sum to 1).

    Data set k is drawn with ``shares[k]``; of its subjects each is as likely as any other, so that
    a fetus with many stacks does not outweigh the rest.

    ValueError for shares that are not one for each set, negative or do not sum to 1, or for a data
    set without entries that has a share.
    """
    # written so that NaN is refused too
    if not shares or not min(shares) >= 0 or not abs(sum(shares) - 1) <= 1e-6:
        raise ValueError(f"shares must be 0 or more and sum to 1, got {list(shares)}")
    stacks = Counter((entry["source"], entry["subject"]) for entry in entries)
    subjects = Counter(source for source, _ in stacks)
    for number, share in enumerate(shares):
        if share and not subjects[number]:
            raise ValueError(f"data set {number} has a share of {share} but no entry")
    if max(subjects, default=0) >= len(shares):
        raise ValueError(f"{len(shares)} shares for {max(subjects) + 1} data sets")
    return [
        shares[entry["source"]]
        / subjects[entry["source"]]
        / stacks[entry["source"], entry["subject"]]
        for entry in entries
    ]


class MixtureSampler(DistributedSampler):
    """``num_samples`` cases an epoch over all processes, with replacement, by ``mixture_weights``.

    (MONAI's DistributedWeightedRandomSampler draws from the part of the data that a process has
    got, by the weights within it: the shares of the data sets then are no longer those asked for.)

    Parameters
    ----------
    entries, shares : see ``mixture_weights``
    num_samples : a number that is no multiple of the processes is rounded up to one
    seed : other draws for another seed, and in every epoch
    """

    def __init__(
        self,
        entries: Sequence[dict[str, Any]],
        shares: Sequence[float],
        num_samples: int,
        seed: int = 0,
    ) -> None:
        self.weights = torch.tensor(mixture_weights(entries, shares), dtype=torch.float64)
        # the base class counts a data set of as many items as are drawn
        super().__init__(
            range(num_samples),  # type: ignore[arg-type]
            num_replicas=idist.get_world_size(),
            rank=idist.get_rank(),
            seed=seed,
        )

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        drawn = torch.multinomial(self.weights, self.total_size, True, generator=generator)
        return iter(drawn[self.rank :: self.num_replicas].tolist())
