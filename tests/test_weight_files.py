"""weight_files.py: weights in every wrapping, and plain words for what holds none."""

from __future__ import annotations

import argparse

import pytest
import torch
from ignite.engine import Engine
from torch import nn

from chains import tiny_net
from scripts.cubes import along_grid
from scripts.files import write_tensors
from scripts.weight_files import (
    CheckpointLoader,
    WeightsError,
    difference,
    load_weights,
    read_weights,
)


def network(seed=0, out=3):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, out), nn.Linear(out, 1))


def same(a, b):
    return all(value.equal(b[key]) for key, value in a.items()) and a.keys() == b.keys()


WRAPPINGS = {
    "plain": lambda state: state,
    "data_parallel": lambda state: {f"module.{key}": value for key, value in state.items()},
    "lightning": lambda state: {"state_dict": state, "epoch": 3},
    "monai": lambda state: {"model": state},
    "own": lambda state: {"network": state, "optimizer": {"state": {}, "lr": 0.1}, "epoch": 2},
    "both": lambda state: {"state_dict": {f"module.{k}": v for k, v in state.items()}},
    "half": lambda state: {key: value.half() for key, value in state.items()},
}


@pytest.mark.parametrize("wrapping", list(WRAPPINGS))
def test_every_wrapping_is_opened(tmp_path, wrapping):
    given = network(1)
    if wrapping == "half":
        given = given.half().float()
    torch.save(WRAPPINGS[wrapping](given.state_dict()), tmp_path / "w.pt")
    other = network(2)
    load_weights(other, tmp_path / "w.pt")
    assert same(other.state_dict(), given.state_dict())


def test_the_handler_loads_when_the_engine_starts(tmp_path):
    given, other = network(1), network(2)
    torch.save({"network": given.state_dict()}, tmp_path / "checkpoint.pt")
    engine = Engine(lambda *_: None)
    CheckpointLoader(str(tmp_path / "checkpoint.pt"), other).attach(engine)
    assert not same(other.state_dict(), given.state_dict())
    engine.run([0])
    assert same(other.state_dict(), given.state_dict())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "an empty file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "a pointer of git-lfs"),
        (b"<!DOCTYPE html><html>", "an HTML page, not weights"),
        (b"\n<html>", "an HTML page, not weights"),
        (b"no weights at all", "no file of weights"),
        (b"PK\x03\x04 cut", "cut short, or no file of weights"),
    ],
)
def test_files_that_are_something_else_are_named(tmp_path, content, message):
    path = tmp_path / "w.pt"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=rf"w\.pt: .*{message}") as raised:
        read_weights(path)
    assert "\n" not in str(raised.value)


def test_a_file_cut_short_is_named(tmp_path):
    path = tmp_path / "w.pt"
    torch.save(network().state_dict(), path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(WeightsError, match=r"w\.pt: cut short"):
        read_weights(path)


def test_other_content_is_named(tmp_path):
    path = tmp_path / "w.pt"
    with pytest.raises(FileNotFoundError, match=r"w\.pt: no such file of weights"):
        read_weights(path)
    with pytest.raises(WeightsError, match="a folder, not a file of weights"):
        read_weights(tmp_path)
    for content, message in (
        ([1, 2], "no state_dict, but a list"),
        ({}, "no state_dict, but a dict"),
        ({"epoch": 3}, "no state_dict: 'epoch' is a int"),
        (argparse.Namespace(a=1), "holds other objects than tensors"),
    ):
        torch.save(content, path)
        with pytest.raises(WeightsError, match=message):
            read_weights(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(tmp_path, value):
    given, other = network(), network(1)
    given[1].bias.data.fill_(value)
    torch.save(given.state_dict(), tmp_path / "w.pt")
    before = {key: tensor.clone() for key, tensor in other.state_dict().items()}
    with pytest.raises(WeightsError, match=r"w\.pt: 1 weights are NaN or infinite, first 1\.bias"):
        load_weights(other, tmp_path / "w.pt")
    assert same(other.state_dict(), before)


def test_another_network_is_told_in_few_words(tmp_path):
    torch.save(nn.Sequential(*(nn.Linear(2, 7) for _ in range(20))).state_dict(), tmp_path / "w.pt")
    with pytest.raises(WeightsError) as raised:
        load_weights(network(), tmp_path / "w.pt")
    text = str(raised.value)
    assert "of another network; 40 of 40 weights differ: 0.bias is (7,), here (3,); " in text
    assert text.endswith("1.weight is (7, 2), here (1, 3); ...")
    assert len(text) < 400
    assert difference(network().state_dict(), network(1).state_dict()) == ""


def test_weights_of_an_older_release_with_fewer_channels_are_taken(tmp_path):
    older, newer = tiny_net(in_channels=3), tiny_net(in_channels=4)
    path = tmp_path / "model.pt"
    write_tensors(older.state_dict(), path)
    load_weights(newer, path)
    volume = torch.rand(1, 1, 24, 24, 24)
    cube = along_grid(torch.zeros(1, 1, 3), torch.full((1, 1), 60.0))
    maps = torch.rand(1, 2, 24, 24, 24)
    with torch.no_grad():
        fields = [net.chain.axis_field(volume, maps, cube) for net in (older, newer)]
    torch.testing.assert_close(fields[1], fields[0], atol=1e-4, rtol=1e-4)
    # the other way round the channel would be lost
    write_tensors(newer.state_dict(), path)
    with pytest.raises(WeightsError, match="another network"):
        load_weights(older, path)
