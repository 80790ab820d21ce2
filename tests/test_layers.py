"""Dependencies point downwards: a room of ``scripts`` knows what lies below it; no circles."""

from __future__ import annotations

import ast
import graphlib
import importlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest

from conftest import BUNDLE

# from the ground up; modules that no floor names are commands, above all of them
FLOORS = (
    (
        "argument_types",
        "geometry",
        "labels",
        "files",
        "regions",
        "cubes",
        "distributed",
        "process",
        "command_line",
        "option_values",
        "options",
        "weight_files",
    ),
    ("network", "simulation", "reading"),
    ("e3pose", "data"),
    ("evaluation", "training"),
    ("federated", "scan"),
)
APART = {"network", "data"}  # neither may know the other, whatever their floors
# Rooms whose docstring alone says what is in them: their modules are entered one by one, and those
# of the federation need packages of an extra.
WITHOUT_NAMES = ("simulation", "scan", "federated", "data.importers")


def modules(root: Path) -> dict[str, Path]:
    """Files by the names of modules below the package ``root``."""
    found = {}
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if path.name == "__init__.py" else parts)] = path
    del found[""]
    return found


def imported(name: str, path: Path, root: Path, known: Iterable[str]) -> Iterator[str]:
    """Modules of the package ``root`` that one of them imports, anywhere in its file.

    "from a import b" is a.b where that is a module, else a. That importing a module also runs the
    packages around it does not count.
    """
    package = [root.name, *name.split(".")]
    if path.name != "__init__.py":
        package.pop()
    for node in ast.walk(ast.parse(path.read_text())):
        targets: list[str] = []
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            targets = [f"{base}.{alias.name}" for alias in node.names]
        for target in targets:
            if target.startswith(f"{root.name}."):
                short = target.removeprefix(f"{root.name}.")
                while short and short not in known:
                    short = short.rpartition(".")[0]
                if short:
                    yield short


def dependencies(root: Path) -> dict[str, set[str]]:
    """Which of the package's modules each of them imports."""
    known = modules(root)
    return {name: set(imported(name, path, root, known)) - {name} for name, path in known.items()}


def room(name: str) -> str:
    return name.split(".")[0]


