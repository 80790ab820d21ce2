"""Planes of images that hold many: Siemens mosaics and enhanced multi-frame images. LPS, mm."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from .dicom_planes import NoPlanes, Plane, part_of, seconds_of


def tiles_of(whole: Plane, data: Any) -> Iterable[Plane]:
    """The planes of a Siemens mosaic.

    Its position is that of an image as large as the mosaic around the first plane's centre; see
    "Siemens mosaic format" in nibabel's documentation. The slices follow the CSA header's
    SliceNormalVector.
    """
    with warnings.catch_warnings():  # nibabel's readers call themselves experimental
        warnings.simplefilter("ignore")
        from nibabel.nicom import csareader

    header = csareader.get_csa_header(data, "image")
    count = csareader.get_n_mosaic(header) if header else None
    normal = csareader.get_slice_normal(header) if header else None
    if not count or normal is None:
        raise NoPlanes("a Siemens mosaic without CSA header, which says where its slices lie")
    tiles = int(np.ceil(np.sqrt(count)))
    rows, columns = whole.rows // tiles, whole.columns // tiles
    row, column = np.array(whole.row), np.array(whole.column)
    corner = (
        np.array(whole.position)
        + row * whole.spacing_mm[1] * (whole.columns - columns) / 2
        + column * whole.spacing_mm[0] * (whole.rows - rows) / 2
    )
    step_mm = float(data.get("SpacingBetweenSlices") or data.SliceThickness)
    for number in range(int(count)):
        x, y, z = corner + number * step_mm * np.asarray(normal, dtype=float)
        yield replace(
            whole,
            number=number,
            tiles=tiles,
            rows=rows,
            columns=columns,
            position=(float(x), float(y), float(z)),
        )


def planes_of_enhanced(path: Path, data: Any) -> Iterable[Plane]:
    """The planes of an enhanced multi-frame image, from its functional groups."""
    shared = (data.get("SharedFunctionalGroupsSequence") or [None])[0]

    def group(frame: Any, name: str) -> Any:
        for place in (frame, shared):
            if place is not None and place.get(name):
                return place.get(name)[0]
        return None

    for number, frame in enumerate(data.PerFrameFunctionalGroupsSequence):
        position = group(frame, "PlanePositionSequence")
        orientation = group(frame, "PlaneOrientationSequence")
        measures = group(frame, "PixelMeasuresSequence")
        if position is None or orientation is None or measures is None:
            raise NoPlanes("a multi-frame DICOM image without geometry of its frames")
        content = group(frame, "FrameContentSequence")
        kind = group(frame, "MRImageFrameTypeSequence")
        echo = group(frame, "MREchoSequence")
        timing = group(frame, "MRTimingAndRelatedParametersSequence")
        scale = group(frame, "PixelValueTransformationSequence")
        say = content.get if content is not None else {}.get
        words = kind.get("FrameType") if kind is not None else data.get("ImageType")
        temporal, acquisition = say("TemporalPositionIndex"), say("FrameAcquisitionNumber")
        moment = say("FrameAcquisitionDateTime") or say("FrameReferenceDateTime")
        # complex parts are named here instead of in ImageType (PS3.3, C.8.13.3.1.1)
        part = str(kind.get("ComplexImageComponent") or "") if kind is not None else ""
        part = {"MAGNITUDE": "M", "PHASE": "P", "REAL": "R", "IMAGINARY": "I"}.get(part, "")
        x, y, z = (float(v) for v in position.ImagePositionPatient)
        a, b, c, d, e, f = (float(v) for v in orientation.ImageOrientationPatient)
        between_rows, between_columns = (float(v) for v in measures.PixelSpacing)
        yield Plane(
            file=path,
            number=number,
            tiles=0,
            rows=int(data.Rows),
            columns=int(data.Columns),
            position=(x, y, z),
            row=(a, b, c),
            column=(d, e, f),
            spacing_mm=(between_rows, between_columns),
            order=(
                -1 if temporal is None else int(temporal),
                -1 if acquisition is None else int(acquisition),
                seconds_of(moment),
                number,
            ),
            part=part or part_of(words),
            echo_ms=-1.0 if echo is None else float(echo.get("EffectiveEchoTime") or -1),
            repetition_s=-1.0
            if timing is None
            else float(timing.get("RepetitionTime") or -1000) / 1000,
            slope=1.0 if scale is None else float(scale.get("RescaleSlope", 1) or 1),
            intercept=0.0 if scale is None else float(scale.get("RescaleIntercept", 0) or 0),
        )
