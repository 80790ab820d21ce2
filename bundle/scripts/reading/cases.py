"""What a case is: one frame of a file or of a DICOM series."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path, PurePath

from .dicom_planes import Plane


@dataclass(frozen=True)
class Case:
    """One frame of one case; a plain volume has ``frames == 1``. A DICOM series is one case.

    name : of the case, the same for all of its frames; no two cases of a run share one
    path : the file; of a DICOM series its folder, or its file where it is only one
    kind : "nifti", "nibabel", "itk" or "dicom"
    frame, frames : number of this frame, and how many the case has
    time_s : from the first frame to this one, where it is known
    folder : of the case, below dataset_dir
    bids : entities of the name, "suffix" and "datatype", in a BIDS data set; else None
    shown : how messages call the case; of DICOM without names and dates of its headers
    voxel_mm : sizes along i, j, k that replace those of the header, or None
    planes : of a DICOM series, the slices of this frame
    remarks : what was left out to make a case of it
    """

    name: str
    path: Path
    kind: str
    frame: int = 0
    frames: int = 1
    time_s: float | None = None
    folder: PurePath = field(default_factory=PurePath)
    bids: dict[str, str] | None = None
    shown: str = ""
    voxel_mm: tuple[float, float, float] | None = None
    planes: tuple[Plane, ...] = field(default=(), repr=False)
    remarks: tuple[str, ...] = ()
