"""Command line of federated fine-tuning, from the bundle's folder.

    python -m scripts.federated.job simulate --sites a=DIR,b=DIR --rounds 3 --output_dir O
    python -m scripts.federated.job alone    --sites a=DIR,b=DIR --rounds 3 --output_dir O/alone
    python -m scripts.federated.job rate     --sites a=DIR,b=DIR --models before=W,alone=O/alone \
                                             --output_dir O/ratings
    python -m scripts.federated.job export   --min_sites 2 --rounds 20 --job_dir J
    python -m scripts.federated.job prepare  --kit K
    python -m scripts.federated.job check    --site site.json --kit K

``simulate`` runs server and sites on this machine; ``alone`` trains every site by itself as many
epochs, or with ``--pooled`` on all sites' data in one place, to compare with; ``rate`` tells how
good models are on each site's test volumes; ``export`` writes the job that a consortium submits,
and ``prepare`` lets a start-up kit run it; ``check`` tells a site whether it could take part
(docs/federated.md).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

if __name__ == "__main__" and find_spec("nvflare") is None:
    from .site_check import without_nvflare

    sys.exit(without_nvflare(sys.argv[1:]))

from nvflare.app_common.default_component_policy import DEFAULT_CLASS_ALLOW_LIST
from nvflare.job_config.api import FedJob
from nvflare.recipe.sim_env import SimEnv
from nvflare.recipe.spec import Recipe
from torch import Tensor

from ..data.dataset_entries import SECTIONS
from ..files import replacing, write_json, write_tensors
from ..network import HeadPoseNet
from ..weight_files import difference, for_network, read_weights
from . import site_check
from .alone import pool_data, train_alone
from .client import SITE_FILE_VARIABLE, HeadPoseExecutor
from .kit import CLASSES, prepare_kit
from .privacy import FILTERS, Privacy, write_filtered
from .rating import models_of, rate
from .server import KEY_METRICS, START_WEIGHTS, HeadPoseFederation
from .site import BEST, BUNDLE_ROOT, HISTORY, LAST, OWN_RELEASE, SHARES, Plan

NAME = "head_pose"
ALGORITHMS = ("fedavg", "fedprox")


class HeadPoseRecipe(Recipe):
    """The job: server, the script of the clients, start weights, privacy filter.

    Parameters
    ----------
    plan : what every site is asked
    init_path : weights to begin from, see `weight_files.read_weights`
    min_sites : sites without which there is no round
    fedprox_mu : weight of the proximal term; 0 is plain averaging
    key_metric, grace_s : see `HeadPoseFederation`
    privacy : a filter of what leaves a site
    resume_dir : the folder of a job that ended early, with last.pt, model.pt and rounds.json;
        the job goes on from there instead of from ``init_path``

    Raises
    ------
    FileNotFoundError, ValueError : weights or a folder to resume that are not there or not whole
    """

    def __init__(
        self,
        plan: Plan,
        init_path: str | os.PathLike[str],
        min_sites: int = 1,
        fedprox_mu: float = 0.0,
        key_metric: str = "rotation_deg",
        grace_s: float = 600.0,
        privacy: Privacy | None = None,
        resume_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        job = FedJob(NAME, min_clients=min_sites)
        # every site has its own copy of the bundle: no code of it travels
        job.set_app_packages(["scripts"])
        start_round = 0
        self._files = tempfile.TemporaryDirectory()
        if resume_dir is not None:
            init_path = Path(resume_dir) / LAST
            start_round = _finished_rounds(Path(resume_dir))
            for name in (BEST, HISTORY):
                job.add_file_to_server(str(Path(resume_dir) / name), app_folder_type="config")
        start = Path(self._files.name) / START_WEIGHTS
        write_tensors(start_weights(init_path), start)
        job.to_server(
            HeadPoseFederation(
                **asdict(plan),
                start_round=start_round,
                min_sites=min_sites,
                grace_s=grace_s,
                fedprox_mu=fedprox_mu,
                key_metric=key_metric,
                release=OWN_RELEASE,
            )
        )
        job.add_file_to_server(str(start), app_folder_type="config")
        job.to_clients(HeadPoseExecutor(), tasks=["*"])
        # NVFlare's minute is too short for a busy machine to import everything
        job.to_clients({"max_runner_sync_timeout": 600.0})
        super().__init__(job)
        if privacy is not None:
            self.add_client_output_filter(privacy.filter(), tasks=["train"])


def start_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Of a file; those of an older release in the shapes of this one's network.

    Weights of another network stay as they are: whose it is, the sites know. Raises what
    `read_weights` does.
    """
    network, given = HeadPoseNet(), read_weights(path)
    found = for_network(network, given)
    return given if difference(network.state_dict(), found) else found


