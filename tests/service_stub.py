"""A service whose network is a few lines: heads lie in the middle of the volume.

``python service_stub.py`` serves on a free port, which it prints, until SIGTERM. What a navigator
holds in its first voxel says what the process does with it.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "bundle"))

from scripts.scan.pose_job import Found

SLOW, DIES, HANGS, NO_HEAD, UNCERTAIN = 1.0, 2.0, 3.0, 4.0, 5.0  # values of the first voxel
SLOW_S = 1.2
EXTENT_MM = np.array([(-30.0, 30.0), (-40.0, 45.0), (-45.0, 38.0)])
SHAPE, AFFINE = (8, 9, 10), np.diag([-20.0, 20.0, 20.0, 1.0])


def stub(link):
    """In the place of NetworkPart."""
    link.send("ready")
    while True:
        try:
            job = link.recv()
        except EOFError:
            return
        what = job.values[0, 0, 0]
        if what == DIES:
            os._exit(1)
        if what in (SLOW, HANGS):
            time.sleep(SLOW_S if what == SLOW else 1000)
        if what == NO_HEAD:
            link.send(Found("no_head", message="no head found (no_head)"))
            continue
        pose = np.eye(4)
        middle = (np.array(job.values.shape) - 1) / 2
        pose[:3, 3] = job.affine[:3, :3] @ middle + job.affine[:3, 3]
        status = "uncertain" if what == UNCERTAIN else "ok"
        link.send(Found(status, pose, 0.98, EXTENT_MM, 6.0, 4.0, 0.01))


def never_ready(link):
    """A network that does not come to be."""
    time.sleep(1000)


def breaks(link):
    """A network that cannot be loaded."""
    raise RuntimeError("no weights")


def navigator(what=0.0, shift_mm=(0.0, 0.0, 0.0)):
    """Values and affine of a volume for `stub`."""
    values = np.zeros(SHAPE, np.float32)
    values[0, 0, 0] = what
    affine = AFFINE.copy()
    affine[:3, 3] += shift_mm
    return values, affine


def main():
    from scripts.scan.scan_service import ScanService

    service = ScanService(stub, port=0)
    signal.signal(signal.SIGTERM, lambda *_: service.stop())
    print(service.address[1], flush=True)
    service.serve()
    print("ended", flush=True)


if __name__ == "__main__":
    main()
