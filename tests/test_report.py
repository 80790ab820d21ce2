"""report.py: hand-made evaluations and poses with known numbers."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from matplotlib.image import imread
from scipy.spatial.transform import Rotation

from scripts.evaluation.case_table import read_case_table, read_cases
from scripts.evaluation.tables import auroc, case_list, moved, quantile, read_poses, table
from scripts.report import main

INF, NAN = math.inf, math.nan
HEADER = ("case", "rotation_deg", "translation_mm", "dice_brain", "head_detection", "confidence")
# a head not found, one found where there is none, none rightly found, a case without a mask
FIRST = [
    ("a", 4.0, 1.0, 0.9, 1, 0.9),
    ("b", 180.0, INF, 0.0, 0, 0.0),
    ("c", NAN, NAN, NAN, 0, 0.8),
    ("d", 31.0, 2.0, 0.7, 1, 0.5),
    ("e", 2.0, 4.0, NAN, 1, 0.5),
    ("f", 16.0, 3.0, 0.8, 1, 0.7),
    ("g", NAN, NAN, NAN, 1, 0.0),
]
SECOND = [("a", 10.0, 1.5, 0.9, 1, 0.4), ("b", 20.0, 2.5, 0.7, 1, 0.2)]


@pytest.fixture
def evaluation(tmp_path):
    """Writes a cases.csv into a folder of that name; gives its path."""

    def write(name, rows, header=HEADER):
        path = tmp_path / name / "cases.csv"
        path.parent.mkdir(parents=True)
        path.write_text("\n".join(",".join(map(str, row)) for row in [header, *rows]) + "\n")
        return path

    return write


def cells(text):
    """Title of the row -> cells, of a text table whose cells stand two blanks apart."""
    lines = [line for line in text.splitlines() if line]
    rows = {}
    for line in lines:
        title, *values = (part.strip() for part in line.split("  ") if part.strip())
        rows[title] = values
    assert len({len(line) for line in lines}) == 1  # aligned
    return rows


def test_table_of_known_numbers(evaluation):
    """Five heads with 2, 4, 16, 31 and 180 degrees, and two volumes without a head."""
    rows = cells(table([evaluation("first", FIRST)]))
    assert rows["first"] == []
    del rows["first"]
    assert rows == {
        "cases (n)": ["7"],
        "cases with a head (n)": ["5"],
        "rotation, median (degrees)": ["16.00"],
        "rotation, quartiles (degrees)": ["4.00 - 31.00"],
        "rotation, 90th percentile (degrees)": ["120.40"],
        "rotation, largest (degrees)": ["180.00"],
        "rotation, mean (degrees)": ["46.60"],
        "rotation above 15 degrees (%)": ["60.0 (3/5)"],
        "rotation above 30 degrees (%)": ["40.0 (2/5)"],
        "rotation, reference crop, median (degrees)": ["-"],
        "left-right axis, median (degrees)": ["-"],
        "anterior axis, median (degrees)": ["-"],
        "superior axis, median (degrees)": ["-"],
        "translation, median (mm)": ["3.00"],
        "translation, 90th percentile (mm)": ["inf"],
        "Dice brain, mean": ["0.60"],
        "Dice eyes, mean": ["-"],
        "head found where there is one (%)": ["80.0 (4/5)"],
        "no head found where there is none (%)": ["50.0 (1/2)"],
        "AUROC, confidence against 30 degrees": ["0.917"],  # 5.5 of 6 pairs: d and e tie
    }


def test_several_evaluations_stand_beside_each_other_and_pooled(evaluation):
    without_dice = [row[:3] + row[4:] for row in SECOND]
    second = evaluation("second", without_dice, HEADER[:3] + HEADER[4:])
    rows = cells(table([evaluation("first", FIRST), second]))
    assert rows["first"] == ["second", "pooled"]
    assert rows["cases (n)"] == ["7", "2", "9"]
    assert rows["cases with a head (n)"] == ["5", "2", "7"]
    assert rows["rotation, median (degrees)"] == ["16.00", "15.00", "16.00"]
    assert rows["rotation above 15 degrees (%)"] == ["60.0 (3/5)", "50.0 (1/2)", "57.1 (4/7)"]
    assert rows["translation, 90th percentile (mm)"] == ["inf", "2.40", "inf"]
    assert rows["Dice brain, mean"] == ["0.60", "-", "0.60"]
    assert rows["no head found where there is none (%)"] == ["50.0 (1/2)", "-", "50.0 (1/2)"]
    # all of the second are right, so it has no area; pooled: 5.5 + 1 of 2 x 5 pairs
    assert rows["AUROC, confidence against 30 degrees"] == ["0.917", "-", "0.750"]


def test_evaluations_whose_folders_have_one_name_are_told_apart(evaluation, tmp_path):
    paths = [evaluation(f"{run}/test", SECOND) for run in ("old", "new")]
    assert cells(table(paths))["old/test"] == ["new/test", "pooled"]
    assert next(iter(cells(table([paths[0]])))) == "test"
    assert len(cells(table([paths[0], paths[0]]))["cases (n)"]) == 3  # the same file twice


def test_median_of_infinities_is_that_of_the_metric(evaluation):
    """As metrics.CaseMetric: between a number and infinity lies infinity."""
    rows = [(str(k), 5.0, t, 0.9, 1, 0.5) for k, t in enumerate((1.0, 2.0, INF, INF))]
    found = cells(table([evaluation("half", rows)]))
    assert found["translation, median (mm)"] == ["inf"]
    assert found["rotation, quartiles (degrees)"] == ["5.00 - 5.00"]


@pytest.mark.parametrize("n", [1, 2, 5, 11, 24])
@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.9, 1.0])
def test_quantiles_are_those_of_numpy_where_those_are_numbers(n, share):
    values = np.random.default_rng(n).normal(size=n)
    assert quantile(values, share) == pytest.approx(np.quantile(values, share))
    assert quantile(np.full(n, INF), share) == INF
    some = np.where(np.arange(n) < n / 2, values, INF)
    found, expected = quantile(some, share), np.quantile(some, share, method="higher")
    assert found == expected or found <= expected < INF


def brute_force(errors, confidences, limit):
    """Pairs of a wrong and a right case, counted one by one."""
    cases = [p for p in zip(errors, confidences, strict=True) if not any(map(math.isnan, p))]
    wrong = [c for e, c in cases if e > limit]
    right = [c for e, c in cases if e <= limit]
    pairs = [0.5 if w == r else float(w < r) for w, r in itertools.product(wrong, right)]
    return sum(pairs) / len(pairs) if pairs else NAN


@pytest.mark.parametrize("levels", [3, 100000])
@pytest.mark.parametrize("seed", range(4))
def test_auroc_is_a_count_of_pairs(seed, levels):
    random = np.random.default_rng(seed)
    errors = random.uniform(0, 60, 40)
    confidences = random.integers(levels, size=40) / levels  # few levels: many ties
    errors[:3] = NAN
    errors[3:5] = [180, 30]
    confidences[[7, 11]] = NAN
    for limit in (30.0, 10.0):
        expected = brute_force(errors, confidences, limit)
        assert auroc(errors, confidences, limit) == pytest.approx(expected)
    assert auroc(errors, confidences) == pytest.approx(brute_force(errors, confidences, 30))


def test_auroc_of_the_extremes():
    assert auroc([5, 10, 90, 180], [0.9, 0.8, 0.3, 0.0]) == 1
    assert auroc([5, 10, 90, 180], [0.1, 0.2, 0.3, 0.4]) == 0
    assert auroc([5, 10, 90, 180], [0.5] * 4) == 0.5
    assert auroc([30.0, 30.001], [0.5, 0.4]) == 1  # 30 degrees are not above 30
    for errors in ([5, 10], [90, 180], [NAN, 5], []):
        assert math.isnan(auroc(errors, [0.5] * len(errors)))


def test_cases_are_listed_worst_first(evaluation):
    lines = case_list(evaluation("first", FIRST)).splitlines()
    assert lines[0].split() == ["case", "rotation_deg", "translation_mm", "confidence"]
    assert [line.split()[0] for line in lines[1:]] == ["b", "d", "f", "a", "e", "c", "g"]
    assert lines[1].split() == ["b", "180.00", "inf", "0.00"]
    assert lines[6].split() == ["c", "-", "-", "0.80"]
    short = [(row[0], row[1]) for row in SECOND]
    path = evaluation("short", short, HEADER[:2])
    assert case_list(path).splitlines()[1].split() == ["b", "20.00", "-", "-"]


def test_names_of_cases_can_be_read_beside_the_columns(evaluation):
    path = evaluation("first", FIRST)
    names, columns = read_cases(path)
    assert names == list("abcdefg")
    assert list(columns) == list(HEADER[1:])
    for found in (columns, read_case_table(path)):
        np.testing.assert_array_equal(found["rotation_deg"], [row[1] for row in FIRST])
        np.testing.assert_array_equal(found["translation_mm"], [row[2] for row in FIRST])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("case,rotation_deg\n", "no cases"),
        ("", "no cases"),
        ("case,rotation_deg\na,4\nb,four\n", "case 1 .*four"),
        ("case,rotation_deg,confidence\na,4\n", "case 0 "),
        ("case,rotation_deg\na,4,5\n", "case 0 "),
        ("name,rotation_deg\na,4\n", "case 0 "),
        ("case,translation_mm\na,4\n", r"no column rotation_deg, only \['translation_mm'\]"),
    ],
)
def test_broken_tables_are_named(evaluation, tmp_path, text, message):
    path = tmp_path / "bad" / "cases.csv"
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"bad.cases\.csv: {message}"):
        table([evaluation("good", FIRST), path])


def pose(turn_deg=0.0, shift_mm=(0.0, 0.0, 0.0)):
    """A general pose, turned further about a general axis and shifted."""
    axis = np.array([2.0, -1.0, 2.0]) / 3
    turn = Rotation.from_rotvec(turn_deg * axis, degrees=True)
    matrix = np.eye(4)
    matrix[:3, :3] = (turn * Rotation.from_euler("xyz", [40, -20, 130], degrees=True)).as_matrix()
    matrix[:3, 3] = np.array([5.0, -30.0, 12.0]) + shift_mm
    return matrix.tolist()


@pytest.fixture
def folders(tmp_path):
    """Two folders of inference's output, with moved, missing and lone poses."""
    base = dict.fromkeys("abcde", pose())
    first = base | {"f": None, "g": pose(), "h": None, "only": pose()}
    second = {
        "a": pose(), "b": pose(2, (0, 0, 3)), "c": pose(5, (3, 4, 0)), "d": pose(-10, (0, 12, 5)),
        "e": pose(170), "f": pose(), "g": None, "h": None, "other": pose(), "another": None,
    }  # fmt: skip
    for name, poses in (("first", first), ("second", second)):
        (tmp_path / name).mkdir()
        for case, matrix in poses.items():
            record = {"case": case, "status": "ok", "head_to_world": matrix}
            (tmp_path / name / f"{case}_pose.json").write_text(json.dumps(record))
    (tmp_path / "first" / ".9_x_pose.json").write_text("half a fi")  # of a run under way
    return tmp_path / "first", tmp_path / "second"


