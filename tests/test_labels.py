"""labels.py: names that light commands need as well."""

from __future__ import annotations

import subprocess
import sys

import pytest

from conftest import BUNDLE


@pytest.mark.parametrize("name", ["labels", "reading", "prescribe"])
def test_names_do_not_cost_the_import_of_monai(name):
    code = f"import sys, scripts.{name}; print('monai' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=BUNDLE, capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"
