"""Tests of the synthetic fetal heads: geometry, truth, determinism and the data set's files."""

from __future__ import annotations

import json
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.ndimage import binary_dilation

from scripts.data.datalists import datalist
from scripts.data.dataset_check import check_dataset
from scripts.data.dataset_files import DatasetFiles
from scripts.phantom import (
    Phantom,
    PhantomGenerator,
    embedded_dataset,
    main,
    make_phantom,
    write_dataset,
)
from scripts.simulation.anatomy import (
    Head,
    biparietal_mm,
    eye_diameter_mm,
    eye_distance_mm,
    occipitofrontal_mm,
)
from scripts.simulation.contrast import CONTRASTS, DRAWN, draw_intensities
from scripts.simulation.shapes import Grid, WaveField, capsule, cover, ellipsoid

FINE = {"voxel_mm": (2.0, 2.0, 2.0), "shape": (88, 88, 88)}
SMALL = {"voxel_mm": (6.0, 6.0, 6.0), "progress": False}


def label_points(phantom: Phantom, value: int) -> np.ndarray:
    """(n, 3) world positions in mm of a label's voxels."""
    index = np.argwhere(phantom.label == value)
    return index @ phantom.affine[:3, :3].T + phantom.affine[:3, 3]


def in_head_frame(phantom: Phantom, points: np.ndarray) -> np.ndarray:
    """World points (n, 3) in the head frame, mm."""
    assert phantom.head_to_world is not None
    return (points - phantom.head_to_world[:3, 3]) @ phantom.head_to_world[:3, :3]


@pytest.fixture(scope="module")
def fine_phantoms() -> list[Phantom]:
    """Heads that 2 mm voxels cover whole, over the range of ages."""
    return [make_phantom(seed, ga_weeks=age, **FINE) for seed, age in ((3, 20), (4, 29), (5, 38))]


@pytest.fixture(scope="module")
def tiny_phantoms() -> list[Phantom]:
    """Many draws of pose, grid and contrast, with next to no voxels."""
    generator = PhantomGenerator(voxel_mm=(10, 10, 10), shape=(4, 4, 4))
    generator.set_random_state(seed=0)
    return [generator() for _ in range(24)]


def test_same_seed_same_bytes_and_other_seed_other_volume() -> None:
    first, again, other = (make_phantom(seed) for seed in (11, 11, 12))
    assert first.image.tobytes() == again.image.tobytes()
    assert first.label.tobytes() == again.label.tobytes()
    assert np.array_equal(first.affine, again.affine)
    assert first.image.shape != other.image.shape or (first.image != other.image).any()


def test_global_random_state_is_neither_read_nor_moved() -> None:
    np.random.seed(1)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first = make_phantom(11)
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002
    np.random.seed(2)  # noqa: NPY002
    assert np.array_equal(first.image, make_phantom(11).image)


def test_types_and_range() -> None:
    phantom = make_phantom(2)
    assert phantom.image.dtype == np.int16
    assert phantom.label.dtype == np.uint8
    assert phantom.image.shape == phantom.label.shape
    assert phantom.image.min() >= 0
    assert 500 <= phantom.image.max() <= 3000
    assert set(np.unique(phantom.label)) == {0, 1, 2}


def test_speed() -> None:
    start = time.process_time()
    make_phantom(1, voxel_mm=(3, 3, 4.5), shape=(160, 160, 64))
    # About 1 s on one core; the limit leaves room for a slow machine.
    assert time.process_time() - start < 4


def test_pose_is_rigid_and_rotations_are_uniform(tiny_phantoms: list[Phantom]) -> None:
    turns = np.stack([phantom.head_to_world for phantom in tiny_phantoms])[:, :3, :3]
    assert np.allclose(turns @ turns.transpose(0, 2, 1), np.eye(3), atol=1e-12)
    assert np.allclose(np.linalg.det(turns), 1)
    # Each axis points everywhere: the mean of 24 unit vectors has a length of about 0.2.
    assert np.linalg.norm(turns.mean(axis=0), axis=0).max() < 0.55