def test_moved_poses_of_known_angles_and_distances(folders):
    lines = moved(*folders).splitlines()
    rows = cells("\n".join(lines[:3]))
    assert rows["n"] == ["median", "90th percentile", "largest"]
    # 0, 2, 5, 10, 170 degrees; 0, 0, 3, 5, 13 mm
    assert rows["rotation (degrees)"] == ["5", "5.00", "106.00", "170.00"]
    assert rows["distance (mm)"] == ["5", "3.00", "9.80", "13.00"]
    assert lines[3] == "8 cases in both folders, 3 in one only"
    assert lines[4] == "no pose in the first only: 1, in the second only: 1, in both: 1"
    assert moved(*folders[::-1]).splitlines()[:3] == lines[:3]


def test_moved_without_any_pair_of_poses(folders):
    for path in folders[1].iterdir():
        if path.name not in ("f_pose.json", "g_pose.json"):
            path.unlink()
    lines = moved(*folders).splitlines()
    assert lines[1].split()[-4:] == ["0", "-", "-", "-"]
    assert lines[4] == "no pose in the first only: 1, in the second only: 1, in both: 0"


@pytest.mark.parametrize(
    "text",
    ["half a fi", "[]", "{}", '{"head_to_world": "up"}', '{"head_to_world": [[1, 0], [1]]}'],
)
def test_broken_poses_are_named(folders, text):
    (folders[1] / "c_pose.json").write_text(text)
    with pytest.raises(ValueError, match=r"second.c_pose\.json: no head_to_world"):
        moved(*folders)


