"""The cubes that LandmarkNet trains on: what they show is where they say it is."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, RandGaussianNoised

from conftest import labelled_case
from scripts.cubes import brain_cube
from scripts.data.training_cubes import HeadLandmarksd, RandHeadCropsd
from scripts.data.volumes import LoadVolumed, ToWorkingGridd
from scripts.geometry import (
    axis_angle_to_rotation,
    geodesic_deg,
    head_to_grid,
    landmark_frame,
    landmarks_to_pose,
)
from scripts.network.landmarks import Landmarks

STILL = {
    "turned_prob": 0.0,
    "elsewhere_prob": 0.0,
    "angle_deg": 0.0,
    "shift": 0.0,
    "scale": 1.0,
    "off_prob": 0.0,
    "blank_prob": 0.0,
    "stretch": 1.0,
    "mirror_prob": 0.0,
    "bend_prob": 0.0,
    "motion_prob": 0.0,
}


@pytest.fixture
def case(tmp_path):
    """On the working grid; the image is replaced by blobs at the landmarks, 1, 2 and 3 high."""
    entry = labelled_case(tmp_path)
    d = Compose([LoadVolumed(keys=["image", "label"]), ToWorkingGridd()])(entry)
    d = HeadLandmarksd()(d)
    shape = d["image"].shape[1:]
    steps = [4.0 * (torch.arange(n) - (n - 1) / 2) for n in shape]
    points = torch.stack(torch.meshgrid(*steps, indexing="ij"), dim=-1)
    blobs = torch.zeros(shape)
    for height, landmark in enumerate(d["landmarks_mm"], start=1):
        blobs += height * torch.exp(-0.5 * ((points - landmark) / 8).square().sum(-1))
    d["image"] = MetaTensor(blobs[None], affine=d["image"].affine)
    return d


def crops(case, seed=0, transforms=(), **options):
    make = RandHeadCropsd(transforms, **{"crops": 6, **options})
    make.set_random_state(seed)
    return make(case)


def in_the_head(case, points):
    pose = torch.tensor(case["head_to_world"], dtype=torch.float64)
    head = head_to_grid(case["image"].affine, case["image"].shape[1:], 4.0, pose)
    return (points.double() - head[:3, 3]) @ head[:3, :3]


def test_landmarks_of_a_label(case):
    """Those of ``labelled_case``: eyes at (-15, 34, -20) and (15, 34, -20) mm in the head frame."""
    expected = torch.tensor([[0, 0, 0], [-15.0, 34, -20], [15.0, 34, -20]]).double()
    found = in_the_head(case, case["landmarks_mm"])
    torch.testing.assert_close(found, expected, atol=1.5, rtol=0)
    cube, _ = brain_cube((case["label"].as_tensor() == 1)[None], 4.0, 0.6)
    torch.testing.assert_close(case["brain_mm"], cube.center_mm[0])
    torch.testing.assert_close(case["brain_side_mm"], cube.side_mm[0])


def test_without_eyes_brain_or_head_nothing_is_made_up(case):
    no_eyes = {**case, "label": case["label"] * (case["label"] != 2)}
    assert (
        HeadLandmarksd()(no_eyes)["landmarks_mm"].isnan().tolist()
        == [[False] * 3] + [[True] * 3] * 2
    )
    unknown = {**case, "label": torch.full_like(case["label"], 255)}
    found = HeadLandmarksd()(unknown)
    assert found["brain_mm"].equal(found["landmarks_mm"][0])
    assert found["brain_side_mm"].item() == pytest.approx(80 / 0.6)
    no_head = HeadLandmarksd()({**case, "head_to_world": None})
    for name in ("landmarks_mm", "brain_mm"):
        assert no_head[name].isnan().all()
    assert no_head["brain_side_mm"].item() == pytest.approx(80 / 0.6)


def heights(crop, points):
    """Intensities of cubes (n, 1, S, S, S) at points (n, 3, 3) in sides."""
    grid = (2 * points).flip(-1)[:, :, None, None]
    return torch.nn.functional.grid_sample(crop, grid, align_corners=False)[:, 0, :, 0, 0]


@pytest.mark.parametrize(
    "options",
    [
        STILL,
        {**STILL, "angle_deg": 60.0},
        {**STILL, "shift": 0.05, "scale": 1.2},
        {**STILL, "mirror_prob": 1.0, "angle_deg": 30.0},
        {**STILL, "stretch": 1.25, "angle_deg": 30.0},
    ],
    ids=["still", "turned", "shifted", "mirrored", "stretched"],
)
def test_the_cubes_show_the_landmarks_where_they_say(case, options):
    d = crops(case, **options)
    found = heights(d["crop"], d["crop_point"])
    left, right = (3, 2) if options["mirror_prob"] else (2, 3)
    expected = torch.tensor([1.0, left, right])
    torch.testing.assert_close(found, expected.expand(6, 3), atol=0.35, rtol=0)
    # the mirror image of a left eye is a right one
    frame = landmark_frame(*d["crop_point"].unbind(1))
    assert (torch.linalg.det(frame) > 0.99).all()


def test_a_cube_in_line_has_the_head_in_line(case):
    d = crops(case, **STILL)
    expected = landmarks_to_pose(*in_the_head(case, case["landmarks_mm"]))[:3, :3]
    frame = landmark_frame(*d["crop_point"][0])
    assert geodesic_deg(frame, torch.eye(3)).item() < 0.1
    # of the frame that the eyes span, which is that of the pose up to the label's voxels
    assert geodesic_deg(expected, torch.eye(3).double()).item() < 3
    assert d["crop_aligned"].tolist() == [1.0] * 6


def test_the_angle_is_that_between_cube_and_head(case):
    d = crops(case, crops=60, **{**STILL, "angle_deg": 60.0})
    frame = landmark_frame(*d["crop_point"].unbind(1))
    angles = geodesic_deg(frame, torch.eye(3).expand_as(frame))
    assert angles.max() < 61
    assert angles.max() > 50
    aligned = d["crop_aligned"]
    assert (aligned[angles < 24.5] == 1).all()
    assert (aligned[angles > 40.5] == 0).all()
    assert aligned[(angles > 25.5) & (angles < 39.5)].isnan().all()


def growth(case, **options):
    """By what the cubes are larger than the right one (crops,), and their targets."""
    d, still = crops(case, **options), crops(case, **STILL)
    lengths = [
        (each["crop_point"][:, 1] - each["crop_point"][:, 0]).norm(dim=1) for each in (d, still)
    ]
    return lengths[1][0] / lengths[0], d


def test_cubes_are_larger_and_smaller(case):
    factor, _ = growth(case, crops=40, **{**STILL, "scale": 1.3})
    assert 1.2 < factor.max() < 1.3 + 1e-3
    assert 1 / 1.3 - 1e-3 < factor.min() < 1 / 1.2


def test_some_cubes_stand_further_off(case):
    """By a normal deviation along each axis, in sides of the right cube."""
    options = {**STILL, "shift": 0.02, "off_shift": 0.1, "off_scale": 1.5}
    spread = {}
    for share in (0.0, 1.0):
        factor, d = growth(case, crops=80, **{**options, "off_prob": share})
        offset = d["crop_point"][:, 0] * factor[:, None]
        spread[share] = offset.std(0).mean().item(), factor.log().abs().max().item()
    assert spread[0.0] == pytest.approx((0.02, 0.0), abs=0.004)
    assert spread[1.0][0] == pytest.approx(0.1, abs=0.02)
    assert 0.9 * math.log(1.5) < spread[1.0][1] <= math.log(1.5) + 1e-3
    factor, _ = growth(case, crops=80, **{**options, "off_prob": 0.3})
    assert 10 < (factor.log().abs() > 1e-3).sum() < 40


def test_a_cube_that_is_off_is_not_called_in_line(case):
    """Nor out of line, unless it is so far off that the head is no longer in its middle."""
    options = {**STILL, "off_prob": 1.0, "off_shift": 0.2, "off_scale": 1.7}
    factor, d = growth(case, crops=200, **options)
    off, aligned = d["crop_point"][:, 0].norm(dim=1), d["crop_aligned"]
    near = (off < 0.19) & (factor.log().abs() < math.log(1.39))
    assert near.any()
    assert (aligned[near] == 1).all()
    between = (off > 0.21) & (off < 0.39) | (off < 0.39) & (factor.log().abs() > math.log(1.41))
    assert aligned[between].isnan().all()
    assert (aligned[off > 0.41] == 0).all()


def test_what_is_out_of_line_is_not_in_line(case):
    d = crops(case, crops=40, **{**STILL, "turned_prob": 1.0})
    assert not (d["crop_aligned"] == 1).any()
    assert (d["crop_aligned"] == 0).float().mean() > 0.9


def test_what_is_elsewhere_is_not_in_line(case):
    """Unless chance has it that it is where the head is."""
    options = {**STILL, "elsewhere_prob": 1.0, "spread": 0.9}
    d = crops(case, crops=80, **options)
    lost = d["crop_point"].isnan().flatten(1).any(1)
    assert lost.any()
    assert not lost.all()
    assert (d["crop_aligned"][lost] == 0).all()
    off = d["crop_point"][~lost][:, 0].norm(dim=1)
    assert off.max() < 0.6
    assert ((d["crop_aligned"][~lost] == 1) == (off < 0.2)).all()


def test_a_twin_is_not_called_what_is_no_head(case):
    """Near its origin nothing is said of a cube; of others the same as without it."""
    assert case["twin_mm"].isnan().all()
    options = {**STILL, "elsewhere_prob": 1.0, "spread": 0.9, "crops": 80}
    alone = crops(case, **options)["crop_aligned"]
    twin = np.array(case["head_to_world"])
    twin[:3, 3] += 60.0 * twin[:3, 1]
    both = HeadLandmarksd()({**case, "twin_to_world": twin.tolist()})
    offset = in_the_head(case, both["twin_mm"])
    torch.testing.assert_close(offset, torch.tensor([0.0, 60, 0]).double(), atol=1e-3, rtol=0)
    found = crops({**case, "twin_mm": both["twin_mm"]}, **options)["crop_aligned"]
    silent = found.isnan()
    assert 0 < (silent & (alone == 0)).sum() < 60
    assert found[~silent].equal(alone[~silent])
    # where the head itself is called that of the other, it is silent too
    same = crops({**case, "twin_mm": case["landmarks_mm"][0]}, **options)
    near = same["crop_point"][:, 0].norm(dim=1) < 0.39
    assert near.any()
    assert same["crop_aligned"][near].isnan().all()


class Claims(torch.nn.Module):
    """Says of every cube that the landmarks are at these points (3, 3)."""

    def __init__(self, point):
        super().__init__()
        self.point = point

    def forward(self, crop):
        return Landmarks(crop, self.point.expand(len(crop), 3, 3), torch.zeros(len(crop)))


def claims(case, turn, shift):
    """What would be said of a cube in line by a network that errs by a turn and a shift."""
    still = crops(case, **STILL)["crop_point"][0]
    return still, Claims(still @ turn.T + shift)


def test_the_corrector_moves_cubes_to_where_it_sees_the_head(case):
    turn = axis_angle_to_rotation(torch.tensor([1.0, 2.0, -1.0]), torch.tensor(20.0))
    shift = torch.tensor([0.05, -0.1, 0.03])
    still, network = claims(case, turn, shift)
    once = {**STILL, "corrector": network, "corrected_prob": 1.0, "corrections": 1}
    d = crops(case, **once)
    expected = (still - network.point[0]) @ turn
    torch.testing.assert_close(d["crop_point"], expected.expand(6, 3, 3), atol=1e-4, rtol=0)
    assert d["crop_aligned"].tolist() == [1.0] * 6
    found = heights(d["crop"], d["crop_point"])
    torch.testing.assert_close(found, torch.tensor([1.0, 2, 3]).expand(6, 3), atol=0.35, rtol=0)
    # twice as far: out of line
    twice = crops(case, **{**once, "corrections": 2})
    frame = landmark_frame(*twice["crop_point"].unbind(1))
    assert geodesic_deg(frame[0], turn.T @ turn.T).item() < 0.1
    assert twice["crop_aligned"].isnan().all()


def test_some_cubes_are_corrected_once_and_fewer_again(case):
    turn = axis_angle_to_rotation(torch.tensor([0.0, 0.0, 1.0]), torch.tensor(20.0))
    _, network = claims(case, turn, torch.zeros(3))
    options = {"crops": 200, "corrector": network, "corrected_prob": 0.4, "size": 16}
    d = crops(case, **{**STILL, **options})
    frame = landmark_frame(*d["crop_point"].unbind(1))
    angles = geodesic_deg(frame, torch.eye(3).expand_as(frame))
    share = [((angles - k * 20).abs() < 1).float().mean().item() for k in range(3)]
    assert share == pytest.approx([0.6, 0.24, 0.16], abs=0.1)
    assert sum(share) == pytest.approx(1.0)


@pytest.mark.parametrize("options", [{"mirror_prob": 1.0}, {"stretch": 1.25}, {"angle_deg": 20.0}])
def test_corrected_cubes_show_the_landmarks_where_they_say(case, options):
    turn = axis_angle_to_rotation(torch.tensor([1.0, -1.0, 2.0]), torch.tensor(15.0))
    _, network = claims(case, turn, torch.tensor([-0.05, 0.05, 0.02]))
    d = crops(case, **{**STILL, **options, "corrector": network, "corrected_prob": 1.0})
    left, right = (3, 2) if "mirror_prob" in options else (2, 3)
    expected = torch.tensor([1.0, left, right]).expand(6, 3)
    torch.testing.assert_close(heights(d["crop"], d["crop_point"]), expected, atol=0.35, rtol=0)


def test_blank_cubes_are_not_corrected(case):
    _, network = claims(case, torch.eye(3), torch.tensor([0.1, 0.0, 0.0]))
    options = {**STILL, "blank_prob": 1.0, "corrector": network, "corrected_prob": 1.0}
    assert crops(case, **options)["crop"].equal(crops(case, **{**STILL, "blank_prob": 1.0})["crop"])


def test_elsewhere_is_rather_where_it_is_bright(case):
    """A cube in the dark teaches little; half of the volume is dark here."""
    image = torch.zeros_like(case["image"].as_tensor())
    image[:, image.shape[1] // 2 :] = 1.0
    case["image"] = MetaTensor(image, affine=case["image"].affine)
    middles = crops(case, crops=60, **{**STILL, "elsewhere_prob": 1.0})["crop"][:, 0, 16, 16, 16]
    assert (middles > 0.5).float().mean() > 0.9


def test_blank_cubes_are_no_heads(case):
    """A gradient in a box shows neither head nor mother."""
    d = crops(case, crops=20, **{**STILL, "blank_prob": 1.0})
    assert d["crop_aligned"].tolist() == [0.0] * 20
    assert d["crop_point"].isnan().all()
    assert (d["crop"].flatten(1).amax(1) > 0.3).all()
    assert d["crop"].min() >= 0
    # linear where it is not zero
    row = d["crop"][0, 0, :, 16, 16]
    inside = row[row > 0]
    assert len(inside) > 4
    torch.testing.assert_close(
        inside.diff().diff(), torch.zeros(len(inside) - 2), atol=1e-4, rtol=0
    )


def test_a_volume_without_a_head_teaches_what_is_none(case):
    d = crops(HeadLandmarksd()({**case, "head_to_world": None}))
    assert d["crop_aligned"].tolist() == [0.0] * 6
    assert d["crop_point"].isnan().all()
    assert d["crop"].isfinite().all()


def test_the_same_seed_gives_the_same_cubes(case):
    noise = [RandGaussianNoised(keys="image", prob=1.0, std=0.1)]
    first, second = (crops(case, 7, noise) for _ in range(2))
    for name in ("crop", "crop_point", "crop_aligned"):
        np.testing.assert_array_equal(first[name], second[name])
    assert not crops(case, 8, noise)["crop"].equal(first["crop"])
    assert not crops(case, 7)["crop"].equal(first["crop"])
    assert type(first["crop"]) is torch.Tensor
