"""The federation on NVFlare: averaging, the client's loop, the job, a whole simulated run."""

# ruff: noqa: E402 - without NVFlare, an optional extra, the module is skipped before it is needed
from __future__ import annotations

import importlib
import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from monai.bundle import create_workflow

from conftest import BUNDLE
from federated_data import OTHER_NETWORK, SMALL, files_in, small_weights, write_site

pytest.importorskip("nvflare")
yaml = pytest.importorskip("yaml")
from nvflare.apis.dxo import DXO, DataKind, MetaKey
from nvflare.apis.shareable import Shareable
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType

from scripts.federated import client, job
from scripts.federated.job import HeadPoseRecipe, main, simulate
from scripts.federated.kit import CLASSES, LOG_STREAMER, prepare_kit
from scripts.federated.privacy import FILTERS
from scripts.federated.server import (
    Contribution,
    HeadPoseFederation,
    add_mean,
    check_difference,
    is_better,
    pooled,
)
from scripts.federated.site import OWN_RELEASE, Plan
from scripts.files import write_tensors
from scripts.network import E3CNN, HeadPoseNet
from scripts.weight_files import difference

WEIGHTS = {
    "localizer.w": np.arange(6, dtype=np.float32).reshape(2, 3),
    "rotation.w": np.ones(2, dtype=np.float32),
}


def test_weights_of_an_older_release_begin_in_the_shapes_of_this_one(tmp_path):
    older = HeadPoseNet(E3CNN(in_channels=3)).state_dict()
    write_tensors(older, tmp_path / "older.pt")
    found = job.start_weights(tmp_path / "older.pt")
    assert difference(HeadPoseNet().state_dict(), found) == ""
    same = [key for key in older if found[key].shape == older[key].shape]
    assert len(older) - len(same) == 2  # of the first convolution
    assert all(found[key].equal(older[key]) for key in same)
    # those of another network stay, even where its first convolution could be widened
    write_tensors(small_weights(), tmp_path / "small.pt")
    given = job.start_weights(tmp_path / "small.pt")
    assert all(given[key].equal(value) for key, value in small_weights().items())


def contribution(site, seed, samples):
    rng = np.random.default_rng(seed)
    values = {k: rng.normal(size=v.shape).astype(np.float32) for k, v in WEIGHTS.items()}
    return Contribution(site, values, samples)


def test_new_weights_are_the_sample_weighted_mean_of_those_of_the_sites():
    sites = [contribution("a", 1, 3), contribution("b", 2, 5), contribution("c", 3, 12)]
    new = add_mean(WEIGHTS, sites)
    for key, value in WEIGHTS.items():
        own = [value.astype(np.float64) + c.difference[key] for c in sites]
        expected = np.average(own, axis=0, weights=[3, 5, 12])
        np.testing.assert_allclose(new[key], expected, atol=1e-6)
        assert new[key].dtype == np.float32


def test_the_order_of_arrival_changes_no_bit():
    """Values whose sum depends on the order: the small one is lost beside the large ones."""
    sites = [
        Contribution(name, {"rotation.w": np.full(2, value, np.float32)}, 1)
        for name, value in (("a", 1e25), ("b", -1e25), ("c", 3.0))
    ]
    for order in (sites, sites[::-1], [sites[0], sites[2], sites[1]]):
        np.testing.assert_allclose(add_mean(WEIGHTS, order)["rotation.w"], 2.0)


def test_what_is_not_shared_keeps_its_bits():
    sites = [Contribution("a", {"rotation.w": np.full(2, 0.1, np.float32)}, 3)]
    new = add_mean(WEIGHTS, sites)
    assert np.array_equal(new["localizer.w"], WEIGHTS["localizer.w"])
    assert not np.array_equal(new["rotation.w"], WEIGHTS["rotation.w"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rotation.w": np.ones(3, np.float32)}, r"rotation.w has shape \(3,\), expected \(2,\)"),
        ({"rotation.w": np.array([1, np.nan], np.float32)}, "rotation.w is not finite"),
        ({"other": np.ones(2, np.float32)}, "other weights than the shared ones: .*other"),
    ],
)
def test_differences_that_do_not_fit_are_refused(change, words):
    check_difference(dict(WEIGHTS), WEIGHTS, "all")
    with pytest.raises(ValueError, match=words):
        check_difference(WEIGHTS | change, WEIGHTS, "all")


