"""federated/privacy.py: what the filters leave of a change, and what `job filtered` writes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("nvflare", reason="the extra `federated` is not installed")

from scripts.federated import job
from scripts.federated.privacy import FILTERS, STRENGTHS, Privacy, leaving, write_filtered
from scripts.federated.server import Contribution
from scripts.files import write_json, write_tensors
from scripts.network import HeadPoseNet
from scripts.weight_files import read_weights

SAMPLES = {"a": 30, "b": 10}


@pytest.fixture
def trained(tmp_path):
    """Start weights, and two sites that moved them: by 0.02 and 0.06 times a standard normal."""
    start = HeadPoseNet().state_dict()
    write_tensors(start, tmp_path / "start.pt")
    for site, size in (("a", 0.02), ("b", 0.06)):
        generator = torch.Generator().manual_seed(ord(site))
        moved = {
            key: value + size * torch.randn(value.shape, generator=generator)
            for key, value in start.items()
        }
        write_tensors(moved, tmp_path / "alone" / site / "last.pt")
        history = [
            {"round": 0, "metrics": {}, "best": True, "samples": SAMPLES[site]},
            {"round": 1, "metrics": {}, "best": False},
        ]
        write_json(tmp_path / "alone" / site / "rounds.json", history)
    return tmp_path


def flat(weights):
    return torch.cat([weights[key].flatten() for key in sorted(weights)])


def test_unfiltered_is_the_mean_weighted_by_volumes(trained):
    written = write_filtered(
        list(SAMPLES), trained / "alone", read_weights(trained / "start.pt"), trained, []
    )
    assert list(written) == ["unfiltered"]
    a, b = (flat(read_weights(trained / "alone" / site / "last.pt")) for site in SAMPLES)
    found = flat(read_weights(written["unfiltered"]))
    torch.testing.assert_close(found, 0.75 * a + 0.25 * b, atol=1e-6, rtol=0)


def test_command_writes_a_model_for_each_filter_and_names_them_for_rate(trained, capsys):
    sites = ",".join(f"{site}=ANYWHERE" for site in SAMPLES)
    job.main([
        "filtered", "--sites", sites, "--alone", str(trained / "alone"),
        "--init_path", str(trained / "start.pt"), "--output_dir", str(trained / "out"),
    ])  # fmt: skip
    models = dict(pair.split("=", 1) for pair in _pairs(capsys.readouterr().out.strip()))
    assert list(models) == ["unfiltered", *(privacy.label for privacy in STRENGTHS)]
    start = flat(read_weights(trained / "start.pt"))
    moved = {label: flat(read_weights(path)) - start for label, path in models.items()}
    unmoved = {label: (each == 0).double().mean().item() for label, each in moved.items()}
    shares = [unmoved[f"percentile_percentile{share}"] for share in (10, 50, 90)]
    # what neither of two sites lets out stays
    np.testing.assert_allclose(shares, [0.1**2, 0.5**2, 0.9**2], atol=0.02)
    assert {privacy.name for privacy in STRENGTHS} == set(FILTERS)
    # a second time they are the same: the noise has a seed
    again = write_filtered(
        list(SAMPLES), trained / "alone", read_weights(trained / "start.pt"), trained / "again"
    )
    for label, path in again.items():
        assert torch.equal(flat(read_weights(path)) - start, moved[label])


def _pairs(text):
    """name=path,name=path; names hold no commas."""
    return [part for part in text.split(",") if part]


@pytest.mark.parametrize(
    ("privacy", "message"),
    [
        (Privacy("percentile", {"gamma": 0}), "lets everything out"),
        (Privacy("percentile", {"percentile": 101}), "lets everything out"),
        (Privacy("svt", {"strength": 3}), "svt.*strength"),
    ],
)
def test_a_filter_that_would_not_filter_is_refused(privacy, message):
    change = Contribution("a", {"w": np.ones(5, np.float32)}, 3)
    with pytest.raises(ValueError, match=message):
        leaving(change, privacy)


def test_what_was_not_trained_alone_is_refused(trained):
    history = [{"round": 0, "metrics": {}, "best": True}]
    write_json(trained / "alone" / "a" / "rounds.json", history)
    with pytest.raises(ValueError, match="not trained alone"):
        write_filtered(
            ["a"], trained / "alone", read_weights(trained / "start.pt"), trained / "out"
        )
    with pytest.raises(FileNotFoundError, match="nowhere"):
        write_filtered(
            ["nowhere"], trained / "alone", read_weights(trained / "start.pt"), trained / "out"
        )
