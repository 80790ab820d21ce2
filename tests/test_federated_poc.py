"""Server and clients as processes of their own, with mutual TLS, by NVFlare's POC mode.

Slow, so not among the tests of `make test`: `make test-federated` runs it.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
import torch

from conftest import BUNDLE
from federated_data import SMALL, small_weights, write_site

pytest.importorskip("nvflare")
psutil = pytest.importorskip("psutil")
yaml = pytest.importorskip("yaml")

pytestmark = pytest.mark.slow
TIMEOUT_S = 900


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def project(folder: Path) -> Path:
    """The shipped project file, with the server on this machine."""
    content = yaml.safe_load((BUNDLE / "configs/federated_project.yml").read_text())
    for participant in content["participants"]:
        if participant["type"] == "server":
            participant |= {"name": "localhost", "fed_learn_port": free_port()}
    path = folder / "project.yml"
    path.write_text(yaml.safe_dump(content))
    return path


class Processes:
    """Server and clients, each with its children; all are gone at the end of the test."""

    def __init__(self, kits: Path, environment: dict[str, str]) -> None:
        self.kits, self.environment = kits, environment
        self.running: dict[str, subprocess.Popen] = {}

    def start(self, name: str, **environment: str) -> None:
        log = (self.kits / f"{name}.log").open("a")
        self.running[name] = subprocess.Popen(
            [self.kits / name / "startup/sub_start.sh", "--once"],
            env={**self.environment, **environment}, stdout=log, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip

    def kill(self, name: str) -> None:
        """Without a chance to say goodbye, as by a power cut."""
        process = psutil.Process(self.running.pop(name).pid)
        for each in [*process.children(recursive=True), process]:
            each.send_signal(signal.SIGKILL)

    def log(self, name: str) -> str:
        return (self.kits / f"{name}.log").read_text()


@pytest.fixture
def federation(tmp_path):
    """Start-up kits of a server and three sites, and their processes."""
    environment = {
        **os.environ,
        "HOME": str(tmp_path),  # NVFlare writes ~/.nvflare
        "NVFLARE_POC_WORKSPACE": str(tmp_path / "poc"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(BUNDLE),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "nvflare.cli", "poc", "prepare", "-i", project(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    processes = Processes(tmp_path / "poc/head_pose/prod_00", environment)
    yield processes
    for name in list(processes.running):
        processes.kill(name)


def wait_for(condition, what: str):
    """The first true value of ``condition``."""
    end = time.monotonic() + TIMEOUT_S
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(1)
    raise AssertionError(f"not in {TIMEOUT_S} s: {what}")


def connect(kits: Path):
    """A session of the person who submits jobs, once server and sites are up."""
    from nvflare.fuel.flare_api.flare_api import new_secure_session

    def try_it():
        try:
            session = new_secure_session("lead@example.org", str(kits / "lead@example.org"))
        except Exception:
            return None
        if len(session.get_system_info().client_info) == 3:
            return session
        session.close()
        return None

    return wait_for(try_it, "server and three sites")


def finished(session, job: str, federation: Processes, folder: Path) -> Path:
    """The server's folder of a job, which has to end well."""
    session.monitor_job(job, timeout=TIMEOUT_S)
    assert session.get_job_status(job) == "FINISHED:COMPLETED", federation.log("localhost")
    return Path(session.download_job_result(job, str(folder))) / "workspace"


def test_a_client_is_killed_in_a_round_and_comes_back(federation, tmp_path):
    """The round goes on without it, the job ends well, and the site takes part in the next job."""
    from scripts.federated.job import main

    start = tmp_path / "start.pt"
    torch.save(small_weights(), start)
    for number in (1, 2, 3):
        data = write_site(tmp_path / f"data-{number}", training=2 * number, seed=number)
        settings = {"dataset_dir": str(data), "output_dir": str(tmp_path / f"site-{number}")}
        (tmp_path / f"site-{number}.json").write_text(json.dumps(settings))

    def start_site(number: int) -> None:
        federation.start(f"site-{number}", HEAD_POSE_SITE=str(tmp_path / f"site-{number}.json"))

    for name in ("localhost", "site-1", "site-2", "site-3"):
        main(["prepare", "--kit", str(federation.kits / name)])
    federation.start("localhost")
    for number in (1, 2, 3):
        start_site(number)
    arguments = ["export", "--job_dir", str(tmp_path / "jobs"), "--init_path", str(start)]
    arguments += ["--min_sites", "2", "--grace_s", "15", "--local_epochs", "3"]
    for key, value in SMALL.items():
        arguments += ["--override", f"{key}={json.dumps(value)}"]
    main([*arguments, "--rounds", "3"])

    with closing(connect(federation.kits)) as session:
        job = session.submit_job(str(tmp_path / "jobs/head_pose"))

        def trains() -> bool:
            """Whether site-3 has rated the global weights of round 1, and so trains now."""
            status = session.get_job_status(job)
            assert not status.startswith("FINISHED"), federation.log("localhost")
            return (tmp_path / "site-3/cases_round_1.csv").exists()

        wait_for(trains, "round 1 at site-3")
        federation.kill("site-3")
        start_site(3)
        result = finished(session, job, federation, tmp_path / "result")
    # neither weights nor logs that came to the server say where a site has its data
    arrived = [path for path in result.parent.rglob("*") if path.is_file()]
    assert {path.name for path in arrived} >= {"rounds.json", "log.txt"}
    for path in arrived:
        assert str(tmp_path / "data-").encode() not in path.read_bytes(), path
    history = json.loads((result / "rounds.json").read_text())
    sites = [set(record["sites"]) for record in history]
    assert sites[0] == {"site-1", "site-2", "site-3"}
    assert sites[1:] == [{"site-1", "site-2"}] * 3
    weights = torch.load(result / "last.pt", weights_only=True)
    shapes = {key: value.shape for key, value in small_weights().items()}
    assert {key: value.shape for key, value in weights.items()} == shapes

    main([*arguments, "--rounds", "1"])
    with closing(connect(federation.kits)) as session:  # three sites are there again
        job = session.submit_job(str(tmp_path / "jobs/head_pose"))
        result = finished(session, job, federation, tmp_path / "again")
    history = json.loads((result / "rounds.json").read_text())
    assert set(history[0]["sites"]) == {"site-1", "site-2", "site-3"}