def _finished_rounds(folder: Path) -> int:
    """Rounds of an earlier job whose averaged weights are in its folder."""
    for name in (LAST, BEST, HISTORY):
        if not (folder / name).exists():
            raise FileNotFoundError(f"{folder / name}: no such file, nothing to resume")
    return sum(record["averaged"] for record in json.loads((folder / HISTORY).read_text()))


def simulate(
    sites: Mapping[str, str], output_dir: str | os.PathLike[str], recipe_arguments: dict[str, Any]
) -> Path:
    """Run server and sites on this machine; the path of the best weights.

    In ``output_dir``: model.pt, last.pt, rounds.json, a folder for every site that only this site
    writes to, and NVFlare's own logs under nvflare/. What an earlier run left there is replaced.

    RuntimeError, with the end of the server's log, if no weights come out.
    """
    output = Path(output_dir).resolve()
    workspace = output / "nvflare"
    shutil.rmtree(workspace / NAME, ignore_errors=True)
    # one thread each: the sites share the machine
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(BUNDLE_ROOT), os.environ.get("PYTHONPATH")])
    )
    write_site_files(sites, output / "sites", output)
    os.environ[SITE_FILE_VARIABLE] = str(output / "sites")
    write_json(
        workspace / NAME / "local" / "resources.json.default",
        {"format_version": 2, "class_allow_list": [*DEFAULT_CLASS_ALLOW_LIST, *CLASSES]},
    )
    # as many threads as sites, or NVFlare starts every site anew in every round
    environment = SimEnv(clients=list(sites), num_threads=len(sites), workspace_root=str(workspace))
    HeadPoseRecipe(**recipe_arguments).run(environment)
    result = workspace / NAME / "server" / "simulate_job"
    history = json.loads((result / HISTORY).read_text()) if (result / HISTORY).exists() else []
    if len(history) <= recipe_arguments["plan"].rounds:
        log = workspace / NAME / "server" / "log.txt"
        end = log.read_text().splitlines()[-20:] if log.exists() else []
        raise RuntimeError("\n".join(["the federation did not reach its last round:", *end]))
    for name in (BEST, LAST, HISTORY):
        with replacing(output / name) as partial:
            shutil.copyfile(result / name, partial)
    return output / BEST


def write_site_files(sites: Mapping[str, str], folder: Path, output: Path) -> dict[str, Path]:
    """A site file for every ``name=DIR``; where DIR is a .json, with the settings in it."""
    files = {}
    for name, place in sites.items():
        path = files[name] = folder / f"{name}.json"
        settings: dict[str, Any] = {"dataset_dir": str(Path(place).resolve())}
        if place.endswith(".json"):
            settings = json.loads(Path(place).read_text())
            given = Path(place).parent / settings.get("dataset_dir", ".")
            settings["dataset_dir"] = str(given.resolve())
        write_json(path, {**settings, "output_dir": str(output / name)})
    return files


def _sites(text: str) -> dict[str, str]:
    pairs = [part.partition("=") for part in text.split(",") if part]
    names = [name for name, _, _ in pairs]
    if not pairs or not all(name and place for name, _, place in pairs):
        raise argparse.ArgumentTypeError("expected name=DIR,name=DIR")
    if len(set(names)) < len(names):
        raise argparse.ArgumentTypeError("a site is named twice")
    return {name: place for name, _, place in pairs}


