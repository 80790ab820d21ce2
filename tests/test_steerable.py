"""steerable.py against e3nn's own layers, and under all 48 symmetries of the cube."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from e3nn import nn as e3nn_nn
from e3nn import o3
from e3nn.math import normalize2mom, soft_one_hot_linspace

from conftest import BUNDLE
from scripts.network import steerable as s
from scripts.training.precision import TrainingInferer
from symmetry import SYMMETRIES, move_voxels, relative_error

MIXED = o3.Irreps("3x0e + 2x0o + 2x1e + 1o + 2e + 2o")


@pytest.fixture
def _float64():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def act(x, irreps, g):
    """``g`` on a tensor of irreps, with e3nn's own matrices."""
    matrix = o3.Irreps(irreps).D_from_matrix(g).to(x)
    return torch.einsum("ij,bjxyz->bixyz", matrix, move_voxels(x, g))


def last(x):
    return x.movedim(1, -1)


def randomize(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
    return module


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize(
    ("irreps_in", "irreps_out", "size", "lmax"),
    [
        ("0e", "2x0e + 1o + 2e", 5, 4),
        (str(MIXED), "2x0e + 0o + 1e + 2x1o + 2o", 5, 4),
        ("2x1e + 0o + 0e", "1e + 2x1o", 3, 2),
    ],
)
def test_kernel_is_that_of_e3nn(irreps_in, irreps_out, size, lmax):
    conv = s.SteerableConv(
        irreps_in, irreps_out, kernel_size=size, lmax=lmax, num_radial=5, radius=size / 2
    )
    harmonics = o3.Irreps.spherical_harmonics(lmax)
    product = o3.FullyConnectedTensorProduct(
        irreps_in, harmonics, irreps_out, shared_weights=False, compile_right=True
    )
    linear = o3.Linear(irreps_in, irreps_out)
    assert conv.weight.shape == (5, product.weight_numel)
    assert conv.center_weight.shape == linear.weight.shape
    taps = torch.arange(size) - (size - 1) / 2
    offsets = torch.stack(torch.meshgrid(taps, taps, taps, indexing="ij"), -1)
    radial = soft_one_hot_linspace(
        offsets.norm(dim=-1), 0.0, size / 2, 5, basis="smooth_finite", cutoff=False
    )
    with torch.no_grad():
        linear.weight.copy_(conv.center_weight)
        expected = product.right(
            o3.spherical_harmonics(harmonics, offsets, normalize=True, normalization="component"),
            radial @ conv.weight / size**3,
        ).permute(4, 3, 0, 1, 2)
        expected[:, :, size // 2, size // 2, size // 2] += linear(
            torch.eye(o3.Irreps(irreps_in).dim)
        ).T
        torch.testing.assert_close(conv.kernel(), expected, atol=1e-12, rtol=0)


@pytest.mark.usefixtures("_float64")
def test_convolution_is_equivariant_under_the_cube():
    irreps_out = "0e + 0o + 1e + 1o + 2e + 2o"
    conv = s.SteerableConv(MIXED, irreps_out)
    x = torch.randn(1, MIXED.dim, 5, 6, 4)
    with torch.no_grad():
        y = conv(x)
        for g in SYMMETRIES:
            assert relative_error(conv(act(x, MIXED, g)), act(y, irreps_out, g)) < 1e-12


def test_unconnected_irreps_stay_zero():
    # harmonics of degree 0 and 1 take a scalar to 0e and 1o only
    y = s.SteerableConv("0e", "0e + 0o + 1o + 1e", lmax=1)(torch.randn(1, 1, 4, 4, 4))
    assert y[:, [0, 2, 3, 4]].abs().amin(dim=(2, 3, 4)).gt(0).all()
    assert y[:, [1, 5, 6, 7]].eq(0).all()


@pytest.mark.parametrize("size", [0, 2, 4])
def test_even_kernels_are_refused(size):
    with pytest.raises(ValueError, match=f"odd.*got {size}"):
        s.SteerableConv("0e", "0e", kernel_size=size)


@pytest.mark.usefixtures("_float64")
def test_norm_is_that_of_e3nn():
    ours, theirs = randomize(s.InstanceNorm(MIXED)), e3nn_nn.BatchNorm(MIXED, instance=True)
    with torch.no_grad():
        theirs.weight.copy_(ours.weight)
        theirs.bias.copy_(ours.bias)
        scales = torch.linspace(0.1, 3, MIXED.dim).view(-1, 1, 1, 1)
        x = scales * torch.randn(2, MIXED.dim, 4, 3, 5) + 0.5
        torch.testing.assert_close(last(ours(x)), theirs(last(x)), atol=1e-10, rtol=0)


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize(
    ("scalars", "gated"),
    [("3x0e + 2x0o", "2x1e + 1x1o + 1x2e + 1x2o"), ("2x0e", "3x1o"), ("2x0o + 0e", "2x2o + 1e")],
)
def test_gate_is_that_of_e3nn(scalars, gated):
    scalars, gated = o3.Irreps(scalars), o3.Irreps(gated)
    activations = [torch.relu if ir.p > 0 else torch.tanh for _, ir in scalars]
    theirs = e3nn_nn.Gate(scalars, activations, f"{gated.num_irreps}x0e", [torch.sigmoid], gated)
    ours = s.Gate(scalars + gated)
    assert o3.Irreps(ours.irreps_in) == theirs.irreps_in.simplify()
    x = torch.randn(2, theirs.irreps_in.dim, 3, 2, 4)
    torch.testing.assert_close(last(ours(x)), theirs(last(x)), atol=1e-12, rtol=0)


@pytest.mark.parametrize("pool", [s.AveragePool, s.NormMaxPool])
def test_pools_are_equivariant_under_the_cube(pool):
    layer, x = pool(MIXED), torch.randn(1, MIXED.dim, 4, 6, 8, dtype=torch.float64)
    for g in SYMMETRIES:
        found = layer(act(x, MIXED, g))
        torch.testing.assert_close(found, act(layer(x), MIXED, g), atol=1e-12, rtol=0)


def test_signed_maximum_breaks_reflections():
    """Trap 1: the larger of -2 and 1 is not minus the larger of 2 and -1."""
    irreps = o3.Irreps("4x0o")
    x = torch.randn(1, 4, 4, 4, 4)

    def inversion_error(layer):
        inversion = -torch.eye(3)
        return relative_error(layer(act(x, irreps, inversion)), act(layer(x), irreps, inversion))

    assert inversion_error(s.NormMaxPool(irreps)) < 1e-6
    assert inversion_error(s.SignedMaxPool(irreps)) > 0.08


def test_norm_max_pool_takes_the_longest_vector_and_the_largest_scalar():
    x = torch.zeros(1, 5, 2, 2, 2)
    x[0, 0] = -1.0  # 0e: by value
    x[0, 0, 1, 0, 1] = -0.5
    x[0, 1, 0, 1, 0], x[0, 1, 1, 1, 1] = -3.0, 2.0  # 0o: by magnitude
    x[0, 2:, 0, 0, 1] = torch.tensor([3.0, 0.0, 0.0])  # 1o: by norm
    x[0, 2:, 1, 1, 0] = torch.tensor([-2.0, 2.0, 2.0])
    expected = torch.tensor([-0.5, -3.0, -2.0, 2.0, 2.0]).view(1, 5, 1, 1, 1)
    torch.testing.assert_close(s.NormMaxPool("0e + 0o + 1o")(x), expected)
    expected[0, 1] = 2.0
    torch.testing.assert_close(s.SignedMaxPool("0e + 0o + 1o")(x), expected)


@pytest.mark.parametrize("pool", [s.AveragePool, s.NormMaxPool, s.SignedMaxPool])
def test_pooling_a_batch_is_a_loop(pool):
    """Trap 4: the place of a maximum belongs to one item of the batch."""
    layer, x = pool(MIXED), torch.randn(3, MIXED.dim, 4, 6, 2)
    torch.testing.assert_close(layer(x), torch.cat([layer(item[None]) for item in x]))


@pytest.mark.parametrize("pool", [s.AveragePool, s.NormMaxPool, s.SignedMaxPool])
@pytest.mark.parametrize("shape", [(5, 4, 4), (4, 4, 7)])
def test_odd_grids_are_refused(pool, shape):
    """Trap 11: windows that do not tile the grid break the symmetry of the cube."""
    with pytest.raises(ValueError, match="even number"):
        pool("0e + 1o")(torch.zeros(1, 4, *shape))


def count_kernels(conv, monkeypatch):
    calls, build = [], conv.kernel
    monkeypatch.setattr(conv, "kernel", lambda: calls.append(None) or build())
    return calls


def test_kernel_is_built_once_in_eval_mode(monkeypatch):
    """Trap 10: at inference the weights do not change, nor need the kernel."""
    conv = s.SteerableConv("0e + 1o", "0e + 1o").eval()
    calls = count_kernels(conv, monkeypatch)
    x = torch.randn(1, 4, 4, 4, 4)
    with torch.no_grad():
        first = conv(x)
        for _ in range(3):
            assert torch.equal(conv(x), first)
    assert len(calls) == 1
    with torch.inference_mode():
        conv(x)
    assert len(calls) == 1


def test_no_kernel_is_kept_while_training_or_with_gradients(monkeypatch):
    conv = s.SteerableConv("0e + 1o", "0e + 1o").train()
    calls = count_kernels(conv, monkeypatch)
    x = torch.randn(1, 4, 4, 4, 4)
    with torch.no_grad():
        conv(x), conv(x)
    assert len(calls) == 2
    conv.eval()
    conv(x).sum().backward()
    assert len(calls) == 3
    assert conv.weight.grad.abs().max() > 0


def new_weights(conv):
    conv.load_state_dict(s.SteerableConv("0e + 1o", "0e + 1o").state_dict())


def assigned_weights(conv):
    conv.load_state_dict(s.SteerableConv("0e + 1o", "0e + 1o").state_dict(), assign=True)


def optimizer_step(conv):
    optimizer = torch.optim.Adam(conv.parameters(), lr=0.1)
    conv(torch.randn(1, 4, 4, 4, 4)).square().sum().backward()
    optimizer.step()


def training_between(conv):
    conv.train()
    with torch.no_grad():
        conv.center_weight += 1
    conv.eval()


@pytest.mark.parametrize(
    "change", [new_weights, assigned_weights, optimizer_step, training_between]
)
def test_kept_kernel_follows_the_weights(change):
    conv = s.SteerableConv("0e + 1o", "0e + 1o").eval()
    x = torch.randn(1, 4, 4, 4, 4)
    with torch.no_grad():
        before = conv(x)
    change(conv)
    with torch.no_grad():
        after = conv(x)
        fresh = s.SteerableConv("0e + 1o", "0e + 1o")
        fresh.load_state_dict(conv.state_dict())
        torch.testing.assert_close(after, fresh.train()(x))
    assert (after - before).abs().max() > 1e-3


def test_kept_kernel_follows_the_type():
    conv = s.SteerableConv("0e + 1o", "0e + 1o").eval()
    x = torch.randn(1, 4, 4, 4, 4)
    with torch.no_grad():
        single = conv(x)
        double = conv.double()(x.double())
        assert double.dtype == torch.float64
        torch.testing.assert_close(double.float(), single, atol=1e-5, rtol=1e-5)
        assert not torch.equal(double.float().double(), double)
        assert torch.equal(conv.float()(x), single)


def test_copies_do_not_share_the_kept_kernel():
    conv = s.SteerableConv("0e + 1o", "0e + 1o").eval()
    x = torch.randn(1, 4, 4, 4, 4)
    with torch.no_grad():
        expected = conv(x)
        twin = copy.deepcopy(conv)
        twin.weight.zero_(), twin.center_weight.zero_()
        assert twin(x).eq(0).all()
        assert torch.equal(conv(x), expected)
    assert list(conv.state_dict()) == ["weight", "center_weight"]


@pytest.mark.parametrize("side", [2, 4])
def test_gradients_in_bfloat16_whatever_memory_holds(side):
    """Of a kernel larger than the input: torch's own are then NaN, or anything."""
    torch.manual_seed(0)
    conv = s.SteerableConv(MIXED, "1e + 2x1o")
    x = torch.rand(4, MIXED.dim, side, side, side)

    def gradient(mixed_precision):
        conv.zero_grad()
        TrainingInferer(mixed_precision)(x, conv).float().square().sum().backward()
        return torch.cat([parameter.grad.flatten() for parameter in conv.parameters()])

    expected = gradient(False)
    for _ in range(10):
        memory = [torch.full((256 * k,), float("nan")) for k in (1, 4, 16, 32, 64, 108, 256, 500)]
        del memory
        found = gradient(True)
        assert (found - expected).norm() < 0.05 * expected.norm()


def test_activation_scales_are_those_of_e3nn():
    scales = [normalize2mom(f).cst for f in (torch.relu, torch.tanh, torch.sigmoid)]
    assert scales == list(s.ACTIVATION_SCALES)


def test_e3nn_does_not_load_the_compiler():
    """It takes half a second of every command; and ``torch.compiler`` is left as it was."""
    code = (
        "import sys, torch; before = torch.compiler.disable; import scripts.network; "
        "assert torch.compiler.disable is before; sys.exit('torch._dynamo' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=BUNDLE)
