"""Drawn headers and volumes: reading and the working grid give an item or say why there is none.

A few hundred in `make test`, FUZZ_EXAMPLES of them by `make fuzz`.
"""

from __future__ import annotations

import gzip
import os

import numpy as np
import pytest
import torch

pytest.importorskip("hypothesis", reason="the extra `dev` is not installed")

from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st

from scripts.data import volumes
from scripts.data.datalists import CaseDataset, volumes_in
from scripts.data.volumes import LoadVolumed, ToWorkingGridd
from scripts.labels import Status
from scripts.reading import VolumeError, read_image

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "200"))
FUZZ = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize="FUZZ_EXAMPLES" not in os.environ,
    suppress_health_check=list(HealthCheck),
)
SMALL_GRID = 100_000  # voxels, instead of 8 million: what is refused above it does not cost time

# name: (code, bytes) of nifti1.h
DTYPES = {"u1": 2, "i2": 4, "i4": 8, "f4": 16, "c8": 32, "f8": 64, "u2": 512, "i8": 1024, "V3": 128}
ANY_FLOAT = st.one_of(
    st.floats(width=32),
    st.sampled_from([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 3e38, 1e-38, 352.0]),
)


def seldom(usual, odd, one_in=8):
    """Strategy that draws from ``odd`` once in so many times."""
    return st.integers(0, one_in - 1).flatmap(lambda k: odd if k == 0 else usual)


SIZE_MM = seldom(
    st.floats(-0.5, 1.3).map(lambda e: 10.0**e),
    st.one_of(st.sampled_from([1.0, 0.0, 300.0]), st.floats(-5, 5).map(lambda e: 10.0**e)),
    12,
)
SHAPES = seldom(
    st.tuples(*[st.integers(2, 14)] * 3),
    st.lists(st.sampled_from([0, 1, 1, 2, 5, 9, 32767, -3]), min_size=0, max_size=7),
)


class Content(bytes):
    """Bytes of a file, in a failing example shown as the start of the header."""

    def __repr__(self) -> str:
        return f"Content.fromhex({self[:348].hex()!r} + ...)  # {len(self)} bytes"


@st.composite
def headers(draw):
    """348 bytes of a NIfTI-1 header that is good, but for some of its fields."""
    shape = draw(SHAPES)
    kind = draw(st.sampled_from(list(DTYPES)))
    header = np.zeros(348, np.uint8)

    def put(offset, values, dtype):
        data = np.asarray(values, dtype=dtype).tobytes()
        header[offset : offset + len(data)] = np.frombuffer(data, np.uint8)

    put(0, 348, "<i4")
    dims = [len(shape), *shape, *[1] * 7][:8]
    put(40, dims, "<i2")
    put(70, [DTYPES[kind], 8 * np.dtype(kind).itemsize], "<i2")
    sizes = draw(st.tuples(SIZE_MM, SIZE_MM, SIZE_MM))
    put(76, [1, *sizes, 2.5, 1, 1, 1], "<f4")
    put(108, draw(st.sampled_from([352.0] * 30 + [0.0, 4e4, np.nan, -1.0])), "<f4")
    put(
        112,
        draw(
            st.sampled_from([*[(1, 0)] * 9, (0, 0), (-2, 0), (1e-30, 0), (np.nan, 0), (1, np.nan)])
        ),
        "<f4",
    )
    put(123, draw(st.sampled_from([0, 1, 2, 2, 2, 3, 7, 10])), "u1")
    put(252, draw(st.tuples(st.integers(-1, 4), st.integers(-1, 4))), "<i2")
    put(256, draw(st.tuples(*[st.floats(-1, 1)] * 3)), "<f4")
    put(268, draw(st.tuples(*[st.floats(-200, 200)] * 3)), "<f4")
    sheared = np.eye(3) + draw(
        st.sampled_from([np.zeros((3, 3)), np.eye(3, k=1), 0.15 * np.eye(3, k=1), -2 * np.eye(3)])
    )
    rows = np.column_stack(
        [
            sheared * np.array(sizes),
            draw(seldom(st.tuples(*[st.floats(-200, 200)] * 3), st.tuples(*[ANY_FLOAT] * 3))),
        ]
    )
    put(280, rows if draw(st.booleans()) else np.column_stack([sheared * sizes, [0, 0, 0]]), "<f4")
    header[344:348] = np.frombuffer(b"n+1\0", np.uint8)
    for offset, value in draw(
        st.lists(st.tuples(st.integers(0, 347), st.integers(0, 255)), max_size=2)
    ):
        if draw(st.integers(0, 3)) == 0:  # some headers are broken anywhere
            header[offset] = value
    if draw(st.integers(0, 5)) == 0:
        put(draw(st.sampled_from([76, 80, 108, 112, 116, 256, 280, 292])), draw(ANY_FLOAT), "<f4")
    return header.tobytes()


