"""The zip that `make package` writes is whole: it works in a folder that knows no repository."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import monai.bundle
import pytest
import torch
from ignite.engine import Engine
from monai.bundle import scripts as monai_scripts
from monai.handlers import CheckpointLoader

from conftest import BUNDLE, REPOSITORY
from package import NAME, PackageError, main, package_files, uncommitted, write_package
from scripts.training.checkpoint import ResumableTraining

VERSION = json.loads((BUNDLE / "configs/metadata.json").read_text())["version"]
ZIP_NAME = f"{NAME}_v{VERSION}.zip"

# loaded by every Python that finds it on its path, before anything else
NO_NETWORK = """
import os, sys

def refuse(event, arguments):
    if event in ("socket.connect", "socket.sendto"):
        local = isinstance(arguments[1], (str, bytes))  # a Unix socket, between own processes
    else:
        local = not event.startswith(("socket.getaddrinfo", "socket.gethostby"))
    if not local:
        with open(os.environ["NETWORK_LOG"], "a") as file:
            print(event, arguments, file=file)
        raise OSError(f"no network: {event}")

sys.addaudithook(refuse)
"""

PYTHON_CHECKS = """
import sys
from pathlib import Path

import monai.bundle
import torch
from monai.bundle import create_workflow, verify_net_in_out

bundle, data, output, repository = sys.argv[1:]
configs = Path(bundle) / "configs"

state = torch.load(Path(bundle) / "models/model.pt", weights_only=True)
for kind in ("train", "inference"):
    network = monai.bundle.load(
        Path(bundle).name,
        bundle_dir=Path(bundle).parent,
        workflow_type=kind,
        args_file={"bundle_root": bundle},
    )
    torch.testing.assert_close(dict(network.state_dict()), dict(state))
with torch.no_grad():
    assert network.eval()(torch.rand(2, 1, 30, 20, 25)).shape == (2, 4, 4)

files = {"train": ["train"], "evaluate": ["train", "evaluate"], "inference": ["inference"]}
for kind, names in files.items():
    workflow = create_workflow(
        config_file=[str(configs / f"{name}.json") for name in names],
        workflow_type="inference" if kind == "inference" else "train",
        dataset_dir=f"{data}/test" if kind == "inference" else data,
        output_dir=output,
        bundle_root=bundle,
    )
    assert workflow.check_properties() == [], kind
workflow.run()
assert list(Path(output).glob("*_pose.json"))

for size in (1, 37):
    verify_net_in_out(
        net_id="network_def",
        meta_file=str(configs / "metadata.json"),
        config_file=str(configs / "inference.json"),
        any=size,
    )

scripts = {Path(m.__file__) for n, m in sys.modules.items() if n.split(".")[0] == "scripts"}
assert scripts and all(Path(bundle) in path.parents for path in scripts), scripts
assert not {repository, f"{repository}/bundle", f"{repository}/tools"} & set(sys.path)
"""


@pytest.fixture(autouse=True)
def _no_git_hook(monkeypatch):
    """Within a hook git would ask and change the repository that the hook is of."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    return write_package(BUNDLE, tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def unpacked(package, tmp_path_factory):
    """The bundle's folder, alone in an empty folder."""
    folder = tmp_path_factory.mktemp("site")
    assert REPOSITORY not in folder.parents
    with zipfile.ZipFile(package) as archive:
        archive.extractall(folder)
    assert [path.name for path in folder.iterdir()] == [NAME]
    return folder / NAME


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    """Two volumes to train on, one to validate, one to test."""
    from scripts.phantom import write_dataset

    folder = tmp_path_factory.mktemp("phantoms")
    write_dataset(folder, 2, 1, 1, voxel_mm=(6, 6, 6), headless_share=0, progress=False)
    return folder


@pytest.fixture
def offline(tmp_path):
    """Runs Python in a folder, without the repository on its path and without a network."""
    (tmp_path / "path").mkdir()
    (tmp_path / "path/sitecustomize.py").write_text(NO_NETWORK)
    log = tmp_path / "network.log"
    environment = dict(os.environ, PYTHONPATH=str(tmp_path / "path"), NETWORK_LOG=str(log))

    def run(folder, *arguments):
        command = [sys.executable, *map(str, arguments)]
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert not log.exists(), log.read_text()

    return run