def test_a_site_may_only_change_the_shared_part():
    check_difference({"rotation.w": WEIGHTS["rotation.w"]}, WEIGHTS, "rotation")
    with pytest.raises(ValueError, match=r"localizer\.w"):
        check_difference(dict(WEIGHTS), WEIGHTS, "rotation")


def test_pooled_metric_is_weighted_by_the_volumes():
    sites = {
        "a": {"metrics": {"rotation_deg": 10.0}, "validation_volumes": 1},
        "b": {"metrics": {"rotation_deg": 40.0}, "validation_volumes": 3},
        "c": {"metrics": {}, "validation_volumes": 100},
    }
    assert pooled(sites, "rotation_deg") == pytest.approx(32.5)
    assert math.isnan(pooled({}, "rotation_deg"))


def rated(**errors):
    return {
        name: {"metrics": {"rotation_deg": error}, "validation_volumes": 2}
        for name, error in errors.items()
    }


@pytest.mark.parametrize(
    ("sites", "best", "expected"),
    [
        (rated(a=30.0), None, True),
        ({}, None, False),
        (rated(a=10.0, b=50.0), rated(a=12.0, b=50.0), True),
        (rated(a=12.0, b=50.0), rated(a=12.0, b=50.0), False),
        # a difficult site is gone: its absence is no progress, nor is its return a step back
        (rated(a=14.0), rated(a=12.0, b=50.0), False),
        (rated(a=10.0, b=50.0), rated(a=12.0), True),
        (rated(a=10.0), rated(b=12.0), False),
    ],
)
def test_weights_are_compared_by_the_sites_that_rated_both(sites, best, expected):
    assert is_better(sites, best, "rotation_deg") is expected


@pytest.fixture
def federation(monkeypatch):
    """A server in the middle of a round, and what it says of the sites that it refuses."""
    server = HeadPoseFederation(rounds=2, share="rotation")
    server._weights = dict(WEIGHTS)
    server._history = [{"round": 0, "sites": {}, "refused": {}}]
    said: list[str] = []
    monkeypatch.setattr(server, "error", said.append)
    return server, said


def reply(samples=3, **changes):
    arguments = {
        "params_type": ParamsType.DIFF,
        "params": {"rotation.w": np.ones(2, np.float32)},
        "metrics": {"rotation_deg": 5.0},
        "meta": {"client_name": "a", MetaKey.NUM_STEPS_CURRENT_ROUND: samples},
    }
    return FLModel(**(arguments | changes))


def test_the_server_takes_a_contribution_that_fits(federation):
    server, said = federation
    assert server._receive(reply())
    assert [c.site for c in server._contributions] == ["a"]
    assert server._history[-1]["sites"]["a"]["samples"] == 3
    assert not said


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (reply(params={"rotation.w": np.full(2, np.nan, np.float32)}), "not finite"),
        (reply(params=dict(WEIGHTS)), "localizer.w"),
        (reply(samples=0), "number of volumes"),
        (reply(samples=None), "number of volumes"),
        (
            FLModel(metrics={}, meta={"client_name": "a", "refused": "no training volumes"}),
            "no training volumes",
        ),
    ],
)
def test_the_server_says_why_it_refuses_and_goes_on(federation, bad, words):
    server, said = federation
    assert not server._receive(bad)
    assert not server._contributions
    assert len(said) == 1
    assert said[0].startswith("a does not take part in round 0")
    assert words in said[0]
    assert words in server._history[-1]["refused"]["a"]


class Flare:
    """In place of nvflare.client: hands out tasks, and keeps what is sent."""

    def __init__(self, tasks):
        self.tasks, self.sent, self.noise = list(tasks), [], []

    def init(self):
        pass

    def is_running(self):
        return bool(self.tasks)

    def receive(self):
        self.task, before = self.tasks.pop(0)
        before()
        return self.task

    def is_evaluate(self):
        return self.task.meta["task"] == "validate"

    def get_site_name(self):
        return "site-1"

    def send(self, model):
        self.sent.append(model)
        self.noise.append(np.random.normal())  # noqa: NPY002 - as NVFlare's filters do


