"""The loop from navigator to slice: what each way of following the head knows, and its errors."""

from __future__ import annotations

import csv
import json

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
import torch
from matplotlib.image import imread
from scipy.spatial.transform import Rotation

from chains import Answering
from conftest import BUNDLE, head_pose
from scripts.labels import Status
from scripts.scan import closed_loop
from scripts.scan import loop_cases as loop_cases_module
from scripts.scan.closed_loop import ClosedLoop
from scripts.scan.closed_loop_tables import csv_text, read_csv, summarize, summary_text
from scripts.scan.estimator import Estimate, HeadPoseEstimator
from scripts.scan.loop_cases import PhantomCases, VolumeCases, loop_cases
from scripts.scan.pose_noise import expected_noise
from scripts.scan.prescription import prescribe
from scripts.scan.stack_quality import coverage, slice_errors, times_covered
from scripts.scan.stack_scan import NotStarted, Protocol, scan_stack
from scripts.scan.tracking import TrackingParameters
from scripts.simulation.motion import Motion
from scripts.simulation.scanner import Acquired
from scripts.simulation.scene import Scene

HALF_MM = np.array([30.0, 36.0, 33.0])  # of a brain that is an ellipsoid
_LATTICE = np.stack(np.meshgrid(*(np.arange(-40.0, 41, 2),) * 3, indexing="ij"), -1)
BRAIN = ((_LATTICE / HALF_MM) ** 2).sum(-1) < 1
BRAIN_TO_HEAD = np.array([[2.0, 0, 0, -40], [0, 2, 0, -40], [0, 0, 2, -40], [0, 0, 0, 1]])
FAST = Protocol(thickness_mm=6.0, matrix=128, in_plane_mm=2.0)


class PoseScanner:
    """In place of images of the head its true pose is handed on, for ``StubEstimator`` to read."""

    def __init__(self) -> None:
        points = _LATTICE[BRAIN] + 0.37  # none of them just between two slices
        self.scene = Scene(None, ([], []), head_pose(), points, None, 1.0, 28.0)
        self.centres: list[np.ndarray] = []

    def bands(self, slices, time_s, thickness_mm):
        return list(slices)

    def navigator(self, head_to_world, centre_mm, bands=()):
        self.centres.append(centre_mm)
        return Acquired(head_to_world[:, :, None], np.eye(4))

    def slice(self, slice_to_world, head_to_world, thickness_mm, in_plane_mm, matrix):
        affine = slice_to_world @ np.diag([in_plane_mm, in_plane_mm, thickness_mm, 1])
        return Acquired(np.ones((matrix, matrix, 1), np.float32), affine)


class StubEstimator:
    """The true pose with an error of ``sd`` along each axis; ``lacking``: calls without a head."""

    weights = "stub"

    def __init__(self, sd_deg=0.0, sd_mm=0.0, lacking=()) -> None:
        self.random, self.sd_deg, self.sd_mm = np.random.RandomState(0), sd_deg, sd_mm
        self.lacking, self.calls = set(lacking), 0

    def __call__(self, volumes):
        self.calls += 1
        return [self.estimate(values[:, :, 0]) for values, _ in volumes]

    def estimate(self, truth):
        if self.calls - 1 in self.lacking:
            return Estimate(Status.NO_HEAD, None, 0.0, expected_noise(0.0), None, None)
        pose = truth.copy()
        error = Rotation.from_rotvec(np.deg2rad(self.random.normal(scale=self.sd_deg, size=3)))
        pose[:3, :3] = error.as_matrix() @ pose[:3, :3]
        pose[:3, 3] += self.random.normal(scale=self.sd_mm, size=3)
        # the mask on a grid in line with the head
        return Estimate(Status.OK, pose, 1.0, expected_noise(1.0), BRAIN, pose @ BRAIN_TO_HEAD)


def still(duration_s: float = 300.0) -> Motion:
    return Motion(np.array([0, duration_s]), np.zeros((2, 3)), Rotation.identity(2), "none")


