"""head_pose_net.py: the shipped network, what training needs, and parts that have one home each."""

from __future__ import annotations

import copy
import io
import pickle
import warnings

import pytest
import torch
from monai.bundle import ConfigParser
from torch import nn

from chains import TINY, TINY_CHAIN, Recorder, heads, tiny_net
from conftest import BUNDLE
from scripts.cubes import Cube, along_grid, sample_cubes
from scripts.network import E3CNN, HeadPoseNet, LandmarkNet
from scripts.network.chain import PoseChain
from scripts.network.head_pose_net import TrainingOutput
from scripts.network.localizer import channels_to_space, space_to_channels
from scripts.network.search import DensestPlace, LandmarkSearch
from symmetry import relative_error

CUBE = along_grid(
    torch.tensor([[[5.0, -4.0, 3.0]], [[0.0, 0.0, 8.0]]]), torch.tensor([[60.0], [70.0]])
)


def training_output(net, landmark_cubes=None) -> TrainingOutput:
    return net(heads(batch=2), CUBE, landmark_cubes)


# The shipped network


def constants(net: HeadPoseNet) -> dict:
    """Every number, text and list of both, by the names of the modules that hold them."""
    simple = (bool, int, float, str, list, tuple)
    found = {"": net.maps_dropout}
    for name, module in net.chain.named_modules():
        values = {k: v for k, v in vars(module).items() if isinstance(v, simple) and k[0] != "_"}
        found[name] = type(module), values
    return found


def shapes(module: nn.Module) -> dict:
    return {name: value.shape for name, value in module.state_dict().items()}


@pytest.mark.parametrize("config", ["inference.json", "train.json"])
def test_the_defaults_are_the_network_of_the_configs(config):
    parser = ConfigParser()
    parser.read_config(str(BUNDLE / "configs" / config))
    declared, net = parser.get_parsed_content("network_def"), HeadPoseNet()
    assert type(declared) is HeadPoseNet
    assert shapes(declared) == shapes(net)
    assert repr(declared) == repr(net)
    ours = constants(net)
    assert constants(declared) == ours
    # what is compared is there at all
    assert {"spacing_mm", "crop_fill", "places", "window", "sure_deg"} <= ours[""][1].keys()
    assert {"first_sizes", "sharpness", "max_rotation_sd_deg"} <= ours["search"][1].keys()
    assert type(net.chain.search) is LandmarkSearch


def test_the_defaults_are_the_constants_that_were_chosen():
    """Those that the weights were trained and measured with: the configs need not state them."""
    net = HeadPoseNet()
    chain = {
        "spacing_mm": 4.0,
        "crop_size": 24,
        "crop_fill": 0.6,
        "min_brain_ml": 10.0,
        "min_density": 0.05,
        "places": 2,
        "window": 64,
        "brain_radius_mm": 56.0,
        "apart_mm": 64.0,
        "second_pass": True,
        "sure_deg": 20.0,
        "in_channels": 4,
    }
    search = {
        "spacing_mm": 4.0,
        "typical_side_mm": pytest.approx(80 / 0.6),
        "least_side_mm": 60.0,
        "sharpness": 8.0,
        "max_rotation_sd_deg": 45.0,
    }
    for module, expected in ((net.chain, chain), (net.chain.search, search)):
        assert {name: getattr(module, name) for name in expected} == expected
    assert net.maps_dropout == 0.25
    assert net.landmarks.crop_size == 32


def test_the_shipped_weights_fit_the_defaults():
    net = HeadPoseNet()
    state = torch.load(BUNDLE / "models/model.pt", weights_only=True)
    net.load_state_dict(state, strict=True)
    assert net.state_dict().keys() == state.keys()
    for name, value in net.state_dict().items():
        assert value.equal(state[name]), name