def task(number, before=lambda: None, name="train", plan=(), **meta):
    meta = {"plan": {"rounds": 2, "overrides": SMALL, **dict(plan)}, "task": name, **meta}
    return FLModel(params=small_weights(), current_round=number, meta=meta), before


@pytest.fixture
def run_client(monkeypatch, tmp_path):
    def run(*tasks):
        flare = Flare(tasks)
        monkeypatch.setattr(client, "flare", flare)
        client.main()
        return flare

    monkeypatch.setenv("HEAD_POSE_SITE", str(tmp_path / "sites"))
    (tmp_path / "sites").mkdir()
    settings = {"dataset_dir": str(tmp_path / "data"), "output_dir": str(tmp_path / "out")}
    (tmp_path / "sites/site-1.json").write_text(json.dumps(settings))
    return run


def test_a_client_refuses_until_its_data_are_there_then_trains(run_client, tmp_path):
    """Its data come before the second round; the last task asks for an evaluation only."""
    mend = (1, lambda: write_site(tmp_path / "data", training=2))
    flare = run_client(task(0), task(*mend), task(2, name="validate"))
    first, second, last = flare.sent
    assert first.params is None
    assert first.meta["refused"] == "no usable data: there is no dataset.json"
    assert second.params_type == ParamsType.DIFF
    assert all(isinstance(value, torch.Tensor) for value in second.params.values())
    assert any(value.any() for value in second.params.values())
    assert second.meta[MetaKey.NUM_STEPS_CURRENT_ROUND] == 2
    assert last.params is None
    assert "rotation_deg" in last.metrics
    assert all(math.isfinite(value) for value in last.metrics.values())
    # filters draw noise after the training has seeded everything: it must not be foretold
    assert len({*flare.noise, *run_client(task(0)).noise}) == 4


def test_a_client_tells_no_more_than_the_kind_of_an_unexpected_error(
    run_client, monkeypatch, tmp_path
):
    def fail(*_):
        raise OverflowError(f"{tmp_path}/Jane_Doe")

    write_site(tmp_path / "data", training=2)
    monkeypatch.setattr(client.FederatedSite, "evaluate", fail)
    (refused,) = run_client(task(0)).sent
    assert refused.params is None
    assert refused.meta["refused"] == "failed (OverflowError), see the site's log"


def test_a_client_names_the_entry_that_cannot_be_read_until_it_can(run_client, tmp_path):
    data = write_site(tmp_path / "data", training=1)
    bad, good = data / "other_head.nii.gz", (data / "other_head.nii.gz").read_bytes()
    bad.write_bytes(b"not an image of Jane Doe")
    refused, trained = run_client(task(0), task(1, lambda: bad.write_bytes(good))).sent
    assert refused.params is None
    assert "validation[0]" in refused.meta["refused"]
    for secret in (str(tmp_path), "head.nii", "Jane"):
        assert secret not in refused.meta["refused"]
    assert trained.params


def test_a_client_that_refused_a_round_looks_anew_at_all_but_its_network(
    run_client, monkeypatch, tmp_path
):
    """A moment of Adam that is not finite, or a volume that was read before it was mended."""
    opened = []

    class Site:
        def __init__(self, *_):
            opened.append(self)

        def check_weights(self, weights, _):
            if weights is None:
                raise client.OtherNetwork("another architecture")

        def evaluate(self, *_):
            raise client.SiteError("validation[0] cannot be read")

    monkeypatch.setattr(client, "FederatedSite", Site)
    other = task(0)[0]
    other.params = None
    sent = run_client((other, lambda: None), task(1), task(2)).sent
    words = ["another architecture", *["validation[0] cannot be read"] * 2]
    assert [reply.meta["refused"] for reply in sent] == words
    assert len(opened) == 2


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            {"plan": {"keep_all": True}, "release": "99.0"},
            "what this site does not know: ['keep_all']; the federation's jobs are of release "
            f"99.0, this site has {OWN_RELEASE}: install release 99.0 (make federated-setup",
        ),
        ({"plan": {"keep_all": True}}, f"older than this site's, which is {OWN_RELEASE}: ask"),
        ({"plan": {"share": "eyes"}, "release": "99.0"}, "share must be one of"),
        ({"plan": {"rounds": "3"}, "release": "99.0"}, "install release 99.0"),
        ({"plan": {"keep_all": True}, "release": OWN_RELEASE}, "not know: ['keep_all']"),
        ({"release": "<b>99</b>"}, "names no release"),
    ],
)
def test_a_job_that_a_site_does_not_understand_says_what_to_install(given, words, run_client):
    """No "failed (TypeError)", which would tell nobody anything."""
    (refused,) = run_client(task(0, **given)).sent
    assert words in refused.meta["refused"]
    assert ("install" in words) <= (given.get("release") != OWN_RELEASE)
    assert refused.params is None


