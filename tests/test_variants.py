"""variants.py, regridding.py: content stays at its place in the world, on the promised grid, with
that damage."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from conftest import head_pose, make_affine, rotation_matrix, save_nifti
from scripts.data import dataset_files
from scripts.data.datalists import datalist, volumes_in
from scripts.data.regridding import (
    Volume,
    averaged,
    centered_affine,
    random_cut,
    random_navigator,
    regridded,
    resampled,
    volume_center_mm,
)
from scripts.data.variants import KINDS, write_variant
from scripts.variants import main

WITH_HEAD = ["navigator", "regridded"]
SHAPE = (50, 44, 30)
VOXEL_MM = (3.0, 3.0, 4.5)
# mm in the head frame; the two unequal ones lie to the right and to the left
BLOBS = {3.0: (24.0, 0.0, 0.0), 2.0: (-24.0, 0.0, 0.0), 1.0: (0.0, 30.0, -20.0)}


def world_points(affine, shape):
    """(*shape, 3) world positions of the voxel centres."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    return index @ affine[:3, :3].T + affine[:3, 3]


def blob_volume(affine, shape=SHAPE, pose=None):
    """Blobs of 5 mm on their places in the head, and a label of 1 within 12 mm of the largest."""
    pose = head_pose() if pose is None else pose
    world = world_points(affine, shape)
    image, label = np.zeros(shape, np.float32), np.zeros(shape, np.uint8)
    for height, place in BLOBS.items():
        squared = ((world - pose[:3, :3] @ place - pose[:3, 3]) ** 2).sum(-1)
        image += height * np.exp(-squared / 50).astype(np.float32)
        if height == 3:
            label[squared < 12**2] = 1
    return Volume(image, affine, label)


def found_places(image, affine):
    """Height order -> place in the head frame of the blobs of an image, without using the pose."""
    components, count = ndimage.label(image > 0.12 * image.max())
    assert count == len(BLOBS)
    index = np.arange(1, count + 1)
    order = np.argsort(-ndimage.sum_labels(image, components, index))
    voxels = np.array(ndimage.center_of_mass(image, components, index))[order]
    world = voxels @ affine[:3, :3].T + affine[:3, 3]
    pose = head_pose()
    return (world - pose[:3, 3]) @ pose[:3, :3]


def read(path):
    image = nib.load(path)
    return np.asarray(image.dataobj), image.affine


@pytest.fixture
def dataset(tmp_path):
    """Two heads in unlike storage, one of them without label, and a volume without a head."""
    folder = tmp_path / "source"
    (folder / "volumes").mkdir(parents=True)
    entries = []
    for name, axcodes in (("a", "LPS"), ("b", "RAS"), ("none", "PIL")):
        volume = blob_volume(make_affine(axcodes, VOXEL_MM, 20.0, SHAPE))
        image = save_nifti(folder / f"volumes/{name}.nii.gz", volume.image, volume.affine)
        entry = {"image": f"volumes/{Path(image).name}", "head_to_world": head_pose().tolist()}
        entries.append(entry | {"subject": f"f{name}", "ga_weeks": 31.5, "fetus": 7})
        if name == "a":
            save_nifti(folder / "volumes/a_label.nii", volume.label, volume.affine)
            entries[0]["label"] = "volumes/a_label.nii"
    entries[2]["head_to_world"] = None
    (folder / "dataset.json").write_text(json.dumps({"training": [], "test": entries}))
    return folder


def make(kind, dataset, output, **options):
    path = write_variant(kind, dataset, output, progress=False, **options)
    return json.loads(path.read_text())


@pytest.mark.parametrize("kind", WITH_HEAD)
def test_entries_keep_pose_and_keys_and_files_are_laid_out_for_inference(kind, dataset, tmp_path):
    output = tmp_path / "variant"
    content = make(kind, dataset, output)
    source = json.loads((dataset / "dataset.json").read_text())["test"]
    assert content["training"] == content["validation"] == []
    assert len(content["test"]) == len(source)
    for entry, given in zip(content["test"], source, strict=True):
        name = Path(given["image"]).name
        expected = given | {"image": f"test/{name}"}
        if "label" in given:
            expected["label"] = f"test_labels/{name}"
        assert entry == expected
    assert len(datalist(output, "test")) == 3  # every file is there, every pose rigid
    assert [e["case"] for e in volumes_in(output / "test")] == ["a", "b", "none"]
    assert not list(output.rglob(".*"))