def test_what_is_given_reaches_the_chain():
    """Each argument stands for one constant, in mm and shares as it is given."""
    given = {
        "spacing_mm": 3.5,
        "crop_size": 12,
        "crop_fill": 0.5,
        "min_brain_ml": 7.0,
        "min_density": 0.11,
        "places": 3,
        "sure_deg": 12.5,
    }
    landmarks = LandmarkNet((8, 8, 8), 16)
    net = HeadPoseNet(E3CNN(**TINY), **given, landmarks=landmarks, max_rotation_sd_deg=31.0)
    chain, search = net.chain, net.chain.search
    assert {name: getattr(chain, name) for name in given} == given
    assert chain.in_channels == 1
    assert chain.second_pass
    assert search.landmarks is landmarks
    assert search.max_rotation_sd_deg == 31.0
    assert search.spacing_mm == 3.5
    assert search.typical_side_mm == pytest.approx(80 / 0.5)
    assert not HeadPoseNet(sure_deg=None).chain.second_pass
    assert type(HeadPoseNet(landmarks=None).chain.search) is DensestPlace
    assert HeadPoseNet(landmarks=None).landmarks is None


def test_turns_of_older_configs():
    with pytest.warns(FutureWarning, match=r"turns is gone since 0\.8"):
        net = tiny_net(turns=1)
    assert constants(net) == constants(tiny_net())
    for turns in (0, 2, 4, 16):
        with pytest.raises(ValueError, match=f"only one lattice .* got {turns}"):
            tiny_net(turns=turns)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tiny_net()


# One home for every part


def with_landmarks(**options) -> HeadPoseNet:
    return tiny_net(landmarks=LandmarkNet((8, 8, 8), 16), **options)


def assert_parts_are_shared(net: HeadPoseNet) -> None:
    chain = net.chain
    assert chain.localizer is net.localizer
    assert chain.rotation is net.rotation
    assert chain.search.landmarks is net.landmarks


def test_every_weight_has_one_name():
    net = with_landmarks()
    assert_parts_are_shared(net)
    assert [name for name, _ in net.named_children()] == ["localizer", "rotation", "landmarks"]
    named = list(net.named_parameters(remove_duplicate=False))
    assert len({id(parameter) for _, parameter in named}) == len(named)
    assert {id(p) for _, p in named} == {id(p) for p in net.chain.parameters()}
    assert not any(isinstance(module, PoseChain) for module in net.modules())


def outputs(net):
    with torch.no_grad():
        return training_output(net)[:2]


def test_state_dict_holds_weights_only():
    net = with_landmarks().eval()
    outputs(net)  # a kept kernel is no weight, nor are the cells of a cube
    state = net.state_dict()
    assert list(state) == [name for name, _ in net.named_parameters()]
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    other = with_landmarks().eval()
    assert not outputs(other)[1].equal(outputs(net)[1])
    other.load_state_dict(torch.load(file, weights_only=True))
    for a, b in zip(outputs(other), outputs(net), strict=True):
        assert a.equal(b)
    # the chain is of these weights
    volume = heads()
    with torch.no_grad():
        for a, b in zip(other.predict(volume), net.predict(volume), strict=True):
            torch.testing.assert_close(a, b, atol=0, rtol=0, equal_nan=True)


def by_pickle(net):
    return pickle.loads(pickle.dumps(net))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, by_pickle])
def test_copies_are_whole_and_apart(duplicate):
    net = with_landmarks().eval()
    expected = outputs(net)
    twin = duplicate(net)
    assert_parts_are_shared(twin)
    assert not {id(module) for module in twin.chain.modules()} & {
        id(module) for module in net.chain.modules()
    }
    for a, b in zip(outputs(twin), expected, strict=True):
        assert a.equal(b)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert outputs(twin)[1].eq(0).all()
    assert all(p.eq(0).all() for p in twin.chain.parameters())
    for a, b in zip(outputs(net), expected, strict=True):
        assert a.equal(b)