def test_the_server_hands_on_the_release_of_who_exported_the_job(monkeypatch):
    sent = []
    for release in ("99.0", ""):
        server = HeadPoseFederation(rounds=1, release=release)
        server.fl_ctx = server.engine = _Context()
        server._weights = dict(WEIGHTS)
        for name in ("info", "_wait", "_write_history"):
            monkeypatch.setattr(server, name, lambda *_: None)
        monkeypatch.setattr(server, "engine", _Engine())
        monkeypatch.setattr(server, "send_model", lambda data, **_: sent.append(data.meta))
        server._ask("train", 0)
    # an older release has no such word, and the sites are to know
    assert sent[0] == {**sent[1], "release": "99.0"}
    assert set(sent[1]) == {"plan"}


def test_a_client_without_a_site_file_says_so(run_client, monkeypatch):
    monkeypatch.delenv("HEAD_POSE_SITE")
    (refused,) = run_client(task(0)).sent
    assert "HEAD_POSE_SITE is not set" in refused.meta["refused"]


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    path = tmp_path_factory.mktemp("start") / "start.pt"
    torch.save(small_weights(), path)
    return path


@pytest.fixture(scope="module")
def simulated(tmp_path_factory, start):
    """One round of two sites, and a third whose network is another."""
    folder = tmp_path_factory.mktemp("simulated")
    sites = {
        "site-1": str(write_site(folder / "one", training=2, seed=1)),
        "site-2": str(write_site(folder / "two", training=6, seed=2)),
        "site-3": str(folder / "site-3.json"),
    }
    data = str(write_site(folder / "three", training=2, seed=3))
    (folder / "site-3.json").write_text(json.dumps({"dataset_dir": data, **OTHER_NETWORK}))
    kept = {name: files_in(folder / name) for name in ("one", "two", "three")}
    shipped = files_in(BUNDLE / "models")
    arguments = {"plan": Plan(1, overrides=SMALL), "init_path": start, "grace_s": 3600.0}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "OWN_RELEASE", "99.0")
        simulate(sites, folder / "out", arguments)
    assert kept == {name: files_in(folder / name) for name in kept}
    assert files_in(BUNDLE / "models") == shipped
    return folder / "out"


def test_server_weights_are_the_weighted_mean_of_the_sites_weights(simulated, start):
    """By what the sites themselves keep of their last epoch, not by what they sent."""
    before = torch.load(start, weights_only=True)
    after = torch.load(simulated / "last.pt", weights_only=True)
    own = [
        torch.load(simulated / site / "checkpoint.pt", weights_only=True)["network"]
        for site in ("site-1", "site-2")
    ]
    moved = 0.0
    for key in before:
        expected = (2 * own[0][key].double() + 6 * own[1][key].double()) / 8
        torch.testing.assert_close(after[key].double(), expected, atol=1e-6, rtol=0)
        moved = max(moved, (after[key] - before[key]).abs().max().item())
    assert moved > 1e-3


