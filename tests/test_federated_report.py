"""Tables of a comparison, from ratings whose errors are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from scripts.federated.report import (
    compare,
    families,
    gain,
    gains,
    main,
    membership,
    read_ratings,
)

NAN = float("nan")


def write_ratings(folder: Path, section: str, model: str, sites: dict[str, list[float]]) -> None:
    """Rotation errors in degrees; mm a tenth of them, and Dice 1 - error / 200."""
    for site, errors in sites.items():
        path = folder / section / model / f"{site}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [f"v{k},{e},{e / 10},{1 - e / 200}" for k, e in enumerate(errors)]
        path.write_text("\n".join(["case,rotation_deg,translation_mm,dice_brain", *rows]) + "\n")


@pytest.fixture
def ratings(tmp_path: Path) -> Path:
    write_ratings(tmp_path, "test", "before", {"a": [10, 20, 180], "b": [4, 6, 8]})
    write_ratings(tmp_path, "test", "alone/a", {"a": [2, 4, 6], "b": [90, 100, 110]})
    write_ratings(tmp_path, "test", "alone/b", {"a": [12, 14, 16], "b": [1, 2, 3]})
    write_ratings(tmp_path, "test", "federated", {"a": [3, 5, 7], "b": [2, 3, 4]})
    return tmp_path


def cells(text: str, first: str, title: str) -> list[str]:
    """A row of a table: of the block that begins with ``first``, the cells after ``title``."""
    lines = text.splitlines()
    start = next(k for k, line in enumerate(lines) if line.startswith(first))
    row = next(line for line in lines[start:] if title in line)
    return row.split(title)[1].split()


def test_a_site_is_rated_by_its_own_model_and_all_sites_by_each(ratings):
    text = compare(read_ratings(ratings), ("before", "alone", "federated"))
    median = "rotation, median (degrees)"
    assert text.splitlines()[0].split() == ["before", "alone", "federated"]
    assert cells(text, "a (n 3)", median) == ["20.0", "4.0", "5.0"]
    assert cells(text, "b (n 3)", median) == ["6.0", "2.0", "3.0"]
    assert cells(text, "all sites", median) == ["9.0", "9.0", "3.5"]
    assert cells(text, "all sites", "not found or above 30 degrees") == ["1/6", "3/12", "0/6"]


def test_a_gain_is_the_mean_difference_of_the_same_volumes(ratings):
    given = read_ratings(ratings)
    mean, low, high = gain(given, "federated", "before")
    assert mean == pytest.approx((7 + 15 + 173 + 2 + 3 + 4) / 6)
    assert 0 < low < mean < high
    # each of the two models answers for both sites
    assert gain(given, "federated", "alone")[0] == pytest.approx(np.mean([4, 4, 4, 43.5, 48, 52.5]))
    assert gain(given, "federated", "federated") == (0.0, 0.0, 0.0)
    assert "before less federated: +34.00 degrees" in gains(given)


def test_volumes_without_a_head_do_not_count(tmp_path):
    write_ratings(tmp_path, "test", "before", {"a": [1, NAN, 3]})
    text = compare(read_ratings(tmp_path))
    assert cells(text, "a (n 2)", "rotation, median (degrees)") == ["2.0"]


def test_membership_is_told_by_lower_losses_of_a_site_s_own_model(tmp_path):
    write_ratings(tmp_path, "test", "alone/a", {"a": [5, 6, 7], "b": [1, 1, 1]})
    write_ratings(tmp_path, "test", "alone/b", {"a": [1, 1, 1], "b": [5, 6]})
    write_ratings(tmp_path, "test", "federated", {"a": [1, 2, 3], "b": [50, 60]})
    seen = tmp_path / "seen"
    write_ratings(seen, "training", "alone/a", {"a": [1, 2], "b": [9, 9]})
    write_ratings(seen, "training", "alone/b", {"a": [9, 9], "b": [1, 2]})
    write_ratings(seen, "training", "federated", {"a": [1, 2, 3], "b": [50, 60]})
    text = membership(read_ratings(seen, "training"), read_ratings(tmp_path))
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines()[1:]}
    assert rows["alone"] == ["1.00", "1.00"]
    # as good on volumes that were not seen, although one site's are far harder
    assert rows["federated"] == ["0.50", "0.50"]


def test_models_are_grouped_by_the_folder_that_holds_one_of_each_site(ratings):
    assert {name: sorted(group) for name, group in families(read_ratings(ratings)).items()} == {
        "before": [""], "alone": ["a", "b"], "federated": [""],
    }  # fmt: skip


def test_the_command_prints_the_table_and_refuses_an_empty_folder(ratings, capsys, tmp_path):
    main([str(ratings)])
    assert "all sites" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([str(tmp_path / "none")])
    assert "no ratings; `job rate` writes them" in capsys.readouterr().err