def test_orientations_are_varied_and_half_are_left_handed(tiny_phantoms: list[Phantom]) -> None:
    affines = [phantom.affine for phantom in tiny_phantoms]
    left = sum(np.linalg.det(affine[:3, :3]) < 0 for affine in affines)
    assert 5 <= left <= 19
    assert len({nib.aff2axcodes(affine) for affine in affines}) > 10


@pytest.mark.parametrize("axcodes", ["RAS", "LPS", "PIL", "SLA"])
def test_axcodes_are_those_asked_for(axcodes: str) -> None:
    phantom = make_phantom(7, axcodes=axcodes, voxel_mm=(6, 6, 7))
    assert "".join(nib.aff2axcodes(phantom.affine)) == axcodes
    assert np.allclose(nib.affines.voxel_sizes(phantom.affine), (6, 6, 7))


def test_pose_and_anatomy_do_not_depend_on_the_grid_or_contrast() -> None:
    variants = [
        make_phantom(7, axcodes="RAS", contrast="t2", ga_weeks=30),
        make_phantom(7, axcodes="LPS", voxel_mm=(6, 6, 6), ga_weeks=30),
        make_phantom(7, contrast="epi", shape=(40, 50, 30), ga_weeks=30),
    ]
    for phantom in variants[1:]:
        assert np.array_equal(phantom.head_to_world, variants[0].head_to_world)
        assert np.array_equal(phantom.right_eye_mm, variants[0].right_eye_mm)


def test_label_centre_of_mass_is_the_pose(fine_phantoms: list[Phantom]) -> None:
    for phantom in fine_phantoms:
        assert phantom.head_to_world is not None
        assert not any(np.take(phantom.label, [0, -1], axis=axis).any() for axis in range(3))
        centre = label_points(phantom, 1).mean(axis=0)
        assert np.linalg.norm(centre - phantom.head_to_world[:3, 3]) < 0.5


def test_eyes_are_where_the_pose_says(fine_phantoms: list[Phantom]) -> None:
    for phantom in fine_phantoms:
        assert phantom.right_eye_mm is not None
        assert phantom.left_eye_mm is not None
        assert phantom.right_eye_mm[0] > 0 > phantom.left_eye_mm[0]
        points = in_head_frame(phantom, label_points(phantom, 2))
        for eye, chosen in (
            (phantom.right_eye_mm, points[:, 0] > 0),
            (phantom.left_eye_mm, points[:, 0] < 0),
        ):
            assert np.linalg.norm(points[chosen].mean(axis=0) - eye) < 0.7


def test_eyes_lie_thirty_degrees_below_the_horizontal() -> None:
    random = np.random.RandomState(0)
    for age in (20, 24, 28, 32, 36, 38):
        head = Head.draw(random, age)
        x, y, z = head.eyes_mm.mean(axis=0)
        assert abs(x) < 2
        assert y > 0
        assert 24 < np.rad2deg(np.arctan2(-z, y)) < 36
        assert np.hypot(y, z) == pytest.approx(0.93 * head.ofd_mm / 2, rel=0.09)


def test_biometry(fine_phantoms: list[Phantom]) -> None:
    for phantom in fine_phantoms:
        extent = np.ptp(in_head_frame(phantom, label_points(phantom, 1)), axis=0)
        age = phantom.ga_weeks
        # The brain is some 5 mm smaller than the skull's diameters; heads vary by about 10 %.
        assert extent[0] == pytest.approx(biparietal_mm(age) - 5, rel=0.17)
        assert extent[1] == pytest.approx(occipitofrontal_mm(age) - 5, rel=0.17)
        assert 0.8 < extent[2] / biparietal_mm(age) < 1.35
        half = np.linalg.norm(phantom.right_eye_mm - phantom.left_eye_mm)
        assert half == pytest.approx(eye_distance_mm(age), rel=0.15)
        volume = (phantom.label == 2).sum() * 8 / 2
        assert volume == pytest.approx(np.pi / 6 * eye_diameter_mm(age) ** 3, rel=0.3)


