"""A site of a federation, without NVFlare: what it refuses, what it returns, what it writes."""

from __future__ import annotations

import csv
import json
import math
import os

import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.engines import IterationEvents
from torch import nn

from conftest import BUNDLE
from federated_data import OTHER_NETWORK, SMALL, files_in, small_weights, write_site
from scripts.data.datalists import datalist
from scripts.evaluation.case_table import read_case_table
from scripts.federated import rating
from scripts.federated.alone import pool_data, train_alone
from scripts.federated.rating import models_of, rate
from scripts.federated.report import best_round, compare, draw_rounds, read_history, read_ratings
from scripts.federated.site import (
    OWN_RELEASE,
    FederatedSite,
    OtherNetwork,
    Plan,
    ProximalTerm,
    SiteError,
    read_site_file,
    shared_keys,
    telling_which,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_site(tmp_path_factory.mktemp("data") / "a", training=4, validation=2)


@pytest.fixture(scope="module")
def start():
    return small_weights()


def site(data, output, rounds=2, **plan):
    overrides = SMALL | plan.pop("overrides", {})
    settings = {"dataset_dir": str(data), "output_dir": str(output)}
    return FederatedSite("site-1", settings, Plan(rounds, overrides=overrides, **plan))


def largest_change(difference, part):
    return max(v.abs().max().item() for k, v in difference.items() if k.startswith(part))


def test_a_site_trains_from_the_global_weights_and_returns_what_changed(data, start, tmp_path):
    before, shipped = files_in(data), files_in(BUNDLE / "models")
    own = site(data, tmp_path / "out")
    assert own.train(start, 0) == 4
    difference = own.difference(start)
    assert set(difference) == set(start)
    for part in ("localizer", "rotation"):
        assert largest_change(difference, part) > 1e-4
    for key, value in own.weights().items():
        torch.testing.assert_close(start[key] + difference[key], value)
    metrics = own.evaluate(start, "round_0")
    assert 0 <= metrics["rotation_deg"] <= 180
    with open(tmp_path / "out/cases_round_0.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 2
    # everything that it wrote is in its own folder
    assert files_in(data) == before
    assert files_in(BUNDLE / "models") == shipped
    assert {p.name for p in tmp_path.iterdir()} == {"out"}


def test_the_same_seeds_give_the_same_weights(data, start, tmp_path):
    states = []
    for name in ("first", "second"):
        own = site(data, tmp_path / name)
        for number in range(2):
            own.train(start, number)
        states.append(own.weights())
    for key in start:
        assert torch.equal(states[0][key], states[1][key])


NO_STEPS = {"rotation_lr": 0.0, "localizer_lr": 0.0, "landmarks_lr": 0.0}


def test_no_checkpoint_replaces_the_global_weights(data, start, tmp_path):
    """Without a learning rate nothing changes, though train.json and evaluate.json load files."""
    own = site(data, tmp_path, overrides=NO_STEPS)
    for number in range(2):
        own.train(start, number)
        own.evaluate(start, f"round_{number}")
        assert all(not value.any() for value in own.difference(start).values())
    evaluated = own.algorithm.evaluator.network.state_dict()
    assert all(torch.equal(evaluated[key], start[key]) for key in start)


@pytest.mark.parametrize("share", ["localizer", "rotation", "landmarks"])
def test_the_part_that_is_not_shared_stays_as_it_was(data, start, share, tmp_path):
    own = site(data, tmp_path, share=share)
    own.train(start, 0)
    difference = own.difference(start)
    assert set(difference) == set(shared_keys(list(start), share))
    assert largest_change(difference, share) > 1e-4
    state = own.weights()
    assert all(torch.equal(state[key], start[key]) for key in set(start) - set(difference))


def test_a_site_that_begins_late_has_the_learning_rate_of_its_round(data, start, tmp_path):
    def rates(own):
        return [group["lr"] for group in own.algorithm.trainer.optimizer.param_groups]

    steady, late = site(data, tmp_path / "a", rounds=3), site(data, tmp_path / "b", rounds=3)
    for number in range(3):
        steady.train(start, number)
        if number == 0:
            assert rates(steady)[0] > 1e-3
    late.train(start, 2)
    assert rates(late) == pytest.approx(rates(steady), abs=1e-9)


def proximal(mu, network, anchor):
    term = ProximalTerm(network)
    term.mu, term.anchor = mu, anchor
    engine = Engine(lambda *_: None)
    engine.register_events(*IterationEvents)
    term.attach(engine)
    engine.fire_event(IterationEvents.BACKWARD_COMPLETED)


def test_the_proximal_term_adds_the_gradient_of_its_penalty():
    network, anchor = nn.Linear(3, 2), nn.Linear(3, 2).state_dict()
    penalty = sum((p - anchor[k]).square().sum() for k, p in network.named_parameters())
    (0.3 / 2 * penalty + network(torch.ones(1, 3)).sum()).backward()
    expected = [p.grad.clone() for p in network.parameters()]
    network.zero_grad()
    network(torch.ones(1, 3)).sum().backward()
    proximal(0.3, network, anchor)
    for parameter, gradient in zip(network.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_the_proximal_term_leaves_parts_alone_that_are_not_trained():
    network = nn.Linear(3, 2)
    proximal(0.3, network, {})
    assert network.weight.grad is None


def test_a_strong_proximal_term_keeps_a_site_near_the_global_weights(data, start, tmp_path):
    def moved(mu):
        own = site(data, tmp_path / str(mu), local_epochs=3)
        own.train(start, 0, mu)
        return math.sqrt(sum(v.square().sum().item() for v in own.difference(start).values()))

    assert moved(100.0) < 0.7 * moved(0.0)


def bad_sets():
    """Kinds of data that a site must refuse: content of dataset.json, and words of the refusal."""
    pose = torch.eye(4).tolist()
    image = {"image": "Jane_Doe.nii.gz", "head_to_world": pose}
    there = image | {"image": "volume_7.nii.gz"}
    sheared = there | {"head_to_world": [[1, 1, 0, 0], *pose[1:]]}
    return {
        "no file": (None, "no dataset.json"),
        "not JSON": ("{", "bad data set"),
        "a list": ("[]", "bad data set"),
        "nothing to train on": ({"training": [], "validation": [there]}, "no training volumes"),
        "nothing to validate": ({"training": [there], "validation": []}, "no validation volumes"),
        "no section": ({"training": [there]}, "bad data set"),
        "a missing file": ({"training": [image], "validation": []}, r"file of training\[0\]"),
        "a sheared pose": ({"training": [there, sheared]}, r"training\[1\] is not as"),
        "not entries": ({"training": [1]}, "bad data set"),
    }


@pytest.mark.parametrize("kind", list(bad_sets()))
def test_data_that_cannot_be_used_are_refused_without_naming_them(kind, tmp_path):
    content, words = bad_sets()[kind]
    (tmp_path / "volume_7.nii.gz").write_bytes(b"")
    if content is not None:
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(SiteError, match=words) as error:
        site(tmp_path, tmp_path / "out")
    # the message goes to the server: neither folders nor names of files may be in it
    for secret in (str(tmp_path), "Jane_Doe", "volume_7"):
        assert secret not in str(error.value)
    assert str(tmp_path) in error.value.detail
    assert not (tmp_path / "out").exists()


def test_weights_of_another_architecture_are_refused(data, start, tmp_path):
    own = site(data, tmp_path, overrides=OTHER_NETWORK)
    with pytest.raises(SiteError, match=r"localizer\.\S+ has shape .* and .* at this site"):
        own.check_weights(start)
    own = site(data, tmp_path)
    own.check_weights(start)
    key, *others = start
    with pytest.raises(SiteError, match=f"{key} has shape none"):
        own.check_weights({name: start[name] for name in others})


@pytest.mark.parametrize(
    ("release", "words"),
    [
        (
            "99.0",
            f"; the federation's weights are of release 99.0, this site has {OWN_RELEASE}: install "
            "release 99.0 (make federated-setup in a checkout of it)",
        ),
        (None, f"; the federation's release is older than this site's, which is {OWN_RELEASE}:"),
        (OWN_RELEASE, "at this site"),
    ],
)
def test_weights_of_another_release_say_what_to_install(data, start, release, words, tmp_path):
    own = site(data, tmp_path)
    own.check_weights(start, release)  # what fits is taken, of whatever release
    with pytest.raises(OtherNetwork) as error:
        own.check_weights(dict(list(start.items())[1:]), release)
    assert words in str(error.value)
    assert ("install" in str(error.value)) == (release != OWN_RELEASE)


def spoil(folder, kind):
    """Make a data set whose second validation volume cannot be used; words of the refusal."""
    folder = write_site(folder, training=1, validation=1)
    content = json.loads((folder / "dataset.json").read_text())
    # its name is the beginning of another's
    bad = content["validation"][0] | {"image": "head.nii", "subject": "Jane_Doe"}
    content["validation"].append(bad)
    image = nib.load(folder / "head.nii.gz")
    values = image.get_fdata(dtype=np.float32)
    if kind == "no contrast":
        values[:] = 7
    nib.save(nib.Nifti1Image(values, image.affine), folder / "head.nii")
    if kind == "cut short":
        with open(folder / "head.nii", "r+b") as file:
            file.truncate(20000)
    if kind == "a wrong pose":
        bad["head_to_world"] = np.array(bad["head_to_world"])
        bad["head_to_world"][:3, 3] += 500
        bad["head_to_world"] = bad["head_to_world"].tolist()
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("no contrast", r"bad data: validation\[1\] cannot be read or used \(empty\)"),
        ("cut short", r"validation\[1\] cannot be read or used \(unreadable\)"),
        ("a wrong pose", r"its check finds errors, first in validation\[1\]; python -m"),
    ],
)
def test_a_volume_that_cannot_be_used_is_told_by_its_number(kind, words, start, tmp_path):
    folder = spoil(tmp_path / "data", kind)
    with pytest.raises(SiteError, match=words) as error:
        site(folder, tmp_path / "out").evaluate(start, "round_0")
    for secret in (str(tmp_path), "head.nii", "Jane_Doe"):
        assert secret not in str(error.value)
    assert str(folder) in error.value.detail
    assert "head.nii" in error.value.detail or "739 mm outside" in error.value.detail


def test_what_no_volume_causes_is_not_laid_at_its_door(data):
    with pytest.raises(ZeroDivisionError), telling_which(str(data)):
        raise ZeroDivisionError(f"{data}: out of memory")
    text = f"Caught ValueError in DataLoader worker process 0.\n{data}/other_head.nii.gz: cut"
    with (
        pytest.raises(SiteError, match=r"validation\[0\] cannot be read"),
        telling_which(str(data)),
    ):
        raise RuntimeError(text)


def test_a_file_whose_name_begins_as_another_is_told_from_it(tmp_path):
    content = {"training": [{"image": "head.nii"}], "validation": [{"image": "head.nii.gz"}]}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    for name, place in (("head.nii", r"training\[0\]"), ("head.nii.gz", r"validation\[0\]")):
        with pytest.raises(SiteError, match=place), telling_which(str(tmp_path)):
            raise ValueError(f"{tmp_path}/{name}: cut short")


def test_weights_that_are_not_finite_are_not_sent(data, start, tmp_path):
    own = site(data, tmp_path)
    broken = {key: value.clone() for key, value in start.items()}
    broken["rotation.out.weight" if "rotation.out.weight" in start else list(start)[-1]] *= math.nan
    with pytest.raises(SiteError, match="not finite"):
        own.train(broken, 0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"rounds": 0}, "rounds must be 1 or more"),
        ({"rounds": 1, "local_epochs": 0}, "local_epochs must be 1 or more"),
        ({"rounds": 1, "share": "eyes"}, "share must be one of"),
        ({"rounds": 1, "overrides": {"output_dir": "/"}}, "output_dir"),
        ({"rounds": 1, "overrides": {"init_path": "x"}}, "init_path"),
        ({"rounds": 1, "overrides": {"seed": "$print(1)"}}, "seed: expected numbers"),
        (
            {"rounds": 1, "overrides": {"loss": {"_target_": "os.system"}}},
            "loss#_target_: expected",
        ),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        Plan(**arguments)


