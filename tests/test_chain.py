"""chain.py: the four steps, wherever the head lies, under the cube, and the second pass."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from chains import (
    AUTHORS_SMALL,
    TINY,
    TOLERANCE,
    Blind,
    Intensity,
    Rated,
    Recorder,
    heads,
    in_a_large_volume,
    intensity_as_logits,
    mark,
)
from scripts.cubes import Cube, along_grid, sample_cubes
from scripts.geometry import axis_angle_to_rotation, geodesic_deg, no_head, rigid
from scripts.network import E3CNN
from scripts.network.chain import PoseChain, Prediction, brain_units, most_probable
from scripts.network.search import DensestPlace
from symmetry import SYMMETRIES, move_voxels


@pytest.fixture
def use_dtype():
    """Sets the type that networks are built in, as the constants of the kernels need."""
    before = torch.get_default_dtype()
    yield torch.set_default_dtype
    torch.set_default_dtype(before)


def chain_of(
    rotation: nn.Module | None = None,
    localizer: nn.Module | None = None,
    search: nn.Module | None = None,
    **options,
) -> PoseChain:
    """A chain that runs at once, whose localizer takes the bright for brain."""
    rotation = E3CNN(**TINY, in_channels=3) if rotation is None else rotation
    given = {
        "spacing_mm": 4.0,
        "crop_size": 8,
        "crop_fill": 0.6,
        "min_brain_ml": 1.0,
        "min_density": 0.0,
        **options,
    }
    localizer = Intensity() if localizer is None else localizer
    search = DensestPlace() if search is None else search
    return PoseChain(localizer, rotation, search, rotation.in_channels, **given).eval()


def cube_at(center_mm, side_mm) -> Cube:
    """Cubes (batch, 1) along the grid from centres (batch, 3) and sides (batch,)."""
    return along_grid(torch.as_tensor(center_mm)[:, None], torch.as_tensor(side_mm)[:, None])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("config", "crop_size"),
    [({"in_channels": 4}, 16), ({}, 16), (AUTHORS_SMALL, 8)],
    ids=["with_maps", "image_alone", "small_authors"],
)
def test_pose_turns_with_the_volume(config, crop_size, dtype, use_dtype):
    """The whole chain under the cube: p_grid' = g p_grid, and a mirrored head is a head again."""
    use_dtype(dtype)
    places = {torch.float32: 2, torch.float64: 1}[dtype]  # one is enough, and twice as fast
    chain = chain_of(E3CNN(**config), crop_size=crop_size, places=places)
    volume, tolerance = heads(), TOLERANCE[dtype]
    with torch.no_grad():
        before = chain.predict(volume)
        assert before.confidence > 0.01  # a frame that is defined
        for first in range(0, 48, 8):  # eight symmetries that give volumes of one shape
            group = [g.to(volume) for g in SYMMETRIES[first : first + 8]]
            after = chain.predict(torch.cat([move_voxels(volume, g) for g in group]))
            g, pose, turned = torch.stack(group), before.head_to_grid[0], after.head_to_grid
            mirror = torch.ones(8, 1, 3).to(volume)
            mirror[:, 0, 0] = torch.linalg.det(g)
            rotation = g @ pose[:3, :3] * mirror
            torch.testing.assert_close(turned[:, :3, :3], rotation, atol=tolerance, rtol=0)
            origin = g @ pose[:3, 3]
            torch.testing.assert_close(turned[:, :3, 3], origin, atol=10 * tolerance, rtol=0)
            confidence = before.confidence.expand(8)
            torch.testing.assert_close(after.confidence, confidence, atol=tolerance, rtol=0)
            assert after.brain_volume_ml.equal(before.brain_volume_ml.expand(8))
            assert after.label.equal(torch.cat([move_voxels(before.label, g) for g in group]))


