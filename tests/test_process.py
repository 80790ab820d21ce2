"""process.py: garbage collection after the imports."""

from __future__ import annotations

import subprocess
import sys

from conftest import BUNDLE

CODE = """
import atexit, gc, weakref
atexit.register(lambda: print("frozen at the end", gc.get_freeze_count() > before))
from scripts.process import keep_imports
keep_imports()
before = gc.get_freeze_count()
class Node: pass
node = Node(); node.self = node; seen = weakref.ref(node); del node
gc.collect()
print("frozen", before > 1000, "collected", seen() is None)
"""


def test_imports_are_kept_and_later_garbage_is_collected():
    found = subprocess.run(
        [sys.executable, "-c", CODE], cwd=BUNDLE, capture_output=True, text=True, check=True
    )
    assert found.stdout.split("\n")[:2] == [
        "frozen True collected True",
        "frozen at the end True",
    ]