def test_ids_that_nvflare_has_nested_are_put_together_again():
    """`nvflare job submit` writes {"a": {"b": 1}} for "a#b"; other ways to submit do not."""
    nested = {"network_def": {"rotation": {"features": [1, 1]}, "crop_size": 8}, "batch_size": 2}
    flat = {"network_def#rotation#features": [1, 1], "network_def#crop_size": 8, "batch_size": 2}
    assert Plan(1, overrides=nested) == Plan(1, overrides=flat)
    assert Plan(1, overrides=nested).overrides == flat


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cannot be read"),
        ("{", "cannot be read"),
        ("[]", "not an object"),
        ('{"dataset_dir": "d"}', 'no "output_dir"'),
        ('{"dataset_dir": "d", "output_dir": "o", "epochs": 3}', "not for a site to set: epochs"),
    ],
)
def test_a_bad_site_file_is_refused(text, words, tmp_path):
    if text is not None:
        (tmp_path / "site.json").write_text(text)
    with pytest.raises(SiteError, match=words) as error:
        read_site_file(tmp_path / "site.json")
    assert str(tmp_path) not in str(error.value)


def test_folders_of_a_site_file_are_as_seen_from_it(tmp_path):
    (tmp_path / "site.json").write_text('{"dataset_dir": "d", "output_dir": "/o", "batch_size": 2}')
    assert read_site_file(tmp_path / "site.json") == {
        "dataset_dir": str(tmp_path / "d"),
        "output_dir": "/o",
        "batch_size": 2,
    }


