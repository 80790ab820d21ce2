"""search.py: from where the rotation network leaves the head to its pose, by landmarks or not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from scripts.cubes import Cube, along_grid
from scripts.geometry import (
    axis_angle_to_rotation,
    geodesic_deg,
    landmark_frame,
    landmarks_to_pose,
    no_head,
)
from scripts.network import HeadPoseNet
from scripts.network.landmarks import Landmarks
from scripts.network.search import DensestPlace, FirstPoses, LandmarkSearch
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
    points = grid_points(shape)
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
    def build(guess=None, landmarks="seeing", **options):
        net = HeadPoseNet(
            Fixed(torch.eye(3) if guess is None else guess),
            crop_size=8,
            crop_fill=0.4,
            localizer_channels=(4,) * 6,
            landmarks=Seeing() if landmarks == "seeing" else landmarks,
            **{"min_density": 0.0, "max_rotation_sd_deg": 180.0, **options},
        ).eval()
        monkeypatch.setattr(net.localizer, "forward", brain_as_logits)
        if net.landmarks is not None:
            # of the score alone: stand-ins have no heat maps, as the shipped weights expect them
            net.chain.search.expected_error.rotation = [0.0, 0.0, 0.0, 0.1, 0.0, 0.0]
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


# LandmarkSearch, in the chain


@torch.no_grad()
@pytest.mark.parametrize("tried", range(6))
def test_landmarks_correct_what_the_rotation_network_says(tried, chain):
    """The pose is the one that brain and eyes span, however near to it the search began."""
    turn, at = POSES[tried % 4]
    astray = axis_angle_to_rotation(torch.randn(3), torch.tensor(40.0))
    found = chain(turn @ truth() @ astray).predict(volume_of((turn, at)))
    angles, places = errors(found.head_to_grid, [(turn @ truth(), at)])
    assert angles.max() < 3
    assert places.max() < 2
    assert (found.confidence > 0.95).all()


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
    found = chain(POSES[1][0]).predict(volume)
    assert (found.head_to_grid[0, :3, 3] - at).norm() < 3
    # the label and the brain's volume are of that place as well
    label = found.label[0, 0].nonzero().float().mean(0)
    assert 4 * (label[0] - (shape[0] - 1) / 2) == pytest.approx(at[0].item(), abs=4)
    assert found.brain_volume_ml.item() < 120
    fooled = chain(POSES[1][0], landmarks=None).predict(volume).head_to_grid[0, :3, 3]
    assert (fooled - torch.tensor([90.0, 0, 0])).norm() < 3


@torch.no_grad()
def test_a_place_where_no_brain_is_seen_never_wins(chain):
    """However well its cubes look: here all cubes look the same, and only one place counts."""
    net, volume = chain(proper(9), places=1), volume_of(POSES[0])
    expected, places = net.predict(volume), net.chain.localize(volume)
    doubled = places._replace(
        **{
            name: getattr(places, name).repeat_interleave(2, dim=1)
            for name in ("window", "maps", "label", "start", "offset_mm", "volume_ml")
        },
        density=torch.tensor([[0.01, places.density[0, 0]]]),
        cube=Cube(*(value.repeat_interleave(2, dim=1) for value in places.cube)),
    )
    net.chain.min_density = 0.05
    first = net.chain.first_poses(doubled)
    assert first.counts.tolist() == [[False, True]]
    found = net.chain.describe(doubled, net.chain.search(volume, first))
    torch.testing.assert_close(found.head_to_grid, expected.head_to_grid, atol=1e-3, rtol=0)
    assert found.head_to_grid.isfinite().all()


@torch.no_grad()
def test_every_place_is_looked_at_for_itself(chain):
    """Each window shows both brains; the larger one has a window of its own."""
    shape = (60, 32, 32)
    volume = volume_of((torch.eye(3), torch.tensor([-60.0, 0, 0])), shape=shape)
    steps = [4.0 * (torch.arange(n) - (n - 1) / 2) for n in shape]
    points = torch.stack(torch.meshgrid(*steps, indexing="ij"), dim=-1)
    distance = (points - torch.tensor([60.0, 0, 0])).norm(dim=-1)
    volume = volume + 0.7 * torch.sigmoid((22 - distance) / 2)
    places = chain(places=2).chain.localize(volume)
    found = places.cube.center_mm[0, :, 0]
    torch.testing.assert_close(found, torch.tensor([-60.0, 60.0]), atol=8, rtol=0)
    assert places.density[0, 0] > places.density[0, 1] > 0


@torch.no_grad()
def test_the_label_is_the_brain_around_the_pose(chain):
    """Whole, also where the search began beside the head, and of the window that shows it best."""
    net, volume = chain(POSES[0][0]), volume_of(POSES[0], shape=(90, 60, 60))
    expected = net.predict(volume)
    middle = torch.tensor([[[45, 30, 30], [80, 30, 30]]])
    for order in ([0, 1], [1, 0]):
        places = net.chain.windows(volume, middle[:, order], torch.ones(1, 2))
        first = net.chain.first_poses(places)
        beside = POSES[0][1] + torch.tensor([12.0, -9.0, 6.0])
        beside = first.cube._replace(center_mm=beside.expand(1, 2, 3))
        beside = first._replace(cube=beside, counts=torch.ones(1, 2, dtype=torch.bool))
        found = net.chain.describe(places, net.chain.search(volume, beside))
        torch.testing.assert_close(found.head_to_grid, expected.head_to_grid, atol=0.5, rtol=0)
        assert found.label.equal(expected.label)
        assert found.brain_volume_ml.equal(expected.brain_volume_ml)
    assert expected.brain_volume_ml.item() > 50


@torch.no_grad()
@pytest.mark.parametrize("shape", [(34, 32, 36), (90, 60, 60)])
def test_the_eyes_of_the_label_are_at_their_landmarks(chain, shape):
    """In balls of the size that goes with their distance, and where there is an image."""
    turn, at = POSES[1]
    volume = volume_of((turn, at), shape=shape)
    net = chain(turn)
    label = net.predict(volume).label[0, 0]
    eyes = HEAD[1:] @ turn.T + at
    points = grid_points(shape)
    apart = torch.stack([(points - eye).norm(dim=-1) for eye in eyes])
    expected = (apart <= 0.5 * (0.47 * (34 - 2.46) - 0.7)).any(0)
    found = label == 2
    assert 2 * (found & expected).sum() / (found.sum() + expected.sum()) > 0.75
    assert (apart.argmin(0)[found] == 0).sum() > 5  # and not one of them alone
    assert (apart.argmin(0)[found] == 1).sum() > 5

    # brains cut out of their heads have none, though landmarks say where they would be
    places = net.chain.localize(volume)
    best = net.chain.search(volume, net.chain.first_poses(places))
    near = (points - at).norm(dim=-1) < 32
    places = net.chain.localize(volume * near)
    cut = net.chain.describe(places, best).label[0, 0]
    assert not (cut == 2).any()
    assert (cut == 1).any()


@torch.no_grad()
def test_a_large_expected_error_can_count_as_no_head(chain):
    """It is the error that decides, and not the confidence."""
    ball = 0.7 * torch.sigmoid((28 - volume_radius()) / 2)[None, None]
    found = chain().predict(ball)
    assert found.head_to_grid.isfinite().all()
    assert found.confidence.item() < 0.1
    error_deg = found.rotation_sd_deg.item()
    assert 1 < error_deg < 180
    for max_deg, right in ((error_deg * 1.01, True), (error_deg * 0.99, False)):
        again = chain(max_rotation_sd_deg=max_deg, sure_deg=None).predict(ball)
        assert again.head_to_grid.isfinite().all() == right
        assert (again.confidence.item() > 0) == right
        assert again.rotation_sd_deg.isfinite().all() == right
    right = chain(max_rotation_sd_deg=error_deg * 0.99).predict(volume_of(POSES[0]))
    assert right.head_to_grid.isfinite().all()


def grid_points(shape):
    """Voxel centres (x, y, z, 3), mm from the middle."""
    steps = [4.0 * (torch.arange(n) - (n - 1) / 2) for n in shape]
    return torch.stack(torch.meshgrid(*steps, indexing="ij"), dim=-1)


def volume_radius():
    return grid_points(SHAPE).norm(dim=-1)


@torch.no_grad()
def test_an_empty_volume_has_no_head(chain):
    found = chain().predict(torch.zeros(1, 1, *SHAPE))
    assert found.head_to_grid.isnan().all()
    assert found.confidence.item() == found.brain_volume_ml.item() == 0


@torch.no_grad()
def test_a_reference_tells_where_to_begin(chain):
    volume = volume_of(*POSES)
    net = chain(POSES[0][0])
    at = torch.stack([center for _, center in POSES])[:, None]
    side = torch.full((4, 1), 110.0)
    found = net.predict(volume, along_grid(at + 8, side))
    _, places = errors(found.head_to_grid, POSES)
    assert places.max() < 2
    # and it stands for a head where the localizer sees none, or the landmarks are not sure
    net.chain.min_brain_ml, net.chain.search.max_rotation_sd_deg = 1e6, 0.0
    assert net.predict(volume).head_to_grid.isnan().all()
    anyway = net.predict(volume, along_grid(at, side))
    assert anyway.head_to_grid.isfinite().all()
    assert (anyway.confidence > 0).all()


def test_training_shows_the_network_the_cubes_it_is_given(chain):
    net = chain()
    cube = along_grid(torch.zeros(1, 1, 3), torch.full((1, 1), 100.0))
    cubes = torch.rand(3, 1, 28, 28, 28)
    landmarks = net.train()(volume_of(POSES[0]), cube, cubes).landmarks
    assert landmarks.point.shape == (3, 3, 3)
    assert net(volume_of(POSES[0]), cube).landmarks is None


@torch.no_grad()
def test_landmarks_are_read_in_few_cubes(chain):
    """It is most of the time that a pose takes: 14 of them at two places, mirror images counted."""
    net = chain(POSES[0][0])
    assert net.chain.places == 2
    net.predict(volume_of(POSES[0]))
    assert 0 < sum(net.landmarks.seen) <= 14
    net.landmarks.seen.clear()
    net.predict(volume_of(*POSES))
    assert sum(net.landmarks.seen) <= 14 * len(POSES)


@torch.no_grad()
def test_a_first_pose_that_is_no_rotation_does_not_break_the_search(chain):
    """Where the axes define no frame it begins along the grid; the others are as before."""
    near = axis_angle_to_rotation(torch.tensor([1.0, 2.0, -1.0]), torch.tensor(25.0)) @ truth().T
    pose = (near, POSES[0][1])
    volumes = volume_of(pose, POSES[1])
    net = chain(torch.zeros(3, 3))
    places = net.chain.localize(volumes)
    first = net.chain.first_poses(places)
    assert first.cube.rotation.isnan().all()
    found = net.predict(volumes[:1])
    angles, apart = errors(found.head_to_grid, [(pose[0] @ truth(), pose[1])])
    assert angles.item() < 3
    assert apart.item() < 2
    assert found.confidence.item() > 0.95
    # one item, or one place, does not spoil the other
    guess = (POSES[1][0] @ truth()).expand(2, first.density.shape[1], 3, 3).clone()
    whole = net.chain.search(volumes, first._replace(cube=first.cube._replace(rotation=guess)))
    guess[0] = torch.nan
    mixed = net.chain.search(volumes, first._replace(cube=first.cube._replace(rotation=guess)))
    assert mixed.cube.rotation.isfinite().all()
    for a, b in zip(mixed.cube, whole.cube, strict=True):
        torch.testing.assert_close(a[1], b[1])
    # without landmarks there is no pose then
    assert no_head(chain(torch.zeros(3, 3), landmarks=None).predict(volumes).head_to_grid).all()


@torch.no_grad()
def test_a_volume_that_only_the_second_pass_finds(chain, monkeypatch):
    """With landmarks: the pose is as exact as if the head had been seen at once."""
    turn, at = POSES[2]
    guess = torch.eye(3).roll(-1, 0) @ turn @ truth()  # the axes in the order y, z, x
    net, volume = chain(guess, min_density=0.05), volume_of((turn, at))

    def blind_at_first(given):
        seen = given.shape[2:] != volume.shape[2:]  # windows, and the turned volume
        return brain_as_logits(given if seen else torch.zeros_like(given))

    monkeypatch.setattr(net.localizer, "forward", blind_at_first)
    assert net.chain.one_pass(volume).head_to_grid.isnan().all()
    found = net.predict(volume)
    angles, apart = errors(found.head_to_grid, [(turn @ truth(), at)])
    assert angles.item() < 3
    assert apart.item() < 2
    middle = (found.label[0, 0] == 1).nonzero().float().mean(0)
    middle = 4.0 * (middle - (torch.tensor(SHAPE) - 1) / 2)
    assert (middle - at).norm() < 8  # the crown is not labelled
    net.chain.second_pass = False
    assert net.predict(volume).head_to_grid.isnan().all()


# The two searches alone


def first_poses(cube, density, counts) -> FirstPoses:
    return FirstPoses(cube, density.flip(1), density, counts)


def some_cubes(batch=3, n=4) -> Cube:
    turns = torch.stack([proper(k) for k in range(batch * n)]).view(batch, n, 3, 3)
    return Cube(10 * torch.randn(batch, n, 3), 80 + 20 * torch.rand(batch, n), turns)


def test_the_densest_place_without_a_frame_is_no_head():
    cube = along_grid(torch.zeros(2, 1, 3), torch.ones(2, 1))
    cube.rotation[1, 0] = torch.nan
    first = first_poses(cube, torch.ones(2, 1), torch.ones(2, 1, dtype=torch.bool))
    assert DensestPlace()(torch.zeros(2, 1, 8, 8, 8), first).found.tolist() == [True, False]


def test_the_densest_place_is_taken_as_it_is():
    cube, density = some_cubes(), torch.rand(3, 4)
    counts = torch.rand(3, 4) > 0.5
    best = DensestPlace()(torch.zeros(3, 1, 8, 8, 8), first_poses(cube, density, counts))
    for k in range(3):
        n = int(density[k].argmax())
        for found, every in zip(best.cube, cube, strict=True):
            assert found.shape[1] == 1
            assert found[k, 0].equal(every[k, n])
        assert best.confidence[k] == density[k].flip(0)[n]  # the agreement
        assert best.found[k] == counts[k, n]


class Recording(nn.Module):
    """LandmarkNet that sees upright landmarks, of the score of the brightness in the middle."""

    crop_size = 8

    def __init__(self):
        super().__init__()
        self.crops = []

    def forward(self, crop):
        self.crops.append(crop)
        upright = torch.tensor([[0.0, 0, 0], [-0.12, 0.25, -0.25 * 3**-0.5], [0.12, 0.25, 0]])
        upright[2, 2] = upright[1, 2]
        heatmap = torch.zeros(len(crop), 3, 4, 4, 4)
        return Landmarks(
            heatmap, upright.expand(len(crop), 3, 3), crop[:, 0, 3:5, 3:5, 3:5].mean((1, 2, 3))
        )


def ramp_volume(batch):
    """Each brighter along x, from -2 to 2."""
    x = torch.linspace(-2, 2, 32).view(1, 1, 32, 1, 1)
    return x.expand(batch, 1, 32, 24, 20)


@torch.no_grad()
def test_of_the_cubes_that_count_the_one_of_most_merit_is_chosen():
    """Whichever place it is of; the confidence is the probability that its score means."""
    net = Recording()
    # expected to be off by 1 + exp(-score) degrees
    search = LandmarkSearch(
        net, 4.0, 120.0, max_rotation_sd_deg=2.0, rotation_weights=(0, 0, 0, 1, 0, 0)
    )
    center = torch.tensor([[[-30.0, 4, 2], [30.0, -2, 0]], [[20.0, 0, 3], [-10.0, 1, 1]]])
    cube = along_grid(center, torch.full((2, 2), 100.0))
    every = torch.ones(2, 2, dtype=torch.bool)
    for counts, expected in ((every, [1, 0]), (torch.tensor([[True, False]] * 2), [0, 0])):
        best = search(ramp_volume(2), first_poses(cube, torch.rand(2, 2), counts))
        for k, n in enumerate(expected):
            torch.testing.assert_close(best.cube.center_mm[k, 0], center[k, n], atol=0.1, rtol=0)
            score = 4 * center[k, n, 0] / 124
            assert best.confidence[k].item() == pytest.approx(score.sigmoid().item(), abs=0.02)
            assert best.found[k] == (score > 0)
    none = search(ramp_volume(2), first_poses(cube, torch.rand(2, 2), ~every))
    assert not none.found.any()


@torch.no_grad()
def test_the_size_of_the_cubes_is_half_way_to_the_typical_one():
    """As the geometric mean, never less than the least: told by what the cubes show of a ramp."""
    net = Recording()
    search = LandmarkSearch(net, 4.0, 120.0, least_side_mm=60.0, first_sizes=[1.0])
    for side_mm, expected in ((100.0, (100.0 * 120) ** 0.5), (20.0, (60.0 * 120) ** 0.5)):
        net.crops.clear()
        cube = along_grid(torch.zeros(1, 1, 3), torch.tensor([[side_mm]]))
        one = torch.ones(1, 1, dtype=torch.bool)
        best = search(ramp_volume(1), first_poses(cube, torch.ones(1, 1), one))
        slope = net.crops[0][0, 0, 4, 4, 4] - net.crops[0][0, 0, 3, 4, 4]
        assert slope.item() * 8 * 124 / 4 == pytest.approx(expected, rel=1e-3)
        assert best.cube.side_mm.item() == pytest.approx(expected, rel=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_head_taken_upside_down_is_found_by_a_half_turn(chain, axis):
    half = torch.full((3,), -1.0)
    half[axis] = 1
    net = chain(POSES[0][0] @ half.diag(), landmarks=Seeing(reach=60.0)).chain
    volume = volume_of(POSES[0])
    turned, _ = errors(net.one_pass(volume).head_to_grid, POSES[:1])
    assert turned.min() > 90
    turned, places = errors(net.one_pass(volume, half_turns=True).head_to_grid, POSES[:1])
    assert turned.max() < 5
    assert places.max() < 4


@torch.no_grad()
def test_half_turns_are_read_in_the_second_pass_only(chain):
    """What the first pass reads, and four times as many first cubes where it finds nothing."""
    seeing = Seeing()
    chain(landmarks=seeing).predict(volume_of(POSES[0]))
    once = list(seeing.seen)
    seeing.seen.clear()
    chain(landmarks=seeing, max_rotation_sd_deg=-1.0).predict(volume_of(POSES[0]))
    assert seeing.seen == [*once, 4 * once[0], *once[1:]]
