"""The closed loop through the service: real sockets and a process, a few lines for a network."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import fields

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

pytest.importorskip("ismrmrd", reason="the extra `scan` is not installed")

from conftest import head_pose
from scripts import scanner_client
from scripts.labels import Status
from scripts.scan import loop_cases, scanner_link
from scripts.scan.closed_loop import ClosedLoop
from scripts.scan.closed_loop_tables import read_csv
from scripts.scan.estimator import Estimate
from scripts.scan.patient import world_to_patient
from scripts.scan.pose_noise import Noise
from scripts.scan.pose_process import NetworkPart
from scripts.scan.prescription import prescribe
from scripts.scan.scan_service import ScanService
from scripts.scan.scanner_link import STAMP_MS, PacedLink, ScannerLink
from scripts.scan.served_loop import ServedScan, asked_slice, planned_pose, session_options
from scripts.scan.session_options import SessionOptions
from scripts.scan.stack_scan import NotStarted, scan_stack
from scripts.scan.stack_session import StackSession
from scripts.scan.taken_stack import Protocol, angle_deg, distance_mm
from scripts.scan.tracking import TrackingParameters
from scripts.simulation.motion import Motion
from scripts.simulation.scanner import Scanner
from scripts.simulation.scene import scene_of_volume

OFFSET_MM = np.array([8.0, -6.0, 5.0])
SMALL = Protocol(plane="coronal", thickness_mm=6.0, in_plane_mm=4.0, matrix=32)
NEAR = {"atol": 1e-3, "rtol": 0}  # mm or degrees: the headers hold float32


def lattice(affine, shape):
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1)
    return (index @ affine[:3, :3].T + affine[:3, 3]).reshape(-1, 3)


def frame(values, affine):
    """A head's pose by the moments of what is bright: smooth in the volume."""
    weight = np.clip(values.astype(np.float64).ravel() - 100, 0, None) ** 2
    weight /= weight.sum()
    points = lattice(affine, values.shape)
    pose = np.eye(4)
    pose[:3, 3] = weight @ points
    off = points - pose[:3, 3]
    _, axes = np.linalg.eigh((off * weight[:, None]).T @ off)
    axes = axes * np.sign(weight @ (off @ axes) ** 3)
    axes[:, 0] = np.cross(axes[:, 1], axes[:, 2])
    pose[:3, :3] = axes
    return pose


def small_scene():
    """A head of three unequal blobs, in the pose that ``frame`` gives it."""
    affine, shape = np.diag([2.0, 2.0, 2.0, 1.0]), (48, 48, 48)
    affine[:3, 3] = -47.0
    points = lattice(affine, shape) @ head_pose()[:3, :3]
    image = sum(
        height * np.exp(-(((points - middle) / size) ** 2).sum(1) / 2)
        for height, middle, size in (
            (600, (0, 0, 0), (8, 11, 15)),
            (500, (0, 14, 3), (6, 5, 5)),
            (500, (2, 2, 20), (5, 5, 5)),
        )
    ).reshape(shape)
    brain = image > 150
    image *= 500 / np.median(image[brain])
    return scene_of_volume(image, affine, brain, frame(image, affine), 30.0)


SCENE = small_scene()
# between which the centre has to lie along x: left of it poses are uncertain, right of it lacking
SURE_MM = SCENE.head_to_world[0, 3] + np.array([4.0, 16.0])


def estimator(volumes):
    """In the place of the network, in this process and in that of the service."""
    return [estimate(values, affine) for values, affine in volumes]


def estimate(values, affine):
    pose, noise = frame(values, affine), Noise(6.0, 4.0, 0.01)
    brain = values > 150
    if pose[0, 3] > SURE_MM[1]:
        return Estimate(Status.NO_HEAD, None, 0.0, noise, brain, affine)
    status = Status.UNCERTAIN if pose[0, 3] < SURE_MM[0] else Status.OK
    return Estimate(status, pose, 0.97, noise, brain, affine)