@pytest.fixture(scope="module")
def compared(data, start, tmp_path_factory):
    """A folder like that of a simulation of one site and one round, and training alone."""
    folder = tmp_path_factory.mktemp("compared")
    settings = {"dataset_dir": str(data), "output_dir": str(folder / "alone/site-1")}
    (folder / "site-1.json").write_text(json.dumps(settings))
    train_alone({"site-1": folder / "site-1.json"}, Plan(1, overrides=SMALL), start, "rotation_deg")
    own = site(data, folder / "site-1")
    history = []
    for number, error in enumerate((20.0, 10.0, 30.0)):
        metrics = own.evaluate(start, f"round_{number}") | {"rotation_deg": error}
        history.append({"round": number, "sites": {"site-1": {"metrics": metrics}}})
    history[0]["best"], history[1]["best"], history[2]["best"] = True, True, False
    (folder / "rounds.json").write_text(json.dumps(history))
    return folder


def test_training_alone_keeps_the_best_weights_of_each_site(compared, start):
    history = read_history(compared / "alone/site-1")
    assert [record["round"] for record in history] == [0, 1]
    errors = [record["metrics"]["rotation_deg"] for record in history]
    state = torch.load(compared / "alone/site-1/model.pt", weights_only=True)
    same = all(torch.equal(state[key], start[key]) for key in start)
    assert same == (best_round(history) == 0)
    assert errors[best_round(history)] == min(errors)


