"""Whether a site could join a federation: a dry run, before the first job comes.

Here are the site's own folders, data, packages and the time that it needs; ``kit_check`` looks at
the start-up kit and tries the server. Needs no NVFlare, so that it can say that it is missing.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import os
import platform
import re
import resource
import shutil
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..data.dataset_check import SHOWN, check_dataset, summary
from ..data.dataset_entries import located, read_dataset
from ..process import reason
from ..weight_files import read_weights
from .kit_check import OK, WARNING, WRONG, Line, check_kit
from .site import (
    BUNDLE_ROOT,
    OWN_RELEASE,
    SECTIONS,
    SHARES,
    FederatedSite,
    Plan,
    SiteError,
    read_site_file,
)

SETUP = "make federated-setup, in a checkout of the federation's release, installs it"
# whose version can change a result, or whether server and site understand each other
PINNED = ("torch", "monai", "e3nn", "nvflare")
GIB = 1 << 30
# A site keeps some 50 MB however long a job is (checkpoint.pt with the optimizer's state 25, curves
# and tables a few MB for 100 rounds) and a job's logs; the rest is room for what others write.
DISK_GIB = 1.0
# what training and evaluation of the shipped network take at most, beside the volumes in memory
MEMORY_GIB = 4.0
# volumes of each section that are tried; a larger set is extrapolated from them
TRIED = {"training": 40, "validation": 10}


def check_site(
    site_file: str | os.PathLike[str],
    kit: str | os.PathLike[str] | None = None,
    plan: Plan | None = None,
    init_path: str | os.PathLike[str] = BUNDLE_ROOT / "models" / "model.pt",
    training: bool = True,
) -> Iterator[Line]:
    """All that would keep a site from taking part, one line each; it goes on after a wrong one.

    Nothing is written into the site's output folder, and nothing sent but a TLS handshake.

    Parameters
    ----------
    kit : folder of the start-up kit; None leaves kit and server out
    plan : whose ``share`` and ``local_epochs`` the time of a round is told for
    init_path : weights to try the training with
    training : False leaves the training out
    """
    settings: dict[str, Any] | None = None
    try:
        settings = read_site_file(site_file)
        yield Line(OK, f"site file {site_file}")
    except SiteError as error:
        yield Line(WRONG, f"{error}: {error.detail}; docs/federated.md shows one")
    usable = False
    if settings is not None:
        yield from _output(settings["output_dir"])
        for line in _data(settings["dataset_dir"]):
            usable = line.level != WRONG
            yield line
    yield from _versions()
    yield _memory()
    if kit is None:
        yield Line(
            WARNING, "the server was not tried, and no start-up kit looked at: --kit KIT does"
        )
    elif find_spec("nvflare") is None:
        yield Line(WARNING, "start-up kit not looked at, and server not tried: nvflare is missing")
    else:
        yield from check_kit(kit)
    if not training:
        yield Line(WARNING, "training was not tried (--skip_training)")
    elif settings is None or not usable:
        yield Line(WARNING, "training was not tried: first the data set must be right")
    else:
        yield from _trial(settings, plan or Plan(1), init_path)


def _existing(folder: str | os.PathLike[str]) -> Path:
    """The folder, or the nearest above it that is there."""
    path = Path(folder).absolute()
    return next(each for each in (path, *path.parents) if each.exists())


def _output(folder: str) -> Iterator[Line]:
    place = _existing(folder)
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
        yield Line(OK, f"output_dir {folder} can be written")
    except OSError as error:
        yield Line(
            WRONG,
            f"output_dir {folder} cannot be written ({error.strerror} at {place}): let the user "
            "that runs the site write there, or name another folder in the site file",
        )
    free = shutil.disk_usage(place).free / GIB
    text = f"{free:.1f} GiB of disk free at output_dir, a job needs {DISK_GIB:g}"
    yield Line(OK, text) if free >= DISK_GIB else Line(WRONG, f"{text}: make room there")


def _data(folder: str) -> Iterator[Line]:
    try:
        findings = check_dataset(folder, SECTIONS)
        content = read_dataset(folder)
    except (OSError, ValueError) as error:
        yield Line(WRONG, f"data set: {error}; docs/data.md says what it must be like")
        return
    findings = [f for f in findings if not f.sections or set(f.sections) & set(SECTIONS)]
    errors = sum(finding.error for finding in findings)
    counts = {s: len(content[s]) if isinstance(content.get(s), list) else 0 for s in SECTIONS}
    said = " and ".join(f"{count} {section}" for section, count in counts.items())
    shown = "".join(f"\n  {line}" for line in summary(findings, SHOWN).splitlines())
    text = f"data set {folder}: {said} volumes, {errors} errors, {len(findings) - errors} warnings"
    if errors:
        yield Line(WRONG, f"{text}; python -m scripts.datasets check --dataset_dir {folder}{shown}")
    elif not all(counts.values()):
        missing = " nor ".join(section for section, count in counts.items() if not count)
        yield Line(WRONG, f"{text}: no {missing} volumes, the site would be refused{shown}")
    elif counts["validation"] < 2:
        yield Line(
            WARNING,
            f"{text}: the mean error over one validation volume is that volume's own, and leaves "
            f"the site; take more{shown}",
        )
    else:
        yield Line(WARNING if findings else OK, text + shown)


def pins() -> tuple[dict[str, str], str]:
    """Pinned versions by package, and the range of Python's; from pyproject.toml.

    A bundle without its repository has them in metadata.json, without nvflare and Python.
    """
    project = BUNDLE_ROOT.parent / "pyproject.toml"
    if project.exists():
        content = tomllib.loads(project.read_text())["project"]
        listed = [*content["dependencies"], *content["optional-dependencies"]["federated"]]
        return dict(one.split("==") for one in listed), content["requires-python"]
    content = json.loads((BUNDLE_ROOT / "configs" / "metadata.json").read_text())
    found = {"monai": content["monai_version"], "torch": content["pytorch_version"]}
    return {**content["required_packages_version"], **found}, ""


def _versions() -> Iterator[Line]:
    yield Line(OK, f"release {OWN_RELEASE} of the bundle; the federation's must be the same")
    pinned, python = pins()
    differing, same = [], []
    low, high = (
        tuple(map(int, pair)) for pair in re.findall(r"(\d+)\.(\d+)", python or "0.0 99.0")
    )
    own = f"Python {platform.python_version()}"
    if low <= sys.version_info[:2] < high:
        same.append(own)
    else:
        differing.append(f"{own}, made for {python}")
    for package in PINNED:
        try:
            installed = version(package)
        except PackageNotFoundError:
            yield Line(WRONG, f"{package} is not installed: {SETUP}")
            continue
        # torch says how it was built after a plus sign
        if pinned.get(package, installed) == installed.partition("+")[0]:
            same.append(f"{package} {installed}")
        else:
            differing.append(f"{package} {installed}, pinned is {pinned[package]}")
    if same:
        yield Line(OK, f"{', '.join(same)}, as pinned")
    if differing:
        yield Line(WARNING, f"other versions than pinned: {'; '.join(differing)}. {SETUP}")


def _memory() -> Line:
    found = Path("/proc/meminfo").read_text() if os.path.exists("/proc/meminfo") else ""
    values = dict(re.findall(r"^(Mem\w+):\s+(\d+) kB$", found, re.MULTILINE))
    if "MemAvailable" not in values:
        return Line(WARNING, f"memory: not known on this system; {MEMORY_GIB:g} GiB are needed")
    free = int(values["MemAvailable"]) / (1 << 20)
    text = f"{free:.1f} GiB of memory free, {MEMORY_GIB:g} are needed beside the volumes"
    if free >= MEMORY_GIB:
        return Line(OK, text)
    return Line(WARNING, f"{text}: end other programs, or give the machine more")


def _shortened(settings: Mapping[str, Any], folder: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """Settings for at most TRIED volumes of each section, that write to ``folder``; all numbers."""
    content = read_dataset(settings["dataset_dir"])
    short: dict[str, Any] = {"test": []}
    for section in SECTIONS:
        tried = content[section][: TRIED[section]]
        short[section] = [located(entry, settings["dataset_dir"]) for entry in tried]
    (folder / "dataset.json").write_text(json.dumps(short))
    changed = {"dataset_dir": str(folder), "output_dir": str(folder / "out"), "check_data": False}
    return {**settings, **changed}, {section: len(content[section]) for section in SECTIONS}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what training tells on its way: the lines of the check are to be read."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def _trial(
    settings: Mapping[str, Any], plan: Plan, init_path: str | os.PathLike[str]
) -> Iterator[Line]:
    """One evaluation and one epoch, as a job would ask for, in a folder that is then removed."""
    # a thread of TensorBoard may still write into it
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        started = time.monotonic()
        try:
            weights = read_weights(init_path)
            short, counts = _shortened(settings, Path(folder))
            with _quiet():
                site = FederatedSite("check", short, Plan(1, share=plan.share))
                site.check_weights(weights)
                ready = time.monotonic()
                site.evaluate(weights, "check")
                evaluated = time.monotonic()
                site.train(weights, 0)
                trained = time.monotonic()
        except SiteError as error:
            detail = error.detail if error.detail != str(error) else ""
            yield Line(WRONG, f"training: {'; '.join(filter(None, [str(error), detail]))}")
            return
        except Exception as error:  # whatever would end a job must not end the check
            yield Line(WRONG, f"training: {reason(error)}")
            return
    shares = {section: counts[section] / site.volumes[section] for section in SECTIONS}
    start_s = (ready - started) * max(shares.values())
    evaluation_s = (evaluated - ready) * shares["validation"]
    epoch_s = (trained - evaluated) * shares["training"]
    round_s = evaluation_s + plan.local_epochs * epoch_s
    said = [f"{site.volumes[s]} of {counts[s]} {s}" for s in SECTIONS if shares[s] > 1]
    measured = f" (estimated from {' and '.join(said)} volumes)" if said else ""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)
    yield Line(
        OK,
        f"training works: start {start_s:.0f} s, evaluation {evaluation_s:.0f} s, one epoch "
        f"{epoch_s:.0f} s{measured}; a round of {plan.local_epochs} local epochs takes about "
        f"{round_s:.0f} s; {peak:.1f} GiB of memory at most",
    )


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command ``check``."""
    parser.add_argument("--site", required=True, help="the site file")
    parser.add_argument("--kit", help="folder of the start-up kit; with it the server is tried")
    parser.add_argument("--share", choices=SHARES, default="all", help="part that will be trained")
    parser.add_argument("--local_epochs", type=int, default=1, help="epochs of a round")
    parser.add_argument(
        "--init_path",
        default=str(BUNDLE_ROOT / "models" / "model.pt"),
        help="weights to try the training with",
    )
    parser.add_argument("--skip_training", action="store_true", help="do not try the training")


