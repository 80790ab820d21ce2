"""The process that finds heads: loads the shipped network once, then answers volume by volume."""

from __future__ import annotations

import time
from dataclasses import dataclass
from multiprocessing.connection import Connection

import numpy as np

from .pose_job import Found, Job

WARM_SHAPES = ((64, 64, 48),)  # of 6 mm


@dataclass(frozen=True)
class NetworkPart:
    """What runs in the process.

    weights : path of a state_dict
    threads : of torch; device : such as "cpu" or "cuda"
    """

    weights: str
    threads: int | None = None
    device: str = "cpu"
    uncertain_above_deg: float | None = 10.0

    def __call__(self, link: Connection) -> None:
        """Say "ready" when warm, then give a Found for every Job; ends when the link does."""
        # here, so that the process that only answers needs neither torch nor MONAI
        import torch

        from ..weight_files import read_weights

        read_weights(self.weights)  # what is wrong with them is said at once

        from ..network import HeadPoseNet
        from ..process import keep_imports, sleep_while_waiting
        from .estimator import HeadPoseEstimator

        if self.threads:
            torch.set_num_threads(self.threads)
        sleep_while_waiting()
        estimator = HeadPoseEstimator(
            HeadPoseNet(), self.weights, self.device, uncertain_above_deg=self.uncertain_above_deg
        )
        keep_imports()
        for shape in WARM_SHAPES:
            noise = np.random.RandomState(0).rand(*shape).astype(np.float32)
            estimator([(noise, np.diag([6.0, 6.0, 6.0, 1.0]))])
        link.send("ready")
        while True:
            try:
                job = link.recv()
            except EOFError:
                return
            link.send(self.found(estimator, job))

    def found(self, estimator: object, job: Job) -> Found:
        """What an estimator finds in a job's volume, whatever goes wrong."""
        from ..reading.image import Notes, VolumeError
        from ..reading.values import cure
        from .extent import mask_extent_mm

        start = time.perf_counter()
        notes = Notes()
        try:
            voxel_ml = abs(float(np.linalg.det(job.affine[:3, :3]))) / 1000
            values = cure(job.values, voxel_ml, notes, f"navigator {job.number}")
            (seen,) = estimator([(values, job.affine)])  # type: ignore[operator]
        except VolumeError as error:
            return Found(str(error.status), message="; ".join([*notes.warnings, str(error)]))
        except Exception as error:  # one navigator never stops the others
            return Found("failed", message=f"{type(error).__name__}: {error}")
        extent = None
        if seen.head_to_world is not None and seen.brain is not None and seen.brain.any():
            extent = mask_extent_mm(seen.brain, seen.affine, seen.head_to_world, job.tilt_deg)
        said = list(notes.warnings)
        if seen.message:
            said.append(seen.message)
        elif seen.head_to_world is None:
            said.append(f"no head found ({seen.status})")
        return Found(
            str(seen.status),
            seen.head_to_world,
            float(seen.confidence),
            extent,
            float(seen.noise.rotation_sd_deg),
            float(seen.noise.translation_sd_mm),
            float(seen.noise.wrong_share),
            "; ".join(said),
            time.perf_counter() - start,
        )