def test_models_are_rated_as_evaluation_rates_them(compared, data, start, tmp_path, monkeypatch):
    """Of a folder the model of each site; what is newer than its model is not done again."""
    settings = {"dataset_dir": str(data), "output_dir": str(tmp_path), **SMALL}
    (tmp_path / "site-1.json").write_text(json.dumps(settings))
    torch.save(start, tmp_path / "start.pt")
    given = {"before": tmp_path / "start.pt", "alone": compared / "alone"}
    models = models_of(given, ["site-1"])
    assert models["alone/site-1"] == compared / "alone/site-1/model.pt"
    out = tmp_path / "ratings"
    rate({"site-1": tmp_path / "site-1.json"}, models, out, "validation", num_workers=1)
    written = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    assert written == ["validation/alone/site-1/site-1.csv", "validation/before/site-1.csv"]
    ratings = read_ratings(out, "validation")
    expected = read_case_table(compared / "site-1/cases_round_0.csv")
    for name, values in expected.items():
        np.testing.assert_allclose(ratings["before"]["site-1"][name], values, atol=1e-3)
    assert "alone" in compare(ratings)
    (out / written[0]).write_text("mine")
    os.utime(tmp_path / "start.pt")
    rate({"site-1": tmp_path / "site-1.json"}, models, out, "validation", num_workers=1)
    assert (out / written[0]).read_text() == "mine"
    # and with nothing to do no process is started
    monkeypatch.delattr(rating.ProcessPoolExecutor, "submit")
    rate({"site-1": tmp_path / "site-1.json"}, models, out, "validation")
    os.utime(tmp_path / "start.pt")
    with pytest.raises(NotImplementedError):  # what is left of it
        rate({"site-1": tmp_path / "site-1.json"}, models, out, "validation")
    with pytest.raises(FileNotFoundError, match="none"):
        models_of({"before": tmp_path / "none"}, [])


def test_pooled_data_are_those_of_all_sites(data, tmp_path):
    files = {}
    for name in ("a", "b"):
        files[name] = tmp_path / f"{name}.json"
        files[name].write_text(json.dumps({"dataset_dir": str(data), "output_dir": "o"}))
    site_file = pool_data(files, tmp_path / "pooled")
    settings = read_site_file(site_file)
    assert settings["dataset_dir"] == str(tmp_path / "pooled")
    for section in ("training", "validation"):
        entries, own = (datalist(place, section) for place in (settings["dataset_dir"], data))
        assert len(entries) == 2 * len(own)
        assert [entry["image"] for entry in entries[: len(own)]] == [e["image"] for e in own]
        assert {entry["subject"].split("/")[0] for entry in entries} == {"a", "b"}


def test_rounds_are_drawn_with_and_without_training_alone(compared, tmp_path):
    draw_rounds(tmp_path / "both.png", compared, compared / "alone")
    draw_rounds(tmp_path / "one.png", compared)
    sizes = [(tmp_path / f"{name}.png").stat().st_size for name in ("both", "one")]
    assert sizes[0] > sizes[1] > 5000


@pytest.mark.parametrize("content", [None, "{", '[{"round": 0}]', '[{"round": 0, "best": false}]'])
def test_report_refuses_what_is_no_history(content, tmp_path):
    if content is not None:
        (tmp_path / "rounds.json").write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=r"rounds\.json"):
        read_history(tmp_path)