@st.composite
def files(draw):
    """Bytes of a file, whole, cut, longer, packed or none of these."""
    header = draw(headers())
    seed = draw(st.integers(0, 2**32 - 1))
    random = np.random.RandomState(seed)
    scale = 10.0 ** draw(st.integers(-30, 30))
    values = random.rand(14**3 + 9) * scale - draw(st.sampled_from([0, 0.5, 2])) * scale
    kind = draw(st.sampled_from(["f4", "i2", "zero", "constant", "nan", "bytes"]))
    if kind == "zero":
        data = bytes(8 * 14**3)
    elif kind == "constant":
        data = np.full(2 * 14**3, 7, "<f4").tobytes()
    elif kind == "i2":
        data = random.randint(-300, 3000, 4 * 14**3).astype("<i2").tobytes()
    elif kind == "bytes":
        data = random.bytes(8 * 14**3)
    else:
        with np.errstate(over="ignore"):
            some = np.concatenate([values, values]).astype("<f4")
        if kind == "nan":
            some[: draw(st.sampled_from([1, 50, 2000]))] = draw(
                st.sampled_from([np.nan, np.inf, 3e38])
            )
        data = some.tobytes()
    whole = header + bytes(4) + data * draw(st.sampled_from([1, 1, 1, 3]))
    form = draw(st.sampled_from(["plain"] * 16 + ["gzip", "gzip", "cut", "cut gzip", "garbage"]))
    if form == "cut":
        return whole[: draw(st.integers(0, 3000))]
    if form == "garbage":
        return random.bytes(draw(st.integers(0, 700)))
    if "gzip" in form:
        packed = gzip.compress(whole, 1)
        return packed[: draw(st.integers(0, len(packed)))] if form == "cut gzip" else packed
    return Content(whole)


@pytest.fixture(scope="module", autouse=True)
def _small_grid():
    kept = volumes.MAX_GRID_VOXELS
    volumes.MAX_GRID_VOXELS = SMALL_GRID
    yield
    volumes.MAX_GRID_VOXELS = kept


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz") / "drawn.nii"


@FUZZ
@given(content=files())
@example(content=b"")
@example(content=bytes(352))
def test_every_file_is_an_item_or_says_why_it_is_none(place, content):
    place.write_bytes(content)
    try:
        loaded = LoadVolumed("image")({"image": str(place)})
        image = ToWorkingGridd(label_key=None)(loaded)["image"]
    except VolumeError as error:
        refused: VolumeError | None = error
    else:
        refused = None
    event("an item" if refused is None else str(refused.status))
    if refused is not None:
        assert isinstance(refused.status, Status)
        assert "drawn.nii: " in str(refused)
        assert len(str(refused).split("drawn.nii: ")[-1]) > 8
        return
    affine = np.asarray(image.affine)
    assert np.isfinite(affine).all()
    assert np.linalg.det(affine[:3, :3]) > 0
    assert image.numel() <= SMALL_GRID
    assert torch.isfinite(image.as_tensor()).all()
    assert 0 <= image.min() <= image.max() <= 1
    assert loaded["image"].affine.isfinite().all()
    assert all(len(text) > 8 for text in loaded["image"].meta["warnings"])


@settings(FUZZ, max_examples=max(EXAMPLES // 10, 20))
@given(content=files())
def test_a_run_goes_on_after_every_file(place, content):
    """Through the folder: an item with a status for every frame, and no exception."""
    place.write_bytes(content)
    chain = ToWorkingGridd(label_key=None)
    entries = volumes_in(place.parent)
    load = LoadVolumed("image")
    dataset = CaseDataset(entries[:3], lambda entry: chain(load(entry)))
    for k in range(len(dataset)):
        item = dataset[k]
        assert item["status"] != Status.FAILED, item["message"]
        assert (item["message"] == "") == (item["status"] == Status.OK)
        assert item["affine"].isfinite().all()


@settings(FUZZ, max_examples=max(EXAMPLES // 10, 20))
@given(
    content=st.binary(max_size=600),
    suffix=st.sampled_from([".mgz", ".mha", ".nrrd", ".mnc", ".hdr", ".par", ".head", ".dcm"]),
)
def test_garbage_of_every_kind_is_refused(tmp_path_factory, content, suffix):
    path = tmp_path_factory.getbasetemp() / f"garbage{suffix}"
    path.write_bytes(content)
    with pytest.raises(VolumeError, match="garbage"):
        read_image(path)