def test_brain_points_forward_and_its_stem_down() -> None:
    """The cerebellum and the stem lie behind and below: the brain has no front-back symmetry."""
    head = Head.draw(np.random.RandomState(5), 30)
    _, b, c = head.radii_mm

    def inside(x: float, y: float, z: float) -> bool:
        point = (np.full((1, 1, 1), v, np.float32) for v in (x, y, z))
        return bool(head.brain(*point) < 0)

    assert inside(0, -0.22 * b, -1.3 * c)
    assert not inside(0, 0.22 * b, -1.3 * c)
    assert inside(0, -0.45 * b, -0.95 * c)
    assert not inside(0, 0.45 * b, -0.95 * c)
    assert not inside(0, 0, 1.1 * c)


def test_head_is_nearly_but_not_exactly_symmetric() -> None:
    for seed in range(4):
        head = Head.draw(np.random.RandomState(seed), 30)
        affine = np.diag([2.0, 2.0, 2.0, 1.0])
        affine[:3, 3] = (-55, -65, -75)
        grid = Grid(affine, (56, 66, 66))
        brain = head.brain(*head.warped(grid, np.eye(4))) < 0
        mirrored = brain[::-1]
        dice = 2 * (brain & mirrored).sum() / (2 * brain.sum())
        assert 0.93 < dice < 1


def test_heads_differ() -> None:
    heads = [Head.draw(np.random.RandomState(seed), 30) for seed in range(20)]
    index = [head.bpd_mm / head.ofd_mm for head in heads]
    assert min(index) < 0.77
    assert max(index) > 0.81


def test_contrasts(tiny_phantoms: list[Phantom]) -> None:
    """The brain is much brighter than the skull around it, whatever the contrast."""
    for contrast in CONTRASTS:
        phantom = make_phantom(
            6, ga_weeks=34, contrast=contrast, voxel_mm=(3, 3, 3), shape=(48, 48, 48)
        )
        assert phantom.contrast == contrast
        brain = phantom.label == 1
        skull = binary_dilation(brain, iterations=1) & (phantom.label == 0)
        if contrast != "random":  # which may be anything
            assert np.median(phantom.image[skull]) < 0.8 * np.median(phantom.image[brain])
    assert {phantom.contrast for phantom in tiny_phantoms} == set(DRAWN)


def test_random_contrast_is_log_uniform_and_blood_is_bright_in_bssfp() -> None:
    random = np.random.RandomState(0)
    drawn = np.array([list(draw_intensities(random, "random").values()) for _ in range(100)])
    assert 0.1 <= drawn.min() < 0.11
    assert 2.9 < drawn.max() <= 3
    assert np.median(drawn) == pytest.approx(np.sqrt(0.1 * 3), rel=0.1)
    t2, bssfp = (draw_intensities(np.random.RandomState(1), kind) for kind in ("t2", "bssfp"))
    assert 1 < bssfp["csf"] < t2["csf"]
    assert t2["flowing blood"] < 0.5 < 1 < bssfp["flowing blood"]


def test_head_is_inside_the_field_of_view() -> None:
    share = []
    for seed in range(4):
        phantom = make_phantom(seed, voxel_mm=(6, 6, 6))
        assert phantom.head_to_world is not None
        at = np.linalg.solve(phantom.affine, phantom.head_to_world[:, 3])[:3]
        share.append(((at > 0) & (at < np.array(phantom.label.shape) - 1)).all())
    assert all(share)


def test_headless() -> None:
    phantom = make_phantom(4, head=False)
    assert not phantom.label.any()
    assert phantom.head_to_world is None
    assert phantom.right_eye_mm is None
    assert phantom.image.max() > 0


@pytest.mark.parametrize("age", [17.9, 38.1, float("nan")])
def test_bad_age(age: float) -> None:
    with pytest.raises(ValueError, match=r"18\.\.38"):
        make_phantom(0, ga_weeks=age)


