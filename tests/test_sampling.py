"""sampling.py: every case where it belongs, the same list however many processes share it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from scripts.data import sampling
from scripts.data.sampling import MixtureSampler, in_order, mixture_weights, shuffled

CASES = list(range(11))


def parts(monkeypatch, make, world_size, epoch=0):
    """What the sampler of each process draws in an epoch."""
    drawn = []
    for rank in range(world_size):
        monkeypatch.setattr(sampling.idist, "get_world_size", lambda: world_size)
        monkeypatch.setattr(sampling.idist, "get_rank", lambda rank=rank: rank)
        sampler = make()
        if epoch:
            sampler.set_epoch(epoch)
        assert len(sampler) == len(list(sampler))
        drawn.append(list(sampler))
    return drawn


def together(drawn):
    """The list that the processes share: the first of each, then the second of each ..."""
    return [case for step in zip(*drawn, strict=True) for case in step]


def test_shuffled_order_depends_on_seed_and_epoch_not_on_the_processes(monkeypatch):
    def order(world_size, epoch=1, seed=0):
        return together(parts(monkeypatch, lambda: shuffled(CASES, seed), world_size, epoch))

    whole = order(1)
    assert sorted(whole) == CASES
    assert order(2)[:11] == order(3)[:11] == whole
    assert order(2)[11:] == whole[:1]  # all processes take as many steps
    assert order(1, epoch=2) != whole
    assert order(1, seed=7) != whole


@pytest.mark.parametrize("world_size", [1, 2, 3, 11])
def test_in_order_gives_each_case_to_one_process(monkeypatch, world_size):
    drawn = parts(monkeypatch, lambda: in_order(CASES), world_size)
    assert sorted(case for part in drawn for case in part) == CASES
    assert all(part and part == sorted(part) for part in drawn)


def test_too_few_cases_for_the_processes(monkeypatch):
    with pytest.raises(ValueError, match="1 cases to evaluate are too few for 2 processes"):
        parts(monkeypatch, lambda: in_order([0]), 2)
    assert parts(monkeypatch, lambda: in_order([]), 1) == [[]]


def entries_of(*subjects):
    """Entries of a mixture: a string for each data set, a letter for each stack's fetus."""
    return [
        {"image": f"{source}_{number}.nii", "subject": subject, "source": source}
        for source, letters in enumerate(subjects)
        for number, subject in enumerate(letters)
    ]


@pytest.mark.parametrize(
    ("subjects", "shares", "expected"),
    [
        (["ab"], [1], [1 / 2, 1 / 2]),
        # a fetus with many stacks counts as much as one with a single stack
        (["aaab"], [1.0], [1 / 6, 1 / 6, 1 / 6, 1 / 2]),
        (["ab", "cdef"], [0.5, 0.5], [1 / 4] * 2 + [1 / 8] * 4),
        (["aab", "c"], [0.2, 0.8], [0.05, 0.05, 0.1, 0.8]),
        # the same name in two data sets is two fetuses
        (["ab", "aa"], [0.4, 0.6], [0.2, 0.2, 0.3, 0.3]),
        (["ab", "c"], [1.0, 0.0], [0.5, 0.5, 0.0]),
        (["ab", "", "c"], [0.5, 0, 0.5], [0.25, 0.25, 0.5]),
        (["ab", "cd", "ef"], [0.7, 0.1, 0.2], [0.35, 0.35, 0.05, 0.05, 0.1, 0.1]),
    ],
)
def test_mixture_weights(subjects, shares, expected):
    entries = entries_of(*subjects)
    assert mixture_weights(entries, shares) == pytest.approx(expected)
    # the order of the entries does not matter
    assert mixture_weights(entries[::-1], shares) == pytest.approx(expected[::-1])


@pytest.mark.parametrize(
    ("subjects", "shares", "message"),
    [
        (["ab", "c"], [0.5, 0.6], r"sum to 1, got \[0.5, 0.6\]"),
        (["ab", "c"], [0.5, 0.4], r"sum to 1, got \[0.5, 0.4\]"),
        (["ab", "c"], [1.5, -0.5], r"0 or more and sum to 1, got \[1.5, -0.5\]"),
        (["ab", "c"], [1.0], "1 shares for 2 data sets"),
        (["ab", "c", "d"], [0.5, 0.5], "2 shares for 3 data sets"),
        (["ab", "c"], [0.5, 0.3, 0.2], "data set 2 has a share of 0.2 but no entry"),
        (["", "c"], [0.1, 0.9], "data set 0 has a share of 0.1 but no entry"),
        ([], [1.0], "data set 0 has a share of 1.0 but no entry"),
    ],
)
def test_shares_that_cannot_be(subjects, shares, message):
    with pytest.raises(ValueError, match=message):
        mixture_weights(entries_of(*subjects), shares)
    with pytest.raises(ValueError, match=message):
        MixtureSampler(entries_of(*subjects), shares, 10)


def test_mixture_draws_at_the_stated_rate(monkeypatch):
    entries, number = entries_of("aaaaaaab", "cd", "e"), 20000
    expected = np.array([0.125 / 7] * 7 + [0.125, 0.375, 0.375, 0])

    def drawn(world_size, epoch=1, seed=3):
        def make():
            return MixtureSampler(entries, [0.25, 0.75, 0.0], number, seed)

        return parts(monkeypatch, make, world_size, epoch)

    for part in (*drawn(1), *drawn(2)):  # each process by itself keeps the shares too
        share = np.bincount(part, minlength=len(entries)) / len(part)
        deviation = np.sqrt(expected * (1 - expected) / len(part))
        assert (abs(share - expected) <= 4 * deviation).all()
    assert together(drawn(2)) == drawn(1)[0]
    assert [len(part) for part in drawn(3)] == [6667] * 3
    assert drawn(2)[0] != drawn(2)[1]
    assert drawn(1) == drawn(1) != drawn(1, epoch=2)
    assert drawn(1) != drawn(1, seed=4)


def test_mixture_feeds_a_loader():
    entries = entries_of("aab", "c")
    sampler = MixtureSampler(entries, [0.5, 0.5], 50)
    batches = list(DataLoader(entries, batch_size=10, sampler=sampler))
    assert len(batches) == 5
    sources = torch.cat([batch["source"] for batch in batches])
    assert 10 < int(sources.sum()) < 40
