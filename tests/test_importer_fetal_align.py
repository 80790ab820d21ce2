"""importers/fetal_align.py: poses and labels from landmarks, and errors that name the culprit."""

from __future__ import annotations

import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage

from conftest import GRIDS, head_pose, make_affine, save_nifti
from scripts.data.datalists import datalist
from scripts.data.importers import fetal_align
from scripts.data.importers.fetal_align import import_fetal_align, make_label, random_walker
from scripts.geometry import EYES_BELOW_HORIZONTAL_DEG, geodesic_deg, landmarks_to_pose
from scripts.simulation.anatomy import (
    biparietal_mm,
    eye_diameter_mm,
    eye_distance_mm,
    occipitofrontal_mm,
)

FIELD_OF_VIEW_MM = 150.0
POINTS = ("brain", "left_eye", "right_eye")
SECTIONS = ("training", "validation", "test")
REAL = Path(__file__).parents[2] / "shared/data/fetal_epi"
# of scikit-image, where its random walker has not been solved
pytestmark = pytest.mark.filterwarnings("error::UserWarning")


def world_points(affine, shape):
    """World positions (i, j, k, 3) of the voxels."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    return index @ affine[:3, :3].T + affine[:3, 3]


def brain_radius(points_mm, pose, ga_weeks):
    """Distance from the head's origin, 1 on the surface of an ellipsoid of the biometry's size."""
    bpd, ofd = biparietal_mm(ga_weeks), occipitofrontal_mm(ga_weeks)
    head = (points_mm - pose[:3, 3]) @ pose[:3, :3]
    return np.linalg.norm(head / [bpd / 2 - 3, ofd / 2 - 3, 0.46 * bpd], axis=-1)


def head_points(ga_weeks):
    """The landmarks (3, 3) in the head frame: brain, left eye, right eye."""
    below = np.deg2rad(EYES_BELOW_HORIZONTAL_DEG)
    half, far = eye_distance_mm(ga_weeks) / 2, 0.93 * occipitofrontal_mm(ga_weeks) / 2
    forward, up = far * np.cos(below), -far * np.sin(below)
    return np.array([[0, 0, 0], [-half, forward, up], [half, forward, up]])


class Clone:
    """Stacks and landmarks of synthetic heads, laid out as the repository; ``run`` imports them."""

    def __init__(self, folder: Path) -> None:
        self.source, self.dataset = folder / "clone", folder / "dataset"
        self.ages, self.lines, self.rows = [], [], []
        self.truth: dict[str, np.ndarray] = {}
        (self.source / "data").mkdir(parents=True)

    def add(
        self,
        number,
        ga_weeks=31.0,
        age=None,
        grid="RAS",
        seed=3,
        size=1.0,
        rounded=False,
        fetus="f",
    ):
        """A stack: bright brain of ``size`` times the biometry, dark rim, grey surround."""
        axcodes, voxel_mm, tilt = GRIDS[grid]
        shape = tuple(int(FIELD_OF_VIEW_MM / v) for v in voxel_mm)
        affine, pose, case = make_affine(axcodes, voxel_mm, tilt, shape), head_pose(seed), self.case
        affine[:3, 3] += [11.0, -23.0, 5.0]
        pose[:3, 3] += [11.0, -23.0, 5.0]
        radius = brain_radius(world_points(affine, shape), pose, ga_weeks) / size
        image = np.select([radius < 1, radius < 1.15], [900.0, 150.0], 450.0)
        image = ndimage.gaussian_filter(image, 0.4)
        image += np.random.default_rng(number).normal(scale=30, size=shape)
        save_nifti(self.path(number), image.astype(np.float32), affine)
        world = head_points(ga_weeks) @ pose[:3, :3].T + pose[:3, 3]
        voxels = (world - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T
        if rounded:
            voxels = voxels.round().astype(int)
        self.truth[case(number)] = pose
        self.ages.append(f"ga({number:2d}) = {age or ga_weeks};")
        texts = [" ".join(f"{value.item()!r:>3}" for value in voxel) for voxel in voxels]
        self.lines.append(
            " ".join(
                f"{name}{{{number:2d}}} = [{text}];"
                for name, text in zip(("bman", "lman", "rman"), texts, strict=True)
            )
        )
        self.rows.append(",".join([case(number), fetus, repr(ga_weeks), *" ".join(texts).split()]))
        return self

    @staticmethod
    def case(number):
        return f"ep2d_{number:02d}"

    def path(self, number):
        return self.source / "data" / f"{self.case(number)}.nii.gz"

    def write(self, text=None):
        """loaddata.m, of the stacks added unless ``text`` is given."""
        lines = ["% Gestational age in weeks.", *self.ages, "", "% ga( 1) = 12;", *self.lines, ""]
        (self.source / "loaddata.m").write_text("\n".join(lines) if text is None else text)
        return self

    def write_csv(self, text=None):
        """landmarks.csv, likewise."""
        columns = ["case", "fetus", "ga_weeks", *(f"{p}_{axis}" for p in POINTS for axis in "ijk")]
        lines = [",".join(columns), *self.rows, ""]
        (self.source / "landmarks.csv").write_text("\n".join(lines) if text is None else text)
        return self

    def run(self, **kwargs) -> Path:
        if not any((self.source / name).exists() for name in ("loaddata.m", "landmarks.csv")):
            self.write()
        return import_fetal_align(self.source, self.dataset, progress=False, **kwargs)

    def cases(self):
        """Section -> cases of the data set."""
        return {s: [entry["case"] for entry in datalist(self.dataset, s)] for s in SECTIONS}

    def labels(self):
        return sorted(p.name for p in (self.dataset / "labels").iterdir())


@pytest.fixture
def clone(tmp_path):
    return Clone(tmp_path)


@pytest.fixture
def masks(monkeypatch):
    """Makes the masks cheap and of no interest; gives the ages for which one was made."""
    made = []

    def mask(aligned, points, ga_weeks):
        made.append(ga_weeks)
        return np.linalg.norm(points, axis=0) < 30

    monkeypatch.setattr(fetal_align, "brain_mask", mask)
    return made


def read(path):
    image = nib.load(path)
    return np.asarray(image.dataobj), image.affine


def entry_of(dataset, case="ep2d_01", section="training"):
    """The entry as written, and its label and affine."""
    content = json.loads((dataset / "dataset.json").read_text())
    (entry,) = (e for e in content[section] if e["image"].endswith(f"{case}.nii.gz"))
    return entry, *read(dataset / entry["label"])


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


@pytest.mark.parametrize("grid", list(GRIDS))
def test_poses_and_labels_are_those_of_the_head(clone, grid):
    clone.add(1, grid=grid).run()
    entry, label, affine = entry_of(clone.dataset)
    image, image_affine = read(clone.path(1))
    truth = clone.truth["ep2d_01"]
    np.testing.assert_allclose(entry["head_to_world"], truth, atol=1e-4)
    assert label.dtype == np.uint8
    assert label.shape == image.shape
    np.testing.assert_array_equal(affine, image_affine)

    points = world_points(affine, label.shape)
    assert dice(label == 1, brain_radius(points, truth, 31.0) < 1) > 0.9
    eyes = head_points(31.0)[1:] @ truth[:3, :3].T + truth[:3, 3]
    given = np.array([entry["left_eye_mm"], entry["right_eye_mm"]])  # in the head frame
    np.testing.assert_allclose(given @ truth[:3, :3].T + truth[:3, 3], eyes, atol=1e-4)
    components, count = ndimage.label(label == 2)
    assert count == 2
    for eye in eyes:
        distance = np.linalg.norm(points - eye, axis=-1)
        mine = components == components[np.unravel_index(distance.argmin(), distance.shape)]
        voxel_mm3 = abs(np.linalg.det(affine[:3, :3]))
        diameter = (6 / np.pi * mine.sum() * voxel_mm3) ** (1 / 3)
        assert abs(diameter / eye_diameter_mm(31.0) - 1) < 0.12
        assert np.linalg.norm(points[mine].mean(0) - eye) < 1
        assert distance[mine].max() <= eye_diameter_mm(31.0) / 2


def test_datalist_loads_what_is_written(clone):
    path = clone.add(1, ga_weeks=31.0).add(2, age="27 + 1/7", grid="LAS", ga_weeks=27 + 1 / 7).run()
    assert path == clone.dataset / "dataset.json"
    first, second = json.loads(path.read_text())["training"]
    assert first["subject"] == "ga31.00"
    assert second["subject"] == "ga27.14"
    assert [first["ga_weeks"], second["ga_weeks"]] == [31, pytest.approx(27 + 1 / 7)]
    assert first["image"] == "../clone/data/ep2d_01.nii.gz"
    assert first["label"] == "labels/ep2d_01.nii.gz"
    entries = datalist(clone.dataset, "training")
    assert [entry["case"] for entry in entries] == ["ep2d_01", "ep2d_02"]
    assert clone.labels() == ["ep2d_01.nii.gz", "ep2d_02.nii.gz"]
    assert not list(clone.dataset.rglob(".*"))


@pytest.mark.parametrize("grid", ["LPS", "PIL", "anisotropic"])
def test_whole_voxels_give_the_pose_of_the_rounded_landmarks(clone, masks, grid):
    clone.add(1, grid=grid, rounded=True).run()
    entry, _, affine = entry_of(clone.dataset)
    pose, truth = torch.tensor(entry["head_to_world"]), clone.truth["ep2d_01"]
    (numbers,) = (row.split(",")[3:] for row in clone.rows)
    voxels = np.array([int(number) for number in numbers]).reshape(3, 3)
    world = torch.tensor(voxels @ affine[:3, :3].T + affine[:3, 3])
    torch.testing.assert_close(pose.double(), landmarks_to_pose(*world), atol=1e-4, rtol=0)
    # not the truth, but near it
    assert 0.1 < geodesic_deg(pose[:3, :3], torch.tensor(truth[:3, :3]).to(pose)) < 10
    assert 0.1 < np.linalg.norm(pose[:3, 3] - truth[:3, 3]) < 4


@pytest.mark.parametrize("size", [0.9, 1.08])
def test_the_brains_size_comes_from_the_image(clone, size):
    clone.add(1, size=size, grid="PIL").run()
    _, label, affine = entry_of(clone.dataset)
    radius = brain_radius(world_points(affine, label.shape), clone.truth["ep2d_01"], 31.0)
    assert dice(label == 1, radius < size) > 0.9
    assert dice(label == 1, radius < size) > dice(label == 1, radius < 1) + 0.03


@pytest.mark.parametrize("ga_weeks", [22.0, 37.0])
def test_masks_of_small_and_of_large_heads(clone, ga_weeks):
    clone.add(1, ga_weeks=ga_weeks, grid="LPS").run()
    _, label, affine = entry_of(clone.dataset)
    points = world_points(affine, label.shape)
    assert dice(label == 1, brain_radius(points, clone.truth["ep2d_01"], ga_weeks) < 1) > 0.85


def test_the_mask_is_one_piece_without_holes_and_bias_does_not_matter(clone):
    clone.add(1)
    image, affine = read(clone.path(1))
    points = world_points(affine, image.shape)
    radius = brain_radius(points, clone.truth["ep2d_01"], 31.0)
    image[radius < 0.3] = 100  # dark ventricles
    image *= np.exp((points - points.mean((0, 1, 2))) @ [0.03, -0.024, 0.018])
    save_nifti(clone.path(1), image, affine)
    clone.run()
    brain = entry_of(clone.dataset)[1] == 1
    assert ndimage.label(brain)[1] == 1
    assert (ndimage.binary_fill_holes(brain) == brain).all()
    assert dice(brain, radius < 1) > 0.95


@pytest.mark.parametrize("value", [0.0, -5.0, 700.0])
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_without_contrast_the_biometry_decides(value):
    shape = (40, 40, 40)
    affine = make_affine("RAS", (4.0, 4.0, 4.0), 0.0, shape)
    label = make_label(np.full(shape, value, np.float32), affine, np.eye(4), 31.0, ())
    radius = brain_radius(world_points(affine, shape), np.eye(4), 31.0)
    assert (label[radius < 0.6] == 1).all()
    assert dice(label == 1, radius < 1) > 0.7


def test_the_random_walker_is_solved(clone, monkeypatch):
    """The probabilities of brain and surround come from two solutions, so their sum tells."""
    errors = []

    def solved(channels, seeds, **kwargs):
        brain, other = random_walker(channels, seeds, **kwargs, return_full_prob=True)
        errors.append(abs(brain + other - 1)[seeds == 0].max())
        return np.where(brain >= other, 1, 2)

    monkeypatch.setattr(fetal_align, "random_walker", solved)
    clone.add(1, ga_weeks=22.0, grid="LPS").run()  # noise parts some voxels from all around them
    assert errors[0] < 1e-3


def test_thick_slices_keep_the_eyes(masks):
    affine = np.diag([3.0, 3.0, 30.0, 1.0])
    eyes = (np.array([60.0, 60.0, 44.0]), np.array([90.0, 60.0, 44.0]))
    label = make_label(np.zeros((50, 50, 4), np.float32), affine, np.eye(4), 20.0, eyes)
    assert np.argwhere(label == 2).tolist() == [[20, 20, 1], [30, 20, 1]]


def test_stacks_of_one_age_are_one_subject(clone, masks):
    clone.add(1).add(2, ga_weeks=28.0).add(3, age="30 + 7/7").add(4, ga_weeks=28.0, age="28.00")
    clone.run()
    subjects = [entry["subject"] for entry in datalist(clone.dataset, "training")]
    assert subjects == ["ga31.00", "ga28.00", "ga31.00", "ga28.00"]


def test_sections_are_made_of_whole_subjects(clone, masks):
    clone.add(1).add(2, ga_weeks=28.0).add(3).add(4, ga_weeks=33.0)
    clone.run(validation=("ga31.00",), test=("ga33.00",))
    expected = {
        "training": ["ep2d_02"],
        "validation": ["ep2d_01", "ep2d_03"],
        "test": ["ep2d_04"],
    }
    assert clone.cases() == expected
    # another split of the same stacks may follow
    clone.run(test=("ga28.00", "ga31.00"))
    expected = {"training": ["ep2d_04"], "validation": []}
    assert clone.cases() == expected | {"test": ["ep2d_01", "ep2d_02", "ep2d_03"]}
    assert len(masks) == 4


def test_stacks_published_twice_are_taken_once(clone, masks):
    for number in (13, 14, 35, 36, 37):
        clone.add(number)
    clone.run()
    assert clone.cases()["training"] == ["ep2d_13", "ep2d_14", "ep2d_37"]
    assert clone.labels() == ["ep2d_13.nii.gz", "ep2d_14.nii.gz", "ep2d_37.nii.gz"]


def test_stacks_without_landmarks_and_landmarks_without_stack_are_left_out(clone, masks):
    clone.add(1).add(2).add(3).write()
    clone.path(2).unlink()
    save_nifti(clone.path(4), np.zeros((4, 4, 4), np.float32))
    clone.run()
    assert clone.cases()["training"] == ["ep2d_01", "ep2d_03"]


def test_the_table_of_landmarks_comes_first_and_names_the_fetuses(clone, masks):
    clone.add(1, fetus="f01").add(2, fetus="f02", seed=5).add(3, fetus="f01", ga_weeks=33.0)
    clone.write("ga( 1) = nonsense;").write_csv()
    clone.run(test=("f02",))
    entries = datalist(clone.dataset, "training") + datalist(clone.dataset, "test")
    found = [(entry["case"], entry["subject"]) for entry in entries]
    assert found == [("ep2d_01", "f01"), ("ep2d_03", "f01"), ("ep2d_02", "f02")]
    for entry in entries:
        np.testing.assert_allclose(entry["head_to_world"], clone.truth[entry["case"]], atol=1e-4)
    written = entry_of(clone.dataset, "ep2d_03")[0]
    assert written["ga_weeks"] == 33


def test_a_table_from_a_spreadsheet_and_the_folder_stacks(clone, masks):
    clone.add(1, fetus="f01").write_csv()
    expected = clone.run().read_text().replace("/data/", "/stacks/")
    (clone.source / "data").rename(clone.source / "stacks")
    table = clone.source / "landmarks.csv"
    text = "\ufeff" + table.read_text().replace(",", ", ").replace("\n", "\r\n") + "\r\n"
    table.write_bytes(text.encode())
    clone.dataset = clone.dataset.with_name("other")
    assert clone.run().read_text() == expected


def test_how_the_statements_are_laid_out_does_not_matter(clone, masks):
    clone.add(1, rounded=True).add(2, rounded=True, ga_weeks=27 + 1 / 7, age="27 + 1/7").write()
    expected = clone.run().read_text()
    statements = "\n".join(reversed([*clone.ages, *clone.lines]))
    statements = statements.replace("{ ", "{").replace("( ", "(").replace("; ", ";\n")
    statements = statements.replace("[", "[  ").replace(" + 1/7", "+1 / 7").replace(" = ", "=")
    text = f"% J\xf6rg's; bman{{ 9}} = [1 2 3];\r\n{statements} % 31 weeks\r\nfunction f\r\n"
    (clone.source / "loaddata.m").unlink()
    (clone.source / "matlab").mkdir()
    (clone.source / "matlab" / "loaddata.m").write_bytes(text.encode("latin-1"))
    clone.dataset = clone.dataset.with_name("other")
    assert clone.run().read_text() == expected


def test_a_second_run_makes_what_is_missing_only(clone, masks):
    path = clone.add(1).add(2, seed=4).run()
    expected = path.read_text()
    labels = sorted((clone.dataset / "labels").iterdir())
    for label in labels:
        os.utime(label, (1, 1))
    assert clone.run() == path
    assert path.read_text() == expected
    assert [label.stat().st_mtime for label in labels] == [1, 1]
    assert len(masks) == 2
    labels[1].unlink()
    path.unlink()
    clone.run()
    assert path.read_text() == expected
    assert labels[0].stat().st_mtime == 1
    assert labels[1].stat().st_mtime > 1
    assert len(masks) == 3


def test_an_interrupted_run_goes_on(clone, masks, monkeypatch):
    clone.add(1).add(2)
    plain = fetal_align.brain_mask

    def interrupted(*args):
        if masks:
            raise KeyboardInterrupt
        return plain(*args)

    with monkeypatch.context() as context:
        context.setattr(fetal_align, "brain_mask", interrupted)
        with pytest.raises(KeyboardInterrupt):
            clone.run()
    assert clone.labels() == ["ep2d_01.nii.gz"]
    assert not (clone.dataset / "dataset.json").exists()
    clone.run()
    assert clone.labels() == ["ep2d_01.nii.gz", "ep2d_02.nii.gz"]
    assert len(masks) == 2


def test_links_lead_to_the_stacks(clone, masks, tmp_path, monkeypatch):
    clone.add(1).add(2).write()
    # a stack that is a link keeps its own name, and the folders are reached through links
    clone.path(2).rename(tmp_path / "elsewhere.nii.gz")
    clone.path(2).symlink_to(tmp_path / "elsewhere.nii.gz")
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far" / "away")
    (tmp_path / "near").symlink_to(clone.source)
    monkeypatch.chdir(tmp_path)
    path = import_fetal_align("near", "link", progress=False)
    assert path == Path("link/dataset.json")
    images = [entry["image"] for entry in json.loads(path.read_text())["training"]]
    assert images == [f"../../clone/data/ep2d_0{number}.nii.gz" for number in (1, 2)]
    assert [entry["case"] for entry in datalist("link", "training")] == ["ep2d_01", "ep2d_02"]


@pytest.mark.parametrize(("progress", "shown"), [(True, True), (False, False)])
def test_progress(clone, masks, capfd, progress, shown):
    clone.add(1).write()
    import_fetal_align(clone.source, clone.dataset, progress=progress)
    assert ("fetal-align" in capfd.readouterr().err) == shown


def test_no_landmarks_file(clone):
    clone.add(1)
    with pytest.raises(FileNotFoundError, match=r"clone: neither loaddata\.m nor landmarks\.csv"):
        import_fetal_align(clone.source, clone.dataset)
    with pytest.raises(FileNotFoundError, match=r"gone: neither loaddata\.m"):
        import_fetal_align(clone.source / "gone", clone.dataset)
    assert not clone.dataset.exists()


def test_no_stacks_or_none_with_landmarks(clone):
    clone.add(1).write()
    clone.path(1).rename(clone.path(2))
    with pytest.raises(FileNotFoundError, match="clone: none of its 1 stacks has landmarks"):
        clone.run()
    clone.path(2).unlink()
    with pytest.raises(FileNotFoundError, match=r"clone: no ep2d_\*\.nii\.gz"):
        clone.run()
    assert not clone.dataset.exists()


AGE = "ga( 1) = 31;\n"
BRAIN, LEFT = "bman{ 1} = [ 25  25 25];", "lman{ 1} = [ 20  40 20];"
RIGHT = "rman{ 1} = [ 30  40 20];"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no landmarks such as bman"),
        (AGE + f"% {BRAIN} {LEFT} {RIGHT}", "no landmarks such as bman"),
        (AGE + LEFT + RIGHT, "stack 1 lacks brain"),
        (AGE + BRAIN, "stack 1 lacks left_eye, right_eye"),
        (AGE + BRAIN + RIGHT, "stack 1 lacks left_eye"),
        (AGE + BRAIN + LEFT + "% " + RIGHT, "stack 1 lacks right_eye"),
        (BRAIN + LEFT + RIGHT, "stack 1 lacks its age, ga"),
        ("% " + AGE + BRAIN + LEFT + RIGHT, "stack 1 lacks its age, ga"),
        ("ga( 1) = 27 + 1/6;" + BRAIN + LEFT + RIGHT, "stack 1 lacks its age, ga"),
        ("ga( 1) = 3.1.0;" + BRAIN + LEFT + RIGHT, "stack 1 lacks its age, ga"),
        (AGE + BRAIN + LEFT + RIGHT.replace("1", "2", 1), "stack 1 lacks right_eye"),
        ("ga( 1) = 217;" + BRAIN + LEFT + RIGHT, "ep2d_01: .*14 to 45 weeks, got 217"),
        (
            AGE + "bman{ 1} = [ 25  25];" + LEFT + RIGHT,
            r"expected 3 numbers, got bman\{1\} = \[ 25  25\]",
        ),
        (
            AGE + BRAIN + "lman{ 1} = [ 20  40 20 1];" + RIGHT,
            r"expected 3 numbers, got lman\{1\} = \[ 20  40 20 1\]",
        ),
        (
            AGE + BRAIN + LEFT + "rman{ 1} = [ 20  x 20];",
            r"expected 3 numbers, got rman\{1\} = \[ 20  x 20\]",
        ),
        (AGE + BRAIN + LEFT + "rman{ 1} = [];", r"expected 3 numbers, got rman\{1\} = \[\]"),
    ],
)
def test_errors_of_loaddata(clone, text, message):
    clone.add(1).write(text)
    with pytest.raises(ValueError, match=rf"loaddata\.m: {message}"):
        clone.run()
    assert not clone.dataset.exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("ep2d_02,f,", "ep2d_02,", "line 3"),
        ("ep2d_02,f,28.0", "ep2d_02,f,28.0,", "line 3: .*could not convert string to float: ''"),
        ("ep2d_02,f,28.0", "ep2d_02,f,old", "line 3: .*'old'"),
        ("ep2d_02,f,28.0", "ep2d_02,f,nan", "line 3: .*14 to 45 weeks, got nan"),
        ("ep2d_02,f,28.0", "ep2d_02,f,196", "line 3: .*14 to 45 weeks, got 196"),
        ("ep2d_02,f,28.0", "ep2d_02,,28.0", "line 3: .*no name of the stack or of the fetus"),
        ("ep2d_02,f,28.0", ",f,28.0", "line 3: .*no name of the stack or of the fetus"),
        ("ep2d_02", "ep2d_01", "line 3: .*ep2d_01 for the second time"),
        ("ep2d_02,f,28.0", "\nep2d_02,f,x", "line 4: .*'x'"),
        ("fetus", "subject", "line 2: .*'fetus'"),
        ("left_eye_j", "left_eye_y", "line 2: .*'left_eye_j'"),
    ],
)
def test_errors_of_the_table_name_the_line(clone, old, new, message):
    clone.add(1).add(2, ga_weeks=28.0).write_csv()
    text = (clone.source / "landmarks.csv").read_text()
    assert text.count(old) == 1
    clone.write_csv(text.replace(old, new))
    with pytest.raises(ValueError, match=rf"landmarks\.csv, {message}"):
        clone.run()
    assert not clone.dataset.exists()


@pytest.mark.parametrize(
    ("voxel", "named"),
    [
        ("50 25 25", r"\[50.0, 25.0, 25.0\]"),
        ("25 25 49.6", r"\[25.0, 25.0, 49.6\]"),
        ("25 -0.6 25", r"\[25.0, -0.6, 25.0\]"),
        ("25 nan 25", r"\[25.0, nan, 25.0\]"),
    ],
)
def test_landmarks_outside_the_stack(clone, masks, voxel, named):
    clone.add(1).write(AGE + BRAIN + f"lman{{ 1}} = [{voxel}];" + RIGHT)
    message = rf"ep2d_01\.nii\.gz: left_eye at voxel {named} lies outside .*\(50, 50, 50\)"
    with pytest.raises(ValueError, match=message):
        clone.run()
    assert not clone.dataset.exists()


def test_landmarks_on_one_line(clone, masks):
    clone.add(1).write(AGE + BRAIN + LEFT + LEFT.replace("lman", "rman"))
    with pytest.raises(ValueError, match=r"ep2d_01\.nii\.gz: .*lie on one line"):
        clone.run()
    assert not clone.dataset.exists()


def series(path, image, affine):
    save_nifti(path, np.stack([image] * 2, axis=-1), affine)


def text_file(path, image, affine):
    path.write_text("no image\n")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (series, "expected one 3D volume, got 2 frames"),
        (text_file, "cannot be read as NIfTI"),
    ],
)
def test_stacks_that_are_no_volume(clone, masks, spoil, message):
    clone.add(1)
    spoil(clone.path(1), *read(clone.path(1)))
    with pytest.raises(ValueError, match=rf"ep2d_01\.nii\.gz: .*{message}"):
        clone.run()
    assert not clone.dataset.exists()


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ({"test": ("ga30.00",)}, r"test \('ga30.00',\).*\['ga28.00', 'ga31.00'\]"),
        ({"validation": ("ga28.00", "f01")}, r"validation \('ga28.00', 'f01'\)"),
        ({"test": "ga28.00"}, "must be disjoint and among the subjects"),
        ({"validation": ("ga28.00",), "test": ("ga31.00", "ga28.00")}, "must be disjoint"),
    ],
)
def test_sections_that_cannot_be(clone, masks, split, message):
    clone.add(1).add(2, ga_weeks=28.0)
    with pytest.raises(ValueError, match=message):
        clone.run(**split)
    assert not masks
    assert not clone.dataset.exists()


@pytest.mark.parametrize(
    "text",
    ['{"training": [], "source": "mine"}', '{"training": []}', "[1, 2]", "{nonsense", ""],
)
def test_another_dataset_is_left_alone(clone, masks, text):
    clone.add(1)
    clone.dataset.mkdir()
    (clone.dataset / "dataset.json").write_text(text)
    with pytest.raises(ValueError, match=r"dataset/dataset\.json is another data set"):
        clone.run()
    # found out before the labels are made, which takes minutes
    assert [p.name for p in clone.dataset.iterdir()] == ["dataset.json"]
    assert (clone.dataset / "dataset.json").read_text() == text


@pytest.mark.skipif(not REAL.exists(), reason="the public stacks are not here")
def test_public_stacks(tmp_path):
    source = tmp_path / "source"
    (source / "stacks").mkdir(parents=True)
    lines = (REAL / "landmarks.csv").read_text().splitlines()
    names = {"ep2d_10": "f02", "ep2d_26": "f06", "ep2d_33": "f08"}
    lines = [lines[0], *(line for line in lines if line.split(",")[0] in names), ""]
    (source / "landmarks.csv").write_text("\n".join(lines))
    for name in names:
        (source / "stacks" / f"{name}.nii.gz").symlink_to(REAL / "stacks" / f"{name}.nii.gz")
    import_fetal_align(source, tmp_path / "dataset", test=("f08",), progress=False)
    entries = [e for s in ("training", "test") for e in datalist(tmp_path / "dataset", s)]
    assert {entry["case"]: entry["subject"] for entry in entries} == names
    handedness = set()
    for entry in entries:
        label, affine = read(entry["label"])
        brain = np.argwhere(label == 1)
        det = np.linalg.det(affine[:3, :3])
        handedness.add(det > 0)
        assert 50 < len(brain) * abs(det) / 1000 < 450
        center = affine[:3, :3] @ brain.mean(0) + affine[:3, 3]
        assert np.linalg.norm(center - np.array(entry["head_to_world"])[:3, 3]) < 8
        assert ndimage.label(label == 2)[1] == 2
    assert handedness == {True, False}