def test_other_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'t1'"):
        make_phantom(0, contrast="t1")
    with pytest.raises(ValueError, match="RAX"):
        make_phantom(0, axcodes="RAX")
    with pytest.raises(ValueError, match=r"0\.1"):
        make_phantom(0, voxel_mm=(0.1, 3, 3))
    with pytest.raises(ValueError, match=r"training .* -1"):
        write_dataset(tmp_path / "d", training=-1)
    with pytest.raises(ValueError, match=r"1\.5"):
        write_dataset(tmp_path / "d", headless_share=1.5)
    with pytest.raises(ValueError, match=r"twin_share .* -0\.5"):
        write_dataset(tmp_path / "d", twin_share=-0.5)
    assert not (tmp_path / "d").exists()


def test_dataset(tmp_path: Path) -> None:
    path = write_dataset(tmp_path, 2, 1, 1, headless_share=0.5, **SMALL)
    content = json.loads(path.read_text())
    assert path == tmp_path / "dataset.json"
    assert [len(content[s]) for s in ("training", "validation", "test")] == [2, 1, 1]
    assert content["training"][1]["head_to_world"] is None
    for entry in content["training"] + content["test"]:
        image, label = (nib.load(tmp_path / entry[key]) for key in ("image", "label"))
        assert image.get_data_dtype() == np.int16
        assert label.get_data_dtype() == np.uint8
        assert image.shape == label.shape
        assert 20 <= entry["ga_weeks"] <= 38
        mask = np.asanyarray(label.dataobj) == 1
        assert mask.any() == (entry["head_to_world"] is not None)
    pose = np.array(content["training"][0]["head_to_world"])
    assert pose.shape == (4, 4)
    assert np.linalg.det(pose) == pytest.approx(1)
    subjects = [e["subject"] for s in ("training", "validation", "test") for e in content[s]]
    assert len(set(subjects)) == 4


@pytest.fixture(scope="module")
def twins() -> list[Phantom]:
    found = []
    for seed in range(6):
        sequence = (None, "haste")[seed % 2]
        generator = PhantomGenerator((20, 36), voxel_mm=(4, 4, 4), sequence=sequence)
        generator.set_random_state(seed=seed)
        found.append(generator(twin=True))
    return found


def test_twins_lie_apart_and_the_second_is_unknown(twins: list[Phantom]) -> None:
    shown = 0
    for phantom in twins:
        poses = np.stack([phantom.head_to_world, phantom.twin_to_world])
        assert np.allclose(poses[1, :3, :3] @ poses[1, :3, :3].T, np.eye(3))
        values = set(np.unique(phantom.label))
        assert {0, 1} < values <= {0, 1, 2, 255}
        shown += 255 in values
        for value, own, other in ((1, *poses), (255, *poses[::-1])):
            points = label_points(phantom, value)
            away, far = (np.linalg.norm(points - pose[:3, 3], axis=1) for pose in (own, other))
            assert (away < far).all()
            assert (away < biparietal_mm(phantom.ga_weeks)).all()
    assert shown >= 4


def test_a_twin_looks_like_a_head(twins: list[Phantom]) -> None:
    """Its brain is about as bright as the first one's."""
    ratios = [
        np.median(phantom.image[phantom.label == 255])
        / np.median(phantom.image[phantom.label == 1])
        for phantom in twins
        if (phantom.label == 255).any()
    ]
    assert np.exp(np.abs(np.log(ratios)).mean()) < 1.5


def test_a_twin_changes_nothing_of_what_is_drawn_before_it() -> None:
    generator = PhantomGenerator(voxel_mm=(6, 6, 6))
    poses = []
    for twin in (False, True):
        generator.set_random_state(seed=3)
        poses.append(generator(twin=twin).head_to_world)
    assert np.array_equal(*poses)


def test_a_twin_needs_a_head() -> None:
    with pytest.raises(ValueError, match="head=False"):
        PhantomGenerator()(head=False, twin=True)


def test_twins_in_a_dataset(tmp_path: Path) -> None:
    path = write_dataset(tmp_path, 4, 0, 2, headless_share=0.5, twin_share=0.5, **SMALL)
    content = json.loads(path.read_text())
    assert content["phantom"]["twin_share"] == 0.5
    there = [["twin_to_world" in entry for entry in content[s]] for s in ("training", "test")]
    # every second one, if it has a head
    assert there == [[False, False, False, False], [False, True]]
    assert datalist(tmp_path, "test")[1]["twin_to_world"].dtype == torch.float64
    assert not [finding for finding in check_dataset(tmp_path) if finding.error]