def test_the_watch_on_the_network_works(offline, tmp_path):
    """Also where the caller swallows the error."""
    call = "import socket; socket.create_connection(('192.0.2.1', 9), 1)"
    with pytest.raises(AssertionError, match="OSError: no network"):
        offline(tmp_path, "-c", call)
    with pytest.raises(AssertionError, match=r"socket\.getaddrinfo \('192\.0\.2\.1"):
        offline(tmp_path, "-c", f"try:\n    {call}\nexcept OSError: pass")


def test_inference_from_within_the_folder(unpacked, phantoms, offline, tmp_path):
    command = ["-m", "monai.bundle", "run", "--config_file", "configs/inference.json"]
    offline(unpacked, *command, "--dataset_dir", phantoms / "test", "--output_dir", tmp_path / "o")
    record = json.loads((tmp_path / "o/phantom_0000_pose.json").read_text())
    assert record["status"] in ("ok", "uncertain", "no_head")
    assert (tmp_path / "o/phantom_0000_pose.png").exists()


def test_training_from_another_folder(unpacked, phantoms, offline, tmp_path):
    """An epoch of fine-tuning, as docs/deployment.md has it; the shipped weights stay."""
    before = (unpacked / "models/model.pt").read_bytes()
    command = ["-m", "monai.bundle", "run", "training"]
    command += ["--config_file", unpacked / "configs/train.json", "--bundle_root", unpacked]
    command += ["--dataset_dir", phantoms, "--output_dir", tmp_path / "o"]
    command += ["--init_path", unpacked / "models/model.pt", "--epochs", "1"]
    (tmp_path / "elsewhere").mkdir()
    # overrides of any depth; they also make it quick
    command += ["--val_interval", "1", "--num_workers", "0", "--patch_voxels", "32"]
    offline(tmp_path / "elsewhere", *command, "--network_def#crop_size", "16")
    assert (tmp_path / "o/model.pt").exists()
    assert not list((tmp_path / "elsewhere").iterdir())
    assert (unpacked / "models/model.pt").read_bytes() == before


def test_python_from_another_folder(unpacked, phantoms, offline, tmp_path):
    offline(tmp_path, "-c", PYTHON_CHECKS, unpacked, phantoms, tmp_path / "o", REPOSITORY)


def test_package_holds_the_tracked_files_and_no_other(package):
    tracked = subprocess.run(
        ["git", "ls-files", "."], cwd=BUNDLE, capture_output=True, text=True, check=True
    )
    names = tracked.stdout.split()
    with zipfile.ZipFile(package) as archive:
        built = {f"{NAME}/models/model.ts"} & set(archive.namelist())
        assert set(archive.namelist()) == {f"{NAME}/{name}" for name in names} | built
        assert archive.testzip() is None
        for name in names:
            assert archive.read(f"{NAME}/{name}") == (BUNDLE / name).read_bytes()
        assert max(entry.file_size for entry in archive.infolist()) < 25e6
    assert (BUNDLE / "LICENSE").read_bytes() == (REPOSITORY / "LICENSE").read_bytes()


def test_same_files_give_the_same_bytes(tmp_path):
    """Whatever their times and modes are, and in whatever time zone."""
    first = write_package(bundle := copy(tmp_path / "a"), tmp_path / "first")
    for path in bundle.rglob("*"):
        if path.is_file():
            os.utime(path, (1e9, 1e9))
            path.chmod(0o755)
    second = write_package(bundle, tmp_path / "second")
    assert first.name == ZIP_NAME
    assert first.read_bytes() == second.read_bytes()
    digest = hashlib.sha256(first.read_bytes()).hexdigest()
    assert Path(f"{first}.sha256").read_text() == f"{digest}  {ZIP_NAME}\n"