def process(link):
    """In the place of NetworkPart, with its way from estimates to what is found."""
    part = NetworkPart("")
    link.send("ready")
    while True:
        try:
            link.send(part.found(estimator, link.recv()))
        except EOFError:
            return


def motion_table():
    """Uncertain twice, then sure, lacking about 20 s; it turns by 20 degrees, and nods."""
    times = np.arange(0, 100, 0.5)
    shift = np.zeros((len(times), 3))
    shift[:, 0] = np.interp(times, [0, 2.5, 4, 19, 19.5, 22, 22.5, 100], [0, 0, 8, 8, 20, 20, 8, 8])
    shift[:, 2] = 3 * np.sin(times / 3)
    turn = np.deg2rad(np.interp(times, [8, 25], [0, 20]))
    return times, shift, turn[:, None] * [0.6, 0.0, 0.8]


@pytest.fixture(scope="module")
def motion():
    times, shift, vectors = motion_table()
    return Motion(times, shift, Rotation.from_rotvec(vectors), "table")


@pytest.fixture(scope="module")
def port():
    """Of a service whose own options are quite others than those of the closed loop."""
    options = SessionOptions("sagittal", 9.0, 2.0, 3.0, 40, 5, 2, (5.0, 0.0, 0.0), 1.0, 0.3, 4.0)
    service = ScanService(process, port=0, options=options)
    thread = threading.Thread(target=service.serve, daemon=True)
    thread.start()
    assert service.worker.wait_ready(120), service.worker.failure
    yield service.address[1]
    service.stop()
    thread.join(15)


def small_scanner(noise):
    return Scanner(SCENE, noise, shape=(24, 24, 16))


def served(port, motion, take_images, slices_apart=False):
    """The stack that the service asks for, and its answers."""
    noise, answers = np.random.RandomState(5), []
    with ScannerLink(port=port) as link:
        options = {"time_stamp_ms": STAMP_MS, "deadline_ms": 60000, **session_options(SMALL)}
        link.configure(options)
        paced = PacedLink(link, 0, 90, slices_apart)

        def ask(navigator, number, time_s):
            answers.append(paced.ask(navigator.image, navigator.affine, number, time_s))
            return answers[-1]

        scan = ServedScan(small_scanner(noise), motion, noise, ask, SMALL, OFFSET_MM, take_images)
        *_, stack = scan.run()
    return stack, answers


def unserved(motion, take_images):
    """The same without the service: of the closed loop's four ways that of the tracker."""
    scanner = small_scanner(np.random.RandomState(5))
    scan = scan_stack(
        scanner, motion, estimator, SMALL, TrackingParameters(), OFFSET_MM, take_images
    )
    *_, runs = scan
    (found,) = [run for run in runs if run.name == "tracker"]
    return found


@pytest.mark.parametrize(("take_images", "slices_apart"), [(True, False), (False, True)])
def test_the_service_gives_the_slices_of_the_closed_loop(port, motion, take_images, slices_apart):
    stack, answers = served(port, motion, take_images, slices_apart)
    expected = unserved(motion, take_images)
    said = [answer["status"] for answer in answers]
    assert said[:3] == ["uncertain", "uncertain", "ok"]
    assert said[8] == "predicted"
    assert len(stack.taken) == len(expected.taken) == len(answers) - 2 > 10
    for ours, theirs in zip(stack.taken, expected.taken, strict=True):
        assert angle_deg(ours[0], theirs[0]) < 1e-3
        assert distance_mm(ours[0], theirs[0]) < 1e-3
        np.testing.assert_array_equal(ours[1], theirs[1])
        assert ours[2] == theirs[2]
    for mine, row in zip(stack.rows, expected.rows, strict=True):
        for name in ("order", "slice", "navigator_s", "slice_s", "confidence"):
            assert mine[name] == row[name]
        for name in (
            "obliqueness_deg", "position_mm", "in_plane_mm", "pose_error_deg", "pose_error_mm",
            "used_error_deg", "used_error_mm",
        ):  # fmt: skip
            np.testing.assert_allclose(mine[name], row[name], err_msg=name, **NEAR)
        for name in ("sd_deg", "sd_mm"):  # the answer has two decimals
            assert mine[name] == pytest.approx(row[name], abs=0.006)
    np.testing.assert_allclose(stack.coverage, expected.coverage, atol=1e-3)
    assert set(stack.images) == set(expected.images) == set(range(13) if take_images else ())
    for number, taken in stack.images.items():
        np.testing.assert_allclose(taken.image, expected.images[number].image, atol=0.5)
    # not the trivial stack: it was the head that was followed
    turned = [angle_deg(one, stack.taken[0][0]) for one, _, _ in stack.taken]
    assert max(turned) > 10