def scanned(motion, estimator=None, protocol=FAST, scanner=None):
    *_, runs = scan_stack(
        scanner or PoseScanner(),
        motion,
        estimator or StubEstimator(),
        protocol,
        TrackingParameters(),
        np.array([5.0, 0, 0]),
    )
    return {run.name: run for run in runs}


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_a_head_at_rest_is_covered_once_by_all(plane):
    runs = scanned(still(), protocol=Protocol(plane=plane, thickness_mm=6.0))
    assert list(runs) == ["blind", "pose", "tracker", "true"]
    for run in runs.values():
        assert run.coverage == pytest.approx((0, 0, 0), abs=0.002)
        assert max(row["obliqueness_deg"] for row in run.rows) < 0.01
        assert max(abs(row["position_mm"]) for row in run.rows) < 0.01
        orders = [row["slice"] for row in run.rows]
        assert sorted(orders) == list(range(len(orders)))
        assert orders[:3] == [0, 4, 8]  # an interleave of 4


def test_only_the_latency_is_left_of_the_true_pose():
    """A head that turns by 3 degrees and moves by 2 mm a second, about and along its own z axis.

    Known at the navigator, so the slice 1 s later is off by what the head does in that time; the
    tracker learns the velocity and looks ahead; the blind stack is off by all of it.
    """
    start = head_pose()
    times = np.arange(0, 301, 1.0)
    axis = start[:3, 2]
    tilt = start[:3, 0]
    motion = Motion(
        times,
        2.0 * times[:, None] * axis,
        Rotation.from_rotvec(np.deg2rad(3.0 * times[:, None] * tilt)),
        "steady",
    )
    runs = scanned(motion)
    true = runs["true"].rows
    assert np.allclose([row["obliqueness_deg"] for row in true], 3.0, atol=1e-6)
    for (_, head, time_s), row in zip(runs["true"].taken, true, strict=True):
        assert time_s == row["slice_s"] == row["navigator_s"] + 1.0
        np.testing.assert_allclose(head, motion.at(time_s, start), atol=1e-9)
    first = true[0]["position_mm"]
    assert first == pytest.approx(-2.0, abs=0.5)
    np.testing.assert_allclose([row["used_error_mm"] for row in true], 2.0, atol=1e-6)
    # with a perfect pose, by pose is the same as by the true pose
    for a, b in zip(runs["pose"].rows, true, strict=True):
        assert a["used_error_deg"] == pytest.approx(b["used_error_deg"], abs=1e-3)
    blind = [row["obliqueness_deg"] for row in runs["blind"].rows]
    assert blind[-1] > 30
    assert runs["blind"].coverage.gap > 3 * runs["true"].coverage.gap


def test_the_tracker_is_nearer_to_a_resting_head_than_each_pose():
    runs = scanned(still(), StubEstimator(sd_deg=2.5, sd_mm=1.2))
    middle = {
        name: np.median([row["used_error_deg"] for row in run.rows[3:]])
        for name, run in runs.items()
    }
    assert middle["tracker"] < 0.75 * middle["pose"]
    assert middle["true"] < 1e-6


def test_navigators_without_a_pose_are_counted_and_the_last_one_is_held():
    """Calls 0 and 1 are of the beginning; of the later ones, two ways ask at once."""
    scanner, estimator = PoseScanner(), StubEstimator(lacking=[0, 1, 4, 5])
    runs = scanned(still(), estimator, scanner=scanner)
    pose, tracker = runs["pose"].rows, runs["tracker"].rows
    assert pose[0]["navigator_s"] == 5.0  # the third navigator was the first with a pose
    assert [row["navigator"] for row in pose[:4]] == ["used", "used", "held", "held"]
    assert [row["navigator"] for row in tracker[:4]] == ["used", "used", "lacking", "lacking"]
    assert [row["status"] for row in pose[:4]] == ["ok", "ok", "no_head", "no_head"]
    assert runs["pose"].coverage.gap < 0.01


def test_a_stack_without_a_certain_pose_at_the_beginning_is_not_started():
    with pytest.raises(NotStarted, match=r"no certain pose in 10 navigators; the last: no_head$"):
        scanned(still(), StubEstimator(lacking=range(20)))


def test_why_a_stack_is_not_started_is_told():
    class Dark(StubEstimator):
        def estimate(self, truth):
            return Estimate(Status.EMPTY, None, 0.0, expected_noise(0.0), None, None, "all is 0")

    with pytest.raises(NotStarted, match=r"the last: empty, all is 0$"):
        scanned(still(), Dark())


