"""Options are refused that a config does not have, and read as they are meant.

``monai.bundle`` adds an unknown key to the config, where nobody reads it; its command line takes
``--resume false`` for a text, which is true, and a folder called 20240131 for a number. Configs
call `check` in their ``initialize``.
"""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from pydoc import locate
from typing import Any

import torch
from monai.bundle import ConfigComponent, ConfigParser, ReferenceResolver

from .command_line import Run, running
from .option_values import (
    SEPARATOR,
    OptionError,
    is_computed,
    is_path,
    literal,
    nearest,
    number,
    path,
    truth,
    with_hash,
)

BUNDLE_ROOT = Path(__file__).resolve().parents[1]
# what MONAI itself adds to or takes from a config: --tracking, and the names of federated sites
OF_MONAI = ("run_name", "experiment_name", "tracking_uri", "save_execute_config", "run_id")
Tree = Mapping[str, Any]


def flat(tree: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every id of a config with what it stands for, from the outside in."""
    if name:
        yield name, tree
    if isinstance(tree, Mapping | list):
        for key, value in tree.items() if isinstance(tree, Mapping) else enumerate(tree):
            inner = ReferenceResolver.normalize_id(key)
            yield from flat(value, f"{name}{SEPARATOR}{inner}" if name else inner)


def references(tree: Any) -> set[str]:
    """All ids that a config refers to, and those around them."""
    found: set[str] = set()
    for _, value in flat(tree):
        if isinstance(value, str):
            for name in ReferenceResolver.match_refs_pattern(value):
                parts = name.split(SEPARATOR)
                found |= {SEPARATOR.join(parts[: k + 1]) for k in range(len(parts))}
    return found


def parameters(component: Any, parser: ConfigParser) -> Mapping[str, inspect.Parameter] | None:
    """What a component of a config takes; None if anything, or if nobody can tell."""
    try:
        target: Any = ConfigComponent(component, locator=parser.locator).resolve_module_name()
        target = locate(target) if isinstance(target, str) else target
        found = inspect.signature(target).parameters
    except (ImportError, TypeError, ValueError):
        return None
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in found.values()):
        return None
    return found


class Options:
    """What a run's config was given, checked against what it had.

    Parameters
    ----------
    run : the workflow; its parser's config is not changed
    base : ids and values before anything was given; see `base_of`
    """

    def __init__(self, run: Run, base: Tree) -> None:
        self.run, self.base, self.parser = run, base, run.workflow.parser
        self.config = {k: v for k, v in self.parser.get().items() if k != self.parser.meta_key}
        self.problems: list[str] = []
        self.changes: dict[str, Any] = {}

    def check(self) -> dict[str, Any]:
        """Values by id that have to be put into the config. OptionError for what is wrong."""
        self._walk(self.config, "")
        for check in (self._paths, self._device):
            self._noting(check)
        if self.problems:
            raise OptionError("\n".join(self.problems))
        return self.changes

    def _noting(self, call: Any, *arguments: Any) -> None:
        try:
            call(*arguments)
        except OptionError as error:
            self.problems.append(str(error))

    def _walk(self, tree: Mapping[str, Any], around: str) -> None:
        """Look at the keys of a dictionary, and of those in it."""
        taken = parameters(tree, self.parser) if "_target_" in tree else None
        for key, value in tree.items():
            name = f"{around}{SEPARATOR}{key}" if around else key
            if key.startswith("_"):
                continue
            if name not in self.base:
                if not self._is_known(name, key, tree, taken):
                    continue
                if taken and key in taken and taken[key].annotation in (bool, "bool"):
                    self._noting(self._value, name, value, False)
                continue
            self._noting(self._value, name, value, self.base[name])
            # a dictionary that a component gets is data of any keys
            if isinstance(value, Mapping) and ("_target_" in value or "_target_" not in tree):
                self._walk(value, name)
            elif isinstance(value, list):
                for number_, item in enumerate(value):
                    if isinstance(item, Mapping) and "_target_" in item:
                        inner = f"{name}{SEPARATOR}{number_}"
                        if inner in self.base:
                            self._walk(item, inner)

    def _is_known(self, name: str, key: str, tree: Tree, taken: Tree | None) -> bool:
        """Whether a key that the config did not have is of any use; notes it if not."""
        workflow = self.run.workflow
        shown = name.replace(SEPARATOR, "#")
        if "_target_" in tree:
            if taken is None or key in taken:
                return True
            where = name.removesuffix(key).replace(SEPARATOR, "#")
            self.problems.append(
                f"--{shown}: {tree['_target_']} does not take {key}"
                + nearest(shown, [where + p for p in taken])
            )
            return False
        ids = (workflow.run_id, workflow.init_id, workflow.final_id, *OF_MONAI)
        if name in ids or name in references(self.config):
            return True
        depth = name.count(SEPARATOR)
        known = [k.replace(SEPARATOR, "#") for k in self.base if k.count(SEPARATOR) == depth]
        self.problems.append(
            f"--{shown}: no such option in {self._files()}" + nearest(shown, known)
        )
        return False

    def _files(self) -> str:
        files = self.run.config_files
        return ", ".join(Path(f).name for f in files) if files else "these configs"

    def _value(self, name: str, value: Any, base: Any) -> None:
        """Read a value as what it stands in place of."""
        if value is base or is_computed(value) or (is_path(name) and SEPARATOR not in name):
            return
        shown = name.replace(SEPARATOR, "#")
        if isinstance(base, bool):
            read: Any = value if isinstance(value, bool | Mapping) else truth(shown, value)
        elif isinstance(base, int | float) and not isinstance(value, Mapping | list | tuple):
            exact = type(value) in (int, float) and (isinstance(base, float) or value == value // 1)
            read = value if exact and not isinstance(base, int) else number(shown, value, base)
            if isinstance(read, float) and math.isnan(read):
                raise OptionError(f"--{shown} {value}: expected a number")
        elif isinstance(base, Mapping) and isinstance(value, str | int | float):
            known = [k for k in self.base if SEPARATOR not in k]
            raise OptionError(
                f"--{shown} {value}: stands for a part of the config, not for a value"
                + nearest(shown, [k for k in known if not isinstance(self.base[k], Mapping)])
            )
        else:
            return
        if type(read) is not type(value) or read != value:
            self.changes[name] = read

    def _paths(self) -> None:
        for name, value in self.run.given.items():
            if not is_path(name) or SEPARATOR in ReferenceResolver.normalize_id(name):
                continue
            if name not in self.base:
                continue
            self._noting(self._path, name, value, self.run.texts.get(name))
        for name, value in self.config.items():
            if is_path(name) and name not in self.run.given and isinstance(value, str):
                text = with_hash(value)
                if not is_computed(value) and text != value:
                    self.changes[name] = literal(text)
        # None was not handed on by MONAI
        for name, text in self.run.texts.items():
            if is_path(name) and name not in self.run.given and name in self.base:
                self._noting(self._path, name, None, text)

    def _path(self, name: str, value: Any, text: str | None) -> None:
        if is_computed(value) and not os.path.lexists(value):
            return
        read = path(name, value, text, self.base[name])
        now = [literal(p) for p in read] if isinstance(read, list) else read and literal(read)
        if now != self.config.get(name):
            self.changes[name] = now

    def _device(self) -> None:
        value = self.config.get("device")
        if not isinstance(value, str) or is_computed(value):
            return
        try:
            device = torch.device(value)
        except RuntimeError:
            raise OptionError(f"--device {value}: expected cpu, cuda or cuda:N") from None
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if device.type == "cuda" and (device.index or 0) >= count:
            found = f"only {count}" if count else "none"
            raise OptionError(
                f"--device {value}: torch sees no such GPU here ({found}); --device cpu works "
                "everywhere, and without --device a GPU is used if there is one"
            )


def base_of(run: Run) -> dict[str, Any]:
    """Ids and values of a run's config as its files have them.

    Where the files are not known, those of all configs beside it.
    """
    if run.config_files:
        return dict(flat(ConfigParser.load_config_files(list(run.config_files))))
    found: dict[str, Any] = {}
    for file in sorted(Path(run.workflow.config_root_path).glob("*.json")):
        for key, value in flat(ConfigParser.load_config_file(file)):
            found.setdefault(key, value)
    return found


def _root(run: Run, base: Tree) -> dict[str, Any]:
    """Where the bundle is, if the config's own "." is some other folder."""
    value = run.workflow.parser.get("bundle_root")
    if not isinstance(value, str) or is_computed(value) or _is_bundle(Path(value)):
        return {}
    if value == base.get("bundle_root") and "bundle_root" not in run.given:
        return {"bundle_root": literal(str(BUNDLE_ROOT))}
    raise OptionError(
        f"--bundle_root {value}: no bundle there; leave it out, or name the folder that holds "
        f"configs and scripts, such as {BUNDLE_ROOT}"
    )


def _is_bundle(folder: Path) -> bool:
    return (folder / "scripts" / "options.py").is_file()


def check() -> None:
    """Check the options of the workflow that is being initialized, and put right what is clear.

    - A key that no config has and nothing refers to is refused, with the nearest that there is.
    - Words for true and false, and numbers, are read as such; others are refused.
    - Files and folders are what was typed, even if Fire took it for a number or a list.
    - ``bundle_root`` is found from another folder; a device that is not there is refused.

    OptionError, a line for each fault. Nothing where no workflow is being initialized.
    """
    run = running()
    if run is None:
        return
    base = base_of(run)
    changes = Options(run, base).check() | _root(run, base)
    parser = run.workflow.parser
    if changes:
        parser.update(changes)
        parser.parse(reset=True)