class OneHead:
    """In the place of PhantomCases: as many of the small head as asked for."""

    settings = {"stub": True}  # noqa: RUF012

    def __init__(self, phantoms, seed) -> None:
        self.count = phantoms

    def __len__(self) -> int:
        return self.count

    def name(self, number: int) -> str:
        return f"head_{number}"

    def scene(self, number: int):
        return SCENE


@pytest.fixture
def table(tmp_path):
    """The motion as a file."""
    times, shift, vectors = motion_table()
    rows = np.column_stack([times, shift, np.rad2deg(vectors)])
    names = "time_s,x_mm,y_mm,z_mm,rx_deg,ry_deg,rz_deg"
    np.savetxt(tmp_path / "table.csv", rows, "%.6f", ",", header=names, comments="")
    return str(tmp_path / "table.csv")


def command(port, *options):
    started = ["--closed_loop", "--port", str(port), "--speed", "0", "--timeout_s", "90"]
    scanner_client.main([*started, *map(str, options)])


def test_the_command_writes_the_tables_of_the_closed_loop(
    port, table, tmp_path, monkeypatch, capsys
):
    """Two cases, the slices of the first as images, against ``ClosedLoop`` of the same seed."""
    monkeypatch.setattr(loop_cases, "PhantomCases", OneHead)
    out, alone = tmp_path / "served", tmp_path / "alone"
    drawn = ["--motion", table, "--plane", "sagittal", "--seed", 3, "--phantoms", 2]
    answers = tmp_path / "answers.jsonl"
    command(port, *drawn, "--output_dir", out, "--answers", answers)
    ClosedLoop(OneHead(2, 3), estimator, alone, table, "sagittal", 3).run()
    for name in ("slices.csv", "stacks.csv"):
        ours = read_csv(out / name)
        theirs = [row for row in read_csv(alone / name) if row["run"] == "tracker"]
        assert {row["run"] for row in ours} == {"service"}
        assert len(ours) == len(theirs) >= 2
        for mine, row in zip(ours, theirs, strict=True):
            for key in set(mine) - {"run", "status", "sd_deg", "sd_mm"}:
                if isinstance(mine[key], str):
                    assert mine[key] == row[key]
                else:
                    assert mine[key] == pytest.approx(row[key], abs=2e-3, rel=1e-5, nan_ok=True), (
                        key
                    )
    said = [json.loads(line) for line in answers.open()]
    assert [one["case"] for one in said] == sorted(one["case"] for one in said)
    assert sum(one["slice"] is not None for one in said) == len(read_csv(out / "slices.csv"))
    ours, theirs = (
        sorted((folder / "slices/head_0_table_sagittal" / way).iterdir())
        for folder, way in ((out, "service"), (alone, "tracker"))
    )
    assert len(ours) == len(theirs) > 10
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.name == other.name
        one, another = nib.load(mine), nib.load(other)
        np.testing.assert_allclose(one.affine, another.affine, atol=1e-3)
        assert np.abs(np.asarray(one.dataobj) - np.asarray(another.dataobj)).max() <= 1
    assert not (out / "slices/head_1_table_sagittal").exists()
    printed = capsys.readouterr().out
    assert "slice 4 (2 of" in printed
    assert "as the service asks" in printed


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_a_slice_and_its_pose_are_read_from_patient_coordinates(plane):
    pose, extent = head_pose(8), np.array([(-30.0, 31.0), (-40.0, 45.0), (-45.0, 38.0)])
    plan = prescribe(pose, extent, plane, 4.0)
    one = plan.slices[5]
    given = {"number": 5, "order": one.order, "offset_mm": one.offset_mm}
    found = asked_slice({**given, **one.patient(plan.matrix, plan.in_plane_mm)})
    np.testing.assert_allclose(found.slice_to_world, one.slice_to_world, atol=1e-9)
    assert (found.number, found.order, found.offset_mm) == (5, one.order, one.offset_mm)
    np.testing.assert_allclose(planned_pose(found, plane), pose, atol=1e-9)


