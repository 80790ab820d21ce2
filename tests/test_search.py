"""The chain with landmarks: from where the rotation network leaves the head to its pose."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from scripts.cubes import Box
from scripts.geometry import axis_angle_to_rotation, geodesic_deg, landmark_frame, landmarks_to_pose
from scripts.network import HeadPoseNet
from scripts.network.landmarks import Landmarks
from symmetry import SYMMETRIES, move_voxels

SHAPE = (34, 32, 36)
# mm, head frame: brain's centre, left eye, right eye
HEAD = torch.tensor([[0.0, 0, 0], [-17.0, 38, -22], [17.0, 38, -22]])


class Fixed(nn.Module):
    """Rotation network that always gives one frame, in grid axes."""

    in_channels = 1

    def __init__(self, rotation):
        super().__init__()
        self.axes = rotation.T.reshape(1, 3, 3, 1, 1, 1)

    def forward(self, crop):
        return self.axes.expand(len(crop), -1, -1, 2, 2, 2)


class Seeing(nn.Module):
    """LandmarkNet that finds the blobs of ``volume_of``: the brain is bright, the eyes are dark.

    The crown, brighter than the brain, tells which eye is the left one. It is sure of what is less
    than 25 degrees out of line. ``reach`` is the angle up to which it sees anything.
    """

    def __init__(self, reach=180.0, crop_size=28):
        super().__init__()
        self.crop_size, self.reach = crop_size, reach
        self.seen = []

    def forward(self, crop):
        self.seen.append(len(crop))
        cells = (torch.arange(self.crop_size, dtype=crop.dtype) + 0.5) / self.crop_size - 0.5
        lattice = torch.stack(torch.meshgrid(cells, cells, cells, indexing="ij"), dim=-1)
        points, scores = [], []
        for cube in crop[:, 0]:
            eyes = (-0.3 - cube).clamp(min=0)
            left, right = eyes * (lattice[..., 0] < 0), eyes * (lattice[..., 0] >= 0)
            brain = ((cube > 0.4) & (cube < 1.1)).to(cube)
            found = [
                (part[..., None] * lattice).sum((0, 1, 2)) / part.sum()
                for part in (brain, left, right)
            ]
            found = torch.stack(found)
            frame = landmark_frame(*found)
            crown = (cube - 1.1).clamp(min=0)
            crown = (crown[..., None] * lattice).sum((0, 1, 2)) / crown.sum()
            if (crown - found[0]) @ frame[:, 2] < 0:
                found = found[[0, 2, 1]]
                frame = landmark_frame(*found)
            angle = geodesic_deg(frame, torch.eye(3, dtype=frame.dtype))
            if not found.isfinite().all() or angle > self.reach:
                found, angle = HEAD.to(cube) / 150, torch.tensor(180.0)
            points.append(found)
            scores.append((25 - angle).to(cube) / 5)
        return Landmarks(crop, torch.stack(points), torch.stack(scores))


def rotation(seed):
    return torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(seed)))[0]


def proper(seed):
    matrix = rotation(seed)
    return matrix * torch.linalg.det(matrix)


def volume_of(*poses, shape=SHAPE):
    """Heads (batch, 1, x, y, z): brains of radius 28 mm with a crown, and dark eyes of 9 mm."""
    steps = [4.0 * (torch.arange(n) - (n - 1) / 2) for n in shape]
    points = torch.stack(torch.meshgrid(*steps, indexing="ij"), dim=-1)
    volumes = []
    for turn, center in poses:
        head = (points - center) @ turn
        volume = 0.7 * torch.sigmoid((28 - head.norm(dim=-1)) / 2)
        volume = volume + torch.sigmoid((7 - (head - torch.tensor([0.0, 0, 17])).norm(dim=-1)) / 2)
        for eye in HEAD[1:]:
            volume = volume - 2 * torch.sigmoid((9 - (head - eye).norm(dim=-1)) / 2)
        volumes.append(volume)
    return torch.stack(volumes).unsqueeze(1)


def brain_as_logits(volume):
    brain = ((volume > 0.4) & (volume < 1.1)).to(volume)
    return torch.cat([torch.full_like(volume, 0.5), brain, torch.zeros_like(volume)], dim=1) * 20


@pytest.fixture
def chain(monkeypatch):
    def build(guess=None, landmarks=None, **options):
        net = HeadPoseNet(
            Fixed(torch.eye(3) if guess is None else guess),
            crop_size=8,
            crop_fill=0.4,
            localizer_channels=(4,) * 6,
            turns=1,
            min_density=0.0,
            landmarks=landmarks or Seeing(),
            **options,
        ).eval()
        monkeypatch.setattr(net.localizer, "forward", brain_as_logits)
        return net

    return build


def errors(found, poses):
    angles = [
        geodesic_deg(pose[:3, :3], turn) for pose, (turn, _) in zip(found, poses, strict=True)
    ]
    places = [(pose[:3, 3] - center).norm() for pose, (_, center) in zip(found, poses, strict=True)]
    return torch.stack(angles), torch.stack(places)


POSES = [(proper(k), torch.tensor([6.0, -5.0, 4.0 + k])) for k in range(4)]


def truth():
    return landmarks_to_pose(*HEAD)[:3, :3]


@torch.no_grad()
@pytest.mark.parametrize("tried", range(6))
def test_landmarks_correct_what_the_rotation_network_says(tried, chain):
    """The pose is the one that brain and eyes span, wherever near one of the turns it began."""
    turn, at = POSES[tried % 4]
    net = chain()
    assert len(net.turns) == 6
    astray = axis_angle_to_rotation(torch.randn(3), torch.tensor(40.0))
    net.rotation = Fixed(turn @ truth() @ astray @ net.turns[tried].T)
    found = net.predict(volume_of((turn, at)))
    angles, places = errors(found.head_to_grid, [(turn @ truth(), at)])
    assert angles.max() < 3
    assert places.max() < 2
    assert (found.confidence > 0.95).all()


@torch.no_grad()
@pytest.mark.parametrize(
    ("axis", "angle_deg"),
    [([1.0, 0.0, 0.0], 180.0), ([0.0, 0.0, 1.0], 90.0), ([0.0, 0.0, 1.0], -90.0)],
    ids=["upside down", "to the left", "to the right"],
)
def test_turns_widen_the_reach(axis, angle_deg, chain):
    """A network that sees little out of line still finds a head that is turned far from there."""
    turn = axis_angle_to_rotation(torch.tensor(axis), torch.tensor(angle_deg))
    pose = (turn @ truth().T, torch.tensor([4.0, -3.0, 5.0]))
    net = chain(torch.eye(3), Seeing(reach=50.0))
    for turns, right in ((net.turns, True), (torch.eye(3)[None], False)):
        net.turns = turns
        angles, _ = errors(net.predict(volume_of(pose)).head_to_grid, [(turn, pose[1])])
        assert (angles.item() < 3) == right


@torch.no_grad()
def test_the_pose_moves_with_the_volume(chain):
    """Rotations and reflections of the cube: left and right are treated alike."""
    volume = volume_of(POSES[0])
    net = chain(POSES[0][0])
    before = net.predict(volume).head_to_grid[0]
    mirror = torch.diag(torch.tensor([-1.0, 1, 1]))
    for symmetry in SYMMETRIES[::5]:
        g = symmetry.float()
        guess = g @ POSES[0][0] @ (mirror if torch.linalg.det(g) < 0 else torch.eye(3))
        found = chain(guess).predict(move_voxels(volume, symmetry)).head_to_grid[0]
        expected = g @ before[:3, :3]
        if torch.linalg.det(g) < 0:
            expected = expected @ mirror
        assert geodesic_deg(found[:3, :3], expected).item() < 0.05
        torch.testing.assert_close(found[:3, 3], g @ before[:3, 3], atol=0.02, rtol=0)


@torch.no_grad()
def test_a_batch_is_a_loop(chain):
    net, volumes = chain(proper(5)), volume_of(*POSES)
    together = net.predict(volumes)
    for k in range(len(POSES)):
        alone = net.predict(volumes[k : k + 1])
        for name, value in alone._asdict().items():
            batch = getattr(together, name)[k : k + 1]
            torch.testing.assert_close(value.float(), batch.float(), atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_the_head_is_where_the_landmarks_say_so(chain):
    """A larger ball without eyes is the densest place, but not a head."""
    shape = (80, 34, 36)
    at = torch.tensor([-90.0, 3.0, 2.0])
    volume = volume_of((POSES[1][0], at), shape=shape)
    steps = [4.0 * (torch.arange(n) - (n - 1) / 2) for n in shape]
    points = torch.stack(torch.meshgrid(*steps, indexing="ij"), dim=-1)
    ball = 0.7 * torch.sigmoid((38 - (points - torch.tensor([90.0, 0, 0])).norm(dim=-1)) / 2)
    volume = volume + ball
    net = chain(POSES[1][0])
    found = net.predict(volume)
    assert (found.head_to_grid[0, :3, 3] - at).norm() < 3
    # the label and the brain's volume are of that place as well
    label = found.label[0, 0].nonzero().float().mean(0)
    assert 4 * (label[0] - (shape[0] - 1) / 2) == pytest.approx(at[0].item(), abs=4)
    assert found.brain_volume_ml.item() < 120
    net.landmarks = None
    fooled = net.predict(volume).head_to_grid[0, :3, 3]
    assert (fooled - torch.tensor([90.0, 0, 0])).norm() < 3


@torch.no_grad()
def test_a_place_where_no_brain_is_seen_never_wins(chain):
    """However well its cubes look: here all cubes look the same, and only one place counts."""
    net, volume = chain(proper(9)), volume_of(POSES[0])
    net.candidates = 1
    look = net.closer(volume)
    expected = net.find(look, volume)
    doubled = look._replace(density=torch.tensor([0.01, look.density[0]]))
    doubled = doubled._replace(
        **{
            name: getattr(look, name)[:1].repeat_interleave(2, dim=0)
            for name in ("part", "logits", "start", "place")
        }
    )
    net.min_density = 0.05
    found = net.find(doubled, volume)
    torch.testing.assert_close(found.head_to_grid, expected.head_to_grid, atol=1e-3, rtol=0)
    assert found.head_to_grid.isfinite().all()


@torch.no_grad()
def test_every_place_is_looked_at_for_itself(chain):
    """Each window shows both brains; the larger one has a window of its own."""
    shape = (60, 32, 32)
    net = chain()
    net.candidates = 2
    volume = volume_of((torch.eye(3), torch.tensor([-60.0, 0, 0])), shape=shape)
    steps = [4.0 * (torch.arange(n) - (n - 1) / 2) for n in shape]
    points = torch.stack(torch.meshgrid(*steps, indexing="ij"), dim=-1)
    distance = (points - torch.tensor([60.0, 0, 0])).norm(dim=-1)
    volume = volume + 0.7 * torch.sigmoid((22 - distance) / 2)
    look = net.closer(volume)
    found = 4.0 * ((look.start + look.place)[:, 0] - (shape[0] - 1) / 2)
    torch.testing.assert_close(found, torch.tensor([-60.0, 60.0]), atol=8, rtol=0)
    assert look.density[0] > look.density[1] > 0


@torch.no_grad()
def test_the_label_is_the_brain_around_the_pose(chain):
    """Whole, also where the search began beside the head."""
    net, volume = chain(POSES[0][0]), volume_of(POSES[0])
    expected = net.predict(volume)
    look = net.closer(volume)
    beside = look._replace(place=look.place + torch.tensor([10, 0, 0]))
    found = net.find(beside, volume)
    torch.testing.assert_close(found.head_to_grid, expected.head_to_grid, atol=0.5, rtol=0)
    assert found.label.equal(expected.label)
    assert found.brain_volume_ml.equal(expected.brain_volume_ml)


@torch.no_grad()
def test_little_confidence_can_count_as_no_head(chain):
    ball = 0.7 * torch.sigmoid((28 - volume_radius()) / 2)[None, None]
    found = chain().predict(ball)
    assert found.head_to_grid.isfinite().all()
    assert found.confidence.item() < 0.1
    refused = chain(min_confidence=0.2).predict(ball)
    assert refused.head_to_grid.isnan().all()
    assert refused.confidence.item() == 0
    assert chain(min_confidence=0.2).predict(volume_of(POSES[0])).head_to_grid.isfinite().all()


def volume_radius():
    steps = [4.0 * (torch.arange(n) - (n - 1) / 2) for n in SHAPE]
    return torch.stack(torch.meshgrid(*steps, indexing="ij"), dim=-1).norm(dim=-1)


@torch.no_grad()
def test_an_empty_volume_has_no_head(chain):
    found = chain().predict(torch.zeros(1, 1, *SHAPE))
    assert found.head_to_grid.isnan().all()
    assert found.confidence.item() == found.brain_volume_ml.item() == 0


@torch.no_grad()
def test_a_reference_tells_where_to_begin(chain):
    volume = volume_of(*POSES)
    net = chain(POSES[0][0])
    at = torch.stack([center for _, center in POSES])
    found = net.predict(volume, Box(at + 8, torch.full((4,), 110.0)))
    _, places = errors(found.head_to_grid, POSES)
    assert places.max() < 2
    net.min_brain_ml = 1e6  # and it stands for a head where the localizer sees none
    assert net.predict(volume, Box(at, torch.full((4,), 110.0))).head_to_grid.isfinite().all()


def test_training_shows_the_network_the_cubes_it_is_given(chain):
    net = chain()
    box = Box(torch.zeros(1, 3), torch.full((1,), 100.0))
    cubes = torch.rand(3, 1, 28, 28, 28)
    landmarks = net.train()(volume_of(POSES[0]), box, cubes)[2]
    assert landmarks.point.shape == (3, 3, 3)
    assert net(volume_of(POSES[0]), box)[2] is None