def test_a_brain_alone_is_cut_out_where_it_was(tmp_path: Path) -> None:
    whole, brain = (
        write_dataset(
            tmp_path / str(only), 2, 0, 0, headless_share=0.0, voxel_mm=(4, 4, 4), brain_only=only
        )
        for only in (False, True)
    )
    for before, after in zip(
        *(json.loads(path.read_text())["training"] for path in (whole, brain)), strict=True
    ):
        assert before["head_to_world"] == after["head_to_world"]
        given, cut = (
            [nib.load(path.parent / entry[key]) for key in ("image", "label")]
            for path, entry in ((whole, before), (brain, after))
        )
        image, label = (np.asanyarray(file.dataobj) for file in cut)
        assert image.size < 0.2 * given[0].get_fdata().size
        # every voxel that is kept has the value that it had at its place in the world
        kept = np.argwhere(image > 0)
        world = nib.affines.apply_affine(cut[0].affine, kept)
        old = np.rint(nib.affines.apply_affine(np.linalg.inv(given[0].affine), world)).astype(int)
        assert np.array_equal(given[0].get_fdata()[tuple(old.T)], image[tuple(kept.T)])
        # the whole brain or nearly, little else, and a border of zeros
        brain_voxels = (np.asanyarray(given[1].dataobj) == 1).sum()
        assert (label == 1).sum() > 0.6 * brain_voxels
        assert brain_voxels * 0.6 < (image > 0).sum() < 4 * brain_voxels
        inner = np.zeros(image.shape, bool)
        inner[3:-3, 3:-3, 3:-3] = True
        assert not image[~inner].any()


@pytest.mark.parametrize(
    "other",
    [
        {"sequence": "haste"},
        {"headless_share": 0.5},
        {"twin_share": 0.5},
        {"voxel_mm": (3, 3, 4)},
        {"voxel_mm": None},
    ],
)
def test_brains_alone_are_cubic_at_rest_and_always_there(tmp_path: Path, other: dict) -> None:
    given = {"headless_share": 0.0, "voxel_mm": (4, 4, 4)} | other
    with pytest.raises(ValueError, match="brain_only takes cubic voxel_mm"):
        write_dataset(tmp_path / "d", 1, 0, 0, brain_only=True, **given)
    assert not (tmp_path / "d").exists()


def test_dataset_resumes_and_grows(tmp_path: Path) -> None:
    write_dataset(tmp_path / "a", 2, 0, 1, **SMALL)
    whole = json.loads((tmp_path / "a/dataset.json").read_text())
    # What a run that was stopped leaves: no datalist, a volume missing.
    (tmp_path / "a/dataset.json").unlink()
    lost = tmp_path / "a" / whole["training"][1]["image"]
    kept = tmp_path / "a" / whole["training"][0]["image"]
    lost_values, kept_time = np.asanyarray(nib.load(lost).dataobj).copy(), kept.stat().st_mtime_ns
    lost.unlink()
    write_dataset(tmp_path / "a", 2, 1, 1, **SMALL)
    grown = json.loads((tmp_path / "a/dataset.json").read_text())
    assert grown["training"] == whole["training"]
    assert len(grown["validation"]) == 1
    assert np.array_equal(np.asanyarray(nib.load(lost).dataobj), lost_values)
    assert kept.stat().st_mtime_ns == kept_time
    assert not list((tmp_path / "a").rglob(".*"))