def test_a_session_is_told_everything_that_the_stack_depends_on():
    known = {field.name for field in fields(SessionOptions)}
    # how navigators come and when answers are due: the slices are the same for any of these
    own = {"navigator_slices", "time_stamp_ms", "patient_position", "deadline_ms"}
    assert set(session_options(SMALL)) == known - own
    asked = SessionOptions(tilt_deg=(1.0, 2.0, 3.0)).changed(json.dumps(session_options(SMALL)))
    assert asked.tilt_deg == (0, 0, 0)
    assert (asked.thickness_mm, asked.plane) == (6.0, "coronal")


class Told:
    """Answers of a service that finds the head where it is, but for some navigators."""

    def __init__(self, without=(), centre=None, **more) -> None:
        self.without, self.centre, self.more = set(without), centre, more
        self.session = StackSession(SessionOptions(**json_of(SMALL)))
        self.centres, self.times = [], []

    def __call__(self, navigator, number, time_s):
        middle = (np.array(navigator.image.shape) - 1) / 2
        self.centres.append(navigator.affine[:3, :3] @ middle + navigator.affine[:3, 3])
        self.times.append(time_s)
        plan = prescribe(SCENE.head_to_world, np.array([[-9.0, 9]] * 3), SMALL.plane, 6.0)
        due = len(self.times) - 1 - sum(n in self.without for n in range(number))
        one = plan.in_order()[due]
        given = {"number": one.number, "order": due, "offset_mm": one.offset_mm, "of": 7}
        return {
            "type": "prescription", "status": "ok", "confidence": 0.9, "message": "as told",
            "head_to_patient_lps": world_to_patient(SCENE.head_to_world).tolist(),
            "navigator_fov_centre_lps": self.centre, "rotation_sd_deg": 1, "translation_sd_mm": 1,
            "slice": None if number in self.without else {**given, **one.patient(32, 4.0)},
            **self.more,
        }  # fmt: skip


def json_of(protocol):
    return {**session_options(protocol), "tilt_deg": (0.0, 0.0, 0.0)}


def told(motion, ask):
    noise = np.random.RandomState(0)
    scan = ServedScan(small_scanner(noise), motion, noise, ask, SMALL, OFFSET_MM)
    *_, stack = scan.run()
    return stack


def test_the_field_of_view_is_where_the_last_answer_put_it(motion):
    ask = Told(centre=[-20.0, 30.0, 40.0])
    told(motion, ask)
    np.testing.assert_allclose(ask.centres[0], SCENE.head_to_world[:3, 3] + OFFSET_MM)
    np.testing.assert_allclose(ask.centres[1:], [[20.0, -30.0, 40.0]] * 6)
    stays = Told()  # refused navigators are answered without a field of view
    told(motion, stays)
    np.testing.assert_allclose(stays.centres, [stays.centres[0]] * 7)


def test_an_answer_without_a_slice_leaves_it_out(motion):
    ask = Told(without=[0, 3])
    stack = told(motion, ask)
    assert ask.times == [2.5 * n for n in range(9)]
    assert [row["slice_s"] for row in stack.rows] == [2.5 * n + 1.0 for n in (1, 2, 4, 5, 6, 7, 8)]
    assert [row["order"] for row in stack.rows] == list(range(7))
    assert stack.coverage is not None