def test_the_field_of_view_follows_the_head_in_steps():
    start = head_pose()
    times = np.array([0, 10.0, 10.5, 300])
    shift = np.array([[0, 0, 0], [0, 0, 0], [60, 0, 0], [60, 0, 0]], dtype=float)
    scanner = PoseScanner()
    scanned(Motion(times, shift, Rotation.identity(4), "jump"), scanner=scanner)
    centres = np.array(scanner.centres)
    ways = np.linalg.norm(np.diff(centres[1::2], axis=0), axis=1)
    assert ways.max() <= 20 + 1e-9
    np.testing.assert_allclose(centres[-1], start[:3, 3] + [60, 0, 0], atol=2)


def test_a_motion_that_ends_too_early_is_said():
    with pytest.raises(ValueError, match="none: the motion ends at 8 s, asked for"):
        scanned(still(8.0))


def test_errors_of_a_slice_are_those_of_its_geometry():
    """Tilted by 10 degrees about the head's x axis, 2 mm too high, 3 mm beside: in any frame."""
    pose = head_pose(11)
    extent = np.stack([-HALF_MM, HALF_MM], axis=1)
    one = prescribe(pose, extent, "axial", 3.0).slices[5]
    assert slice_errors(one, "axial", pose) == pytest.approx((0, 0, 0), abs=1e-5)
    moved = pose.copy()
    moved[:3, 3] -= pose[:3, :3] @ [3, 0, 2]
    errors = slice_errors(one, "axial", moved)
    assert errors.position_mm == pytest.approx(2)
    assert errors.in_plane_mm == pytest.approx(3)
    tilted = pose.copy()
    tilted[:3, :3] = pose[:3, :3] @ Rotation.from_euler("x", 10, degrees=True).as_matrix()
    assert slice_errors(one, "axial", tilted).obliqueness_deg == pytest.approx(10)


def test_coverage_against_counting():
    """Two slices of 3 mm, 2 mm apart, over points 0.5 mm apart: 1 mm is covered twice."""
    points = np.zeros((40, 3))
    points[:, 2] = np.arange(-10, 10, 0.5) + 0.25
    low, high = np.eye(4), np.eye(4)
    low[2, 3], high[2, 3] = -1.0, 1.0
    count = times_covered(points, [low, high], 3.0, 256.0)
    assert [(count == k).sum() for k in (0, 1, 2)] == [30, 8, 2]
    assert coverage(points, [low, high], 3.0, 256.0) == (0.75, 0.65, 0.05)
    # a slice does not cover what lies beside its field of view
    assert times_covered(points + np.array([200, 0, 0]), [low], 3.0, 256.0).sum() == 0


class StubCases:
    settings = {"stub": True}  # noqa: RUF012

    def __init__(self, count: int = 2) -> None:
        self.count, self.painted = count, []

    def __len__(self) -> int:
        return self.count

    def name(self, number: int) -> str:
        return f"case_{number}"

    def scene(self, number: int):
        self.painted.append(number)
        return PoseScanner().scene


@pytest.fixture
def stub_scanner(monkeypatch):
    monkeypatch.setattr(closed_loop, "Scanner", lambda scene, random: PoseScanner())


def loop(tmp_path, cases=None, **options) -> ClosedLoop:
    options = {"estimator": StubEstimator(1.0, 0.5), "protocol": FAST, **options}
    return ClosedLoop(cases or StubCases(), output_dir=tmp_path / "out", **options)


def test_what_a_run_writes(tmp_path, stub_scanner, caplog):
    caplog.set_level("INFO")
    loop(tmp_path, plane=["axial", "sagittal"]).run()
    out = tmp_path / "out"
    stacks, slices = read_csv(out / "stacks.csv"), read_csv(out / "slices.csv")
    assert len(stacks) == 2 * 2 * 4
    assert len(slices) == sum(row["slices"] for row in stacks)
    summary = read_csv(out / "summary.csv")
    assert [(r["plane"], r["run"]) for r in summary[:5]] == [
        *(("axial", way) for way in ("blind", "pose", "tracker", "true")),
        ("sagittal", "blind"),
    ]
    assert {r["plane"] for r in summary} == {"axial", "sagittal", "all"}
    gaps = [r["gap"] for r in stacks if (r["plane"], r["run"]) == ("axial", "tracker")]
    (row,) = [r for r in summary if (r["plane"], r["run"]) == ("axial", "tracker")]
    assert row["gap"] == pytest.approx(np.median(gaps), abs=1e-5)
    assert imread(out / "closed_loop.png").shape[0] > 800
    written = sorted((out / "slices").iterdir())  # of the first case only
    assert [p.name for p in written] == ["case_0_typical_axial", "case_0_typical_sagittal"]
    numbers = [
        r["slice"]
        for r in slices
        if (r["case"], r["plane"], r["run"]) == ("case_0", "axial", "blind")
    ]
    files = sorted((written[0] / "blind").iterdir())
    assert len(files) == len(numbers)
    image = nib.load(files[0])
    assert image.shape == (128, 128, 1)
    assert image.header.get_xyzt_units()[0] == "mm"
    other = SimpleITK.ReadImage(str(files[0]))
    assert other.GetSpacing() == pytest.approx((2, 2, 6), abs=1e-5)
    assert "by pose and tracker" in caplog.text