@pytest.mark.parametrize("kind", WITH_HEAD)
def test_content_stays_at_its_place_in_the_world(kind, dataset, tmp_path):
    voxel_mm = {"navigator": 6.0, "regridded": 3.5}[kind]
    clean = {"slab_offset_mm": 0, "delay_s": (99, 99), "noise": (0, 0)}
    for entry in make(kind, dataset, tmp_path / "variant")["test"]:
        image, affine = read(tmp_path / "variant" / entry["image"])
        np.testing.assert_allclose(np.linalg.norm(affine[:3, :3], axis=0), voxel_mm, atol=1e-3)
        det = np.linalg.det(affine[:3, :3])
        assert det == pytest.approx(voxel_mm**3 * {"navigator": 1, "regridded": -1}[kind], rel=1e-3)
        if kind == "navigator":  # the file has slab and noise: look at the same without them
            assert image.shape == (64, 64, 48)
            source = Volume(*read(tmp_path / "source/volumes" / Path(entry["image"]).name))
            random = np.random.RandomState(5)
            image, affine, _ = random_navigator(source, head_pose()[:3, 3], random, **clean)
        places = found_places(image, affine)
        errors = np.linalg.norm(places - np.array(list(BLOBS.values())), axis=1)
        assert errors.max() < voxel_mm / 2, errors


@pytest.mark.parametrize("kind", WITH_HEAD)
def test_label_and_image_align(kind, dataset, tmp_path):
    entry = make(kind, dataset, tmp_path / "variant")["test"][0]
    (image, affine), (label, label_affine) = (
        read(tmp_path / "variant" / entry[key]) for key in ("image", "label")
    )
    assert label.shape == image.shape
    assert label.dtype == np.uint8
    np.testing.assert_array_equal(affine, label_affine)
    pose = head_pose()
    center = pose[:3, :3] @ BLOBS[3.0] + pose[:3, 3]
    distance = np.linalg.norm(world_points(affine, image.shape) - center, axis=-1)
    slack = np.linalg.norm(VOXEL_MM) / 2  # nearest: at most half a source voxel away
    assert (label[distance < 12 - slack] == 1).all()
    assert (label[distance > 12 + slack] == 0).all()
    assert label.any()


def test_navigator_stands_near_the_head_or_the_middle_of_a_volume_without(dataset, tmp_path):
    entries = make("navigator", dataset, tmp_path / "variant", repeats=4)["test"]
    source = Volume(*read(dataset / "volumes/none.nii.gz"))
    shifts = []
    for entry in entries:
        image, affine = read(tmp_path / "variant" / entry["image"])
        head = entry["head_to_world"] is not None
        wanted = head_pose()[:3, 3] if head else volume_center_mm(source)
        shift = volume_center_mm(Volume(image, affine)) - wanted
        shifts.append(shift @ affine[:3, :3] / 6)  # along the grid's axes
    assert np.abs(shifts).max() <= 40 + 1e-3
    assert np.abs(shifts).max() > 20
    assert (np.std(shifts, axis=0) > 5).all()


@pytest.fixture
def mother(tmp_path):
    """A mother of intensity 1 that ends 180 mm to one side of a head of intensity 9."""
    folder = tmp_path / "source"
    folder.mkdir()
    shape = (90, 60, 50)
    affine = make_affine("LIP", (4.0, 4.0, 4.5), 15.0, shape)
    world = world_points(affine, shape)
    pose = head_pose()
    pose[:3, 3] = affine[:3, :3] @ (25, 30, 25) + affine[:3, 3]
    squared = ((world - pose[:3, 3]) ** 2).sum(-1)
    image = np.where(squared < 75**2, 9, 1).astype(np.float32)
    image[80:] = 0
    entry = {"head_to_world": pose.tolist(), "right_eye_mm": [0, 0, 0], "left_eye_mm": [1, 1, 1]}
    entry |= {"image": "a.nii.gz", "label": "a_label.nii.gz", "subject": "s", "ga_weeks": 30}
    save_nifti(folder / "a.nii.gz", image, affine)
    save_nifti(folder / "a_label.nii.gz", (squared < 40**2).astype(np.uint8), affine)
    (folder / "dataset.json").write_text(json.dumps({"test": [entry]}))
    return folder