def floor(name: str) -> int:
    """Number of the floor that a module is on."""
    return next((k for k, rooms in enumerate(FLOORS) if room(name) in rooms), len(FLOORS))


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """A circle in a graph, empty if there is none."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def broken_rules(root: Path) -> list[str]:
    """What is wrong with the imports of a package, a line for each."""
    graph = dependencies(root)
    found = [
        f"{name}: a room that no floor has"
        for name in graph
        if (root / name / "__init__.py").exists() and "." not in name and floor(name) == len(FLOORS)
    ]
    between: dict[str, set[str]] = {}
    for name, targets in sorted(graph.items()):
        for target in sorted(targets):
            if floor(target) > floor(name):
                found.append(f"{name} imports {target}: upwards")
            if {room(name), room(target)} == APART:
                found.append(f"{name} imports {target}: these do not know each other")
            if room(name) != room(target):
                between.setdefault(room(name), set()).add(room(target))
    for kind, edges in (("modules", graph), ("rooms", between)):
        if way := circle(edges):
            found.append(f"a circle of {kind}: {', '.join(way)}")
    return found


def broken_names(root: Path) -> list[str]:
    """Packages whose ``__init__`` does not tell what is in them, a line for each fault."""
    found = []
    for name, path in sorted(modules(root).items()):
        if path.name != "__init__.py":
            continue
        tree = ast.parse(path.read_text())
        if not ast.get_docstring(tree):
            found.append(f"{name}: no docstring")
        if name in WITHOUT_NAMES:
            continue
        bound = {
            alias.asname or alias.name
            for node in tree.body
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        public = [
            ast.literal_eval(node.value)
            for node in tree.body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        ]
        if public != [sorted(bound)]:
            found.append(f"{name}: __all__ is not the sorted list of what it imports")
    return found


def test_dependencies_point_downwards():
    assert broken_rules(BUNDLE / "scripts") == []


def test_packages_tell_their_public_names():
    assert broken_names(BUNDLE / "scripts") == []
    for name in ("network", "reading", "data", "evaluation", "training", "e3pose"):
        package = importlib.import_module(f"scripts.{name}")
        assert all(hasattr(package, public) for public in package.__all__)


def test_the_graph_is_that_of_this_bundle():
    """A few edges that are known, of every form in which modules import each other."""
    graph = dependencies(BUNDLE / "scripts")
    assert "cubes" in graph["network.search"]  # from ..cubes import ...
    assert "network.search" in graph["network.chain"]  # from .search import ...
    assert "network.e3cnn" in graph["network"]  # of a package's __init__
    assert "network" in graph["evaluation.inferer"]  # from ..network import HeadPoseNet
    assert "e3pose.unet" in graph["unet"]  # from .e3pose import unet
    assert set(dict.fromkeys(map(room, graph))) >= {name for rooms in FLOORS for name in rooms}


GOOD = {
    "__init__": "",
    "geometry": "import math",
    "cubes": "from .geometry import a\nimport numpy.linalg",
    "network/__init__": '"""Networks."""\nfrom .parts import A, B as C\n__all__ = ["A", "C"]',
    "network/parts": "from ..cubes import a\nfrom scriptsother import network",
    "simulation/__init__": '"""Phantoms."""',
    "data/__init__": '"""Data."""\nfrom .files import B\n__all__ = ["B"]',
    "data/files": "from .. import geometry\nfrom ..simulation import a",
    "data/importers/__init__": '"""Importers."""',
    "data/importers/one": "from ...geometry import a\nfrom ..files import B",
    "evaluation/__init__": '"""Metrics."""\nfrom .metrics import M\n__all__ = ["M"]',
    "evaluation/metrics": "import scripts.network\nfrom ..data import files",
    "training/__init__": '"""Training."""\nfrom .losses import L\n__all__ = ["L"]',
    "training/losses": "def f():\n    from ..evaluation.metrics import M",
    "federated/__init__": '"""Sites."""',
    "federated/site": "from ..training.losses import L",
    "report": "from .evaluation import metrics\nfrom .federated import site",
}
UPWARDS = "network.parts imports training.losses: upwards"


def write(folder: Path, files: Mapping[str, str]) -> Path:
    root = folder / "scripts"
    for name, text in files.items():
        path = root / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_a_tree_that_breaks_no_rule(tmp_path):
    root = write(tmp_path, GOOD)
    assert broken_rules(root) == broken_names(root) == []


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"network/parts": "from ..training.losses import L"}, UPWARDS),
        ({"network/parts": "from ..training import losses"}, UPWARDS),
        ({"network/parts": "import scripts.training.losses"}, UPWARDS),
        ({"network/parts": "import scripts.training.losses as l"}, UPWARDS),
        ({"network/parts": "from scripts.training.losses import L"}, UPWARDS),
        ({"network/parts": "from scripts.training import losses"}, UPWARDS),
        ({"network/parts": "def f():\n    from ..training.losses import L"}, UPWARDS),
        ({"network/parts": "if a:\n    from ..training.losses import L"}, UPWARDS),
        (
            {"network/__init__": "from ..training.losses import L"},
            "network imports training.losses: upwards",
        ),
        ({"geometry": "from .network import A"}, "geometry imports network: upwards"),
        ({"geometry": "from . import network"}, "geometry imports network: upwards"),
        ({"data/files": "from ..report import a"}, "data.files imports report: upwards"),
        (
            {"data/importers/one": "from ...training import losses"},
            "data.importers.one imports training.losses: upwards",
        ),
        (
            {"data/files": "from ..network import A"},
            "data.files imports network: these do not know each other",
        ),
        (
            {"network/parts": "from ..data.importers import one"},
            "network.parts imports data.importers.one: these do not know each other",
        ),
        (
            {"data/files": "from .importers.one import a"},
            "a circle of modules: data.files, data.importers.one, data.files",
        ),
        (
            {"geometry": "from .labels import a", "labels": "from .cubes import b"},
            "a circle of modules: geometry, cubes, labels, geometry",
        ),
        (
            {"evaluation/other": "def f():\n    from ..training import losses"},
            "a circle of rooms: evaluation, training, evaluation",
        ),
        ({"spare/__init__": '"""Spare."""'}, "spare: a room that no floor has"),
    ],
)
def test_imports_that_break_a_rule_are_found(tmp_path, changed, expected):
    found = broken_rules(write(tmp_path, {**GOOD, **changed}))
    if "circle" in expected:  # where it begins, and which way round it is told, is not said
        kind, way = expected.split(": ")
        (line,) = [line for line in found if line.startswith(kind)]
        assert set(line.split(": ")[1].split(", ")) == set(way.split(", "))
    else:
        assert expected in found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('from .files import B\n__all__ = ["B"]', "data: no docstring"),
        ('"""Data."""\nfrom .files import B', "data: __all__ is not"),
        ('"""Data."""\nfrom .files import B\n__all__ = ["B", "C"]', "data: __all__ is not"),
        ('"""Data."""\nfrom .files import B, C\n__all__ = ["C", "B"]', "data: __all__ is not"),
    ],
)
def test_packages_that_do_not_tell_their_names_are_found(tmp_path, text, expected):
    (line,) = broken_names(write(tmp_path, {**GOOD, "data/__init__": text}))
    assert line.startswith(expected)