def test_the_chain_goes_where_the_network_goes():
    """Type (and device) of the chain are those of the network, whose children it is none of."""
    net = with_landmarks(min_brain_ml=0.0, min_density=0.0, max_rotation_sd_deg=180.0)
    net.eval().double()
    assert {p.dtype for p in net.chain.parameters()} == {torch.float64}
    with torch.no_grad():
        found = net.predict(heads().double())
    assert found.head_to_grid.dtype == found.confidence.dtype == torch.float64
    assert_parts_are_shared(net.to(torch.float32))


def test_plain_is_a_copy_of_the_chain():
    net = with_landmarks()
    plain, volume = net.plain(), heads()
    assert type(plain) is PoseChain
    assert not any(module.training for module in plain.modules())
    assert net.training
    assert net.localizer.training  # it stays what it is
    assert not {id(p) for p in plain.parameters()} & {id(p) for p in net.parameters()}
    assert not any(isinstance(module, E3CNN) for module in plain.modules())
    assert_parts_are_shared(net)
    net.eval()
    with torch.no_grad():
        for found, expected in zip(plain.predict(volume), net.predict(volume), strict=True):
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4, equal_nan=True)


# Inference


@pytest.mark.parametrize(
    "shape", [(9, 17, 33), (16, 8, 70), (31, 67, 12), (8, 8, 8), (5, 4, 6), (1, 1, 1)]
)
def test_volumes_of_any_size(shape):
    net = with_landmarks(min_brain_ml=0.0, min_density=0.0).eval()
    volume = torch.rand(2, 1, *shape)
    with torch.no_grad():
        assert net.localizer(volume).shape == (2, 3, *shape)
        found = net.predict(volume)
    assert found.label.shape == (2, 1, *shape)
    assert found.head_to_grid.shape == (2, 4, 4)
    assert found.confidence.isfinite().all()


def test_a_batch_is_a_loop():
    """Trap 4, for the localizer, which test_chain.py replaces."""
    localizer, volumes = tiny_net().eval().localizer, heads(batch=3)
    with torch.no_grad():
        logits = localizer(volumes)
        for k in range(3):
            torch.testing.assert_close(
                logits[k : k + 1], localizer(volumes[k : k + 1]), atol=1e-4, rtol=1e-4
            )


def test_the_network_predicts_what_its_chain_does():
    net, volume = tiny_net().eval(), heads(batch=2)
    with torch.no_grad():
        pairs = [
            (net.predict(volume), net.chain.predict(volume)),
            (net.predict(volume, CUBE), net.chain.at(volume, CUBE)),
        ]
        assert net(volume).isnan().equal(pairs[0][1].head_to_grid.isnan())
    for found, expected in pairs:
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, atol=0, rtol=0, equal_nan=True)
    assert pairs[1][0].head_to_grid[:, :3, 3].equal(CUBE.center_mm[:, 0])


# Training


@pytest.mark.parametrize("mode", [True, False])
def test_training_forward_gives_logits_field_and_landmarks(mode):
    net = with_landmarks().train(mode)
    output = training_output(net)
    assert isinstance(output, TrainingOutput)
    assert output.logits.shape == (2, 3, 18, 23, 20)
    assert output.field.shape == (2, 3, 3, 4, 4, 4)
    assert output.landmarks is None
    cubes = torch.rand(5, 1, 16, 16, 16)
    output = training_output(net, cubes)
    for found, expected in zip(output.landmarks, net.landmarks(cubes), strict=True):
        torch.testing.assert_close(found, expected)
    assert training_output(tiny_net(), cubes).landmarks is None


@pytest.mark.parametrize("pool", [None, "norm_max"])
def test_gradients_reach_every_parameter(pool):
    net, size = HeadPoseNet(maps_dropout=0.0), 32
    if pool:
        rotation, size = E3CNN(**TINY, in_channels=3, pool=pool), 16
        chain = {**TINY_CHAIN, "landmarks": LandmarkNet((8, 8, 8), size)}
        net = HeadPoseNet(rotation, **chain, maps_dropout=0.0)
    logits, field, landmarks = training_output(net, torch.rand(2, 1, size, size, size))
    total = sum((x * torch.randn_like(x)).sum() for x in (logits, field, *landmarks))
    total.backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name
    for name, parameter in net.rotation.named_parameters():
        if name.endswith("conv.weight"):
            # the first radial function lives at the centre tap, where harmonics l > 0 vanish
            assert (parameter.grad[1:] != 0).all(), name
        assert parameter.grad.abs().max() > 1e-4, name


