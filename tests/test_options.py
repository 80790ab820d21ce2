"""options.py, option_values.py, command_line.py: options misspelt, or misread by Fire and MONAI."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow, create_workflow

from conftest import BUNDLE
from scripts import command_line, options
from scripts.command_line import running, typed_options
from scripts.option_values import OptionError, literal, nearest, number, path, truth

# a config with every kind of entry, checked as the bundle's are
CONFIG = {
    "imports": ["$import sys"],
    "bundle_root": str(BUNDLE),
    "dataset_dir": {"_target_": "builtins.str", "object": "default"},
    "output_dir": "$@bundle_root + '/output'",
    "init_path": None,
    "epochs": 5,
    "cache_rate": 1.0,
    "resume": False,
    "outputs": ["json"],
    "device": "cpu",
    "part": {"_target_": "torch.nn.Linear", "in_features": 2, "out_features": "@epochs"},
    "train": {
        "data": {"_target_": "builtins.dict", "a": 1},
        "steps": {"_target_": "scripts.option_values.number", "name": "n", "value": 1, "like": 1},
        "quiet": True,
    },
    "initialize": ["$sys.path.insert(0, @bundle_root)", {"_target_": "scripts.options.check"}],
    "run": ["$[@dataset_dir, @output_dir]"],
    "training": "$@run",
}


@pytest.fixture
def config(tmp_path):
    (tmp_path / "configs").mkdir()
    file = tmp_path / "configs" / "c.json"
    file.write_text(json.dumps(CONFIG))
    (tmp_path / "configs" / "metadata.json").write_text("{}")
    return str(file)


@pytest.fixture(params=["create_workflow", "ConfigWorkflow"])
def start(request, config):
    """The parser of a workflow that is initialized with overrides; the files known, or not."""

    def _start(**given):
        if request.param == "create_workflow":
            return create_workflow(config_file=config, workflow_type="infer", **given).parser
        workflow = ConfigWorkflow(
            config_file=config, workflow_type="infer", logging_file=False, **given
        )
        workflow.initialize()
        return workflow.parser

    return _start


def refused(start, **given):
    with pytest.raises(RuntimeError) as raised:
        start(**given)
    cause = raised.value
    while cause.__cause__ is not None:
        cause = cause.__cause__
    assert isinstance(cause, OptionError)
    return str(cause)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("outpt_dir", "--output_dir"),
        ("ouput_dir", "--output_dir"),
        ("init_pth", "--init_path"),
        ("output", "--outputs"),
        ("dataset_dirs", "--dataset_dir"),
        ("epoch", "--epochs"),
        ("train#quite", "--train#quiet"),
        ("part#in_feature", "--part#in_features"),
        ("train#steps#valeu", "--train#steps#value"),
    ],
)
def test_misspelt_options_are_refused_with_the_nearest(start, name, meant):
    message = refused(start, **{name: "x"})
    assert f"--{name}" in message
    assert f"did you mean {meant}" in message


def test_all_faults_are_told_at_once(start):
    lines = refused(start, epochs="ten", resume="maybe", nonsense=1, train="x").splitlines()
    assert len(lines) == 4
    assert any("--nonsense: no such option" in line and "mean" not in line for line in lines)
    assert any("--train x: stands for a part of the config" in line for line in lines)


def test_an_option_that_names_a_part_of_the_config(start):
    assert "--part 7: stands for a part of the config, not for a value" in refused(start, part=7)
    given = [{"x": torch.zeros(1)}]  # in Python, what the part would have made
    assert start(**{"train#data": given})["train#data"] is given


@pytest.mark.parametrize("word", ["false", "False", "no", "OFF", "0", 0, False])
@pytest.mark.parametrize(("name", "id_"), [("resume", "resume"), ("train#quiet", "train#quiet")])
def test_words_for_false_are_false(start, word, name, id_):
    assert start(**{name: word})[id_] is False


@pytest.mark.parametrize("word", ["true", "Yes", "on", 1, True, "1"])
def test_words_for_true_are_true(start, word):
    assert start(resume=word)["resume"] is True


@pytest.mark.parametrize("word", ["maybe", "", 2, "nein", [1]])
def test_other_words_are_refused(start, word):
    assert "--resume" in refused(start, resume=word)


def test_booleans_that_a_part_takes_beside_those_of_the_config(start):
    """torch.nn.Linear takes ``bias``, which the config does not state."""
    assert start(**{"part#bias": "no"})["part#bias"] is False
    assert "--part#bias perhaps: expected True or False" in refused(
        start, **{"part#bias": "perhaps"}
    )


@pytest.mark.parametrize(
    ("given", "expected"), [("3", 3), (3.0, 3), (3, 3), ("1e2", 100), ("$1 + 1", "$1 + 1")]
)
def test_numbers_are_read(start, given, expected):
    found = start(epochs=given)["epochs"]
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize("given", ["ten", 2.5, True, "nan", "inf", ""])
def test_what_is_no_whole_number_is_refused(start, given):
    assert "--epochs" in refused(start, epochs=given)


def test_a_number_with_a_fraction(start):
    assert start(cache_rate=1)["cache_rate"] == 1
    assert start(cache_rate="0.5")["cache_rate"] == 0.5
    assert "--cache_rate nan: expected a number" in refused(start, cache_rate="nan")


def test_what_is_referred_to_may_be_added(start, tmp_path):
    parser = start(helper=3, epochs="@helper")
    assert parser.get_parsed_content("epochs") == 3


def test_keys_of_a_users_own_file_and_names_that_monai_adds_are_left_alone(config, tmp_path):
    own = tmp_path / "own.json"
    own.write_text(json.dumps({"note": "mine", "epochs": 7, "train#data#b": 2}))
    parser = create_workflow(
        config_file=[config, str(own)], workflow_type="infer", run_name="site-1", run_id="training"
    ).parser
    assert (parser["note"], parser["epochs"], parser["train#data#b"]) == ("mine", 7, 2)


@pytest.mark.parametrize("name", ["c#d", "@x", "a%b", "$y", "x y", "äö", "{z}", "[a]", "1,2"])
def test_folders_of_any_name_are_what_they_are(start, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Path(name).mkdir()
    assert start(output_dir=str(tmp_path / name)).get_parsed_content("output_dir") == str(
        tmp_path / name
    )


def test_paths_in_python(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("b#c").mkdir()

    def given(**overrides):
        return create_workflow(config_file=config, workflow_type="infer", **overrides).parser

    assert given(dataset_dir=tmp_path).get_parsed_content("dataset_dir") == str(tmp_path)
    assert given(dataset_dir=["a", "b#c"]).get_parsed_content("dataset_dir") == ["a", "b#c"]
    with pytest.raises(RuntimeError) as raised:
        given(dataset_dir=20240131)
    assert "--dataset_dir 20240131: expected a path, as text" in str(raised.value.__cause__)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("20240131", 20240131),
        ("1e5", 100000.0),
        ("0x10", 16),
        ("1,2", (1, 2)),
        ("True", True),
        ("None", None),
        ("[a]", ["a"]),
        ("{z}", {"z"}),
        ("a,b", ("a", "b")),
    ],
)
def test_a_path_is_what_was_typed_whatever_fire_made_of_it(tmp_path, monkeypatch, text, value):
    monkeypatch.chdir(tmp_path)
    if text not in ("[a]", "None"):  # a list of paths, and nothing, where no such file is
        assert path("dataset_dir", value, text, "default") == text
    Path(text).mkdir()
    assert path("init_path", value, text, None) == text


def test_lists_of_paths_and_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert path("dataset_dir", ["a", "b"], "['a','b']", "") == ["a", "b"]
    Path("a").mkdir()
    assert path("dataset_dir", ("a", "b"), "a,b", "") == ["a", "b"]
    assert path("init_path", None, "None", None) is None
    with pytest.raises(OptionError, match="--dataset_dir without a value: expected a path"):
        path("dataset_dir", True, None, "")


@pytest.mark.parametrize("text", ["c#d", "@x", "%x", "$x", "a'b#", 'a"b@', "\\#", "ä#"])
def test_a_literal_is_that_text_to_monai(text):
    assert ConfigParser({"a": literal(text)}).get_parsed_content("a") == text


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("cuda", "--device cuda: torch sees no such GPU here (none); --device cpu works"),
        ("cuda:1", "torch sees no such GPU here"),
        ("gpu", "--device gpu: expected cpu, cuda or cuda:N"),
    ],
)
def test_devices_that_are_not_there(start, monkeypatch, device, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert message in refused(start, device=device)
    assert start(device="cpu")["device"] == "cpu"


def test_the_bundle_is_found_from_elsewhere(config, tmp_path, monkeypatch):
    file = Path(config)
    file.write_text(json.dumps(CONFIG | {"bundle_root": "."}))
    monkeypatch.chdir(tmp_path)
    workflow = create_workflow(config_file=config, workflow_type="infer")
    assert workflow.parser.get_parsed_content("bundle_root") == str(BUNDLE)
    monkeypatch.chdir(BUNDLE)
    assert create_workflow(config_file=config, workflow_type="infer").parser["bundle_root"] == "."
    with pytest.raises(RuntimeError) as raised:
        create_workflow(config_file=config, workflow_type="infer", bundle_root=str(tmp_path))
    assert f"--bundle_root {tmp_path}: no bundle there" in str(raised.value.__cause__)


@pytest.mark.parametrize("name", ["train", "inference", "closed_loop"])
def test_a_config_finds_its_scripts_by_its_own_place(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if Path(p) != BUNDLE])
    create_workflow(
        config_file=str(BUNDLE / f"configs/{name}.json"),
        workflow_type="infer",
        dataset_dir=str(tmp_path),
    )
    assert sys.path[0] == str(BUNDLE)


@pytest.mark.parametrize(
    "names", [["train"], ["inference"], ["closed_loop"], ["train", "multi_gpu_train"]]
)
@pytest.mark.parametrize("calls", [0, 1, 3])
def test_a_config_finds_itself_however_deep_the_calls_of_monai_are(names, calls, monkeypatch):
    """By a path from another folder too; only the entries that find the scripts are run."""
    monkeypatch.chdir(BUNDLE.parent)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if Path(p) != BUNDLE])
    for _ in range(calls):
        inner = ConfigParser.get_parsed_content
        monkeypatch.setattr(
            ConfigParser, "get_parsed_content", lambda self, *a, _f=inner, **k: _f(self, *a, **k)
        )
    files = [f"{BUNDLE.name}/configs/{name}.json" for name in names]
    workflow = ConfigWorkflow(config_file=files, workflow_type="infer", logging_file=False)
    entries = workflow.parser["initialize"]
    workflow.parser["initialize"] = [e for e in entries if isinstance(e, str) and "sys.path" in e]
    workflow.initialize()
    assert sys.path[0] == str(BUNDLE)


def test_outside_a_workflow_nothing_is_checked():
    assert running() is None
    options.check()


def test_typed_options_are_those_of_the_command_line(config, monkeypatch):
    assert typed_options(["--a-b", "1", "x", "--c=", "--d", "--e", "-5", "--f=g=h"]) == {
        "a_b": "1",
        "c": "",
        "e": "-5",
        "f": "g=h",
    }
    monkeypatch.setattr(command_line, "is_command", lambda: True)
    monkeypatch.setattr(sys, "argv", ["monai", "run", "--dataset_dir", "1e5", "--init_path=0x10"])
    parser = create_workflow(
        config_file=config, workflow_type="infer", dataset_dir=100000.0, init_path=16
    ).parser
    assert (parser["dataset_dir"], parser["init_path"]) == ("1e5", "0x10")


def test_helpers():
    assert nearest("xyz", ["output_dir"]) == ""
    assert truth("a", "on")
    assert number("a", "2", 1) == 2
    with pytest.raises(OptionError, match="--a without a value: expected a whole number"):
        number("a", True, 1)


def test_command_line_tells_the_reason_in_its_last_lines(tmp_path):
    """In a process, from another folder, without --bundle_root."""
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file"]
    command += [str(BUNDLE / "configs/inference.json"), "--dataset_dir", "1e5", "--ckpt", "x"]
    command += ["--resume", "perhaps"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    last = done.stderr.splitlines()[-2:]
    assert last == [
        "error: --resume perhaps: expected True or False",
        "--ckpt: no such option in inference.json; did you mean --ckpt_path?",
    ]
    assert "Traceback" not in done.stderr + done.stdout
    assert not list(tmp_path.iterdir())
