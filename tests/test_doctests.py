"""The examples in the docstrings are true: pytest runs them as doctest does."""

from __future__ import annotations

import doctest
import importlib

import pytest

MODULES = (
    "geometry",
    "command_line",
    "data.augmentation",
    "data.dataset_entries",
    "data.entry_check",
    "data.transforms",
    "data.smoothing",
    "data.volumes",
    "data.case_batches",
    "evaluation.aligned",
    "evaluation.drawing",
    "evaluation.metrics",
    "evaluation.outputs",
    "evaluation.report_page",
    "files",
    "labels",
    "option_values",
    "reading.bids",
    "reading.dicom_planes",
    "reading.dicom_private",
    "reading.formats",
    "reading.headers",
    "reading.printable",
    "reading.values",
    "scan.field_of_view",
    "scan.patient",
    "scan.slices",
    "scan.motion_writer",
    "scan.pose_noise",
    "scan.tracking",
    "weight_files",
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_print_what_they_say(name):
    result = doctest.testmod(importlib.import_module(f"scripts.{name}"))
    assert result.attempted > 0
    assert result.failed == 0  # doctest prints which, and what it got
