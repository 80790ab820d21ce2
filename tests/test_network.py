"""network.py: equivariance of the E3CNN and of the whole chain, batches, sizes, gradients."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from e3nn import o3
from scipy.spatial.transform import Rotation
from torch import nn
from torch.nn import functional

from scripts.cubes import Box, crop_cube
from scripts.geometry import frame_to_rotation, geodesic_deg
from scripts.network import E3CNN, HeadPoseNet, pool_axes
from scripts.network import chain as chain_module
from scripts.network.e3cnn import reachable
from scripts.network.localizer import channels_to_space, space_to_channels
from scripts.network.steerable import with_channels
from symmetry import SYMMETRIES, move_field, move_voxels, relative_error

TINY = {"features": 1, "levels": 2, "convolutions": 1, "lmax": 1}
TINY_CHAIN = {"crop_size": 8, "localizer_channels": (4, 4, 4, 4, 4, 4), "spacing_mm": 4.0}
AUTHORS_SMALL = {
    "features": 2,
    "levels": 3,
    "convolutions": 2,
    "num_radial": 5,
    "radius": 2.5,
}
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}


@pytest.fixture
def use_dtype():
    """Sets the type that networks are built in, as the constants of the kernels need."""
    before = torch.get_default_dtype()
    yield torch.set_default_dtype
    torch.set_default_dtype(before)


def blobs(rotations: torch.Tensor, size: int = 32, sigma: float = 3.0, seed: int = 0):
    """Gaussian blobs in the middle of a crop, turned without interpolation: (n, 1, S, S, S)."""
    generator = torch.Generator().manual_seed(seed)
    centers = functional.normalize(torch.randn(12, 3, generator=generator), dim=1)
    centers = 0.25 * size * centers * torch.rand(12, 1, generator=generator) ** (1 / 3)
    heights = torch.rand(12, generator=generator)
    steps = torch.arange(size) - (size - 1) / 2
    points = torch.stack(torch.meshgrid(steps, steps, steps, indexing="ij"), dim=-1)
    distance2 = torch.stack(
        [(points.unsqueeze(-2) - centers @ r.T.float()).square().sum(-1) for r in rotations]
    )
    return ((-distance2 / (2 * sigma**2)).exp() @ heights).unsqueeze(1)


def tiny_net(in_channels: int = 3, **config) -> HeadPoseNet:
    """A HeadPoseNet that runs at once; its E3CNN sees the maps of the localizer as well."""
    return HeadPoseNet(E3CNN(**TINY, in_channels=in_channels), **{**TINY_CHAIN, **config})


# E3CNN


def cube_errors(net: E3CNN, side: int) -> dict[int, list[float]]:
    """Relative errors of the field under the cube, of the rotations (1) and the others (-1)."""
    x = torch.randn(1, net.in_channels, side, side, side)
    with torch.no_grad():
        field = net(x)
        moved = net(torch.cat([move_voxels(x, g) for g in SYMMETRIES]))
    errors = {1: [], -1: []}
    for k, g in enumerate(SYMMETRIES):
        sign = round(torch.linalg.det(g).item())
        errors[sign].append(relative_error(moved[k : k + 1], move_field(field, g)))
    return errors


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("pool", ["average", "norm_max"])
@pytest.mark.parametrize(
    ("config", "side"),
    [({}, 12), ({"in_channels": 3}, 12), (AUTHORS_SMALL, 8)],
    ids=["default", "three_channels", "small_authors"],
)
def test_field_is_equivariant_under_the_cube(config, side, pool, dtype, use_dtype):
    use_dtype(dtype)
    errors = cube_errors(E3CNN(**config, pool=pool).eval(), side)
    assert len(errors[1]) == len(errors[-1]) == 24
    assert max(errors[1] + errors[-1]) < TOLERANCE[dtype]


def test_signed_maximum_breaks_the_reflections_of_the_field():
    """Trap 1, in the whole network: rotations hold, none of the reflections does."""
    errors = cube_errors(E3CNN(**AUTHORS_SMALL, pool="signed_max").eval(), 8)
    assert max(errors[1]) < TOLERANCE[torch.float32]
    assert min(errors[-1]) > 0.01


def turned_field_error(
    config: dict, size: int, sigma: float = 3.0, networks: int = 2, rotations: int = 4
) -> dict[str, float]:
    """Medians of the error of an untrained network's field when a smooth crop turns by any angle.

    Blobs of ``sigma`` voxels in a crop of ``size``, which must give a field of an odd number of
    voxels: its central vector stays at its place, so that no interpolation enters. ``relative``:
    change of the three vectors over their length; ``axes_deg``: angle of all three;
    ``polar_deg``: angle of e_y and e_z.
    """
    relative, angles = [], []
    for seed in range(networks):
        torch.manual_seed(seed)
        net = E3CNN(**config).eval()
        turns = torch.from_numpy(Rotation.random(rotations, random_state=seed).as_matrix()).float()
        crops = blobs(torch.cat([torch.eye(3)[None], turns]), size, sigma, seed)
        with torch.no_grad():
            fields = torch.cat([net(crop[None]) for crop in crops])
        middle = fields.shape[-1] // 2
        assert fields.shape[-1] == 2 * middle + 1
        vectors = fields[..., middle, middle, middle]
        expected, found = vectors[0] @ turns.mT, vectors[1:]
        cosine = torch.cosine_similarity(found, expected, dim=-1)
        angles.append(cosine.clamp(-1, 1).acos().rad2deg())
        relative.append((found - expected).norm(dim=(1, 2)) / expected.norm(dim=(1, 2)))
    angle = torch.cat(angles)
    return {
        "relative": torch.cat(relative).median().item(),
        "axes_deg": angle.median().item(),
        "polar_deg": angle[:, 1:].median().item(),
    }


def test_field_follows_arbitrary_angles():
    """Between the angles of the cube the lattice shows; unrelated fields differ by 90 degrees."""
    shallow = turned_field_error({"features": 2, "levels": 1, "convolutions": 2}, size=25)
    print("one level:", shallow)
    assert shallow["relative"] < 0.12
    assert shallow["polar_deg"] < 5
    default = turned_field_error({}, size=28)
    print("default:", default)
    assert default["polar_deg"] < 25


def mirror(normal) -> torch.Tensor:
    normal = functional.normalize(torch.tensor(normal, dtype=torch.float64), dim=0)
    return torch.eye(3, dtype=torch.float64) - 2 * normal[:, None] * normal


@pytest.mark.parametrize("normal", [(1.0, 0, 0), (0, 0, 1.0), (1.0, -1.0, 0), (0, 1.0, 1.0)])
def test_axes_of_a_mirror_symmetric_crop(normal, use_dtype):
    """e_x stands on the mirror, e_y and e_z lie in it (docs/method.md)."""
    use_dtype(torch.float64)
    g = mirror(normal)
    normal = functional.normalize(torch.tensor(normal), dim=0)
    x = torch.randn(1, 1, 12, 12, 12)
    x = x + move_voxels(x, g.round())
    with torch.no_grad():
        field = E3CNN().eval()(x)
    mean = field.flatten(3).mean(-1)[0]
    right, others = functional.normalize(mean, dim=1)[0], mean[1:]
    assert (right @ normal).abs().item() == pytest.approx(1, abs=1e-6)
    assert (others @ normal).abs().max() < 1e-6 * others.norm(dim=1).min()
    axes, _ = pool_axes(field)
    along = (axes[0] @ normal).abs()
    assert along[0].item() == pytest.approx(1, abs=1e-6) or along[0] < 1e-6  # an eigenvector
    assert along[1:].max() < 1e-6


def test_a_scalar_image_reaches_natural_parity_only():
    net = E3CNN()
    blocks = [net.stages[0][0], *net.stages[1][1:]]
    first, second, third = ({(ir.l, ir.p) for _, ir in b.irreps_out} for b in blocks)
    assert first == {(0, 1), (1, -1), (2, 1)}
    assert third == {(degree, p) for degree in range(3) for p in (1, -1)}
    assert second == third - {(0, -1)}  # a pseudoscalar needs a product of three
    hidden = o3.Irreps("4x0e + 4x0o + 2x1e + 2x1o")
    assert reachable(o3.Irreps("0e"), hidden, 2) == o3.Irreps("4x0e + 2x1o")
    assert reachable(o3.Irreps("0e"), hidden, 0) == o3.Irreps("4x0e")
    assert reachable(o3.Irreps("0e + 1o"), hidden, 1) == o3.Irreps("4x0e + 2x1e + 2x1o")


def count_by_e3nn(config: dict) -> int:
    """Parameters of the network, from the tensor products that e3nn would use."""
    m, levels, convolutions = config["features"], config["levels"], config["convolutions"]
    harmonics = o3.Irreps.spherical_harmonics(4)
    irreps, total = o3.Irreps("0e"), 0

    def convolution(a, b):
        kernel = o3.FullyConnectedTensorProduct(
            a, harmonics, b, shared_weights=False, compile_left_right=False
        )
        return 5 * kernel.weight_numel + o3.Linear(a, b).weight_numel

    for level in range(levels):
        n = m * 2**level
        full = o3.Irreps(f"{4 * n}x0e + {4 * n}x0o + {2 * n}x1e + {2 * n}x1o + {n}x2e + {n}x2o")
        for k in range(convolutions):
            # an image has natural parity only; a pseudoscalar needs a product of three
            missing = {0: ("0o", "1e", "2o"), 1: ("0o",)}.get(level * convolutions + k, ())
            out = o3.Irreps([(mul, ir) for mul, ir in full if str(ir) not in missing])
            gates = sum(mul for mul, ir in out if ir.l > 0)
            before = (out + o3.Irreps([(gates, "0e")])).regroup()
            scalars = sum(mul for mul, ir in before if ir.is_scalar())
            total += convolution(irreps, before) + before.num_irreps + scalars
            irreps = out
    return total + convolution(irreps, o3.Irreps("1e + 2x1o"))


@pytest.mark.parametrize(
    ("config", "parameters"), [(AUTHORS_SMALL, None), ({**AUTHORS_SMALL, "levels": 5}, 1982024)]
)
def test_the_authors_network_has_the_parameters_of_e3nn(config, parameters):
    found = sum(p.numel() for p in E3CNN(**config, pool="signed_max").parameters())
    assert found == count_by_e3nn(config)
    assert parameters is None or found == parameters


def test_channels_that_a_crop_lacks_count_as_zero():
    net, image = E3CNN(**TINY, in_channels=3).eval(), torch.randn(2, 1, 8, 8, 8)
    maps = torch.rand(2, 2, 8, 8, 8)
    with torch.no_grad():
        alone = net(image)
        assert alone.shape == (2, 3, 3, 4, 4, 4)
        assert alone.equal(net(torch.cat([image, torch.zeros_like(maps)], dim=1)))
        for channel in (0, 1):  # and those that it has count
            shown = maps.clone()
            shown[:, channel] = 0
            assert relative_error(net(torch.cat([image, shown], dim=1)), alone) > 0.01
        two = torch.cat([image, maps[:, :1]], dim=1)
        assert net(two).equal(net(torch.cat([two, torch.zeros_like(image)], dim=1)))
    assert with_channels(image, 1) is image
    for given in (4, 5):
        with pytest.raises(ValueError, match=rf"at most 3 channels, got .*1, {given}, 8, 8, 8"):
            net(torch.zeros(1, given, 8, 8, 8))
    with pytest.raises(ValueError, match="at most 1 channels"):
        E3CNN(**TINY)(torch.zeros(1, 2, 8, 8, 8))


def test_default_network():
    net = E3CNN()
    assert sum(p.numel() for p in net.parameters()) == 19032
    assert net(torch.randn(2, 1, 16, 16, 16)).shape == (2, 3, 3, 4, 4, 4)


@pytest.mark.parametrize(
    ("config", "side", "out"),
    [
        ({"features": (1, 3), "levels": 2, "convolutions": (2, 1), "lmax": 1}, 6, 3),
        ({"features": 1, "levels": 1, "convolutions": 1, "kernel_size": 3, "lmax": 3}, 5, 5),
        ({"features": 1, "levels": 4, "convolutions": 1, "kernel_size": 3, "lmax": 1}, 16, 2),
    ],
)
def test_architecture_is_in_the_arguments(config, side, out):
    net = E3CNN(**config)
    assert len(net.stages) == config["levels"]
    assert net.out.kernel_size == config.get("kernel_size", 5)
    degrees = {ir.l for _, ir in net.stages[-1][-1].irreps_out}
    assert degrees == set(range(config["lmax"] + 1))
    x = torch.randn(1, 1, side, side, side)
    field = net(x)
    assert field.shape == (1, 3, 3, out, out, out)
    turn = SYMMETRIES[17]
    assert relative_error(net(move_voxels(x, turn)), move_field(field, turn)) < 1e-4


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match=r"pool must be one of .*'average'.*got 'max'"):
        E3CNN(**TINY, pool="max")
    with pytest.raises(ValueError, match="each of the 3 levels"):
        E3CNN(features=(1, 2), levels=3)
    with pytest.raises(ValueError, match="each of the 2 levels"):
        E3CNN(features=1, levels=2, convolutions=(1, 1, 1))
    with pytest.raises(ValueError, match="odd"):
        E3CNN(**TINY, kernel_size=4)


@pytest.mark.parametrize("side", [6, 9, 31])
def test_wrong_crops_are_refused(side):
    """Trap 11: no level may halve an odd grid."""
    with pytest.raises(ValueError, match=f"multiple of 4 .*{side}"):
        E3CNN(features=1, levels=3, convolutions=1, lmax=1)(torch.zeros(1, 1, side, side, side))


def test_pool_axes_ignores_the_sign_of_e_x_at_every_voxel():
    """Trap 3: every voxel counts, whatever its sign, in proportion to a length that is trained."""
    rotation = torch.from_numpy(Rotation.random(random_state=5).as_matrix())
    noise = torch.randn(1, 3, 3, 4, 4, 4, dtype=torch.float64)
    field = rotation.T.reshape(1, 3, 3, 1, 1, 1) + 0.05 * noise
    signs = torch.randn(1, 1, 1, 4, 4, 4).sign().double()
    axes, confidence = pool_axes(field)
    field[:, 0] *= signs[:, 0]
    again, same = pool_axes(field * 1e-3)
    axes[:, 0] *= (axes[:, 0] * again[:, 0]).sum(-1).sign()
    axes, again = (functional.normalize(a, dim=-1) for a in (axes, again))
    torch.testing.assert_close(again, axes)
    torch.testing.assert_close(same, confidence)
    assert 0.95 < confidence.item() < 1
    assert (axes[0] @ rotation).diagonal().abs().min() > 0.99
    silent = field.clone()
    silent[..., 2:] = 1e-4 * noise[..., 2:]  # short vectors say little, whatever they say
    torch.testing.assert_close(
        pool_axes(silent)[0][:, 1:], field[..., :2].sum((3, 4, 5))[:, 1:], rtol=1e-2, atol=1e-2
    )
    assert pool_axes(noise)[1].item() < 0.4
    assert pool_axes(torch.zeros(1, 3, 3, 2, 2, 2))[1].item() == pytest.approx(0, abs=1e-6)


# HeadPoseNet


def test_space_to_channels_round_trip():
    x = torch.randn(2, 3, 4, 6, 8)
    blocks = space_to_channels(x)
    assert blocks.shape == (2, 24, 2, 3, 4)
    torch.testing.assert_close(blocks[1, 8:16, 1, 2, 0], x[1, 1, 2:4, 4:6, 0:2].flatten())
    assert channels_to_space(blocks).equal(x)


def intensity_as_logits(volume):
    """Stand-in for a trained localizer, equivariant: the bright is brain, the brightest eyes."""
    return torch.cat([torch.full_like(volume, 0.35), volume, 2 * volume - 0.95], dim=1)


@pytest.fixture
def chain(monkeypatch):
    """Builds a HeadPoseNet with the stand-in for its localizer."""

    def build(rotation=None, **config):
        net = HeadPoseNet(
            rotation, **{"min_brain_ml": 1.0, "min_density": 0.0, "turns": 1, **config}
        ).eval()
        monkeypatch.setattr(net.localizer, "forward", intensity_as_logits)
        return net

    return build


def heads(shape=(18, 23, 20), batch: int = 1, seed: int = 0):
    """Lumpy brains of about 100 ml with dim surroundings, (batch, 1, x, y, z), off the centre."""
    generator = torch.Generator().manual_seed(seed)
    steps = [4.0 * (torch.arange(n) - (n - 1) / 2) for n in shape]
    points = torch.stack(torch.meshgrid(*steps, indexing="ij"), dim=-1)
    volumes = []
    for _ in range(batch):
        middle = 6 * torch.randn(3, generator=generator)
        volume = 0.1 * torch.rand(shape, generator=generator)
        for _ in range(6):
            center = middle + 10 * torch.randn(3, generator=generator)
            distance2 = (points - center).square().sum(-1)
            volume += 0.5 * torch.exp(-distance2 / (2 * 11.0**2))
        volumes.append(volume)
    return torch.stack(volumes).unsqueeze(1).clamp(0, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("config", "crop_size"),
    [({"in_channels": 3}, 16), ({}, 16), (AUTHORS_SMALL, 8)],
    ids=["with_maps", "image_alone", "small_authors"],
)
def test_pose_turns_with_the_volume(config, crop_size, dtype, chain, use_dtype):
    """The whole chain under the cube: p_grid' = g p_grid, and a mirrored head is a head again."""
    use_dtype(dtype)
    net, volume = chain(E3CNN(**config), crop_size=crop_size), heads()
    tolerance = TOLERANCE[dtype]
    with torch.no_grad():
        before = net.predict(volume)
        assert before.confidence > 0.01  # a frame that is defined
        for first in range(0, 48, 8):  # eight symmetries that give volumes of one shape
            group = [g.to(volume) for g in SYMMETRIES[first : first + 8]]
            after = net.predict(torch.cat([move_voxels(volume, g) for g in group]))
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


