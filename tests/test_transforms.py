"""transforms.py: where landmarks land on the working grid, which files are refused, and how."""

from __future__ import annotations

import gzip
import itertools

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose

from conftest import LANDMARKS, find_landmarks, head_pose, labelled_case, make_affine, save_nifti
from scripts.cubes import TYPICAL_BRAIN_MM, brain_cube
from scripts.data import volumes as transforms
from scripts.data.transforms import HeadToGridd, ReferenceCubed
from scripts.data.volumes import LoadVolumed, ToWorkingGridd, VolumeError
from scripts.geometry import grid_to_world
from scripts.labels import UNKNOWN

SPACING_MM = 4.0


def to_grid(entry, label_key="label"):
    """What the configs do to every file: load, then resample."""
    loaded = LoadVolumed(["image", "label"], allow_missing_keys=True)(entry)
    return ToWorkingGridd(label_key=label_key, spacing_mm=SPACING_MM)(loaded)


@pytest.fixture
def volume():
    return np.random.default_rng(1).random((20, 22, 24)).astype(np.float32)


def test_landmarks_land_where_the_pose_says(landmark_case):
    d = HeadToGridd(spacing_mm=SPACING_MM)(to_grid(landmark_case))
    assert d["has_head"] == 1
    assert d["head_to_grid"].dtype == torch.float32
    assert "head_to_world" not in d
    found = find_landmarks(d["image"][0].numpy(), SPACING_MM)
    pose = d["head_to_grid"].double().numpy()
    error_mm = np.linalg.norm(found - (LANDMARKS @ pose[:3, :3].T + pose[:3, 3]), axis=1)
    assert error_mm.max() < 1


def test_every_storage_order_gives_one_pose_in_the_world(landmark_case):
    d = HeadToGridd(spacing_mm=SPACING_MM)(to_grid(landmark_case))
    image = d["image"]
    to_world = grid_to_world(image.affine, image.shape[1:], SPACING_MM)
    found = to_world @ d["head_to_grid"].double()
    np.testing.assert_allclose(found, landmark_case["head_to_world"], atol=1e-4)


def test_working_grid_is_right_handed_isotropic_and_scaled(landmark_case):
    image = to_grid(landmark_case)["image"]
    linear = np.asarray(image.affine)[:3, :3]
    np.testing.assert_allclose(linear.T @ linear, SPACING_MM**2 * np.eye(3), atol=1e-4)
    assert np.linalg.det(linear) > 0
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
    assert (image.min().item(), image.max().item()) == (0.0, 1.0)
    assert image.shape[0] == 1


@pytest.mark.parametrize("count", [24, 47, 48, 64])
@pytest.mark.parametrize("size", [6.0, 5.5, 2.0, 4.0])
def test_rounding_of_the_affine_moves_no_sample(count, size):
    """Headers say an affine to seven digits; 48 voxels of 6 mm end in the middle of one of 4 mm."""
    rng = np.random.default_rng(count)
    image = torch.from_numpy(rng.random((1, count, 12, 10)).astype(np.float32))
    affine = np.diag([size, size, size, 1.0])
    affine[:3, 3] = -70, 20, 33

    def resampled(matrix):
        volume = MetaTensor(image, affine=torch.from_numpy(matrix))
        return ToWorkingGridd(label_key=None)({"image": volume})["image"]

    exact = resampled(affine)
    for _ in range(6):
        rounded = affine.copy()
        rounded[:3, :3] += 1e-6 * rng.standard_normal((3, 3))  # shears, too
        found = resampled(rounded)
        assert found.shape == exact.shape
        np.testing.assert_allclose(found.affine, exact.affine, atol=1e-3)
        np.testing.assert_allclose(found, exact, atol=1e-3)


