"""distributed.py, processes.py and configs/multi_gpu_train.json: two processes do what one does."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from ignite.engine import Events
from monai.bundle import ConfigParser

from conftest import BUNDLE
from distributed_worker import EPOCHS, GLOBAL_BATCH, PLAIN, train, workflow
from scripts import distributed
from scripts.data import phantoms as phantom
from scripts.training.processes import local_device

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
STEPS = 2  # an epoch
# float32 sums in another order: 1e-7 was seen
TOLERANCE = 1e-5


# in a shell of a job of SLURM, which knows nothing of the processes that torchrun starts
CPUS = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "SLURM_JOB_ID": "1"}


def run_on_cpus(command):
    done = subprocess.run(
        command, cwd=BUNDLE, env=CPUS, capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-6000:]
    return done


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    """Eight volumes to train on, some without a head; three to validate: not even for two."""
    folder = tmp_path_factory.mktemp("phantoms")
    phantom.write_dataset(folder, 8, 3, 1, voxel_mm=(6, 6, 6), headless_share=0.4, progress=False)
    return folder


@pytest.fixture(scope="module")
def single(phantoms, tmp_path_factory):
    """Folder, losses and metrics of one process."""
    folder = tmp_path_factory.mktemp("single")
    return folder, *train(["train"], phantoms, folder, batch_size=GLOBAL_BATCH)


@pytest.fixture(scope="module")
def both(phantoms, single, tmp_path_factory):
    """Folder of two processes, and what each of them has found."""
    folder = tmp_path_factory.mktemp("both")
    worker = str(Path(__file__).with_name("distributed_worker.py"))
    run_on_cpus([*TORCHRUN, worker, str(phantoms), str(folder), str(single[0])])
    return folder, [json.loads((folder / f"rank_{rank}.json").read_text()) for rank in (0, 1)]


def test_two_processes_train_as_one(both, single):
    """The same loss at every step from half of the batch each; all processes know the metrics."""
    _, ranks = both
    _, losses, metrics = single
    assert len(losses) == EPOCHS * STEPS
    for found in ranks:
        assert found["curve"][0] == pytest.approx(losses, rel=TOLERANCE)
        assert set(found["curve"][1]) == set(metrics)
    assert repr(ranks[0]["curve"]) == repr(ranks[1]["curve"])  # there may be NaN


def test_a_checkpoint_of_one_process_resumes_in_two(both, single):
    _, ranks = both
    for found in ranks:
        assert found["resumed"][0] == pytest.approx(single[1][-STEPS:], rel=TOLERANCE)


def test_a_checkpoint_of_two_processes_resumes_in_one(both, single, phantoms, tmp_path):
    shutil.copy(both[0] / "both" / "checkpoint_2.pt", tmp_path / "checkpoint.pt")
    losses, _ = train(["train"], phantoms, tmp_path, batch_size=GLOBAL_BATCH, resume=True)
    assert losses == pytest.approx(single[1][-STEPS:], rel=TOLERANCE)


def test_the_files_are_those_of_one_process(both, single):
    folder = both[0] / "both"
    names = {path.name.split(".")[0] for path in folder.iterdir()}
    assert names == {path.name.split(".")[0] for path in single[0].iterdir()}
    # curves of training and of validation, from one process
    assert len(list(folder.glob("events*"))) == len(list(single[0].glob("events*"))) == 2
    state, expected = (torch.load(p / "model.pt", weights_only=True) for p in (folder, single[0]))
    assert list(state) == list(expected)


def test_evaluation_in_two_processes(both, single, phantoms, tmp_path):
    overrides = {"section": "validation", "ckpt_path": str(single[0] / "model.pt")}
    workflow(["train", "evaluate"], phantoms, tmp_path, **overrides).run()
    tables = []
    for folder in (tmp_path, both[0] / "evaluated"):
        with open(folder / "cases.csv", newline="") as file:
            tables.append(sorted(csv.reader(file)))
    assert tables[0] == tables[1]
    assert len(tables[0]) == 1 + 3
    metrics = (folder / "metrics.csv" for folder in (tmp_path, both[0] / "evaluated"))
    assert len({path.read_text() for path in metrics}) == 1


def test_a_step_with_nan_in_one_process_is_skipped_in_all(both):
    for found in both[1]:
        assert found["spoiled"] == {"moved": True, "equal": True}


def test_augmentation_differs_between_processes_and_is_reproducible(both):
    for found in both[1]:
        first, again, worker, worker_again = found["augmented"]
        assert len(set(first)) == len(first) == 8
        assert len(set(worker)) == 8
        assert (again, worker_again) == (first, worker)


def command_line(start, names, **overrides):
    """Training as docs/training.md has it."""
    command = [*start, "-m", "monai.bundle", "run", "training", "--config_file"]
    command += [str([f"configs/{name}.json" for name in names])]
    for key, value in (PLAIN | overrides).items():
        command += [f"--{key}", str(value)]
    return command


def test_the_mixture_may_stand_before_or_after():
    """The same config in either order, so that one is enough for the test below."""
    configs = []
    for order in (["mixture", "multi_gpu_train"], ["multi_gpu_train", "mixture"]):
        parser = ConfigParser()
        parser.read_config([str(BUNDLE / f"configs/{name}.json") for name in ["train", *order]])
        configs.append(parser.get())
    assert configs[0] == configs[1]


def test_command_line_with_the_mixture(phantoms, tmp_path):
    command = command_line(
        TORCHRUN,
        ["train", "mixture", "multi_gpu_train"],
        dataset_dir=phantoms,
        phantom_dir=phantoms,
        output_dir=tmp_path,
        samples_per_epoch=5,
        batch_size=2,
        epochs=1,
        val_interval=1,
    )
    done = run_on_cpus(command)
    assert {path.name.split(".")[0] for path in tmp_path.iterdir()} == {
        "checkpoint", "model", "events"
    }  # fmt: skip
    assert done.stdout.count("kept in") == 1  # one process writes, and says so
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    steps = state["optimizer"]["state"][0]["step"].item()
    assert steps == 2  # five draws are six for two processes: three each, in batches of two


def test_without_torchrun_the_error_says_so(phantoms, tmp_path, monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(RuntimeError) as error:
        workflow(["train", "multi_gpu_train"], phantoms, tmp_path)
    assert "torchrun" in str(error.value.__cause__ or error.value)


def test_more_processes_than_gpus(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(RuntimeError, match=r"process 2 .* --nproc_per_node may be at most 2"):
        local_device()
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert local_device() == torch.device("cuda", 1)


def test_mixed_seeds_differ():
    seeds = {distributed.mixed_seed(a, b) for a in range(4) for b in range(4)}
    assert len(seeds) == 16
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_mean_of_one_process_is_a_copy():
    value = torch.tensor([1.0, 2.5], requires_grad=True)
    found = distributed.mean(value)
    assert torch.equal(found, value)
    assert not found.requires_grad
    found[0] = 7
    assert value[0] == 1


def test_error_on_rank_0_is_raised():
    def fail():
        raise FileNotFoundError("nothing there")

    with pytest.raises(FileNotFoundError, match="nothing there"):
        distributed.from_rank0(fail)


@pytest.mark.parametrize("processes", [1, 2])
def test_training_that_was_stopped_goes_on(phantoms, tmp_path, processes):
    """By SIGTERM, as a cluster does it, or by Ctrl-C, which all processes of a terminal get."""
    start, names = ([sys.executable], []) if processes == 1 else (TORCHRUN, ["multi_gpu_train"])
    command = command_line(
        start,
        ["train", *names],
        dataset_dir=phantoms,
        output_dir=tmp_path,
        epochs=10000,
        val_interval=10000,
    )
    checkpoint = tmp_path / "checkpoint.pt"
    with open(tmp_path.parent / "log.txt", "w+") as log:
        training = subprocess.Popen(
            command, cwd=BUNDLE, env=CPUS, stdout=log, stderr=log, start_new_session=True
        )
        try:
            end = time.monotonic() + 300
            while not checkpoint.exists() and training.poll() is None and time.monotonic() < end:
                time.sleep(0.2)
            if processes == 1:
                training.send_signal(signal.SIGTERM)
            else:
                os.killpg(training.pid, signal.SIGINT)
            status = training.wait(timeout=120)
        finally:
            if training.poll() is None:
                os.killpg(training.pid, signal.SIGKILL)
        log.seek(0)
        assert checkpoint.exists(), log.read()[-4000:]
    assert status != 0
    epoch = torch.load(checkpoint, weights_only=True)["epoch"]
    run = workflow(["train"], phantoms, tmp_path, epochs=epoch + 1, resume=True)
    epochs = []
    run.trainer.add_event_handler(Events.EPOCH_STARTED, lambda e: epochs.append(e.state.epoch))
    run.run()
    assert epochs == [epoch + 1]