def test_dataset_of_other_parameters_is_left_alone(tmp_path: Path) -> None:
    path = write_dataset(tmp_path, 1, 0, 0, seed=3, **SMALL)
    before = path.read_text()
    with pytest.raises(ValueError, match="seed = 3, wanted 4") as error:
        write_dataset(tmp_path, 1, 0, 0, seed=4, **SMALL)
    assert str(path) in str(error.value)
    assert path.read_text() == before
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    for content in ('{"training": []}', "[]", '{"phantom": 3}', "half a fi"):
        (foreign / "dataset.json").write_text(content)
        with pytest.raises(ValueError, match=r"foreign.dataset\.json.*left alone"):
            write_dataset(foreign, 1, 0, 0, **SMALL)
        assert [path.name for path in foreign.iterdir()] == ["dataset.json"]


def test_parameters_are_there_before_the_first_volume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(DatasetFiles, "write", full)
    with pytest.raises(OSError, match="disk full"):
        write_dataset(tmp_path, 1, 0, 0, seed=3, **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["phantom.json"]
    with pytest.raises(ValueError, match=r"phantom\.json was made with seed = 3, wanted 4"):
        write_dataset(tmp_path, 1, 0, 0, seed=4, **SMALL)


def test_a_finished_data_set_is_not_written_to(tmp_path: Path) -> None:
    write_dataset(tmp_path, 1, 0, 1, **SMALL)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    write_dataset(tmp_path, 1, 0, 1, **SMALL)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == times


def test_embedded_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    phantom = make_phantom(0, voxel_mm=(10, 10, 10), shape=(4, 4, 4))

    def one_volume(self: PhantomGenerator, head: bool = True, twin: bool = False) -> Phantom:
        return phantom

    monkeypatch.setattr(PhantomGenerator, "__call__", one_volume)
    root = embedded_dataset(tmp_path)
    content = json.loads((Path(root) / "dataset.json").read_text())
    assert [len(content[s]) for s in ("training", "validation", "test")] == [128, 16, 24]
    assert embedded_dataset(str(tmp_path)) == root == str(tmp_path / "data" / "phantom")


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--training", "1", "--validation", "0", "--test", "0"]
    arguments = ["--dataset_dir", str(tmp_path / "d"), *sizes, "--voxel_mm", "6,6,6"]
    main([*arguments, "--ga_weeks", "25,26", "--contrast", "epi"])
    content = json.loads((tmp_path / "d/dataset.json").read_text())
    assert content["training"][0]["contrast"] == "epi"
    assert 25 <= content["training"][0]["ga_weeks"] <= 26
    with pytest.raises(SystemExit):
        main([*arguments, "--ga_weeks", "10,26"])
    assert "18..38" in capsys.readouterr().err


def test_distances_against_the_sphere() -> None:
    x, y, z = np.meshgrid(*[np.linspace(-9, 9, 7, dtype=np.float32)] * 3, indexing="ij")
    exact = np.sqrt(x * x + y * y + z * z) - 5
    assert np.allclose(
        ellipsoid(x, y, z, (0, 0, 0), (5, 5, 5))[exact > -5], exact[exact > -5], atol=1e-4
    )
    assert np.allclose(capsule(x, y, z, (0, 0, 0), (0, 0, 1e-4), (5, 5)), exact, atol=1e-3)
    assert np.allclose(cover(np.array([-2, 0, 0.5, 2], np.float32), 2.0), [1, 0.5, 0.25, 0])


def test_wave_field_on_a_grid_is_the_sum_of_its_waves() -> None:
    field = WaveField.draw(np.random.RandomState(0), 5, (20, 60), [1.0, 2.0], mirror=(1, -1))
    affine = np.array([[0, 3.0, 0, -5], [2, 0.5, 0, 1], [0, 0, 4, 2], [0, 0, 0, 1]])
    grid = Grid(affine, (3, 4, 5), np.linspace(0, 1, 15).reshape(5, 3))
    points = np.stack(grid.coordinates(np.eye(4)), axis=-1).astype(np.float64)
    naive = np.cos(points @ field.waves.T + field.phases) @ field.amplitudes
    assert np.allclose(field.on_grid(grid, np.eye(4)), np.moveaxis(naive, -1, 0), atol=1e-4)
    mirrored = np.cos(points * [-1, 1, 1] @ field.waves.T + field.phases) @ field.amplitudes
    assert np.allclose(mirrored, naive * [1, -1])