def run(options: argparse.Namespace) -> int:
    """Print all lines of `check_site` and a summary: 1 if something is wrong, 130 if stopped.

    ValueError for a plan that makes no sense.
    """
    plan = Plan(1, options.local_epochs, options.share)
    counts = dict.fromkeys((OK, WARNING, WRONG), 0)
    try:
        lines = check_site(
            options.site, options.kit, plan, options.init_path, not options.skip_training
        )
        for line in lines:
            counts[line.level] += 1
            print(line, flush=True)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr, flush=True)
        return 130
    warnings = f"{counts[WARNING]} warning{'' if counts[WARNING] == 1 else 's'}"
    if counts[WRONG]:
        print(f"This site cannot take part yet: {counts[WRONG]} wrong, {warnings}.")
        return 1
    print(f"This site can take part: nothing wrong, {warnings}.")
    return 0


def without_nvflare(arguments: Sequence[str]) -> int:
    """`job`'s command line where NVFlare is missing: the check, which says so, and nothing else."""
    if list(arguments[:1]) != ["check"]:
        print(f"error: nvflare is not installed: {SETUP}", file=sys.stderr)
        return 2
    parser = argparse.ArgumentParser(prog="python -m scripts.federated.job check")
    add_options(parser)
    return run(parser.parse_args(arguments[1:]))