@pytest.mark.parametrize("shear", [0.0, 0.3, -0.3])
def test_the_grid_begins_at_the_corner_and_covers_the_volume(shear):
    affine = np.diag([6.0, 3.3, 2.5, 1.0])
    affine[0, 1] = shear * 3.3
    affine[:3, 3] = -70, 20, 33
    shape = np.array([48, 47, 12])
    volume = MetaTensor(torch.rand(1, *shape), affine=torch.from_numpy(affine))
    grid = ToWorkingGridd(label_key=None)({"image": volume})["image"]
    corners = np.array(list(itertools.product(*((0, n - 1) for n in shape))))
    world = corners @ affine[:3, :3].T + affine[:3, 3]
    found = np.asarray(grid.affine)
    there = np.linalg.solve(found[:3, :3], (world - found[:3, 3]).T).T
    np.testing.assert_allclose(there.min(0), 0, atol=1e-6)
    assert (np.abs(there.max(0) - (np.array(grid.shape[1:]) - 1)) <= 0.5 + 1e-3).all()


def test_composed_by_monai_it_is_the_same(landmark_case):
    chain = Compose(
        [LoadVolumed(["image", "label"]), ToWorkingGridd(spacing_mm=SPACING_MM), HeadToGridd()]
    )
    ours = HeadToGridd()(to_grid(landmark_case))
    composed = chain(landmark_case)
    torch.testing.assert_close(composed["head_to_grid"], ours["head_to_grid"])
    assert torch.equal(composed["image"].as_tensor(), ours["image"].as_tensor())


def test_intensities_are_clipped_at_the_percentiles(tmp_path, volume):
    volume[5, 6, 7] = 1e6  # one hot voxel must not darken all others
    d = to_grid({"image": save_nifti(tmp_path / "a.nii.gz", volume)}, label_key=None)
    assert d["image"].max() == 1
    assert 0.3 < d["image"].mean() < 0.7


def test_scaling_is_that_of_the_percentiles(tmp_path, volume, monkeypatch):
    """Of the voxels that are not zero, on the grid."""
    volume = 40 * volume**3 - 7
    volume[:6] = 0
    entry = {"image": save_nifti(tmp_path / "a.nii.gz", volume)}
    found = to_grid(entry, label_key=None)["image"]
    monkeypatch.setattr(transforms, "ScaleIntensityRange", lambda **_: lambda image: image)
    before = to_grid(entry, label_key=None)["image"]
    values = before.numpy()
    assert values.min() < -3
    assert values.max() > 10
    assert (values == 0).mean() > 0.1
    low, high = np.quantile(values[values != 0].astype(np.float64), [0.005, 0.995])
    expected = np.clip((values - low) / (high - low), 0, 1)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)
    assert found.dtype == torch.float32
    np.testing.assert_array_equal(found.affine, before.affine)


def test_padding_does_not_move_the_scale(tmp_path, volume):
    """The head is as bright in a volume with wide margins of zeros as with narrow ones."""
    images = []
    for margin in (8, 20):  # 6 and 15 voxels of the grid; rounding makes some of 8 not quite zero
        path = save_nifti(tmp_path / f"{margin}.nii.gz", np.pad(volume, margin))
        images.append(to_grid({"image": path}, label_key=None)["image"][0])
    narrow, wide = images
    assert wide.shape == tuple(n + 18 for n in narrow.shape)
    torch.testing.assert_close(wide[9:-9, 9:-9, 9:-9], narrow, atol=1e-4, rtol=0)
    assert narrow.max() == 1
    everywhere = np.percentile(wide.numpy(), 99.5)  # the trap: this depends on the margin
    assert everywhere < 0.9 * np.percentile(narrow.numpy(), 99.5)


def halves(tmp_path, wave_amplitude):
    """A ramp along z of 1 mm voxels, with a 1 mm checkerboard over one half."""
    x, y, z = np.meshgrid(*(np.arange(48),) * 3, indexing="ij")
    ramp = z / 47.0
    board = wave_amplitude * (1 - 2 * ((x + y + z) % 2)) * (x < 24)
    path = tmp_path / f"wave{wave_amplitude}.nii.gz"
    d = to_grid({"image": save_nifti(path, (ramp + board).astype(np.float32), np.eye(4))}, None)
    return d["image"][0].numpy()


