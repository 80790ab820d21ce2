"""Pictures: what stands in them, and what cannot break them."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from PIL import Image as Picture

from scripts.evaluation.drawing import draw_pose, draw_slices, shortened
from scripts.evaluation.planes import Head

AFFINE = np.diag([8.0, 8, 8, 1])
IMAGE = np.random.default_rng(0).random((20, 20, 20)).astype(np.float32)


def drawn(path, title, doubt="", image=IMAGE, pose=None):
    draw_pose(path, image, AFFINE, IMAGE > 0.9, AFFINE, pose, title, doubt)
    return np.asarray(Picture.open(path).convert("RGB")).astype(int)


@pytest.mark.parametrize(
    "title",
    [
        "two $ of $ them",
        "\\frac{1}{",
        "$\\unknown$",
        "_^{}%",
        "头 📷",
        "",
        "x" * 500,
        "a\nb\x00\udce9",
    ],
)
def test_every_title_can_be_drawn(tmp_path, title):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = drawn(tmp_path / "p.png", title)
    assert picture.shape == (360, 960, 3)


def test_a_dollar_is_a_dollar(tmp_path):
    """Not the start of a formula: the two dollars take their room."""
    with_dollars = drawn(tmp_path / "a.png", "$MMMM$")[:30]
    without = drawn(tmp_path / "b.png", "MMMM")[:30]
    assert with_dollars.any((0, 2)).nonzero()[0].max() > 10 + without.any((0, 2)).nonzero()[0].max()


def test_a_doubt_is_a_line_of_its_own_in_another_colour(tmp_path):
    plain, doubted = (drawn(tmp_path / "p.png", "title", doubt) for doubt in ("", "sides unknown"))
    orange = (doubted[..., 0] - doubted[..., 2] > 120) & (doubted[..., 1] > 100)
    assert orange[15:45].sum() > 50
    assert not ((plain[..., 0] - plain[..., 2] > 120) & (plain[..., 1] > 100))[15:45].any()


@pytest.mark.parametrize(
    "image", [np.zeros_like(IMAGE), np.where(IMAGE > 0.5, np.nan, IMAGE), IMAGE * 1e30]
)
def test_every_image_can_be_drawn(tmp_path, image):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn(tmp_path / "p.png", "title", image=image, pose=np.eye(4))


def test_slices_are_rows_of_planes(tmp_path):
    pose = np.eye(4)
    pose[:3, 3] = 76
    head = Head(IMAGE, AFFINE, None, None, pose)
    draw_slices(tmp_path / "s.png", head, ["axial", "sagittal"], [-10.0, 0.0, 10.0], "title")
    assert Picture.open(tmp_path / "s.png").size == (900, 645)


@pytest.mark.parametrize("length", [5, 6, 11, 18])
def test_a_shortened_text_keeps_both_ends(length):
    short = shortened("a name that is long", length)
    assert len(short) == length
    assert short[0] == "a"
    assert short[-1] == "g"