def test_pose_is_rigid_and_centred_on_the_brain(chain):
    net, volume = chain(E3CNN(**TINY), **TINY_CHAIN), heads(batch=2)
    with torch.no_grad():
        pose, confidence, volume_ml, label = net.predict(volume)
        assert net(volume).equal(pose)
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


@pytest.mark.parametrize("turns", [1, 4])
def test_a_batch_is_a_loop(turns, chain):
    """Trap 4, for the whole chain and for the localizer, which the chain here replaces."""
    net = chain(E3CNN(**TINY, in_channels=3), **TINY_CHAIN, turns=turns)
    volumes, localizer = heads(batch=3), tiny_net().eval()
    with torch.no_grad():
        together = net.predict(volumes)
        logits = localizer.localize(volumes)
        for k in range(3):
            alone = net.predict(volumes[k : k + 1])
            for name, value in alone._asdict().items():
                torch.testing.assert_close(
                    getattr(together, name)[k : k + 1], value, atol=1e-3, rtol=1e-4, msg=name
                )
            torch.testing.assert_close(
                logits[k : k + 1], localizer.localize(volumes[k : k + 1]), atol=1e-4, rtol=1e-4
            )


@pytest.mark.parametrize("empty", [0.0, 0.2, "small"])
def test_no_head_is_no_pose_and_no_harm(empty, chain):
    """Trap 8: one volume without a head leaves the others of the batch as they are."""
    net = chain(E3CNN(**TINY, in_channels=3), **TINY_CHAIN, turns=2)
    volumes = heads(batch=3)
    with torch.no_grad():
        before = net.predict(volumes)
        if empty == "small":
            volumes[1] = 0
            volumes[1, 0, 4:6, 4:6, 4:6] = 0.5  # half a ml
        else:
            volumes[1] = empty
        found = net.predict(volumes)
        alone = net.predict(volumes[1:2])
    assert found.head_to_grid[1].isnan().all()
    assert found.confidence[1] == 0
    assert found.brain_volume_ml[1].item() == pytest.approx(0.512 if empty == "small" else 0)
    assert alone.head_to_grid.isnan().all()
    for k in (0, 2):
        for after, value in zip(found, before, strict=True):
            torch.testing.assert_close(after[k], value[k])
    assert before.head_to_grid.isfinite().all()