def board_left(tmp_path):
    """Largest change that the checkerboard makes, away from where it ends and from the border."""
    difference = halves(tmp_path, 0.5) - halves(tmp_path, 0.0)
    return max(np.abs(difference[2:4]).max(), np.abs(difference[8:10]).max())


def test_fine_pattern_does_not_alias(tmp_path, monkeypatch):
    assert board_left(tmp_path) < 0.03
    # without the smoothing every fourth voxel has the same sign, and one half looks brighter
    monkeypatch.setattr(transforms, "smoothed", lambda values, sigma: values)
    assert board_left(tmp_path) > 0.2


def test_labels_stay_labels_and_stay_on_the_head(tmp_path):
    entry = labelled_case(tmp_path)
    d = HeadToGridd()(to_grid(entry))
    assert set(d["label"].unique().tolist()) == {0, 1, 2}
    assert d["label"].shape == d["image"].shape
    np.testing.assert_allclose(d["label"].affine, d["image"].affine)
    cube, _ = brain_cube(d["label"].as_tensor()[None] == 1, SPACING_MM, 0.6)
    assert (cube.center_mm[0] - d["head_to_grid"][:3, 3]).norm() < 1


def test_absent_label_is_unknown(tmp_path, volume):
    d = to_grid({"image": save_nifti(tmp_path / "a.nii.gz", volume)})
    assert d["label"].shape == d["image"].shape
    assert (d["label"] == UNKNOWN).all()
    np.testing.assert_allclose(d["label"].affine, d["image"].affine)


@pytest.mark.parametrize("what", ["shape", "affine", "values"])
def test_wrong_label_is_refused_by_name(tmp_path, volume, what):
    label, affine = np.zeros(volume.shape, dtype=np.int16), np.diag([3.0, 3.0, 3.0, 1.0])
    if what == "shape":
        label = label[:-1]
    elif what == "affine":
        affine[0] *= -1  # the mirrored grid has the same shape
    else:
        label[3, 3, 3] = 3
    entry = {
        "image": save_nifti(tmp_path / "a.nii.gz", volume),
        "label": save_nifti(tmp_path / "a_label.nii.gz", label, affine),
    }
    message = "0, 1 or 2, got .*3" if what == "values" else "grid is not the image's"
    with pytest.raises(ValueError, match=f"a_label.nii.gz.*{message}"):
        to_grid(entry)


@pytest.mark.parametrize("value", [-1.0, 0.5, 1.25, 3.0, UNKNOWN, np.nan])
def test_labels_other_than_the_three_are_refused(value):
    """In whatever type they are stored; the message lists what was found."""
    affine = torch.diag(torch.tensor([4.0, 4, 4, 1]))
    image = MetaTensor(torch.rand(1, 8, 8, 8), affine=affine)
    for dtype in (torch.float32, torch.float64):
        label = torch.zeros(1, 8, 8, 8, dtype=dtype)
        label[0, 2:4], label[0, 5] = 1, 2
        d = {"image": image, "label": MetaTensor(label, affine=affine)}
        assert ToWorkingGridd()(d)["label"].unique().tolist() == [0, 1, 2]
        label[0, 7, 7, 7] = value  # a single voxel
        with pytest.raises(ValueError, match=rf"must be 0, 1 or 2, got .*{value}"):
            ToWorkingGridd()(d | {"label": MetaTensor(label, affine=affine)})
        # beside a twin 255 is meant, and nothing else
        d |= {"label": MetaTensor(label, affine=affine), "twin_to_world": np.eye(4).tolist()}
        if value == UNKNOWN:
            assert ToWorkingGridd()(d)["label"].unique().tolist() == [0, 1, 2, UNKNOWN]
        else:
            with pytest.raises(ValueError, match=rf"must be 0, 1 or 2, got .*{value}"):
                ToWorkingGridd()(d)


