"""Words of --outputs, and the names of a case's files."""

from __future__ import annotations

from pathlib import PurePath
from types import SimpleNamespace

import pytest

from scripts.evaluation.outputs import ENDINGS, LATER, MOTION, CaseFiles, chosen_outputs

BIDS = {"sub": "01", "ses": "2", "run": "1", "suffix": "T2w", "datatype": "anat"}


def bids_case(**changes):
    return SimpleNamespace(bids=BIDS | changes, folder=PurePath("sub-01/ses-2/anat"))


@pytest.mark.parametrize(
    "given",
    ["mask,picture", ("picture", "mask"), ["mask", "picture", "json"], "['mask', 'picture']"],
)
def test_words_come_as_text_or_as_a_list(given):
    assert chosen_outputs(given) == ("json", "picture", "mask")


def test_motion_belongs_to_the_default_and_to_no_other_list():
    assert "motion" in chosen_outputs(["json", "picture", "report"])
    assert "motion" not in chosen_outputs(["json", "picture"])
    assert "motion" in chosen_outputs("motion")


@pytest.mark.parametrize(("given", "near"), [("masks", "mask"), ("transfrom", "transform")])
def test_an_unknown_word_is_refused_with_the_nearest(given, near):
    with pytest.raises(ValueError, match=f"'{given}' is not known; did you mean '{near}'"):
        chosen_outputs(["json", given])


def test_plain_names(tmp_path):
    files = CaseFiles(tmp_path, "young_case 1")
    assert files.path("json") == tmp_path / "young_case 1_pose.json"
    assert files.path("transform") == tmp_path / "young_case 1_head_to_world.tfm"
    assert files.motion("tsv") == tmp_path / "young_case 1_motion.tsv"


def test_bids_names_are_those_of_derivatives(tmp_path):
    files = CaseFiles(tmp_path, "sub-01_ses-2_run-1_T2w", bids_case())
    names = {word: str(files.path(word).relative_to(tmp_path)) for word in ENDINGS}
    start = "sub-01/ses-2/anat/sub-01_ses-2_run-1"
    assert names["mask"] == f"{start}_desc-brain_mask.nii.gz"
    assert names["aligned"] == f"{start}_space-head_T2w.nii.gz"
    assert names["transform"] == f"{start}_from-T2w_to-head_mode-image_xfm.tfm"
    assert names["json"] == f"{start}_desc-T2w_pose.json"


@pytest.mark.parametrize("reading", [None, bids_case()])
def test_no_two_files_of_a_case_share_a_name(tmp_path, reading):
    files = CaseFiles(tmp_path, "sub-01_ses-2_run-1_T2w", reading)
    assert len(set(files.all())) == len(ENDINGS) + len(MOTION) + len(LATER)
    assert files.path("aligned") in files.all()


@pytest.mark.parametrize("name", ["x" * 400, "头" * 120, "é" * 127])
def test_names_that_are_too_long_are_cut_but_stay_different(tmp_path, name):
    first, second = CaseFiles(tmp_path, name + "1"), CaseFiles(tmp_path, name + "2")
    assert not set(first.all()) & set(second.all())
    assert first.state != second.state
    for path in (*first.all(), first.state):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")  # the file system takes it