@pytest.mark.parametrize(
    "shape", [(9, 17, 33), (16, 8, 70), (31, 67, 12), (8, 8, 8), (5, 4, 6), (1, 1, 1)]
)
def test_volumes_of_any_size(shape):
    net = tiny_net(min_brain_ml=0.0).eval()
    volume = torch.rand(2, 1, *shape)
    with torch.no_grad():
        assert net.localize(volume).shape == (2, 3, *shape)
        found = net.predict(volume)
    assert found.label.shape == (2, 1, *shape)
    assert found.head_to_grid.shape == (2, 4, 4)
    assert found.confidence.isfinite().all()


def in_a_large_volume(volume, offset, shape=(90, 75, 100)):
    """Zeros of ``shape`` with ``volume`` (batch, 1, x, y, z) from the voxel ``offset`` on."""
    large = volume.new_zeros(len(volume), 1, *shape)
    x, y, z = (slice(first, first + n) for first, n in zip(offset, volume.shape[2:], strict=True))
    large[:, :, x, y, z] = volume
    return large


@pytest.mark.parametrize("offset", [(36, 26, 40), (0, 0, 0), (72, 52, 80), (30, 0, 80)])
def test_a_head_is_found_wherever_it_lies(offset, chain):
    """In a volume larger than the window, at its border too: the pose, and the label, in place."""
    net, volume = chain(E3CNN(**TINY, in_channels=3), **TINY_CHAIN, turns=2), heads(batch=2)
    large = in_a_large_volume(volume, offset)
    with torch.no_grad():
        near, far = net.predict(volume), net.predict(large)
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


