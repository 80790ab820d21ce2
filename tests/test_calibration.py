"""evaluation/calibration.py: fitted on errors whose distribution is known, and the command."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from scripts.calibrate import main
from scripts.evaluation.calibration import coverage, features_of, fit
from scripts.network.expected_error import FEATURES, ExpectedError, Spread
from scripts.network.search import ROTATION_WEIGHTS, TRANSLATION_WEIGHTS


def drawn(seed: int, n: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Features and errors whose spread grows with the second feature alone."""
    random = np.random.RandomState(seed)
    features = np.column_stack([np.ones(n), random.uniform(0, 2, (n, FEATURES - 1))])
    return features, np.abs(random.normal(size=n)) * np.exp(0.5 + features[:, 1])


def test_the_fit_is_that_of_the_distribution_and_holds_on_other_draws():
    features, errors = drawn(0)
    weights = fit(features, errors, np.ones(len(errors)))
    assert weights[1] == pytest.approx(1, abs=0.25)
    assert np.abs(weights[2:]).max() < 0.3
    one, two = coverage(weights.tolist(), *drawn(1))
    assert 0.6 < one < 0.76
    assert 0.9 < two <= 1


def test_more_spread_never_means_a_smaller_error():
    features, errors = drawn(2)
    weights = fit(features, errors[::-1] / np.exp(2 * features[:, 1]), np.ones(len(errors)))
    assert (weights[1:4] >= 0).all()
    assert weights[4] <= 0


def test_data_sets_count_alike():
    features, errors = drawn(3, 300)
    many = np.concatenate([errors, np.full(3000, 100.0)])
    rows = np.concatenate([features, np.tile(features[:1], (3000, 1))])
    weights = fit(rows, many, np.concatenate([np.ones(300), np.full(3000, 1e-6)]))
    assert coverage(weights.tolist(), features, errors)[0] == pytest.approx(0.68, abs=0.03)


@pytest.mark.parametrize(("rotation_deg", "taken"), [((9, 2), 0), ((9, 2), 1), ((900, 990), 0)])
def test_features_are_those_of_the_pass_whose_pose_it_is(
    rotation_deg: tuple[float, float], taken: int
) -> None:
    """A second pass may run and not count, also where both say the most that can be said."""
    expected = ExpectedError(ROTATION_WEIGHTS, TRANSLATION_WEIGHTS)
    spreads = [Spread(*torch.tensor([[d], [2.0], [3.0], [-3.0], [120.0]])) for d in rotation_deg]

    class Passes:
        search = SimpleNamespace(expected_error=expected)

        def predict(self, _: torch.Tensor) -> SimpleNamespace:
            said = [self.search.expected_error(spread)[0] for spread in spreads]
            return SimpleNamespace(rotation_sd_deg=said[taken])

    features, _ = features_of(Passes(), torch.zeros(1, 1, 8, 8, 8))
    np.testing.assert_allclose(features, expected.features(spreads[taken])[0], rtol=1e-6)
    assert Passes.search.expected_error is expected


def test_command_line(small_dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--fit", str(small_dataset), "--section", "test"])
    printed = capsys.readouterr().out
    assert "ROTATION_WEIGHTS = (" in printed
    assert printed.splitlines()[-1].split()[0] == small_dataset.name
    with pytest.raises(SystemExit):
        main(["--fit", str(small_dataset / "none")])
    assert "none/dataset.json: no such file" in capsys.readouterr().err


@pytest.fixture(scope="module")
def small_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from scripts.phantom import write_dataset

    root = tmp_path_factory.mktemp("data") / "small"
    write_dataset(root, 0, 0, 8, seed=5, ga_weeks=(28, 34), voxel_mm=(5, 5, 5), progress=False)
    return root
