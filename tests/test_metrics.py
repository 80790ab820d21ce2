"""metrics.py against numpy, scipy and MONAI, through an ignite engine and back from the table."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.metrics import DiceMetric
from monai.networks import one_hot
from scipy.spatial.transform import Rotation

from scripts.evaluation import metrics as m
from scripts.evaluation.case_table import CaseTable, read_case_table


def poses(n: int, seed: int) -> torch.Tensor:
    """(n, 4, 4) with general rotations and translations of some 20 mm."""
    matrices = np.tile(np.eye(4), (n, 1, 1))
    matrices[:, :3, :3] = Rotation.random(n, random_state=seed).as_matrix()
    matrices[:, :3, 3] = 20 * np.random.default_rng(seed).normal(size=(n, 3))
    return torch.from_numpy(matrices).float()


NO_POSE = torch.full((4, 4), torch.nan)


def rotations_deg(a, b):
    relative = Rotation.from_matrix(a[:, :3, :3]).inv() * Rotation.from_matrix(b[:, :3, :3])
    return np.degrees(relative.magnitude())


def axis_deg(k):
    def angles(a, b):
        return np.degrees(np.arccos((a[:, :3, k] * b[:, :3, k]).sum(1)))

    return angles


def distances_mm(a, b):
    return np.linalg.norm(a[:, :3, 3] - b[:, :3, 3], axis=1)


POSE_ERRORS = {
    "rotation": (m.RotationError, rotations_deg, 180.0),
    "x": (lambda *a: m.AxisError("x", *a), axis_deg(0), 180.0),
    "y": (lambda *a: m.AxisError("y", *a), axis_deg(1), 180.0),
    "z": (lambda *a: m.AxisError("z", *a), axis_deg(2), 180.0),
    "translation": (m.TranslationError, distances_mm, math.inf),
}


@pytest.mark.parametrize("name", list(POSE_ERRORS))
def test_errors_of_poses_match_numpy(name):
    build, naive, _ = POSE_ERRORS[name]
    predicted, true = poses(7, 0), poses(7, 1)
    expected = naive(predicted.double().numpy(), true.double().numpy())
    found = build()(y_pred=predicted, y=true)
    assert found.shape == (7, 1)
    np.testing.assert_allclose(found[:, 0], expected, atol=1e-3)
    assert np.ptp(expected) > 1
    same = build()(y_pred=true, y=true)
    np.testing.assert_allclose(same, 0, atol=1e-3)


@pytest.mark.parametrize("summary", ["median", "mean", 60.0])
@pytest.mark.parametrize("name", list(POSE_ERRORS))
def test_a_head_not_found_is_the_worst_and_no_head_does_not_count(name, summary):
    build, naive, worst = POSE_ERRORS[name]
    predicted, true = poses(6, 2), poses(6, 3)
    expected = naive(predicted.double().numpy(), true.double().numpy())
    predicted[1] = NO_POSE  # missed
    true[2] = NO_POSE  # found where there is none
    predicted[4], true[4] = NO_POSE, NO_POSE  # rightly not found
    expected[1] = worst
    expected = expected[[0, 1, 3, 5]]
    metric = build(summary)
    metric(y_pred=predicted[:4], y=true[:4])  # two batches
    metric(y_pred=predicted[4:], y=true[4:])
    values = metric.get_buffer()[:, 0]
    assert values.isnan().tolist() == [False, False, True, False, True, False]
    np.testing.assert_allclose(values[~values.isnan()], expected, atol=1e-3)
    reduce = {"median": np.median, "mean": np.mean}.get(summary, lambda v: (v > summary).mean())
    assert metric.aggregate().item() == pytest.approx(reduce(expected), abs=1e-3)


@pytest.mark.parametrize("missing", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("n", [4, 5])
def test_a_median_is_not_flattered_by_heads_not_found(n, missing):
    predicted, true = poses(n, 4), poses(n, 5)
    expected = distances_mm(predicted.numpy(), true.numpy())
    predicted[:missing] = NO_POSE
    expected[:missing] = math.inf
    metric = m.TranslationError("median")
    metric(y_pred=predicted, y=true)
    assert metric.aggregate().item() == pytest.approx(
        np.sort(expected)[[(n - 1) // 2, n // 2]].mean()
    )


def test_no_case_is_no_number():
    for summary in ("median", "mean", 10.0):
        metric = m.RotationError(summary)
        metric(y_pred=poses(1, 0), y=NO_POSE[None])
        assert metric.aggregate().isnan()


def test_metrics_start_again_after_reset():
    metric = m.TranslationError()
    metric(y_pred=poses(3, 0), y=poses(3, 1))
    metric.reset()
    metric(y_pred=poses(2, 2), y=poses(2, 2))
    assert metric.aggregate() == 0


@pytest.mark.parametrize(
    "build", [m.RotationError, m.TranslationError, lambda s: m.LabelDice(1, s)]
)
def test_unknown_summaries_are_refused(build):
    with pytest.raises(ValueError, match=r"one of .*'median', 'mean'.*got 'mode'"):
        build("mode")


def test_unknown_axes_are_refused():
    with pytest.raises(ValueError, match="axis must be"):
        m.AxisError("w")


@pytest.mark.parametrize("label", [1, 2])
def test_dice_is_that_of_monai(label):
    generator = torch.Generator().manual_seed(0)
    predicted, true = torch.randint(
        0, 3, (2, 5, 1, 6, 5, 4), generator=generator, dtype=torch.uint8
    )
    true[1][true[1] == label] = 0  # a label that the reference lacks
    predicted[2][predicted[2] == label] = 0  # a label that is missed
    predicted[3] = true[3]
    expected = DiceMetric()(one_hot(predicted, 3), one_hot(true, 3))[:, label - 3]
    metric = m.LabelDice(label)
    found = metric(y_pred=predicted, y=true)[:, 0]
    torch.testing.assert_close(found, expected, equal_nan=True)
    assert found.isnan().tolist() == [False, True, False, False, False]
    assert found[2:4].tolist() == [0, 1]
    assert metric.aggregate().item() == pytest.approx(np.nanmean(expected))


def test_detection_is_right_for_found_heads_and_for_none():
    predicted, true = poses(4, 0), poses(4, 1)
    predicted[[1, 2]] = torch.nan
    true[[2, 3]] = torch.nan
    metric = m.HeadDetection()
    assert metric(y_pred=predicted, y=true).flatten().tolist() == [1, 0, 1, 0]
    assert metric.aggregate() == 0.5


def test_lower_is_better():
    assert m.lower_is_better(1.0, 2.0)
    assert not m.lower_is_better(2.0, 2.0)


def batch(cases, seed, missed=(), headless=()):
    """Output of an evaluator for some cases."""
    n = len(cases)
    predicted, has_head = poses(n, seed), torch.ones(n)
    predicted[list(missed)] = torch.nan
    has_head[list(headless)] = 0
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (2, n, 1, 4, 4, 4), generator=generator)
    return {
        "case": list(cases),
        "pred": {
            "head_to_grid": predicted,
            "reference_crop": poses(n, seed + 100),
            "label": labels[0],
            "confidence": torch.linspace(0.1, 0.9, n),
        },
        "label": {
            "head_to_grid": poses(n, seed + 1),
            "has_head": has_head,
            "label": labels[1],
        },
    }


METRICS = {
    "rotation_deg": (m.RotationError, "poses"),
    "crop_rotation_deg": (m.RotationError, "reference_crop_poses"),
    "translation_mm": (m.TranslationError, "poses"),
    "detection": (m.HeadDetection, "poses"),
    "brain_dice": (lambda: m.LabelDice(1), "labels"),
    "confidence": (lambda: m.Confidence("mean"), "confidences"),
}


@pytest.fixture
def evaluator(tmp_path):
    """An engine with every metric and the table; its process function passes the batch on."""
    engine = Engine(lambda _, data: data)
    engine.state.metric_details = {}
    for name, (build, of) in METRICS.items():
        m.metric(build(), of=of).attach(engine, name)
    CaseTable(tmp_path / "out" / "cases.csv", list(METRICS)).attach(engine)
    return engine


def test_through_an_engine_and_back_from_the_table(evaluator, tmp_path):
    batches = [batch("ab", 0, missed=[1]), batch("cde", 7, headless=[2])]
    for _ in range(2):  # a second run starts again
        state = evaluator.run(batches)
    true = [b["label"]["head_to_grid"].numpy() for b in batches]
    expected = {name: [] for name in METRICS}
    for b, y in zip(batches, true, strict=True):
        predicted = b["pred"]["head_to_grid"].numpy()
        crop = b["pred"]["reference_crop"].numpy()
        found = ~np.isnan(predicted).any((1, 2))
        there = b["label"]["has_head"].numpy() == 1
        safe = np.where(found[:, None, None], predicted, np.eye(4))
        hidden = np.where(there, 1, np.nan)
        expected["rotation_deg"] += list(np.where(found, rotations_deg(safe, y), 180) * hidden)
        expected["crop_rotation_deg"] += list(rotations_deg(crop, y) * hidden)
        expected["translation_mm"] += list(np.where(found, distances_mm(safe, y), np.inf) * hidden)
        expected["detection"] += list((found == there).astype(float))
        expected["confidence"] += b["pred"]["confidence"].tolist()
        a, t = b["pred"]["label"].numpy() == 1, b["label"]["label"].numpy() == 1
        both = (a & t).sum((1, 2, 3, 4))
        expected["brain_dice"] += list(2 * both / (a.sum((1, 2, 3, 4)) + t.sum((1, 2, 3, 4))))
    for name in METRICS:
        reduce = np.nanmedian if "_deg" in name or "_mm" in name else np.nanmean
        assert state.metrics[name] == pytest.approx(reduce(expected[name]), abs=1e-3), name

    path = tmp_path / "out" / "cases.csv"
    lines = path.read_text().splitlines()
    assert lines[0] == ",".join(["case", *METRICS])
    assert [line.split(",")[0] for line in lines[1:]] == list("abcde")
    table = read_case_table(path)
    assert list(table) == list(METRICS)
    for name, column in table.items():
        np.testing.assert_allclose(column, expected[name], atol=1e-3, err_msg=name)
    assert math.isinf(table["translation_mm"][1])
    assert math.isnan(table["rotation_deg"][4])
    assert [p.name for p in path.parent.iterdir()] == ["cases.csv"]


def test_of_twins_either_head_is_an_answer():
    """The one that lies nearer; what is not found, or a volume with one head, is as ever."""
    output = batch("abcd", 0, missed=[2], headless=[3])
    first, found = output["label"]["head_to_grid"], output["pred"]["head_to_grid"]
    second = first.clone()
    second[:, :3, 3] += torch.tensor([80.0, 30.0, -20.0])
    second[1] = second[3] = torch.nan
    found[:2, :3, 3] = second[0, :3, 3] + 5.0
    output["label"]["twin_to_grid"] = second
    _, true = m.poses(output)
    assert true[0].equal(second[0])
    assert true[1:3].equal(first[1:3])
    assert true[3].isnan().all()
    found[0, :3, 3] = first[0, :3, 3] + 5.0
    assert m.poses(output)[1][0].equal(first[0])


def test_dice_leaves_out_what_is_unknown():
    found = torch.tensor([1, 1, 1, 0, 2]).view(1, 1, 5, 1, 1)
    true = torch.tensor([1, 0, 255, 1, 255]).view(1, 1, 5, 1, 1)
    assert m.LabelDice(1)(found, true).item() == pytest.approx(0.5)
    assert m.LabelDice(2)(found, true).isnan().all()


def test_true_pose_hides_what_is_no_head():
    target = {"head_to_grid": poses(2, 0), "has_head": torch.tensor([1.0, 0.0])}
    found = m.true_pose(target)
    assert found[0].equal(target["head_to_grid"][0])
    assert found[1].isnan().all()


def test_an_empty_table_is_refused(tmp_path):
    path = tmp_path / "cases.csv"
    path.write_text("case,rotation_deg\n")
    with pytest.raises(ValueError, match="no cases"):
        read_case_table(path)