def test_headless_shows_what_is_beside_the_head(mother, tmp_path):
    entries = make("headless", mother, tmp_path / "variant", repeats=5)["test"]
    for entry in entries:
        assert set(entry) == {"image", "label", "subject", "ga_weeks", "head_to_world"}
        assert entry["head_to_world"] is None
        image, affine = read(tmp_path / "variant" / entry["image"])
        np.testing.assert_allclose(np.linalg.norm(affine[:3, :3], axis=0), 6.0, atol=1e-3)
        assert image.max() < 2  # mother and noise
        assert (image > 0.5).mean() > 0.1  # of 17 % beyond the plane
        assert not read(tmp_path / "variant" / entry["label"])[0].any()
    assert len({read(tmp_path / "variant" / entry["image"])[0].tobytes() for entry in entries}) == 5


def test_headless_names_the_volume_that_shows_nothing_else(dataset, tmp_path):
    affine = centered_affine(np.eye(3) * 5, head_pose()[:3, 3], (9, 9, 9))
    save_nifti(dataset / "volumes/b.nii.gz", np.ones((9, 9, 9)), affine)
    with pytest.raises(ValueError, match=r"b\.nii\.gz: nothing of the volume is 85 mm"):
        make("headless", dataset, tmp_path / "variant")


@pytest.mark.parametrize(
    ("voxel_mm", "axis"), [((3.0, 3.0, 4.5), 2), ((5.0, 3.0, 3.0), 0), ((3.0, 3.0, 3.0), 2)]
)
def test_cut_ends_in_the_brain_and_leaves_the_rest_as_it_is(voxel_mm, axis):
    source = blob_volume(make_affine("LPS", voxel_mm, 20.0, SHAPE))
    index = world_points(source.affine, SHAPE)
    ends = set()
    for seed in range(8):
        cut = random_cut(source, np.zeros(3), np.random.RandomState(seed))
        left = (cut.label == 1).sum() / (source.label == 1).sum()
        one_slice = (source.label == 1).sum(axis=tuple({0, 1, 2} - {axis})).max()
        assert left == pytest.approx(0.85, abs=one_slice / (source.label == 1).sum())
        assert left < 1
        gone = np.array(SHAPE) - cut.image.shape
        assert gone[axis] > 0
        assert gone.sum() == gone[axis]
        first = gone * (np.abs(cut.affine - source.affine).max() > 1e-6)
        ends.add(bool(first.any()))
        kept = tuple(slice(a, a + n) for a, n in zip(first, cut.image.shape, strict=True))
        np.testing.assert_array_equal(cut.image, source.image[kept])
        np.testing.assert_array_equal(cut.label, source.label[kept])
        np.testing.assert_allclose(world_points(cut.affine, cut.image.shape), index[kept])
    assert ends == {True, False}
    half = random_cut(source, np.zeros(3), np.random.RandomState(0), lost=0.5)
    assert (half.label == 1).sum() < 0.65 * (source.label == 1).sum()


def test_cut_needs_a_brain_and_keeps_the_voxels(dataset, tmp_path):
    with pytest.raises(ValueError, match=r"b\.nii\.gz: no label shows the brain"):
        make("cut", dataset, tmp_path / "cut")
    with pytest.raises(ValueError, match=r"cut keeps the voxels as they are, got voxel_mm 4"):
        make("cut", dataset, tmp_path / "other", voxel_mm=4)
    content = json.loads((dataset / "dataset.json").read_text())
    content["test"] = content["test"][:1]
    (dataset / "dataset.json").write_text(json.dumps(content))
    (entry,) = make("cut", dataset, tmp_path / "cut")["test"]
    assert entry["head_to_world"] == content["test"][0]["head_to_world"]
    image, _ = read(tmp_path / "cut" / entry["image"])
    label, _ = read(tmp_path / "cut" / entry["label"])
    assert image.shape == label.shape
    assert image.shape[2] < SHAPE[2]