def test_a_run_that_was_stopped_goes_on_and_gives_the_same(tmp_path, stub_scanner):
    whole = loop(tmp_path / "whole", estimator=StubEstimator(), image_cases=0)
    whole.run()
    cases = StubCases()

    class Stopped(StubEstimator):
        def __call__(self, volumes):
            if len(cases.painted) == 2 and self.calls > 20:
                raise KeyboardInterrupt
            return super().__call__(volumes)

    with pytest.raises(KeyboardInterrupt):
        loop(tmp_path, cases, estimator=Stopped(), image_cases=0).run()
    out = tmp_path / "out"
    assert {row["case"] for row in read_csv(out / "stacks.csv")} == {"case_0"}
    again = StubCases()
    loop(tmp_path, again, estimator=StubEstimator(), image_cases=0).run()
    assert again.painted == [1]
    for name in ("slices.csv", "stacks.csv", "summary.csv"):
        assert (out / name).read_text() == (tmp_path / "whole/out" / name).read_text()


def test_a_folder_of_other_settings_is_left_alone(tmp_path, stub_scanner):
    loop(tmp_path, StubCases(1), image_cases=0).run()
    before = (tmp_path / "out/stacks.csv").read_text()
    with pytest.raises(ValueError, match=r"settings\.json: a run with other settings"):
        loop(tmp_path, StubCases(1), image_cases=0, seed=1).run()
    assert (tmp_path / "out/stacks.csv").read_text() == before
    loop(tmp_path, StubCases(2), image_cases=0).run()  # more cases of the same kind may follow


