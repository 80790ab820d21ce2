"""benchmark.py: the floor holds the convolutions, all of them, and nothing else."""

from __future__ import annotations

import torch
from torch import nn

from scripts import benchmark
from scripts.benchmark import Table, convolutions


def test_the_floor_is_the_convolutions_of_a_call():
    net = nn.Sequential(
        nn.Conv3d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, 3, 5, padding=2, bias=False)
    )
    x = torch.rand(1, 2, 6, 7, 8)
    floor = convolutions(lambda: net(x))
    shapes = [(tuple(x.shape), tuple(kernel.shape)) for x, kernel, _ in floor.calls]
    assert shapes == [((1, 2, 6, 7, 8), (4, 2, 3, 3, 3)), ((1, 4, 6, 7, 8), (3, 4, 5, 5, 5))]
    assert [tuple(y.shape[1:]) for y in floor.run()] == [(4, 6, 7, 8), (3, 6, 7, 8)]
    # only the first convolution has an input that needs no gradient
    assert [x.requires_grad for x, _, _ in floor.calls] == [False, True]
    floor.run_backward()


def test_rows_say_what_was_asked(capsys):
    table = Table(torch.device("cpu"), repeats=1)
    calls = []
    table.row("a name", lambda: calls.append(1), lambda: calls.append(2))
    assert calls.count(1) == calls.count(2) == 3
    header, row = capsys.readouterr().out.splitlines()
    assert header.split() == ["seconds", "floor", "ratio"]
    assert row.startswith("a name")
    assert len(row.split()) == 5


def test_busy_processes_are_there_and_end(monkeypatch):
    started = []
    popen = benchmark.subprocess.Popen
    monkeypatch.setattr(
        benchmark.subprocess, "Popen", lambda *a: started.append(popen(*a)) or started[-1]
    )
    with benchmark.busy(2):
        assert [process.poll() for process in started] == [None, None]
    assert all(process.poll() is not None for process in started)