def crop_with_brain(scale=1.0, offset=0.0, outside=0.0):
    """A crop (1, 3, 12, 12, 12): a brain with structure in a surrounding, and where it is."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 1, 12, 12, 12, generator=generator)
    brain = torch.zeros_like(image)
    brain[:, :, 3:9, 3:9, 3:9] = 1
    image = torch.where(brain > 0, scale * image + offset, outside)
    return torch.cat([image, brain, torch.zeros_like(brain)], dim=1)


def test_in_brain_units_a_dark_brain_is_as_clear_as_a_bright_one():
    bright = brain_units(crop_with_brain())
    assert bright.shape == (1, 1, 12, 12, 12)
    inside = crop_with_brain()[:, 1:2] > 0
    assert bright[inside].std() == pytest.approx(0.5, abs=0.03)
    dark = brain_units(crop_with_brain(scale=0.1, offset=0.02, outside=1.0))
    # the deviation is at least a hundredth of the range
    torch.testing.assert_close(dark[inside], bright[inside] * 0.75, atol=0.2, rtol=0)
    assert dark[~inside].unique().tolist() == [1.5]
    # without probabilities the middle counts; where nothing is, nothing is made up
    unseen = crop_with_brain()
    unseen[:, 1:] = 0
    assert brain_units(unseen)[inside].std() == pytest.approx(0.5, abs=0.1)
    assert brain_units(torch.zeros(2, 3, 8, 8, 8)).abs().max() == 0


def test_the_rotation_network_sees_the_image_the_maps_and_the_image_in_brain_units():
    seen = []

    class Recorder(nn.Module):
        def forward(self, crop):
            seen.append(crop)
            return torch.rand(len(crop), 3, 3, 2, 2, 2)

    for channels in (1, 3, 4):
        chain = chain_of(E3CNN(**TINY, in_channels=channels))
        chain.rotation = Recorder()
        with torch.no_grad():
            chain.predict(heads())
    one, three, four = (crop for crop in seen[:: len(seen) // 3][:3])
    assert [crop.shape[1] for crop in (one, three, four)] == [1, 3, 4]
    assert three[:, :1].equal(one)
    assert four[:, :3].equal(three)
    assert four[:, 3:].equal(brain_units(three))


def test_pose_is_rigid_and_centred_on_the_brain():
    chain, volume = chain_of(E3CNN(**TINY)), heads(batch=2)
    with torch.no_grad():
        found = chain.predict(volume)
        pose, confidence, volume_ml, label = found[:4]
        assert chain(volume).equal(pose)
    assert pose.shape == (2, 4, 4)
    assert label.shape == volume.shape
    assert label.dtype == torch.uint8
    assert set(label.unique().tolist()) == {0, 1, 2}
    eye = torch.eye(3).expand(2, 3, 3)
    torch.testing.assert_close(pose[:, :3, :3] @ pose[:, :3, :3].mT, eye, atol=1e-5, rtol=0)
    assert torch.linalg.det(pose[:, :3, :3]).gt(0).all()
    assert pose[:, 3].equal(torch.tensor([[0.0, 0, 0, 1]] * 2))
    for k in range(2):
        voxels = (label[k, 0] == 1).nonzero().float()
        center = 4.0 * (voxels.mean(0) - (torch.tensor(volume.shape[2:]) - 1) / 2)
        torch.testing.assert_close(pose[k, :3, 3], center, atol=1e-3, rtol=0)
        assert volume_ml[k].item() == pytest.approx(len(voxels) * 0.064, rel=1e-5)
    assert ((confidence >= 0) & (confidence <= 1)).all()


def test_a_batch_is_a_loop():
    """Trap 4, for the whole chain."""
    chain, volumes = chain_of(), heads(batch=3)
    with torch.no_grad():
        together = chain.predict(volumes)
        for k in range(3):
            alone = chain.predict(volumes[k : k + 1])
            for name, value in alone._asdict().items():
                torch.testing.assert_close(
                    getattr(together, name)[k : k + 1],
                    value,
                    atol=1e-3,
                    rtol=1e-4,
                    equal_nan=True,
                    msg=name,
                )


@pytest.mark.parametrize("sure_deg", [None, 180.0, 15.0])
@pytest.mark.parametrize("empty", [0.0, 0.2, "small"])
def test_no_head_is_no_pose_and_no_harm(empty, sure_deg):
    """Trap 8: one volume without a head leaves the others of the batch as they are."""
    chain, volumes = chain_of(search=Rated(), sure_deg=sure_deg), heads(batch=3)
    with torch.no_grad():
        before = chain.predict(volumes)
        if empty == "small":
            volumes[1] = 0
            volumes[1, 0, 4:6, 4:6, 4:6] = 0.5  # half a ml
        else:
            volumes[1] = empty
        found = chain.predict(volumes)
        alone = chain.predict(volumes[1:2])
    assert found.head_to_grid[1].isnan().all()
    assert found.confidence[1] == 0
    assert found.brain_volume_ml[1].item() == pytest.approx(0.512 if empty == "small" else 0)
    assert alone.head_to_grid.isnan().all()
    for k in (0, 2):
        for after, value in zip(found, before, strict=True):
            torch.testing.assert_close(after[k], value[k], equal_nan=True)
    assert before.head_to_grid.isfinite().all()


def test_a_brain_that_is_not_probable_is_no_head():
    """The density is the product of what is seen from afar and in the window."""
    chain, volume = chain_of(), heads()
    with torch.no_grad():
        places = chain.localize(volume)
        density = places.density.max().item()
        afar = chain.localizer(volume).softmax(1)[:, 1:2]
        prior = torch.nn.functional.avg_pool3d(afar, 7, 1, padding=3).max().item()
        assert 0 < density < prior
        for bound, found in ((0.99 * density, True), (1.01 * density, False)):
            chain.min_density = bound
            assert chain.predict(volume).head_to_grid.isfinite().all() == found


@pytest.mark.parametrize("offset", [(36, 26, 40), (0, 0, 0), (72, 52, 80), (30, 0, 80)])
def test_a_head_is_found_wherever_it_lies(offset):
    """In a volume larger than the window, at its border too: the pose, and the label, in place."""
    chain, volume = chain_of(), heads(batch=2)
    large = in_a_large_volume(volume, offset)
    with torch.no_grad():
        near, far = chain.predict(volume), chain.predict(large)
    assert far.label.shape == large.shape
    assert far.label.equal(in_a_large_volume(near.label, offset))
    assert far.brain_volume_ml.equal(near.brain_volume_ml)
    middle = torch.tensor(offset) + (torch.tensor(volume.shape[2:]) - 1) / 2
    moved = 4.0 * (middle - (torch.tensor(large.shape[2:]) - 1) / 2)
    torch.testing.assert_close(
        far.head_to_grid[:, :3, 3], near.head_to_grid[:, :3, 3] + moved, atol=1e-3, rtol=0
    )
    rotations = far.head_to_grid[:, :3, :3], near.head_to_grid[:, :3, :3]
    assert geodesic_deg(*rotations).max() < 0.1
    torch.testing.assert_close(far.confidence, near.confidence, atol=1e-3, rtol=0)


# localize


def test_the_windows_are_of_the_size_of_the_training():
    chain, large = chain_of(), in_a_large_volume(heads(), (30, 40, 50))
    places = chain.localize(large)
    side, n = chain.window, chain.places
    assert places.window.shape == (1, n, 1, side, side, side)
    logits = intensity_as_logits(places.window[0])
    assert places.maps[0].equal(logits.softmax(1)[:, 1:])
    assert places.label[0].equal(logits.argmax(1, keepdim=True).to(torch.uint8))
    assert places.density.shape == places.volume_ml.shape == places.cube.side_mm.shape == (1, n)
    assert places.size == list(large.shape[2:])
    part = places.window[:, 0]  # the densest place is the first
    x, y, z = (slice(max(first, 0), first + side) for first in places.start[0, 0].tolist())
    assert part.sum().item() == pytest.approx(large[:, :, x, y, z].sum().item(), rel=1e-4)
    assert part.sum() == pytest.approx(large.sum().item(), rel=1e-4)  # the head is inside


def test_windows_can_be_told_where():
    chain, volume = chain_of(), torch.rand(2, 1, 40, 50, 45)
    center = torch.tensor([[[10, 40, 20], [3, 2, 1]], [[20, 20, 44], [39, 49, 0]]])
    places = chain.windows(volume, center, torch.ones(2, 2))
    assert places.start.equal(center - chain.window // 2)
    for k in range(2):
        for n in range(2):
            middle = (k, n, 0, *[chain.window // 2] * 3)
            assert places.window[middle] == volume[(k, 0, *center[k, n].tolist())]
            # from the middle of the volume to that of the window
            voxel = places.start[k, n] + (chain.window - 1) / 2
            expected = 4.0 * (voxel - (torch.tensor(volume.shape[2:]) - 1) / 2)
            torch.testing.assert_close(places.offset_mm[k, n], expected)
    half = chain.windows(volume, center, torch.full((2, 2), 0.5))
    torch.testing.assert_close(half.density, 0.5 * places.density)


def test_the_cube_of_a_place_is_around_its_brain():
    """In the frame of the volume, along its axes, whatever the window."""
    chain, volume = chain_of(places=1), heads(batch=2)
    for moved in (volume, in_a_large_volume(volume, (50, 20, 70))):
        places = chain.localize(moved)
        for k in range(2):
            voxels = (moved[k, 0] > 0.35) & (moved[k, 0] <= 0.95)  # brighter are the eyes
            center = voxels.nonzero().float().mean(0) - (torch.tensor(moved.shape[2:]) - 1) / 2
            torch.testing.assert_close(places.cube.center_mm[k, 0], 4.0 * center, atol=1e-3, rtol=0)
            volume_ml = voxels.sum().item() * 0.064
            assert places.volume_ml[k, 0].item() == pytest.approx(volume_ml, rel=1e-5)
            side_mm = (6 / torch.pi * 1000 * volume_ml) ** (1 / 3) / chain.crop_fill
            assert places.cube.side_mm[k, 0].item() == pytest.approx(side_mm, rel=1e-5)
            assert places.cube.rotation[k, 0].equal(torch.eye(3))


class FooledFromAfar(nn.Module):
    """Takes what is brighter than any head for the best of brains, unless it looks closely."""

    def forward(self, volume):
        decoy = volume > 1.2
        logits = 10 * intensity_as_logits(torch.where(decoy, 0.0, volume))
        if volume.shape[2:] != (64,) * 3:
            logits[:, 1:2] += 100 * decoy
        return logits


def test_a_decoy_is_seen_through_in_the_window():
    """Each volume for itself: one has the decoy, one has not."""
    chain = chain_of(localizer=FooledFromAfar())
    volumes = in_a_large_volume(heads(batch=2), (3, 5, 4))
    with torch.no_grad():
        expected = chain.predict(volumes)
        volumes[1, 0, 65:85, 50:70, 75:95] = 1.5
        found = chain.predict(volumes)
        for name, value in found._asdict().items():
            torch.testing.assert_close(value, getattr(expected, name), equal_nan=True, msg=name)
        chain.places = 1
        fooled = chain.predict(volumes)
    assert fooled.head_to_grid[1].isnan().all()
    torch.testing.assert_close(fooled.head_to_grid[0], expected.head_to_grid[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_most_probable_class_is_that_of_argmax(dtype):
    logits = torch.randn(2, 3, 5, 6, 7).to(dtype)
    logits[0, :, :2] = logits[0, :1, :2]  # of equal ones the first
    logits[1, 1:, :2] = logits[1, 1:2, :2]
    found = most_probable(logits)
    assert found.dtype == torch.uint8
    assert found.equal(logits.argmax(1, keepdim=True).to(torch.uint8))


# first poses


def test_an_image_alone_is_all_that_one_channel_sees():
    chain = chain_of(E3CNN(**TINY))
    cube, volume = cube_at([[5.0, -4.0, 3.0]], [60.0]), heads()
    expected = chain.rotation(sample_cubes(volume, cube, 8, 4.0)[:, 0])
    for maps in (torch.zeros(1, 2, *volume.shape[2:]), torch.rand(1, 2, *volume.shape[2:])):
        assert chain.axis_field(volume, maps, cube).equal(expected)


def test_the_crop_shows_the_image_and_the_probabilities():
    chain, volume = chain_of(Recorder()), heads(batch=8)
    maps, cube = torch.rand(8, 2, *volume.shape[2:]), cube_at(torch.zeros(8, 3), [40.0] * 8)
    chain.axis_field(volume, maps, cube)
    shown = torch.cat([volume, maps], dim=1)  # background is the rest
    torch.testing.assert_close(chain.rotation.crops[0], sample_cubes(shown, cube, 8, 4.0)[:, 0])


def test_first_poses_see_the_cube_of_every_place():
    """As it lies in the volume, although the crop is cut from the window."""
    chain, volume = chain_of(Recorder()), in_a_large_volume(heads(batch=2), (40, 10, 60))
    places = chain.localize(volume)
    first = chain.first_poses(places)
    (crops,) = chain.rotation.crops
    shown = torch.cat([volume, intensity_as_logits(volume).softmax(1)[:, 1:]], dim=1)
    expected = sample_cubes(shown, places.cube, 8, 4.0)
    found = crops.unflatten(0, (2, chain.places))
    torch.testing.assert_close(found[:, 0], expected[:, 0], atol=1e-4, rtol=0)
    assert first.cube.center_mm is places.cube.center_mm
    assert first.cube.side_mm is places.cube.side_mm
    assert first.counts.equal(places.volume_ml >= chain.min_brain_ml)
    chain.min_density = places.density[0, 0].item() + 1e-6
    assert not chain.first_poses(places).counts[0].any()


@pytest.mark.parametrize("shape", [None, (90, 75, 100)])
def test_a_reference_places_the_crop(shape):
    chain, volume = chain_of(), heads(batch=2)
    if shape:
        volume = in_a_large_volume(volume, (60, 10, 30), shape)
    with torch.no_grad():
        found = chain.predict(volume)
        center = found.head_to_grid[:, :3, 3]
        # the cube that the network itself takes gives its own pose
        side = (6 / torch.pi * 1000 * found.brain_volume_ml).pow(1 / 3) / chain.crop_fill
        same = chain.at(volume, cube_at(center, side))
        torch.testing.assert_close(same.head_to_grid, found.head_to_grid, atol=1e-3, rtol=0)
        torch.testing.assert_close(same.confidence, found.confidence, atol=1e-4, rtol=0)
        assert same.label.equal(found.label)
        elsewhere = chain.at(volume, cube_at(center + 20, side))
        torch.testing.assert_close(elsewhere.head_to_grid[:, :3, 3], center + 20)
        angles = geodesic_deg(elsewhere.head_to_grid[:, :3, :3], found.head_to_grid[:, :3, :3])
        assert angles.min() > 1
        # and it stands for a head where the localizer sees none
        chain.min_brain_ml = 1e6
        assert chain.predict(volume).head_to_grid.isnan().all()
        anyway = chain.at(volume, cube_at(center, side)).head_to_grid
        assert anyway.equal(same.head_to_grid)


# The second pass


def passes(**options) -> PoseChain:
    """A chain that sees nothing in volumes that are marked along their first axis."""
    torch.manual_seed(3)
    return chain_of(localizer=Blind(Intensity()), **{"search": Rated(), **options})


def assert_same(found: Prediction, expected: Prediction) -> None:
    for name, value in found._asdict().items():
        torch.testing.assert_close(
            value,
            getattr(expected, name),
            atol=1e-3 if value.is_floating_point() else 0,
            rtol=0,
            equal_nan=True,
            msg=name,
        )


def test_what_the_first_pass_misses_the_second_finds():
    """In the axes of the volume as it came: all is as if it had been seen at once."""
    volumes = torch.cat([mark(heads(seed=k), 0) for k in range(3)])
    with torch.no_grad():
        chain = passes(sure_deg=180.0)
        assert no_head(chain.one_pass(volumes).head_to_grid).all()
        found = chain.predict(volumes)
        assert chain(volumes).equal(found.head_to_grid)
        chain.localizer = Intensity()
        at_once = chain.one_pass(volumes)
        missed = passes(sure_deg=None).predict(volumes)
    assert at_once.head_to_grid.isfinite().all()
    assert_same(found, at_once)
    # a pose that is left in the turned axes would be another one
    centers = at_once.head_to_grid[:, :3, 3]
    assert (centers - centers.roll(1, 1)).norm(dim=1).min() > 2
    assert (centers - centers.roll(-1, 1)).norm(dim=1).min() > 2
    assert no_head(missed.head_to_grid).all()
    assert not missed.label.any()


def test_the_second_pass_changes_only_what_was_missed():
    """Each volume of a batch for itself: found at once, found then, twice missed, no head."""
    no_brain = torch.zeros(1, 1, 18, 23, 20)
    no_brain[0, 0, 4:6, 4:6, 4:6] = 0.5  # half a ml, which is told
    given = [
        mark(heads(seed=0), 1),
        mark(heads(seed=1), 0),
        mark(heads(seed=2), 0, 1),
        no_brain,
        heads(seed=4),
    ]
    chain = passes(sure_deg=180.0)
    with torch.no_grad():
        found = chain.predict(torch.cat(given))
        first = chain.one_pass(torch.cat(given))
        alone = [chain.predict(volume) for volume in given]
        chain.localizer = Intensity()
        at_once = chain.one_pass(given[1])
    assert no_head(first.head_to_grid).tolist() == [False, True, True, True, False]
    assert no_head(found.head_to_grid).tolist() == [False, False, True, True, False]
    for k in (0, 2, 3, 4):
        for name, value in found._asdict().items():
            expected = getattr(first, name)[k]
            torch.testing.assert_close(value[k], expected, atol=0, rtol=0, equal_nan=True, msg=name)
    assert_same(Prediction(*(value[1:2] for value in found)), at_once)
    assert found.confidence[2:4].tolist() == [0, 0]
    assert found.brain_volume_ml[3].item() == pytest.approx(0.512)
    assert found.label[3].sum() == 8
    for k, single in enumerate(alone):
        assert_same(Prediction(*(value[k : k + 1] for value in found)), single)


def test_what_the_second_pass_finds_has_to_be_sure():
    """The first has not: what it finds stays, whatever its expected error."""
    marked, plain = mark(heads(), 0), heads()
    with torch.no_grad():
        best = passes(sure_deg=180.0).predict(marked)
        confidence, error_deg = best.confidence.item(), best.rotation_sd_deg.item()
        assert 4 < error_deg < 176
        for sure_deg, right in ((error_deg + 2, True), (error_deg - 2, False)):
            found = passes(sure_deg=sure_deg).predict(marked)
            assert found.head_to_grid.isfinite().all() == right
            assert found.confidence.item() == pytest.approx(confidence if right else 0, abs=1e-3)
            assert found.rotation_sd_deg.isfinite().all() == right
            assert bool(found.label.any()) == bool(found.brain_volume_ml > 0) == right
        assert passes(sure_deg=0.0).predict(plain).head_to_grid.isfinite().all()


@pytest.mark.parametrize(
    ("first_deg", "second_deg", "taken"),
    [(24.0, 8.0, True), (24.0, 19.9, True), (24.0, 20.1, False), (24.0, math.nan, False),
     (19.9, 3.0, False), (math.nan, 8.0, True), (math.nan, 21.0, False)],
)  # fmt: skip
def test_what_the_first_pass_is_unsure_of_is_looked_at_again(first_deg, second_deg, taken):
    """Upside down is often unsure, and the right turn sure. NaN stands for no head."""

    def said(sd_deg, seed):
        turn = axis_angle_to_rotation(torch.tensor([[1.0, 2, 3]]), torch.tensor([40.0 * seed]))
        pose = rigid(turn, torch.tensor([[1.0, 2, 3]]))
        return Prediction(
            pose if math.isfinite(sd_deg) else torch.full_like(pose, math.nan),
            torch.full((1,), 0.1 * seed),
            torch.full((1,), 100.0 * seed),
            torch.full((1, 1, 18, 23, 20), seed, dtype=torch.uint8),
            torch.full((1,), sd_deg),
            torch.full((1,), sd_deg / 10),
        )

    chain = passes(sure_deg=20.0)
    first, again = said(first_deg, 1), said(second_deg, 2)
    again = again._replace(label=again.label.movedim(2, -1))
    chain.one_pass = lambda volume, half_turns=False: again if half_turns else first
    found = chain.predict(heads())
    assert found.rotation_sd_deg.isfinite().item() == (taken or math.isfinite(first_deg))
    assert found.label.unique().tolist() == [2 if taken else 1]
    expected = again if taken else first
    assert found.rotation_sd_deg.nan_to_num(-1).equal(expected.rotation_sd_deg.nan_to_num(-1))
    assert found.confidence.equal(expected.confidence)
    assert found.brain_volume_ml.equal(expected.brain_volume_ml)
    if math.isfinite(found.rotation_sd_deg.item()):
        axes = expected.head_to_grid[:, :3]
        assert found.head_to_grid[:, :3].equal(axes.roll(1, 1) if taken else axes)


def test_what_the_second_pass_finds_counts_only_if_its_error_is_known():
    """``DensestPlace`` tells none; what the first pass finds with it stays."""
    marked, plain = mark(heads(), 0), heads()
    with torch.no_grad():
        assert passes(sure_deg=180.0).predict(marked).head_to_grid.isfinite().all()
        unknown = passes(search=DensestPlace(), sure_deg=180.0)
        assert no_head(unknown.predict(marked).head_to_grid).all()
        found = unknown.predict(plain)
    assert found.head_to_grid.isfinite().all()
    assert found.rotation_sd_deg.isnan().all()


class Counting(nn.Module):
    """A localizer that counts its calls; two of them are a pass."""

    def __init__(self, localizer):
        super().__init__()
        self.localizer, self.calls = localizer, 0

    def forward(self, volume):
        self.calls += 1
        return self.localizer(volume)


@pytest.mark.parametrize(
    ("axes", "sure_deg", "calls"),
    [((), 180.0, 2), ((1,), 180.0, 2), ((0,), 180.0, 4), ((0,), None, 2)],
)
def test_there_is_a_second_pass_only_where_it_can_matter(axes, sure_deg, calls):
    chain = passes(sure_deg=sure_deg)
    chain.localizer = Counting(chain.localizer)
    with torch.no_grad():
        chain.predict(torch.cat([heads(), mark(heads(), *axes)]))
    assert chain.localizer.calls == calls