def test_an_interrupted_write_leaves_the_old_package(tmp_path, monkeypatch):
    bundle = copy(tmp_path / "a")
    path = write_package(bundle, tmp_path)
    before = path.read_bytes()
    (bundle / "LICENSE").write_text("another")

    def full(self, data):
        with open(self, "wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="no space"):
        write_package(bundle, tmp_path)
    assert path.read_bytes() == before


def test_only_what_is_committed_is_packed(tmp_path):
    bundle = copy(tmp_path / "a")
    (bundle / "models/model.ts").write_text("built from the tracked weights")
    assert uncommitted(bundle) == []
    assert "models/model.ts" in package_files(bundle)
    main(["--output_dir", str(tmp_path / "dist")], bundle)
    assert (tmp_path / "dist" / ZIP_NAME).exists()
    (bundle / "configs/mine.json").write_text("{}")
    (bundle / "LICENSE").write_text("another")
    with pytest.raises(SystemExit, match=r"bundle/LICENSE.*bundle/configs/mine\.json"):
        main(["--output_dir", str(tmp_path / "other")], bundle)
    assert not (tmp_path / "other").exists()


def test_refusals_name_the_file(tmp_path):
    bundle = copy(tmp_path / "a")
    with open(bundle / "models/model.pt", "wb") as file:
        file.truncate(25_000_001)
    with pytest.raises(PackageError, match=r"models/model\.pt: at most 25000000 bytes, got 250000"):
        write_package(bundle, tmp_path)
    (bundle / "models/model.pt").unlink()
    with pytest.raises(PackageError, match=r"no such tracked file: models/model\.pt"):
        write_package(bundle, tmp_path)
    shutil.rmtree(bundle.parent / ".git")
    with pytest.raises(PackageError, match="not a git repository"):
        write_package(bundle, tmp_path)


def test_monai_downloads_it(package, tmp_path, monkeypatch):
    """By URL, and from a release on GitHub, under the name and in the layout that it expects."""
    monai.bundle.download(
        name=NAME, url=package.as_uri(), bundle_dir=tmp_path / "url", progress=False
    )
    asked = []

    def fetch(url, filepath, **_):
        asked.append(url)
        filepath.parent.mkdir(parents=True)
        shutil.copy(package, filepath)

    monkeypatch.setattr(monai_scripts, "download_url", fetch)
    monai.bundle.download(
        name=NAME, version=VERSION, source="github", repo="owner/repository/tag",
        bundle_dir=tmp_path / "github",
    )  # fmt: skip
    assert asked == [f"https://github.com/owner/repository/releases/download/tag/{ZIP_NAME}"]
    for folder in ("url", "github"):
        assert (tmp_path / folder / NAME / "configs/metadata.json").exists()


class Code:
    """Leaves a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_weights_that_hold_code_are_refused(tmp_path):
    """By all that reads weights: inference, resumed training, monai.bundle.load."""
    network, engine = torch.nn.Linear(1, 1), Engine(lambda *_: None)
    models = tmp_path / NAME / "models"
    models.mkdir(parents=True)
    for name in ("model.pt", "checkpoint.pt"):
        torch.save({"weight": Code(tmp_path / "ran")}, models / name)
    readers = (
        lambda: CheckpointLoader(str(models / "model.pt"), {"model": network})(engine),
        lambda: ResumableTraining(models, {"model": network}, None, resume=True)._load(engine),
        lambda: monai.bundle.load(NAME, model=network, bundle_dir=tmp_path),
    )
    for read in readers:
        with pytest.raises((pickle.UnpicklingError, ValueError), match="Weights only load failed"):
            read()
    assert not (tmp_path / "ran").exists()
    torch.load(models / "model.pt", weights_only=False)
    assert (tmp_path / "ran").exists()  # as it would have run


def copy(folder):
    """The bundle's tracked files, with tiny weights, committed to a repository of their own."""
    for name in package_files(BUNDLE):
        path = folder / "bundle" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.startswith("models/"):
            path.write_bytes(b"weights")
        else:
            shutil.copy(BUNDLE / name, path)
    git = ["git", "-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "m"]):
        subprocess.run([*git, *arguments], cwd=folder, check=True)
    return folder / "bundle"