def test_another_architecture_is_refused_and_the_others_go_on(simulated):
    history = json.loads((simulated / "rounds.json").read_text())
    assert [record["round"] for record in history] == [0, 1]
    for record in history:
        assert list(record["sites"]) == ["site-1", "site-2"]
        assert "another architecture: localizer" in record["refused"]["site-3"]
        # the sites are told by the job, which the lead has exported
        assert "are of release 99.0, this site has" in record["refused"]["site-3"]
    log = (simulated / "nvflare/head_pose/server/log.txt").read_text()
    assert "site-3 does not take part in round 0: another architecture" in log


def test_every_site_writes_to_its_own_folder_only(simulated):
    names = {path.name for path in simulated.iterdir()}
    sites = {"site-1", "site-2", "site-3"}
    assert names == {"model.pt", "last.pt", "rounds.json", "sites", "nvflare", *sites}
    assert not list((simulated / "site-3").glob("*.pt"))
    for site in ("site-1", "site-2"):
        tables = {path.name for path in (simulated / site).glob("cases_*.csv")}
        assert tables == {"cases_round_0.csv", "cases_round_1.csv"}


def test_the_best_weights_are_those_of_the_lowest_metric(simulated, start):
    history = json.loads((simulated / "rounds.json").read_text())
    for record in history:
        assert record["pooled"] == pytest.approx(pooled(record["sites"], "rotation_deg"))
    best = min(history, key=lambda record: record["pooled"])["round"]
    expected = torch.load([start, simulated / "last.pt"][best], weights_only=True)
    kept = torch.load(simulated / "model.pt", weights_only=True)
    assert all(torch.equal(kept[key], expected[key]) for key in expected)


def test_inference_runs_on_the_result_at_once(simulated, tmp_path):
    write_site(tmp_path / "data", training=1)
    (tmp_path / "data/head_label.nii.gz").unlink()
    small = {key: value for key, value in SMALL.items() if key.startswith("network_def")}
    create_workflow(
        config_file=str(BUNDLE / "configs/inference.json"),
        workflow_type="infer",
        bundle_root=str(BUNDLE),
        dataset_dir=str(tmp_path / "data"),
        output_dir=str(tmp_path / "poses"),
        ckpt_path=str(simulated / "model.pt"),
        num_workers=0,
        pictures=False,
        **small,
    ).run()
    pose = json.loads((tmp_path / "poses/head_pose.json").read_text())
    assert pose["status"] in ("ok", "uncertain", "no_head")


@pytest.mark.slow
def test_a_rerun_gives_the_same_result(simulated, start):
    folder = simulated.parent
    sites = {"site-1": str(folder / "one"), "site-2": str(folder / "two")}
    arguments = {"plan": Plan(2, overrides=SMALL), "init_path": start, "grace_s": 3600.0}
    for name in ("first", "second"):
        simulate(sites, folder / name, arguments)
    assert (folder / "first/rounds.json").read_text() == (folder / "second/rounds.json").read_text()
    first, second = (
        torch.load(folder / name / "last.pt", weights_only=True) for name in ("first", "second")
    )
    assert all(torch.equal(first[key], second[key]) for key in first)


def exported(folder, *arguments):
    main(["export", "--job_dir", str(folder), *arguments])
    job = folder / "head_pose"
    server, clients = (
        json.loads(next(job.rglob(f"config_fed_{side}.json")).read_text())
        for side in ("server", "client")
    )
    return job, server, clients


def test_an_exported_job_has_no_code_no_path_of_this_machine_and_all_of_the_plan(tmp_path, start):
    job, server, clients = exported(
        tmp_path, "--init_path", str(start), "--rounds", "7", "--local_epochs", "2",
        "--share", "rotation", "--algorithm", "fedprox", "--fedprox_mu", "0.2",
        "--key_metric", "rotation_mean_deg", "--min_sites", "3", "--grace_s", "30",
        "--override", "batch_size=2", "--override", "rotation_lr=0.001",
    )  # fmt: skip
    assert not list(job.rglob("*.py"))
    for path in job.rglob("*.json"):
        assert str(BUNDLE.parent) not in path.read_text()
        assert str(tmp_path) not in path.read_text()
    (workflow,) = server["workflows"]
    assert workflow["args"]["release"] == OWN_RELEASE
    assert workflow["path"] == "scripts.federated.server.HeadPoseFederation"
    made = HeadPoseFederation(**workflow["args"])
    assert made._plan == Plan(7, 2, "rotation", {"batch_size": 2, "rotation_lr": 0.001})
    assert (made.fedprox_mu, made.key_metric) == (0.2, "rotation_mean_deg")
    assert (made.min_sites, made.grace_s, made.start_round) == (3, 30.0, 0)
    (executor,) = clients["executors"]
    assert executor["executor"]["path"] == "scripts.federated.client.HeadPoseExecutor"
    assert not executor["executor"].get("args")
    assert not clients["task_result_filters"]
    assert json.loads((job / "meta.json").read_text())["min_clients"] == 3
    (weights,) = job.rglob("start.pt")
    state = torch.load(weights, weights_only=True)
    assert all(torch.equal(state[key], value) for key, value in small_weights().items())


