"""The examples in the docstrings are true: pytest runs them as doctest does."""

from __future__ import annotations

import doctest
import importlib

import pytest

MODULES = (
    "geometry",
    "data.augmentation",
    "data.transforms",
    "data.volumes",
    "evaluation.metrics",
    "files",
    "labels",
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_print_what_they_say(name):
    result = doctest.testmod(importlib.import_module(f"scripts.{name}"))
    assert result.attempted > 0
    assert result.failed == 0  # doctest prints which, and what it got