def test_poses_that_are_not_rigid_are_named(folders):
    path = folders[0] / "a_pose.json"
    path.write_text(json.dumps({"head_to_world": np.diag([-1.0, 1, 1, 1]).tolist()}))
    with pytest.raises(ValueError, match=r"first.a_pose\.json: head_to_world.*det -1"):
        moved(*folders)


def test_moved_folders_without_common_cases(folders, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone: no <case>_pose\.json"):
        read_poses(tmp_path / "gone")
    (tmp_path / "third").mkdir()
    (tmp_path / "third" / "z_pose.json").write_text('{"head_to_world": null}')
    assert read_poses(tmp_path / "third") == {"z": None}
    with pytest.raises(ValueError, match=r"first and .*third have no case in common"):
        moved(folders[0], tmp_path / "third")


def test_command_line(evaluation, folders, tmp_path, capsys):
    paths = [evaluation("one", FIRST), evaluation("two", SECOND)]
    none = evaluation("none", [FIRST[2]])  # not one head
    picture = tmp_path / "errors.png"
    main([*map(str, [*paths, none]), "--picture", str(picture), "--cases"])
    text = capsys.readouterr().out
    assert text.startswith(table([*paths, none]))
    for path in paths:
        assert f"\n{path.parent.name}\n{case_list(path)}\n" in text
    image = imread(picture)
    assert image.shape[1] > 600
    colours = image[..., :3].reshape(-1, 3)
    for colour in ((31, 119, 180), (255, 127, 14)):  # a curve for each evaluation
        assert (np.abs(colours - np.array(colour) / 255).max(1) < 0.02).sum() > 200
    main(["--moved", *map(str, folders)])
    assert capsys.readouterr().out == moved(*folders) + "\n"
    main([str(paths[0])])
    assert capsys.readouterr().out == table(paths[:1]) + "\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "cases.csv or --moved"),
        (["gone/cases.csv"], "gone/cases.csv"),
        (["--moved", "gone", "lost"], "gone: no <case>_pose.json"),
    ],
)
def test_command_line_errors(arguments, message, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err