def test_slab_is_a_dark_plane_near_the_brain():
    affine = make_affine("RAS", (4.0, 4.0, 4.0), 0.0, (110, 110, 110))
    bright = Volume(np.full((110, 110, 110), 100, np.float32), affine)
    brain = np.array([7.0, -12.0, 9.0])
    normals, depths = [], []
    for seed in range(12):
        random = np.random.RandomState(seed)
        image, grid, _ = random_navigator(bright, brain, random, voxel_mm=4.0, noise=(0, 0))
        world = world_points(grid, image.shape)
        inside = np.abs(world - brain).max(-1) < 80
        assert image[inside].max() == pytest.approx(100, abs=0.1)
        depth = 1 - image[inside] / 100
        # sigma sets the distances at which voxels are dark: fit log depth = log alpha - d^2/2s^2
        points = world[inside][depth > 0.02] - brain
        weight = depth[depth > 0.02]
        middle = np.average(points, axis=0, weights=weight)
        _, spread, axes = np.linalg.svd((points - middle) * weight[:, None], full_matrices=False)
        assert spread[2] < 0.2 * spread[1]  # thin along one direction
        offset = abs(axes[2] @ middle)
        assert offset < 20 + 1
        distance = (points - middle) @ axes[2]
        slope, log_alpha = np.polyfit(distance**2, np.log(weight), 1)
        assert 2.3 - 0.1 < np.sqrt(-0.5 / slope) < 4.6 + 0.1
        assert np.exp(-2.5 / 3) - 0.02 < np.exp(log_alpha) < np.exp(-0.2 / 5) + 0.02
        normals.append(axes[2])
        depths.append(np.exp(log_alpha))
    assert np.ptp(depths) > 0.2
    assert np.linalg.matrix_rank(np.array(normals), tol=0.5) == 3  # in all directions


def test_noise_has_the_share_of_the_range_that_is_asked_for():
    affine = make_affine("RAS", (4.0, 4.0, 4.0), 0.0, (60, 60, 60))
    ramp = np.zeros((60, 60, 60), np.float32)
    ramp[15:45] = np.linspace(0, 1000, 30)[:, None, None]
    images = [
        random_navigator(
            Volume(ramp, affine), np.zeros(3), np.random.RandomState(1), noise=(share, share)
        ).image
        for share in (0.0, 0.04)
    ]
    low, high = np.percentile(images[0], [0.5, 99.5])
    noise = (images[1] - images[0]) / (high - low)
    assert noise.std() == pytest.approx(0.04, rel=0.02)
    assert abs(noise.mean()) < 0.001
    default = random_navigator(Volume(ramp, affine), np.zeros(3), np.random.RandomState(1)).image
    assert 0.019 < ((default - images[0]) / (high - low)).std() < 0.061


