"""simulation/atlas.py: brains of an atlas within the heads of phantoms."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from scripts.phantom import PhantomGenerator, main, write_dataset
from scripts.simulation import atlas as module
from scripts.simulation.anatomy import Head
from scripts.simulation.atlas import atlas_ages, draw_interior
from scripts.simulation.contrast import TISSUES
from scripts.simulation.head import paint_head
from scripts.simulation.shapes import Grid, WaveField

# every tissue tells itself by its intensity
TISSUE = {name: 1.0 + number for number, name in enumerate(TISSUES)}


def head_and_grid(ga_weeks: float = 26.0) -> tuple[Head, Grid]:
    head = Head.draw(np.random.RandomState(1), ga_weeks)
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = -59
    return head, Grid(affine, (60, 60, 60))


def painted(
    atlas: Path, contrast: str, seed: int = 0, tissue: dict[str, float] = TISSUE
) -> tuple[np.ndarray, np.ndarray, Head]:
    """Values (i, j, k) of a head with a brain of the atlas, share of brain, and the head."""
    head, grid = head_and_grid()
    random = np.random.RandomState(seed)
    interior = draw_interior(random, atlas_ages(atlas), head, contrast, tissue)
    still = WaveField(np.zeros((1, 3)), np.zeros(1), np.zeros((1, 1)))
    neck = np.array([0.0, -20.0, -90.0])
    image = paint_head(head, grid, np.eye(4), tissue, still, neck, interior)
    return image.value, image.brain, head


def at(values: np.ndarray, *points_mm: tuple[float, float, float]) -> list[float]:
    """Values at points in the head frame."""
    return [float(values[tuple(np.round((np.array(p) + 59) / 2).astype(int))]) for p in points_mm]


def test_tissues_lie_where_the_atlas_has_them(atlas: Path) -> None:
    values, brain, head = painted(atlas, "epi")
    # semi-axes of an ellipsoid that spreads so
    x, y = head.brain_spread_mm()[:2] * np.sqrt(5)
    middle, *white = at(values, (0, 0, 0), (0.7 * x, 0, 0), (0, 0.7 * y, 0), (0, -0.7 * y, 0))
    assert middle == pytest.approx(TISSUE["csf"], abs=0.5)
    assert white == pytest.approx([TISSUE["white"]] * 3, abs=0.5)
    # between the brain and the skull is fluid, and nowhere a tissue of the head's own brain
    size = (np.indices(values.shape).T * 2.0 - 59) / (head.brain_spread_mm() * np.sqrt(5))
    gap = (brain > 0.99) & ((size**2).sum(axis=-1).T > 1.4)
    assert gap.sum() > 10
    np.testing.assert_allclose(values[gap], TISSUE["csf"], atol=1e-3)
    other = {**TISSUE, "subplate": 99.0, "callosum": 99.0}
    np.testing.assert_array_equal(painted(atlas, "epi", tissue=other)[0], values)


def test_the_brain_fills_the_skull(atlas: Path) -> None:
    head, _ = head_and_grid()
    interior = draw_interior(np.random.RandomState(0), atlas_ages(atlas), head, "epi", TISSUE)
    voxels = np.argwhere(interior.share > 0.5)
    model = np.linalg.inv(interior.voxel_from_model)
    points = voxels @ model[:3, :3].T + model[:3, 3]
    np.testing.assert_allclose(points.mean(axis=0), head.brain_centre_mm, atol=0.3)
    np.testing.assert_allclose(points.std(axis=0), head.brain_spread_mm(), rtol=0.02)


def test_half_of_t2_shows_the_scan_itself(atlas: Path) -> None:
    seen = set()
    for seed in range(8):
        values, _, head = painted(atlas, "t2", seed)
        y = head.brain_spread_mm()[1] * np.sqrt(5)
        front, back = at(values, (0, 0.7 * y, 0), (0, -0.7 * y, 0))
        # the fixture's T2 rises to the front, its white matter does not
        seen.add("scan" if front > 1.2 * back else "tissues")
        if front > 1.2 * back:
            assert (front + back) / 2 == pytest.approx(TISSUE["white"], rel=0.1)
    assert seen == {"scan", "tissues"}


@pytest.mark.parametrize(
    ("ga_weeks", "weeks"),
    [(19.0, {22}), (24.0, {22, 23, 27}), (25.5, {23, 27}), (38.0, {34})],
)
def test_ages_up_to_three_weeks_away_else_the_nearest(
    atlas: Path, monkeypatch: pytest.MonkeyPatch, ga_weeks: float, weeks: set[int]
) -> None:
    head, _ = head_and_grid(ga_weeks)
    brain = module.read_brain(next(iter(atlas_ages(atlas))), 24)
    asked = set()

    def kept(folder: Path, age: float) -> module.Brain:
        asked.add(age)
        return brain

    monkeypatch.setattr(module, "_kept_brain", kept)
    ages = {Path(f"GA{age}"): age for age in (22, 23, 27, 34)}
    for seed in range(30):
        draw_interior(np.random.RandomState(seed), ages, head, "epi", TISSUE)
    assert asked == weeks


@pytest.mark.parametrize("sequence", [None, "haste"])
def test_label_and_pose_are_those_of_the_same_head(atlas: Path, sequence: str | None) -> None:
    options = {"voxel_mm": (5.0, 5.0, 5.0), "sequence": sequence}
    pair = []
    for brains in ({}, {"brains": atlas, "brain_weeks": (24, 25)}):
        generator = PhantomGenerator(**options, **brains)
        generator.set_random_state(seed=5)
        pair.append(generator())
    own, atlas_brain = pair
    np.testing.assert_array_equal(own.affine, atlas_brain.affine)
    np.testing.assert_array_equal(own.head_to_world, atlas_brain.head_to_world)
    if sequence is None:  # the motion between slices is drawn after the brain
        np.testing.assert_array_equal(own.label, atlas_brain.label)
    assert (own.image != atlas_brain.image).any()


def test_data_set_says_which_brains_and_takes_no_others(atlas: Path, tmp_path: Path) -> None:
    options = {"training": 1, "validation": 0, "test": 0, "progress": False, "num_workers": 1}
    path = write_dataset(
        tmp_path / "d", **options, voxel_mm=(6, 6, 6), brains=atlas, brain_weeks=(24,)
    )
    assert json.loads(path.read_text())["phantom"]["brain_weeks"] == [24]
    with pytest.raises(ValueError, match="brain_weeks"):
        write_dataset(
            tmp_path / "d", **options, voxel_mm=(6, 6, 6), brains=atlas, brain_weeks=(25,)
        )


def test_what_does_not_go_together_is_said(
    atlas: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match="brains and brain_weeks go together"):
        PhantomGenerator(brains=atlas)
    with pytest.raises(ValueError, match="brains and brain_weeks go together"):
        PhantomGenerator(brain_weeks=(24,))
    with pytest.raises(ValueError, match=r"no brains of \[33\] weeks, only \[24, 25\]"):
        PhantomGenerator(brains=atlas, brain_weeks=(33,))
    command = ["--dataset_dir", str(tmp_path / "d"), "--brain_weeks", "24", "--brains"]
    with pytest.raises(SystemExit):
        main([*command, str(tmp_path / "none")])
    assert f"{tmp_path / 'none'}: no folder" in capsys.readouterr().err