def test_stacks_that_do_not_start_are_told(tmp_path, stub_scanner, caplog):
    caplog.set_level("INFO")
    loop(tmp_path, estimator=StubEstimator(lacking=range(10)), image_cases=0).run()
    rows = read_csv(tmp_path / "out/stacks.csv")
    assert [row["run"] for row in rows][:2] == ["not started", "blind"]
    (line,) = [r for r in read_csv(tmp_path / "out/summary.csv") if r["run"] == "blind"]
    assert (line["stacks"], line["not_started"]) == (1, 1)
    assert "1 stacks did not start" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"plane": "axal"}, r"plane must be one of .*, got 'axal'"),
        ({"motion": ["typical", "wild"]}, "got 'wild'"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_anything_is_scanned(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        loop(tmp_path, **options)
    with pytest.raises(ValueError, match="expected seed >= 0 and phantoms >= 1, got 0 and 0"):
        loop_cases(phantoms=0)
    assert not (tmp_path / "out").exists()


def test_a_phantom_depends_on_the_seed_and_its_number_only(monkeypatch):
    monkeypatch.setattr(loop_cases_module, "paint_scene", lambda anatomy, random: anatomy)
    one, more, other = (
        PhantomCases(count, seed).scene(1).head_to_world for count, seed in ((2, 0), (5, 0), (2, 1))
    )
    np.testing.assert_array_equal(one, more)
    assert np.abs(one - other).max() > 0.1


def test_volumes_of_a_data_set_are_moved_in_place_of_phantoms(tmp_path):
    shape = (30, 30, 30)
    affine = np.diag([-4.0, 4, 4, 1])
    affine[:3, 3] = [58, -58, -58]
    label = np.zeros(shape, np.uint8)
    label[10:20, 9:21, 11:19] = 1
    image = (label * 100 + 50).astype(np.int16)
    pose = np.eye(4)
    pose[:3, 3] = [0, 0, 0]
    entries = []
    for k, has_label in enumerate((True, False)):
        nib.save(nib.Nifti1Image(image, affine), tmp_path / f"v{k}.nii.gz")
        entries.append(
            {"image": f"v{k}.nii.gz", "head_to_world": pose.tolist(), "subject": f"s{k}"}
        )
        if has_label:
            nib.save(nib.Nifti1Image(label, affine), tmp_path / f"v{k}_label.nii.gz")
            entries[-1]["label"] = f"v{k}_label.nii.gz"
    (tmp_path / "dataset.json").write_text(json.dumps({"test": entries, "training": []}))
    cases = loop_cases(str(tmp_path))
    assert isinstance(cases, VolumeCases)
    assert len(cases) == 1
    found = cases.scene(0)
    assert len(found.brain_mm) == 10 * 12 * 8
    np.testing.assert_allclose(np.abs(found.brain_mm).max(0), [18, 22, 14])
    assert found.white == 150


def test_tables_survive_being_written_and_read(tmp_path):
    rows = [{"a": "x", "b": 1.25}, {"a": "y", "b": 3, "c": float("nan")}]
    (tmp_path / "t.csv").write_text(csv_text(rows))
    assert read_csv(tmp_path / "t.csv")[0] == {"a": "x", "b": 1.25, "c": ""}
    assert read_csv(tmp_path / "none.csv") == []
    assert summarize([], []) == []
    assert summary_text([]).count("\n") == 0
    with open(tmp_path / "t.csv") as file:
        assert next(csv.reader(file)) == ["a", "b", "c"]


class SaysTheMiddle(Answering):
    """A stub of the network: heads in the middle of the grid, and what errors it expects."""

    def __init__(self, **errors):
        self.errors = errors

    def fields(self, volume):
        n = len(volume)
        fields = {
            "head_to_grid": torch.eye(4).expand(n, 4, 4).clone(),
            "confidence": torch.tensor([0.7, 0.99][:n]),
            "brain_volume_ml": torch.ones(n),
            "label": torch.ones_like(volume, dtype=torch.uint8),
        }
        return fields | {name: torch.tensor(values[:n]) for name, values in self.errors.items()}


def test_the_estimator_finds_the_heads_of_the_inference_command():
    """Its expected error makes a pose uncertain, not its confidence; one volume has no contrast."""
    network = SaysTheMiddle(rotation_sd_deg=[4.0, 21.5], translation_sd_mm=[1.5, 3.0])
    estimator = HeadPoseEstimator(network)
    values = np.random.default_rng(0).random((20, 20, 20)).astype(np.float32)
    affine = np.diag([-4.0, 4, 4, 1])
    affine[:3, 3] = [100, 0, 0]
    found = estimator(
        [(values, affine), (0 * values, affine), (values, affine), (values[:12], affine)]
    )
    assert [e.status for e in found] == ["ok", "empty", "uncertain", "ok"]
    np.testing.assert_allclose(found[0].head_to_world[:3, 3], [100 - 38, 38, 38])
    np.testing.assert_allclose(found[3].head_to_world[:3, 3], [100 - 22, 38, 38])
    assert [found[k].noise.rotation_sd_deg for k in (0, 2)] == [4.0, 21.5]
    assert [found[k].noise.translation_sd_mm for k in (0, 2)] == [1.5, 3.0]
    assert found[1].head_to_world is None
    why = "its turn is expected to be off by 21.5 degrees, more than 10"
    assert [e.message for e in found] == ["", "volume: every voxel is 0", why, ""]


@pytest.mark.parametrize(
    "errors", [{}, {"rotation_sd_deg": [np.nan], "translation_sd_mm": [np.nan]}]
)
@pytest.mark.parametrize(("above_deg", "status"), [(180.0, "uncertain"), (None, "ok")])
def test_an_error_that_the_network_does_not_tell_is_uncertain(errors, above_deg, status):
    """The noise is then that of the confidence."""
    volume = np.random.default_rng(0).random((20, 20, 20)).astype(np.float32)
    estimator = HeadPoseEstimator(SaysTheMiddle(**errors), uncertain_above_deg=above_deg)
    (found,) = estimator([(volume, np.diag([4.0, 4, 4, 1]))])
    assert found.status == status
    assert ("is not known" in found.message) == (status == "uncertain")
    assert found.noise == expected_noise(found.confidence, found.status)


def test_the_config_names_every_option_of_the_page():
    config = json.loads((BUNDLE / "configs/closed_loop.json").read_text())
    assert {"motion", "plane", "seed", "phantoms", "dataset_dir", "output_dir"} <= set(config)