def _override(text: str) -> tuple[str, Any]:
    key, sign, value = text.partition("=")
    if not sign:
        raise argparse.ArgumentTypeError(f"expected id=value, got {text!r}")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.federated.job",
        description="Fine-tune the weights at several sites whose data stay where they are.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("simulate", help="server and sites on this machine")
    alone = commands.add_parser("alone", help="every site by itself, to compare with")
    rating = commands.add_parser("rate", help="models on the volumes of every site, to compare")
    filtered = commands.add_parser("filtered", help="what privacy filters make of sites alone")
    export = commands.add_parser("export", help="write the job for a real federation")
    filtered.add_argument("--alone", required=True, help="output_dir of alone, a folder a site")
    for command in (runs, alone, rating, filtered):
        command.add_argument(
            "--sites", type=_sites, required=True, help="name=DIR,... (or a site file each)"
        )
        command.add_argument("--output_dir", required=True)
    for command in (runs, alone, filtered, export):
        command.add_argument("--init_path", default=str(BUNDLE_ROOT / "models" / "model.pt"))
    alone.add_argument(
        "--pooled", action="store_true", help="one model, on the data of all sites in one place"
    )
    rating.add_argument(
        "--models", type=_sites, required=True,
        help="name=FILE,... of weights; a folder FILE has one model of each site",
    )  # fmt: skip
    rating.add_argument("--section", choices=SECTIONS, default="test")
    kit = commands.add_parser("prepare", help="a start-up kit, for this bundle's jobs only")
    kit.add_argument("--kit", required=True, help="folder of the start-up kit")
    site_check.add_options(
        commands.add_parser("check", help="could this site take part? A dry run, before it joins")
    )
    export.add_argument("--job_dir", required=True, help="folder to write the job to")
    for command in (runs, alone, export):
        command.add_argument("--rounds", type=int, default=3)
        command.add_argument("--local_epochs", type=int, default=1)
        command.add_argument("--share", choices=SHARES, default="all", help="part that is trained")
        command.add_argument("--key_metric", choices=KEY_METRICS, default="rotation_deg")
        command.add_argument(
            "--override", type=_override, action="append", default=[], metavar="ID=VALUE",
            help="entry of train.json for all sites, such as batch_size=2; may be repeated",
        )  # fmt: skip
    for command in (runs, export):
        command.add_argument("--algorithm", choices=ALGORITHMS, default="fedavg")
        command.add_argument("--fedprox_mu", type=float, default=0.01)
        command.add_argument("--min_sites", type=int, default=1, help="no round with fewer")
        command.add_argument("--privacy", choices=FILTERS, help="NVFlare's filter of what leaves")
        command.add_argument(
            "--privacy_args", type=json.loads, default={}, help="such as '{\"percentile\": 50}'"
        )
        # on one machine all sites are waited for, so that a rerun gives the same
        grace_s = 600.0 if command is export else 86400.0
        command.add_argument("--grace_s", type=float, default=grace_s, help="wait for late sites")
        command.add_argument("--resume_dir", help="server folder of a job that ended early")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of `simulate`, `train_alone` and of the export."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        if options.command == "prepare":
            print(*prepare_kit(options.kit), sep="\n")
            return
        if options.command == "check":
            sys.exit(site_check.run(options))
        if options.command == "rate":
            output = Path(options.output_dir).resolve()
            files = write_site_files(options.sites, output / "sites", output)
            rate(files, models_of(options.models, list(files)), output, options.section)
            print(output / options.section)
            return
        if options.command == "filtered":
            folder, start = Path(options.output_dir).resolve(), start_weights(options.init_path)
            written = write_filtered(list(options.sites), options.alone, start, folder)
            print(*(f"{name}={path}" for name, path in written.items()), sep=",")
            return
        plan = Plan(options.rounds, options.local_epochs, options.share, dict(options.override))
        if options.command == "alone":
            output = Path(options.output_dir).resolve()
            files = write_site_files(options.sites, output / "sites", output)
            if options.pooled:
                files = {"pooled": pool_data(files, output)}
            weights = start_weights(options.init_path)
            train_alone(files, plan, weights, options.key_metric)
            return
        recipe_arguments: dict[str, Any] = {
            "plan": plan,
            "init_path": options.init_path,
            "min_sites": options.min_sites,
            "fedprox_mu": options.fedprox_mu if options.algorithm == "fedprox" else 0.0,
            "key_metric": options.key_metric,
            "grace_s": options.grace_s,
            "privacy": Privacy(options.privacy, options.privacy_args) if options.privacy else None,
            "resume_dir": options.resume_dir,
        }
        if options.command == "simulate":
            print(simulate(options.sites, options.output_dir, recipe_arguments))
        else:
            HeadPoseRecipe(**recipe_arguments).export(options.job_dir)
            print(Path(options.job_dir) / NAME)
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))
    except RuntimeError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