@pytest.mark.parametrize("algorithm", ["fedavg", "fedprox"])
def test_fedavg_has_no_proximal_term(algorithm, tmp_path, start):
    _, server, _ = exported(tmp_path, "--init_path", str(start), "--algorithm", algorithm)
    arguments = server["workflows"][0]["args"]
    assert arguments.get("fedprox_mu", 0.0) == {"fedavg": 0.0, "fedprox": 0.01}[algorithm]


@pytest.mark.parametrize("privacy", list(FILTERS))
def test_a_privacy_filter_is_in_the_job_and_changes_what_leaves(privacy, tmp_path, start):
    settings = {"percentile": {"percentile": 50, "gamma": 0.02}, "svt": {"fraction": 0.3}}[privacy]
    _, _, clients = exported(
        tmp_path, "--init_path", str(start), "--privacy", privacy,
        "--privacy_args", json.dumps(settings),
    )  # fmt: skip
    (entry,) = clients["task_result_filters"]
    assert entry["tasks"] == ["train"]
    (leaving,) = entry["filters"]
    assert leaving["path"].endswith(FILTERS[privacy].__name__)
    assert settings.items() <= leaving["args"].items()
    made = FILTERS[privacy](**leaving["args"])
    rng = np.random.default_rng(0)
    values = {"rotation.w": rng.normal(size=200).astype(np.float32)}
    dxo = DXO(DataKind.WEIGHT_DIFF, dict(values), {MetaKey.NUM_STEPS_CURRENT_ROUND: 10})
    left = made.process_dxo(dxo, Shareable(), _Context()).data["rotation.w"]
    # svt draws what it uploads with replacement, so some twice
    low, high = {"percentile": (0.48, 0.52), "svt": (0.15, 0.3)}[privacy]
    assert low <= np.mean(left != 0) <= high
    assert np.abs(left - values["rotation.w"])[left != 0].max() > 0


class _Engine:
    """As much of NVFlare's engine as a round asks."""

    def get_clients(self):
        return []


class _Context:
    """As much of NVFlare's context as its filters log with."""

    def __getattr__(self, _):
        return lambda *args, **kwargs: None