def test_a_stack_that_the_service_does_not_begin_is_not_started(motion):
    ask = Told(without=range(20), status="no_pose")
    with pytest.raises(NotStarted, match=r"pose in 10 navigators; the last: no_pose, as told$"):
        told(motion, ask)
    with pytest.raises(ValueError, match="navigator 0: error: as told"):
        told(motion, Told(type="error"))


def test_a_stack_that_did_not_start_is_told(port, tmp_path, monkeypatch, capsys):
    """The head is lacking from the first navigator to the last."""
    monkeypatch.setattr(loop_cases, "PhantomCases", OneHead)
    # a path begins at rest: it is the second row that is far away
    rows = ["time_s,x_mm,y_mm,z_mm,rx_deg,ry_deg,rz_deg", "0,0,0,0,0,0,0"]
    rows += [f"{time_s},30,0,0,0,0,0" for time_s in (0.1, 100)]
    (tmp_path / "far.csv").write_text("\n".join(rows))
    command(port, "--motion", tmp_path / "far.csv", "--output_dir", tmp_path / "out")
    assert "no stack has begun" in capsys.readouterr().out
    (row,) = read_csv(tmp_path / "out/stacks.csv")
    assert row["run"] == "not started"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give a folder or file of navigators, or --closed_loop, not both"),
        (["folder", "--closed_loop"], "not both"),
        (["--closed_loop", "--config", '{"plane": "axial"}'], "--config names ['plane']"),
        (["--closed_loop", "--config", "[1]"], "--config must be a JSON object, got [1]"),
        (["--closed_loop", "--motion", "wild"], "got 'wild'"),
        (["--closed_loop", "--phantoms", "0"], "phantoms >= 1, got 0 and 0"),
    ],
)
def test_options_that_cannot_be_meant(capsys, options, message):
    with pytest.raises(SystemExit) as stopped:
        scanner_client.main(options)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


class Line:
    """In the place of a ScannerLink: takes note of when and what it is sent."""

    def __init__(self, *_) -> None:
        self.sent, self.options = [], {}
        Line.last = self

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        pass

    def configure(self, options) -> None:
        self.options = options

    def send(self, values, affine, **header) -> None:
        self.sent.append((time.monotonic(), header))

    def receive(self, timeout_s):
        return None if len(self.sent) > 2 else {"type": "error", "message": "tired"}


def test_navigators_are_sent_at_their_times():
    line = Line()
    paced = PacedLink(line, speed=10.0)
    start = time.monotonic()
    for n in range(2):
        assert paced.ask(np.zeros((2, 2, 2)), np.eye(4), n, 2.0 * n)["round_trip_ms"] < 150
    with pytest.raises(ConnectionError, match="has ended the session"):
        paced.ask(np.zeros((2, 2, 2)), np.eye(4), 2, 4.0)
    times = np.array([sent for sent, _ in line.sent]) - start
    assert (times >= [0.0, 0.19, 0.39]).all()
    assert times[2] < 2.0
    assert [header["acquisition_time_stamp"] for _, header in line.sent] == [0, 800, 1600]
    assert [header["repetition"] for _, header in line.sent] == [0, 1, 2]


@pytest.mark.parametrize(("speed", "deadline_ms"), [("4", 250), ("0", 81000)])
def test_an_answer_is_due_when_its_slice_is(monkeypatch, capsys, speed, deadline_ms):
    """But for a scan as fast as it goes, for which time stands still."""
    monkeypatch.setattr(loop_cases, "PhantomCases", OneHead)
    monkeypatch.setattr(scanner_link, "ScannerLink", Line)
    with pytest.raises(SystemExit):
        command(1, "--speed", speed, "--config", '{"max_age_s": 30}')
    assert "navigator 0: error: tired" in capsys.readouterr().err
    assert Line.last.options["deadline_ms"] == pytest.approx(deadline_ms)
    assert (Line.last.options["max_age_s"], Line.last.options["thickness_mm"]) == (30, 3.0)
