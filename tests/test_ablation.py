"""ablation.py: stand-ins for the parts of the chain, and the table made with them."""

from __future__ import annotations

import csv
import math

import pytest
import torch

from scripts import ablation
from scripts.evaluation.ablation import (
    IdentityPose,
    RandomPose,
    Variant,
    WithoutMirror,
    changes,
)
from scripts.geometry import frame_to_rotation, geodesic_deg
from scripts.network import HeadPoseNet, LandmarkNet, PlainCNN, pool_axes
from scripts.network.search import DensestPlace
from scripts.phantom import write_dataset


def tiny_chain():
    net = HeadPoseNet(
        PlainCNN((4, 4), convolutions=(1, 1)),
        crop_size=8,
        localizer_channels=(4,) * 6,
        min_brain_ml=0.0,
        min_density=0.0,
        max_rotation_sd_deg=180.0,
        landmarks=LandmarkNet((8, 8, 8), 16),
    )
    return net.plain()


def rotations(network, number):
    return frame_to_rotation(pool_axes(network(torch.zeros(number, 1, 4, 4, 4)))[0])


def test_stand_ins_give_the_rotations_that_they_are_named_after():
    torch.testing.assert_close(rotations(IdentityPose(), 2), torch.eye(3).expand(2, 3, 3))
    found = rotations(RandomPose(), 400)
    assert found.equal(rotations(RandomPose(), 400))
    assert not found.equal(rotations(RandomPose(seed=1), 400))
    angles = geodesic_deg(found, torch.eye(3).expand(400, 3, 3))
    # the mean angle of rotations uniform on SO(3) is 90 + 360 / pi^2 degrees
    assert angles.mean().item() == pytest.approx(90 + 360 / math.pi**2, abs=5)


def test_every_variant_changes_what_its_name_says():
    chain, plain = tiny_chain(), PlainCNN((4, 4), convolutions=(1, 1))
    volume, pose = torch.rand(1, 1, 40, 36, 44), torch.eye(4)
    chain.sure_deg = 180.0  # of noise it is never sure, and a second pass would read more cubes
    variants = {name: Variant(chain, change) for name, change in changes(plain).items()}
    for variant in variants.values():
        variant.look(volume, pose)
        variant.look(volume, None)
    cubes = {name: variant.cubes[0] for name, variant in variants.items()}
    assert cubes["shipped: E3CNN, landmarks"] == cubes["random rotation, landmarks"] == 12
    assert cubes["plain CNN alone"] == cubes["E3CNN alone"] == 0
    assert (cubes["one place"], cubes["one first size"]) == (10, 10)
    assert (cubes["best cube alone read again"], cubes["one last size"]) == (11, 8)
    assert cubes["no mirror image"] == 9
    assert isinstance(variants["identity alone"].chain.search, DensestPlace)
    assert isinstance(variants["no mirror image"].chain.search, WithoutMirror)
    assert not variants["no second pass"].chain.second_pass
    assert variants["plain CNN, landmarks"].chain.rotation is plain
    # the chain that they were made of stays what it was, and so do the others
    assert (chain.places, chain.second_pass, chain.search.kept) == (2, True, 2)
    found = {variant.errors[0] for variant in variants.values()}
    assert len(found) > 8
    assert all(variant.headless == [True] for variant in variants.values())


def test_what_is_missed_counts_as_the_worst():
    variant = Variant(tiny_chain(), lambda chain: setattr(chain, "min_density", 2.0))
    variant.look(torch.rand(1, 1, 32, 32, 32), torch.eye(4))
    variant.look(torch.rand(1, 1, 32, 32, 32), None)
    assert variant.errors == [(180.0, math.inf)]
    assert variant.headless == [False]
    (row,) = ablation.rows({"a": variant})
    assert row == ["a", "36", "1", "180.0", "180.0 - 180.0", "1", "1", "inf", "0 of 1"]


def test_command_line(tmp_path, capsys):
    write_dataset(
        tmp_path / "D", 0, 0, 1, seed=4, ga_weeks=(30, 32), voxel_mm=(6, 6, 6), progress=False
    )
    given = ["--dataset_dir", str(tmp_path / "D"), "--csv", str(tmp_path / "table.csv")]
    ablation.main(given)
    text = capsys.readouterr().out
    with open(tmp_path / "table.csv", newline="") as file:
        title, shipped, *others = csv.reader(file)
    assert title == list(ablation.TITLE)
    assert shipped[:3] == ["shipped: E3CNN, landmarks", "12", "1"]
    assert float(shipped[3]) < 10
    assert {row[0] for row in others} == set(changes()) - {shipped[0]}
    assert all(row[0] in text for row in others)
    with pytest.raises(SystemExit):
        ablation.main([*given, "--section", "training"])
    assert "no training volumes" in capsys.readouterr().err