def test_losses_of_the_parts_share_no_parameter():
    """The rotation sees the localizer's maps, but its loss does not train the localizer."""
    net, cubes = with_landmarks(maps_dropout=0.0), torch.rand(2, 1, 16, 16, 16)
    output = training_output(net, cubes)
    losses = {
        "localizer": output.logits.square().sum(),
        "rotation": output.field.square().sum(),
        "landmarks": output.landmarks.heatmap.square().sum(),
    }
    for part, loss in losses.items():
        net.zero_grad()
        loss.backward(retain_graph=True)
        for name, parameter in net.named_parameters():
            assert parameter.grad is None or name.startswith(part), (part, name)
    with torch.no_grad():
        for parameter in net.localizer.parameters():
            parameter.mul_(1.5)
    changed = training_output(net).field
    assert relative_error(changed, output.field) > 1e-3  # the maps do get there


def test_train_and_eval_agree():
    net = tiny_net(maps_dropout=0.0)
    with torch.no_grad():
        trained = training_output(net.train())
        evaluated = training_output(net.eval())
        cached = training_output(net)
    for a, b, c in zip(trained[:2], evaluated[:2], cached[:2], strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)
        assert b.equal(c)


EIGHT = along_grid(torch.zeros(8, 1, 3), torch.full((8, 1), 40.0))


def crops_seen(net: HeadPoseNet, passes: int, cube: Cube = EIGHT) -> torch.Tensor:
    """Crops (passes * batch, 3, S, S, S) of eight heads, and of maps that are nowhere zero."""
    for _ in range(passes):
        net(heads(batch=8), cube)
    return torch.cat(net.rotation.crops)


def some_logits(volume):
    return torch.cat([0 * volume, volume, -volume], dim=1)


@pytest.fixture
def recording(monkeypatch):
    def build(**options):
        net = HeadPoseNet(Recorder(), **TINY_CHAIN, **options)
        monkeypatch.setattr(net.localizer, "forward", some_logits)
        return net

    return build


@pytest.mark.parametrize("mode", [True, False])
def test_the_crop_shows_the_image_and_the_probabilities(mode, recording):
    crop, volume = crops_seen(recording(maps_dropout=0.0).train(mode), 1), heads(batch=8)
    shown = torch.cat([volume, some_logits(volume).softmax(1)[:, 1:]], dim=1)
    torch.testing.assert_close(crop, sample_cubes(shown, EIGHT, 8, 4.0)[:, 0])


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_maps_are_dropped_in_training_only(share, recording):
    """Whole items lose both maps, never the image, as often as stated."""
    net = recording(maps_dropout=share).train()
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


# The localizer's blocks


def test_space_to_channels_round_trip():
    x = torch.randn(2, 3, 4, 6, 8)
    blocks = space_to_channels(x)
    assert blocks.shape == (2, 24, 2, 3, 4)
    torch.testing.assert_close(blocks[1, 8:16, 1, 2, 0], x[1, 1, 2:4, 4:6, 0:2].flatten())
    assert channels_to_space(blocks).equal(x)


@pytest.mark.parametrize("name", ["localizer", "rotation", "landmarks"])
def test_parts_are_not_exchanged_behind_the_chain(name):
    net = tiny_net()
    with pytest.raises(AttributeError, match=f"{name} is a part of the chain: build"):
        setattr(net, name, nn.Identity())
    net.maps_dropout = 0.5
    assert getattr(net, name) is not None or name == "landmarks"