def test_the_closer_look_is_of_the_size_of_the_training(chain):
    net, large = chain(E3CNN(**TINY), **TINY_CHAIN), in_a_large_volume(heads(), (30, 40, 50))
    part, logits, start, *_ = net.closer(large)
    side = net.window
    assert part.shape == (net.candidates, 1, side, side, side)
    assert logits.equal(intensity_as_logits(part))
    part = part[:1]  # the densest place is the first
    x, y, z = (slice(max(first, 0), first + side) for first in start[0].tolist())
    assert part.sum().item() == pytest.approx(large[:, :, x, y, z].sum().item(), rel=1e-4)
    assert part.sum() == pytest.approx(large.sum().item(), rel=1e-4)  # the head is inside


def test_the_closer_look_can_be_told_where(chain):
    net, volume = chain(E3CNN(**TINY), **TINY_CHAIN), torch.rand(2, 1, 40, 50, 45)
    center = torch.tensor([[10, 40, 20], [20, 20, 44]])
    part, logits, start, *_ = net.look(volume, center)
    assert start.equal(center - net.window // 2)
    assert logits.equal(intensity_as_logits(part))
    for k in range(2):
        middle = (k, 0, *[net.window // 2] * 3)
        assert part[middle] == volume[(k, 0, *center[k].tolist())]


def fooled_from_afar(volume):
    """Takes what is brighter than any head for the best of brains, unless it looks closely."""
    decoy = volume > 1.2
    logits = 10 * intensity_as_logits(torch.where(decoy, 0.0, volume))
    if volume.shape[2:] != (64,) * 3:
        logits[:, 1:2] += 100 * decoy
    return logits


def test_a_decoy_is_seen_through_at_the_closer_look(chain, monkeypatch):
    """Each volume for itself: one has the decoy, one has not."""
    net = chain(E3CNN(**TINY, in_channels=3), **TINY_CHAIN, turns=2)
    monkeypatch.setattr(net.localizer, "forward", fooled_from_afar)
    volumes = in_a_large_volume(heads(batch=2), (3, 5, 4))
    with torch.no_grad():
        expected = net.predict(volumes)
        volumes[1, 0, 65:85, 50:70, 75:95] = 1.5
        found = net.predict(volumes)
        for name, value in found._asdict().items():
            torch.testing.assert_close(value, getattr(expected, name), msg=name)
        net.candidates = 1
        fooled = net.predict(volumes)
    assert fooled.head_to_grid[1].isnan().all()
    torch.testing.assert_close(fooled.head_to_grid[0], expected.head_to_grid[0])


@pytest.mark.parametrize("shape", [None, (90, 75, 100)])
def test_a_reference_places_the_crop(shape, chain):
    net, volume = chain(E3CNN(**TINY, in_channels=3), **TINY_CHAIN, turns=2), heads(batch=2)
    if shape:
        volume = in_a_large_volume(volume, (60, 10, 30), shape)
    with torch.no_grad():
        found = net.predict(volume)
        center = found.head_to_grid[:, :3, 3]
        # the cube that the network itself takes gives its own pose
        side = (6 / torch.pi * 1000 * found.brain_volume_ml).pow(1 / 3) / net.crop_fill
        same = net.predict(volume, Box(center, side))
        torch.testing.assert_close(same.head_to_grid, found.head_to_grid, atol=1e-3, rtol=0)
        torch.testing.assert_close(same.confidence, found.confidence, atol=1e-4, rtol=0)
        assert same.label.equal(found.label)
        elsewhere = net.predict(volume, Box(center + 20, side))
        torch.testing.assert_close(elsewhere.head_to_grid[:, :3, 3], center + 20)
        angles = geodesic_deg(elsewhere.head_to_grid[:, :3, :3], found.head_to_grid[:, :3, :3])
        assert angles.min() > 1
        # and it stands for a head where the localizer sees none
        net.min_brain_ml = 1e6
        assert net.predict(volume).head_to_grid.isnan().all()
        anyway = net.predict(volume, Box(center, side)).head_to_grid
        assert anyway.equal(same.head_to_grid)


def forward_with_box(net):
    box = Box(torch.tensor([[5.0, -4.0, 3.0], [0.0, 0.0, 8.0]]), torch.tensor([60.0, 70.0]))
    return net(heads(batch=2), box)


def test_training_forward_gives_logits_and_field():
    net = tiny_net(turns=2)
    logits, field, _ = forward_with_box(net)
    assert logits.shape == (2, 3, 18, 23, 20)
    assert field.shape == (2, 3, 3, 4, 4, 4)  # one lattice; all of them at inference
    logits, field, _ = forward_with_box(net.eval())
    assert logits.shape == (2, 3, 18, 23, 20)
    assert field.shape == (2, 3, 3, 8, 4, 4)


@pytest.mark.parametrize("pool", [None, "norm_max"])
def test_gradients_reach_every_parameter(pool):
    net = HeadPoseNet(maps_dropout=0.0)
    if pool:
        rotation = E3CNN(**TINY, in_channels=3, pool=pool)
        net = HeadPoseNet(rotation, **TINY_CHAIN, maps_dropout=0.0)
    logits, field, _ = forward_with_box(net)
    ((logits * torch.randn_like(logits)).sum() + (field * torch.randn_like(field)).sum()).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name
    for name, parameter in net.rotation.named_parameters():
        if name.endswith("conv.weight"):
            # the first radial function lives at the centre tap, where harmonics l > 0 vanish
            assert (parameter.grad[1:] != 0).all(), name
        assert parameter.grad.abs().max() > 1e-4, name


def test_losses_of_the_two_parts_share_no_parameter():
    """The rotation sees the localizer's maps, but its loss does not train the localizer."""
    net = tiny_net(maps_dropout=0.0)
    logits, field, _ = forward_with_box(net)
    logits.square().sum().backward()
    assert all(p.grad is None for p in net.rotation.parameters())
    net.zero_grad()
    forward_with_box(net)[1].square().sum().backward()
    assert all(p.grad is None for p in net.localizer.parameters())
    with torch.no_grad():
        for parameter in net.localizer.parameters():
            parameter.mul_(1.5)
    assert relative_error(forward_with_box(net)[1], field) > 1e-3  # the maps do get there


def test_an_image_alone_is_all_that_one_channel_sees():
    net = tiny_net(in_channels=1)
    box = Box(torch.tensor([[5.0, -4.0, 3.0]]), torch.tensor([60.0]))
    volume = heads()
    expected = net.rotation(crop_cube(volume, box, 8, 4.0))
    for logits in (torch.zeros(1, 3, *volume.shape[2:]), torch.randn(1, 3, *volume.shape[2:])):
        assert net.axis_field(volume, logits, box).equal(expected)


def test_train_and_eval_agree():
    net = tiny_net(turns=1, maps_dropout=0.0)
    with torch.no_grad():
        trained = forward_with_box(net.train())
        evaluated = forward_with_box(net.eval())
        cached = forward_with_box(net)
    for a, b, c in zip(trained[:2], evaluated[:2], cached[:2], strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)
        assert b.equal(c)


class Recorder(nn.Module):
    """Rotation network that keeps the crops it is given."""

    in_channels = 3

    def __init__(self) -> None:
        super().__init__()
        self.crops: list[torch.Tensor] = []

    def forward(self, crop):
        self.crops.append(crop)
        return torch.ones(len(crop), 3, 3, 1, 1, 1)


def crops_seen(net: HeadPoseNet, passes: int) -> torch.Tensor:
    """Crops (passes * batch, 3, S, S, S) of eight heads, and of maps that are nowhere zero."""
    volume = heads(batch=8)
    logits = torch.stack([0 * volume, volume, -volume], dim=1)[:, :, 0]
    box = Box(torch.zeros(8, 3), torch.full((8,), 40.0))
    for _ in range(passes):
        net.axis_field(volume, logits, box)
    return torch.cat(net.rotation.crops)


def test_the_crop_shows_the_image_and_the_probabilities():
    net = HeadPoseNet(Recorder(), **TINY_CHAIN, turns=1).eval()
    crop = crops_seen(net, 1)
    volume = heads(batch=8)
    probability = torch.cat([0 * volume, volume, -volume], dim=1).softmax(1)
    shown = torch.cat([volume, probability[:, 1:]], dim=1)  # background is the rest
    box = Box(torch.zeros(8, 3), torch.full((8,), 40.0))
    torch.testing.assert_close(crop, crop_cube(shown, box, 8, 4.0))


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_maps_are_dropped_in_training_only(share):
    """Whole items lose both maps, never the image, as often as stated."""
    net = HeadPoseNet(Recorder(), **TINY_CHAIN, turns=1, maps_dropout=share).train()
    trained = crops_seen(net, 60)
    brain, eyes = trained[:, 1].flatten(1).amax(1), trained[:, 2].flatten(1).amax(1)
    assert ((brain == 0) == (eyes == 0)).all()
    assert (brain == 0).float().mean().item() == pytest.approx(share, abs=0.08)
    assert trained[:, 0].equal(trained[:8, 0].repeat(60, 1, 1, 1))
    if share == 0.25:  # each item for itself, not the batch as a whole
        dropped = (brain == 0).view(60, 8)
        assert (dropped.any(1) & ~dropped.all(1)).any()
    net.rotation.crops.clear()
    evaluated = crops_seen(net.eval(), 4)
    assert (evaluated.flatten(2).amin(2) > 0).all()


# The lattices of inference


class Moments(nn.Module):
    """Rotation network without parameters whose axes turn with the crop at any angle.

    Two first moments, of the intensity and of its square times the radius, and their cross product.
    """

    in_channels = 3

    def forward(self, crop):
        size = crop.shape[-1]
        cells = (torch.arange(size) + 0.5) / size - 0.5
        points = torch.stack(torch.meshgrid(cells, cells, cells, indexing="ij"))
        image = crop[:, :1]
        anterior = (image * points).sum((2, 3, 4))
        superior = (image.square() * points.norm(dim=0) * points).sum((2, 3, 4))
        right = torch.linalg.cross(anterior, superior)
        axes = torch.stack([right, anterior, superior], dim=1)
        return axes[..., None, None, None].expand(-1, -1, -1, 2, 2, 2)


def pose_of_moments(turns: int) -> torch.Tensor:
    net = HeadPoseNet(Moments(), **{**TINY_CHAIN, "crop_size": 24}, turns=turns).eval()
    volume = blobs(torch.eye(3)[None], size=32)  # which fade out well inside of the cube's ball
    box = Box(torch.zeros(1, 3), torch.tensor([120.0]))
    field = net.axis_field(volume, torch.zeros(1, 3, 32, 32, 32), box)
    assert field.shape == (1, 3, 3, 2 * turns, 2, 2)
    return frame_to_rotation(pool_axes(field)[0])


@pytest.mark.parametrize("turns", [2, 4, 8])
def test_fields_are_turned_back(turns, monkeypatch):
    """Every lattice gives one pose for a network that is equivariant at any angle."""
    expected = pose_of_moments(1)
    assert geodesic_deg(pose_of_moments(turns), expected).item() < 0.5
    # the yardstick sees a field that is turned the wrong way: the crop's turn is transposed here
    monkeypatch.setattr(
        chain_module, "crop_cube", lambda *given: crop_cube(*given[:4], given[4].mT)
    )
    assert geodesic_deg(pose_of_moments(turns), expected).item() > 10


def turned_pose_error(turns: int, networks: int = 12, rotations: int = 4) -> float:
    """Median angle, in degrees, by which e_y and e_z of an untrained network miss a turn.

    The blobs are turned without interpolation, by any angle, in a volume that the cube fills.
    """
    angles = []
    for seed in range(networks):
        torch.manual_seed(seed)
        net = HeadPoseNet(E3CNN(**TINY), **{**TINY_CHAIN, "crop_size": 16}, turns=turns).eval()
        turned = torch.from_numpy(Rotation.random(rotations, random_state=seed).as_matrix()).float()
        volumes = blobs(torch.cat([torch.eye(3)[None], turned]), 32, seed=seed)
        box = Box(torch.zeros(len(volumes), 3), torch.full((len(volumes),), 128.0))
        with torch.no_grad():
            logits = torch.zeros(len(volumes), 3, 32, 32, 32)
            axes, _ = pool_axes(net.axis_field(volumes, logits, box))
        expected = axes[0] @ turned.mT
        cosine = torch.cosine_similarity(axes[1:], expected, dim=-1)[:, 1:]
        angles.append(cosine.clamp(-1, 1).acos().rad2deg())
    return torch.cat(angles).median().item()


def test_more_lattices_leave_less_of_the_lattice_in_the_pose():
    errors = {turns: turned_pose_error(turns) for turns in (1, 4, 16)}
    print("median error by turns:", errors)
    assert errors[4] < 0.8 * errors[1]
    assert errors[16] < 0.5 * errors[1]


def outputs(net):
    with torch.no_grad():
        return forward_with_box(net)[:2]


def test_state_dict_holds_weights_only():
    net = tiny_net().eval()
    outputs(net)  # a kept kernel is no weight, nor are the lattices
    state = net.state_dict()
    assert list(state) == [name for name, _ in net.named_parameters()]
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    other = tiny_net().eval()
    assert not outputs(other)[1].equal(outputs(net)[1])
    other.load_state_dict(torch.load(file, weights_only=True))
    for a, b in zip(outputs(other), outputs(net), strict=True):
        assert a.equal(b)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_copies_are_whole_and_apart(duplicate):
    net = tiny_net().eval()
    expected = outputs(net)
    twin = duplicate(net)
    for a, b in zip(outputs(twin), expected, strict=True):
        assert a.equal(b)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert outputs(twin)[1].eq(0).all()
    for a, b in zip(outputs(net), expected, strict=True):
        assert a.equal(b)