def test_smoothing_averages_over_the_new_voxel():
    """A point becomes a Gaussian whose full width at half maximum is 6 mm, the voxel's included."""
    affine = make_affine("SLA", (1.0, 2.0, 8.0), 10.0, (61, 41, 9))
    point = np.zeros((61, 41, 9), np.float32)
    point[30, 20, 4] = 1
    image = averaged(Volume(point, affine), 6.0).image
    assert image.sum() == pytest.approx(1, abs=1e-4)
    assert image[:, :, [3, 5]].max() == 0  # already coarser there
    for axis, size_mm in ((0, 1.0), (1, 2.0)):
        profile = image.sum(tuple({0, 1, 2} - {axis}))
        steps = size_mm * (np.arange(len(profile)) - len(profile) // 2)
        variance = (profile * steps**2).sum() + (size_mm / 2.3548) ** 2
        assert 2.3548 * np.sqrt(variance) == pytest.approx(6.0, rel=0.02)
    unit = np.ones((20, 20, 20), np.float32)
    np.testing.assert_allclose(averaged(Volume(unit, np.eye(4)), 6.0).image, 1, atol=1e-5)


def test_resampling_gives_world_content_and_zero_outside():
    source = blob_volume(make_affine("LAS", (3.0, 3.0, 3.0), 15.0, SHAPE))
    there = resampled(source, source.affine, SHAPE)  # the same grid
    np.testing.assert_allclose(there.image, source.image, atol=1e-5)
    np.testing.assert_array_equal(there.label, source.label)
    linear = 5 * rotation_matrix(2)
    affine = centered_affine(linear, np.array([10.0, 20.0, 30.0]), (80, 80, 80))
    source = source._replace(image=source.image + 7, label=2 * source.label)
    image, _, label = resampled(source, affine, (80, 80, 80))
    assert np.unique(label).tolist() == [0, 2]  # the nearest, no 1 in between
    middle = affine[:3, :3] @ [39.5, 39.5, 39.5] + affine[:3, 3]
    np.testing.assert_allclose(middle, [10, 20, 30])
    voxels = (world_points(affine, image.shape) - source.affine[:3, 3]) @ np.linalg.inv(
        source.affine[:3, :3]
    ).T
    outside = ((voxels < -1) | (voxels > np.array(SHAPE))).any(-1)
    inside = ((voxels >= 0) & (voxels <= np.array(SHAPE) - 1)).all(-1)
    assert (image[outside] == 0).all()
    assert (image[inside] > 6.99).all()
    assert inside.sum() > 1000


@pytest.mark.parametrize("axcodes", ["RAS", "LPS", "PIL"])
def test_regridded_holds_the_whole_volume(axcodes):
    affine = make_affine(axcodes, VOXEL_MM, 20.0, SHAPE)
    ones = Volume(np.ones(SHAPE, np.float32), affine)
    for seed in range(3):
        volume = regridded(ones, rotation_matrix(seed), 3.5)
        assert np.linalg.det(volume.affine) == pytest.approx(-(3.5**3))
        mass = volume.image.sum() * 3.5**3
        assert mass == pytest.approx(np.prod(SHAPE) * np.prod(VOXEL_MM), rel=1e-2)
        np.testing.assert_allclose(volume_center_mm(volume), 0, atol=1e-6)
        # no wider than the turned volume's own bounding box
        half = np.abs(rotation_matrix(seed).T @ affine[:3, :3] * SHAPE).sum(1) / 2
        assert (np.array(volume.image.shape) * 3.5 < 2 * half + 3.6).all()


def test_rotations_are_uniform():
    """Of a uniform rotation every entry has mean 0 and variance 1/3."""
    source = Volume(np.zeros((2, 2, 2), np.float32), np.eye(4))
    for kind, options in (("navigator", {"shape": (2, 2, 2)}), ("regridded", {})):
        random = np.random.RandomState(0)
        volumes = [
            KINDS[kind][0](source, np.zeros(3), random, voxel_mm=6.0, **options)
            for _ in range(1500)
        ]
        entries = np.array([volume.affine[:3, :3] / 6 for volume in volumes])
        assert np.abs(entries.mean(0)).max() < 0.06
        assert np.abs((entries**2).mean(0) - 1 / 3).max() < 0.04


def test_the_same_seed_gives_the_same_volume_in_every_process(dataset, tmp_path):
    """To change these numbers is to change VERSION: old and new variants would mix."""
    make("regridded", dataset, tmp_path / "variant")
    _, affine = read(tmp_path / "variant/test/b.nii.gz")
    np.testing.assert_allclose(affine[0, :3] / 3.5, [0.267224, 0.800291, -0.536773], atol=1e-5)


@pytest.mark.parametrize("kind", WITH_HEAD)
def test_a_volume_depends_on_seed_case_and_repeat_only(kind, dataset, tmp_path):
    def volumes(folder, entries):
        return {Path(e["image"]).name: read(tmp_path / folder / e["image"]) for e in entries}

    first = volumes("first", make(kind, dataset, tmp_path / "first")["test"])
    content = json.loads((dataset / "dataset.json").read_text())
    content["test"] = content["test"][:0:-1]  # another order, one less
    (dataset / "dataset.json").write_text(json.dumps(content))
    second = volumes("second", make(kind, dataset, tmp_path / "second", repeats=2)["test"])
    other = volumes("other", make(kind, dataset, tmp_path / "other", seed=1)["test"])
    assert set(second) == {f"{n}{r}.nii.gz" for n in ("b", "none") for r in ("", "_repeat1")}
    for name in ("b", "none"):
        for values, again in zip(first[f"{name}.nii.gz"], second[f"{name}.nii.gz"], strict=True):
            np.testing.assert_array_equal(values, again)
        unlike = [first["a.nii.gz"], second[f"{name}_repeat1.nii.gz"], other[f"{name}.nii.gz"]]
        for _, affine in unlike:
            relative = np.linalg.inv(affine[:3, :3]) @ first[f"{name}.nii.gz"][1][:3, :3]
            assert np.degrees(Rotation.from_matrix(relative).magnitude()) > 1


def test_repeats_share_the_subject(dataset, tmp_path):
    content = json.loads((dataset / "dataset.json").read_text())
    del content["test"][1]["subject"]
    (dataset / "dataset.json").write_text(json.dumps(content))
    entries = make("regridded", dataset, tmp_path / "variant", repeats=2)["test"]
    assert [entry["subject"] for entry in entries] == ["fa", "fa", "b", "b", "fnone", "fnone"]


def test_an_interrupted_run_goes_on(dataset, tmp_path, monkeypatch):
    whole, part = tmp_path / "whole", tmp_path / "part"
    make("navigator", dataset, whole)
    plain, written = dataset_files.write_nifti, []

    def interrupted(path, *args):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path)
        plain(path, *args)

    monkeypatch.setattr(dataset_files, "write_nifti", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make("navigator", dataset, part)
    assert not (part / "dataset.json").exists()
    kept = part / "test/a.nii.gz"
    times = kept.stat().st_mtime_ns
    monkeypatch.setattr(dataset_files, "write_nifti", plain)
    make("navigator", dataset, part)
    assert kept.stat().st_mtime_ns == times
    for path in whole.rglob("*.nii.gz"):
        values, again = read(path), read(part / path.relative_to(whole))
        np.testing.assert_array_equal(values[0], again[0])
    (part / "test_labels/a.nii.gz").unlink()  # a missing file is made again
    make("navigator", dataset, part)
    assert (part / "test_labels/a.nii.gz").exists()
    monkeypatch.setattr(dataset_files, "write_nifti", None)  # all is there: nothing is written
    monkeypatch.setattr("scripts.files.write_text", None)
    make("navigator", dataset, part)


def test_other_content_is_never_overwritten(dataset, tmp_path):
    output = tmp_path / "variant"
    make("regridded", dataset, output)
    before = {path: path.read_bytes() for path in output.rglob("*.*")}
    for options, values in (
        ({"seed": 1}, "seed = 0, wanted 1"),
        ({"voxel_mm": 4.0}, r"voxel_mm = 3\.5, wanted 4\.0"),
    ):
        with pytest.raises(ValueError, match=rf"variant.*{values}.*another folder"):
            make("regridded", dataset, output, **options)
    with pytest.raises(ValueError, match=r"dataset\.json.*regridded.*wanted.*navigator"):
        make("navigator", dataset, output)
    (output / "dataset.json").rename(tmp_path / "away.json")  # as of a run that was stopped
    with pytest.raises(ValueError, match=r"variant\.json.*seed = 0, wanted 1"):
        make("regridded", dataset, output, seed=1)
    (tmp_path / "away.json").rename(output / "dataset.json")
    assert {path: path.read_bytes() for path in output.rglob("*.*")} == before
    with pytest.raises(ValueError, match=r"source.dataset\.json.*none"):
        make("regridded", dataset, dataset)
    content = json.loads((dataset / "dataset.json").read_text())
    content["test"][1]["head_to_world"] = np.eye(4).tolist()
    (dataset / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"b\.json is of another .*b\.nii\.gz"):
        make("regridded", dataset, output)


def test_errors_name_the_culprit(dataset, tmp_path):
    output = tmp_path / "variant"
    with pytest.raises(ValueError, match=r"navigator.*got 'blurred'"):
        make("blurred", dataset, output)
    for options in ({"seed": -1}, {"repeats": 0}, {"voxel_mm": 0.0}):
        with pytest.raises(ValueError, match="expected seed >= 0"):
            make("navigator", dataset, output, **options)
    with pytest.raises(ValueError, match=r"no section 'validation'"):
        make("navigator", dataset, output, section="validation")
    with pytest.raises(FileNotFoundError, match=r"gone.dataset\.json"):
        make("navigator", tmp_path / "gone", output)
    assert not output.exists()

    plain = json.loads((dataset / "dataset.json").read_text())
    (dataset / "a").mkdir()
    for change, message in (
        ({"label": "a/shifted.nii"}, r"shifted\.nii: the label's grid is not the image's: shapes"),
        ({"label": "a/three.nii"}, r"three\.nii: labels must be 0, 1 or 2, got \[0\.0, 3\.0\]"),
        ({"label": "volumes/b.nii.gz", "image": "a/text.nii"}, r"text\.nii: cannot be read"),
    ):
        affine = make_affine("LPS", VOXEL_MM, 20.0, SHAPE)
        save_nifti(dataset / "a/b.nii", np.ones(SHAPE, np.float32))
        save_nifti(dataset / "a/three.nii", 3 * np.eye(44, 30)[None].repeat(50, 0), affine)
        affine[:3, 3] += 1
        save_nifti(dataset / "a/shifted.nii", np.ones(SHAPE, np.uint8), affine)
        (dataset / "a/text.nii").write_text("no image")
        content = {"test": [plain["test"][0] | change, plain["test"][1]]}
        (dataset / "dataset.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match=message):
            make("regridded", dataset, output)


def test_twins_keep_both_poses_and_have_nothing_beside_the_head(dataset, tmp_path):
    content = json.loads((dataset / "dataset.json").read_text())
    twin = np.eye(4)
    twin[:3, 3] = 0, 90, 0
    content["test"][0]["twin_to_world"] = twin.tolist()
    label = nib.load(dataset / "volumes/a_label.nii")
    values = np.asanyarray(label.dataobj).copy()
    values[:6, :6, :6] = 255
    save_nifti(dataset / "volumes/a_label.nii", values, label.affine)
    (dataset / "dataset.json").write_text(json.dumps(content))
    entry = make("regridded", dataset, tmp_path / "variant")["test"][0]
    assert entry["twin_to_world"] == twin.tolist()
    found = np.asanyarray(nib.load(tmp_path / "variant" / entry["label"]).dataobj)
    assert 255 in found
    assert set(np.unique(found)) == set(np.unique(values))
    with pytest.raises(ValueError, match=r"a\.nii\.gz shows two heads"):
        make("headless", dataset, tmp_path / "headless")


def test_command_line(dataset, tmp_path, capsys):
    output = tmp_path / "variant"
    arguments = ["--dataset_dir", str(dataset), "--output_dir", str(output)]
    main(["navigator", *arguments, "--seed", "3", "--repeats", "2", "--voxel_mm", "8"])
    assert capsys.readouterr().out.strip() == str(output / "dataset.json")
    content = json.loads((output / "dataset.json").read_text())
    assert len(content["test"]) == 6
    assert {k: content["variant"][k] for k in ("kind", "seed", "voxel_mm")} == {
        "kind": "navigator", "seed": 3, "voxel_mm": 8.0
    }  # fmt: skip
    np.testing.assert_allclose(
        np.linalg.norm(read(output / "test/b_repeat1.nii.gz")[1][:3, :3], axis=0), 8, atol=1e-4
    )
    with pytest.raises(SystemExit):
        main(["navigator", *arguments, "--section", "nowhere"])
    assert "no section 'nowhere'" in capsys.readouterr().err
