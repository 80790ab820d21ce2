"""argument_types.py: lists on command lines, and what is refused in whose words."""

from __future__ import annotations

import re

import pytest

from scripts import phantom, prescribe, service
from scripts.argument_types import numbers, three_numbers, whole_numbers, words


def test_lists_are_read():
    assert words("f01, f04,") == ("f01", "f04")
    assert words("") == ()
    assert numbers("20,38.5,-1") == (20.0, 38.5, -1.0)
    assert three_numbers("0,-2.5,1e1") == (0.0, -2.5, 10.0)
    assert whole_numbers("21,23,") == (21, 23)
    assert whole_numbers("") == ()


@pytest.mark.parametrize(
    ("command", "arguments", "said"),
    [
        (service.main, ["--tilt_deg", "1,2"], "--tilt_deg: expected three numbers .*'1,2'"),
        (service.main, ["--tilt_deg", "1,2,x"], "--tilt_deg: expected numbers .*'1,2,x'"),
        (prescribe.main, ["--isocentre_lps", "1"], "--isocentre_lps: expected three numbers .*'1'"),
        (phantom.main, ["--dataset_dir", "D", "--ga_weeks", "a"], "--ga_weeks: expected numbers"),
        (
            phantom.main,
            ["--dataset_dir", "D", "--brain_weeks", "21.5"],
            "--brain_weeks: expected whole numbers .*'21.5'",
        ),
    ],
)
def test_what_is_no_such_list_is_refused_by_name_and_value(command, arguments, said, capsys):
    with pytest.raises(SystemExit) as left:
        command(arguments)
    assert left.value.code == 2
    found = capsys.readouterr().err
    assert re.search(said, found), found