def _write_bad(path, what, volume):
    """Write one kind of broken file."""
    if what in ("nan", "infinite"):
        volume[3:9, 4:9, 5:9] = np.nan if what == "nan" else -np.inf
    good = {
        "nan": volume,
        "infinite": volume,
        "2D": volume[0],
        "one slice": volume[:1],
        "two frames": np.stack([volume, volume], axis=-1),
        "two channels": np.stack([volume, volume], axis=-1)[..., None, :],
        "zeros": np.zeros_like(volume),
        "constant": np.full_like(volume, 7),
        "one bright voxel": np.where(np.arange(volume.size) == 5000, 900.0, 0.0)
        .reshape(volume.shape)
        .astype(np.float32),
    }
    if what in good:
        save_nifti(path, good[what])
    elif what == "text":
        path.write_text("no image at all\n")
    elif what == "no bytes":
        path.write_bytes(b"")
    elif what == "text in gzip":
        path.write_bytes(gzip.compress(b"no image at all\n" * 100))
    else:
        save_nifti(path, volume)
        content = path.read_bytes()
        if what == "truncated":
            path.write_bytes(content[: len(content) // 2])
        else:
            path.write_bytes(content[:200] + b"\x00\xff" * 400 + content[1000:])


@pytest.mark.parametrize(
    ("what", "status"),
    [
        ("text", "unreadable"),
        ("text in gzip", "unreadable"),
        ("no bytes", "unreadable"),
        ("truncated", "unreadable"),
        ("broken gzip", "unreadable"),
        ("2D", "not_3d"),
        ("one slice", "not_3d"),
        ("two frames", "not_3d"),
        ("two channels", "not_3d"),
        ("nan", "not_finite"),
        ("infinite", "not_finite"),
        ("zeros", "empty"),
        ("constant", "empty"),
        ("one bright voxel", "empty"),
    ],
)
def test_bad_volumes_have_a_status_and_a_name(tmp_path, volume, what, status):
    path = tmp_path / "bad.nii.gz"
    _write_bad(path, what, volume)
    with pytest.raises(VolumeError, match=r"bad\.nii\.gz") as caught:
        to_grid({"image": str(path)})
    assert caught.value.status == status


def test_missing_and_truncated_uncompressed_files_are_unreadable(tmp_path, volume):
    path = tmp_path / "cut.nii"
    save_nifti(path, volume)
    path.write_bytes(path.read_bytes()[:20000])
    for name in ("cut.nii", "missing.nii"):
        with pytest.raises(VolumeError, match=name) as caught:
            to_grid({"image": str(tmp_path / name)})
        assert caught.value.status == "unreadable"


def test_singular_affine_is_unreadable(tmp_path, volume):
    header = nib.Nifti1Image(volume, np.eye(4)).header
    header["sform_code"], header["qform_code"] = 1, 0
    header["srow_y"], header["srow_z"] = [0, 1, 1, 0], 0  # j and k run along one line
    path = tmp_path / "flat.nii"
    nib.save(nib.Nifti1Image(volume, None, header), path)
    with pytest.raises(VolumeError, match=r"flat\.nii") as caught:
        to_grid({"image": str(path)})
    assert caught.value.status == "unreadable"


def test_one_frame_is_a_volume(tmp_path, volume):
    frames = to_grid({"image": save_nifti(tmp_path / "4d.nii.gz", volume[..., None])})
    plain = to_grid({"image": save_nifti(tmp_path / "3d.nii.gz", volume)})
    assert torch.equal(frames["image"].as_tensor(), plain["image"].as_tensor())
    np.testing.assert_allclose(frames["image"].affine, plain["image"].affine)


def grid_entry(pose, shape=(10, 12, 14), **more):
    affine = torch.from_numpy(make_affine("RAS", (4.0, 4.0, 4.0), 10.0, shape))
    return {"image": MetaTensor(torch.zeros(1, *shape), affine=affine), **more} | (
        {} if pose is ... else {"head_to_world": pose}
    )


@pytest.mark.parametrize("pose", [None, ...])
def test_volume_without_head(pose):
    d = HeadToGridd()(grid_entry(pose))
    assert d["has_head"] == 0
    assert torch.equal(d["head_to_grid"], torch.eye(4))
    assert "head_to_world" not in d


def test_the_pose_of_a_twin_is_that_of_a_head():
    alone = HeadToGridd()(grid_entry(head_pose().tolist()))
    assert alone["twin_to_grid"].isnan().all()
    other = np.eye(4)
    other[:3, 3] = 5, 6, 7
    both = grid_entry(other.tolist(), twin_to_world=head_pose().tolist())
    d = HeadToGridd()(both)
    assert d["twin_to_grid"].equal(alone["head_to_grid"])
    assert d["head_to_grid"].equal(HeadToGridd()(grid_entry(other.tolist()))["head_to_grid"])
    assert "twin_to_world" not in d
    with pytest.raises(ValueError, match="twin_to_world of sub-07"):
        HeadToGridd()(both | {"twin_to_world": (2 * np.eye(4)).tolist(), "subject": "sub-07"})


def test_head_outside_of_the_volume():
    """Its pose is told, but there is no head to see. The border belongs to the volume."""
    shape = (10, 12, 14)
    for axis, half_mm in enumerate((20.0, 24.0, 28.0)):
        for sign in (-1, 1):
            for beyond in (-0.1, 0.1):
                entry = grid_entry(None, shape)
                to_world = grid_to_world(entry["image"].affine, shape, SPACING_MM)
                origin = torch.zeros(4, dtype=torch.float64)
                origin[axis], origin[3] = sign * (half_mm + beyond), 1
                pose = torch.from_numpy(head_pose())
                pose[:, 3] = to_world @ origin
                d = HeadToGridd()(entry | {"head_to_world": pose.tolist()})
                assert d["has_head"] == (beyond < 0)
                torch.testing.assert_close(d["head_to_grid"][:, 3], origin.float())


@pytest.mark.parametrize(
    "factor", [np.diag([-1.0, 1, 1, 1]), np.diag([1.01, 1, 1, 1]), np.full((4, 4), np.nan)]
)
def test_pose_that_is_not_rigid_is_refused(factor):
    entry = grid_entry((head_pose() @ factor).tolist(), subject="sub-07")
    with pytest.raises(ValueError, match="sub-07"):
        HeadToGridd()(entry)


def test_head_to_grid_refuses_another_spacing(tmp_path):
    d = grid_entry(head_pose().tolist())
    d["image"].affine[:3, 2] *= 1.5
    with pytest.raises(ValueError, match="rigid"):
        HeadToGridd()(d)


@pytest.fixture
def head(tmp_path):
    return HeadToGridd()(to_grid(labelled_case(tmp_path)))


def test_the_reference_cube_is_that_of_the_mask(head):
    d = ReferenceCubed(fill=0.6)(head)
    cube, _ = brain_cube(head["label"].as_tensor()[None] == 1, SPACING_MM, 0.6)
    assert torch.equal(d["center_mm"], cube.center_mm[0])
    assert torch.equal(d["side_mm"], cube.side_mm[0])
    # and what it should be: the sphere of 27 mm around the head's origin
    assert (d["center_mm"] - head["head_to_grid"][:3, 3]).norm() < 1
    assert d["side_mm"].item() == pytest.approx(54 / 0.6, rel=0.02)
    assert d["center_mm"].shape == (3,)
    assert d["side_mm"].shape == ()


def test_jitter_of_the_cube_fills_its_bounds(head):
    plain = ReferenceCubed()(head)
    jitter = ReferenceCubed(shift=0.05, scale=0.1).set_random_state(0)
    cubes = [jitter(head) for _ in range(300)]
    shift = torch.stack([(c["center_mm"] - plain["center_mm"]) / plain["side_mm"] for c in cubes])
    scale = torch.stack([c["side_mm"] / plain["side_mm"] - 1 for c in cubes])
    for values, bound in ((shift, 0.05), (scale, 0.1)):
        assert values.abs().max() <= bound + 1e-6
        assert values.min(0).values.max() < -0.9 * bound
        assert values.max(0).values.min() > 0.9 * bound
    again = ReferenceCubed(shift=0.05, scale=0.1).set_random_state(0)(head)
    assert torch.equal(again["center_mm"], cubes[0]["center_mm"])


@pytest.mark.parametrize("value", [0, 2, UNKNOWN])
def test_a_cube_without_a_brain_stands_at_the_pose(head, value):
    head["label"] = torch.full_like(head["label"], value)
    d = ReferenceCubed(fill=0.6)(head)
    assert torch.equal(d["center_mm"], head["head_to_grid"][:3, 3])
    assert d["side_mm"].item() == pytest.approx(TYPICAL_BRAIN_MM / 0.6)
    jittered = ReferenceCubed(shift=0.05)(head)
    assert not torch.equal(jittered["center_mm"], d["center_mm"])
    # the jitter does not write into the pose
    assert torch.equal(d["center_mm"], head["head_to_grid"][:3, 3])


@pytest.mark.parametrize("voxel_mm", [30.0, 300.0])
def test_a_field_of_view_that_no_memory_holds_is_refused(tmp_path, volume, voxel_mm):
    path = save_nifti(tmp_path / "wide.nii", volume, np.diag([voxel_mm, voxel_mm, voxel_mm, 1]))
    wide = np.array(volume.shape) * voxel_mm
    if voxel_mm == 300:
        with pytest.raises(VolumeError, match=rf"wide\.nii: voxels of 300.*{wide[0]:g}") as caught:
            to_grid({"image": path}, label_key=None)
        assert caught.value.status == "unreadable"
        assert "too large for a uterus" in caught.value.warnings[-1]
    else:
        assert to_grid({"image": path}, label_key=None)["image"].numel() < 8_000_000


def test_wide_padding_is_cut_where_the_grid_would_be_too_large(tmp_path, volume, monkeypatch):
    """The pose in the world is that of the volume without padding."""
    affine = make_affine("PIL", (3.0, 3.0, 4.0), 15.0, volume.shape)
    plain = to_grid({"image": save_nifti(tmp_path / "a.nii", volume, affine)}, label_key=None)
    wide_affine = affine.copy()
    wide_affine[:3, 3] -= affine[:3, :3] @ [40, 40, 40]
    path = save_nifti(tmp_path / "b.nii", np.pad(volume, 40), wide_affine)
    kept = to_grid({"image": path}, label_key=None)["image"]
    monkeypatch.setattr(transforms, "MAX_GRID_VOXELS", 20_000)
    cut = to_grid({"image": path}, label_key=None)["image"]
    assert kept.numel() > 20_000 > cut.numel()
    assert cut.shape == plain["image"].shape
    torch.testing.assert_close(cut.as_tensor(), plain["image"].as_tensor())
    np.testing.assert_allclose(cut.affine, plain["image"].affine, atol=1e-4)


def test_what_lies_between_the_voxels_of_the_grid_is_empty(tmp_path):
    """A few bright voxels in millimetres of 0: nothing is left that could be scaled."""
    values = np.zeros((13, 13, 13), dtype=np.float32)
    values[1, 1, 1] = values[2, 1, 1] = 1e-45  # smoothed away
    path = save_nifti(tmp_path / "dots.nii", values, np.eye(4))
    with pytest.raises(
        VolumeError, match=r"dots\.nii: on a grid of 4 mm every voxel is 0"
    ) as caught:
        to_grid({"image": path}, label_key=None)
    assert caught.value.status == "empty"