def test_a_lost_server_is_resumed_from_its_folder(tmp_path, start):
    lost = tmp_path / "lost"
    lost.mkdir()
    last = {key: value + 1 for key, value in small_weights().items()}
    torch.save(last, lost / "last.pt")
    torch.save(small_weights(), lost / "model.pt")
    record = {"sites": {}, "refused": {}}
    history = [
        record | {"round": 0, "pooled": 12.0, "best": True, "averaged": True},
        record | {"round": 1, "pooled": 15.0, "best": False, "averaged": True},
        record | {"round": 2, "pooled": 9.0, "best": True, "averaged": False},
    ]
    (lost / "rounds.json").write_text(json.dumps(history))
    job, server, _ = exported(tmp_path, "--rounds", "5", "--resume_dir", str(lost))
    made = HeadPoseFederation(**server["workflows"][0]["args"])
    assert made.start_round == 2
    config = next(job.rglob("start.pt")).parent
    state = torch.load(config / "start.pt", weights_only=True)
    assert all(torch.equal(state[key], last[key]) for key in last)

    class Engine:
        def get_workspace(self):
            return self

        def get_app_config_dir(self, _):
            return config

        def get_run_dir(self, _):
            return tmp_path

        def get_job_id(self):
            return "job"

    made.engine = made.fl_ctx = Engine()
    made._begin()
    assert [entry["round"] for entry in made._history] == [0, 1]
    # round 2 is rated again, so it is not the best yet
    assert made._best["round"] == 0
    assert (tmp_path / "model.pt").read_bytes() == (lost / "model.pt").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["export", "--job_dir", "J", "--init_path", "none.pt"],
            "none.pt: no such file of weights",
        ),
        (["export", "--job_dir", "J", "--rounds", "0"], "rounds must be 1 or more"),
        (["export", "--job_dir", "J", "--resume_dir", "none"], "nothing to resume"),
        (["export", "--job_dir", "J", "--override", "x=$1"], "override x: expected numbers"),
        (["export", "--job_dir", "J", "--override", "x"], "expected id=value"),
        (
            ["export", "--job_dir", "J", "--privacy", "svt", "--privacy_args", '{"x": 1}'],
            "privacy filter svt",
        ),
        (["simulate", "--output_dir", "O", "--sites", "a"], "name=DIR"),
        (["simulate", "--output_dir", "O", "--sites", "a=b,a=c"], "named twice"),
        (["prepare", "--kit", "none"], "not a start-up kit"),
    ],
)
def test_bad_arguments_are_refused(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(arguments)
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_weights_that_are_no_state_dict_are_refused(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other\.pt: no state_dict: 'epoch' is a int"):
        HeadPoseRecipe(Plan(1), tmp_path / "other.pt")


def test_a_job_begins_from_a_checkpoint_of_training_too(tmp_path):
    torch.save({"network": small_weights(), "epoch": 3}, tmp_path / "checkpoint.pt")
    job, _, _ = exported(tmp_path, "--init_path", str(tmp_path / "checkpoint.pt"))
    (weights,) = job.rglob("start.pt")
    state = torch.load(weights, weights_only=True)
    assert all(torch.equal(state[key], value) for key, value in small_weights().items())


def test_the_project_file_gives_kits_with_mutual_tls_that_may_run_the_bundle(tmp_path):
    project = BUNDLE / "configs/federated_project.yml"
    command = [sys.executable, "-m", "nvflare.cli", "provision", "-p", str(project)]
    command += ["-w", str(tmp_path / "kits")]
    environment = {"HOME": str(tmp_path), "PATH": ""}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    kits = tmp_path / "kits/head_pose/prod_00"
    names = {
        participant["name"] for participant in yaml.safe_load(project.read_text())["participants"]
    }
    assert {path.name for path in kits.iterdir()} == names
    client_config = json.loads((kits / "site-1/startup/fed_client.json").read_text())
    assert client_config["client"]["connection_security"] == "mtls"
    for name in ("site-1", "fl.example.org"):
        default = json.loads((kits / name / "local/resources.json.default").read_text())
        for _ in range(2):  # a second time changes nothing
            resources, authorization = (
                json.loads(path.read_text()) for path in prepare_kit(kits / name)
            )
        assert resources["class_allow_list"] == [*default["class_allow_list"], *CLASSES]
        added = [c["id"] for c in resources["components"] if c not in default["components"]]
        assert added == (["returned_sites"] if name == "fl.example.org" else [])
        for role, rights in authorization["permissions"].items():
            assert rights["byoc"] == rights["shell_commands"] == "none", role
        assert authorization["permissions"]["project_admin"]["manage_job"] == "any"
        assert authorization["permissions"]["lead"]["submit_job"] == "any"
    # by default a site's error log, which names its files, goes to the server
    default = json.loads((kits / "site-1/local/resources.json.default").read_text())
    assert LOG_STREAMER in {component["path"] for component in default["components"]}
    resources = json.loads((kits / "site-1/local/resources.json").read_text())
    assert LOG_STREAMER not in {component["path"] for component in resources["components"]}
    assert resources["allow_log_streaming"] is False


def test_classes_that_kits_allow_are_there():
    for name in (*CLASSES, "scripts.federated.returned.ReturnedSites"):
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute)
