"""e3cnn.py: equivariance of the field, parameters, and what crops and arguments are refused."""

from __future__ import annotations

import pytest
import torch
from e3nn import o3
from scipy.spatial.transform import Rotation
from torch.nn import functional

from chains import AUTHORS_SMALL, TINY, TOLERANCE
from scripts.network import E3CNN, pool_axes
from scripts.network.e3cnn import reachable
from scripts.network.steerable import with_channels
from symmetry import SYMMETRIES, move_field, move_voxels, relative_error


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


def test_weights_of_fewer_channels_are_taken_and_say_the_same():
    """Releases up to 0.10 had three; the channels that they lack count as zero, as in crops."""
    older, newer = (E3CNN(**TINY, in_channels=n).eval() for n in (3, 4))
    crop = torch.rand(2, 4, 8, 8, 8)
    newer.load_state_dict(older.state_dict())
    with torch.no_grad():
        expected = older(crop[:, :3])
        assert relative_error(newer(crop[:, :3]), expected) < 1e-5
        assert relative_error(newer(crop), expected) < 1e-5  # whatever the fourth shows
    same = E3CNN(**TINY, in_channels=4)
    same.load_state_dict(newer.state_dict())
    assert same.stages[0][0].conv.weight.equal(newer.stages[0][0].conv.weight)
    with pytest.raises(RuntimeError, match=r"stages\.0\.0\.conv\.weight"):
        older.load_state_dict(newer.state_dict())


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
