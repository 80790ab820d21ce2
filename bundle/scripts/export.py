"""The chain from volume to pose for other programs: torch.export and ONNX.

From the bundle's folder: ``python -m scripts.export pt2 [--filepath models/model.pt2]`` or
``python -m scripts.export onnx [--filepath models/model.onnx]``; TorchScript is
``python -m monai.bundle ckpt_export --config_file configs/inference.json``. Input ``volume``
(batch, 1, x, y, z) float32 on the working grid, output ``head_to_grid`` (batch, 4, 4) float32, mm;
batch and sizes are free from 1 and 16 voxels on. ONNX needs the packages of the extra ``export``.
"""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path

import torch
from monai.bundle import ConfigParser
from torch.export import Dim, ExportedProgram

from .files import replacing
from .network.head_pose_net import HeadPoseNet
from .weight_files import WeightsError, load_weights

logger = logging.getLogger(__name__)
ROOT = Path(__file__).parents[1]
OPSET = 20  # the first whose GridSample takes volumes


def declared_network(
    config_file: str | os.PathLike[str], ckpt_file: str | os.PathLike[str]
) -> HeadPoseNet:
    """The ``network_def`` of a config with the weights of a file, in eval mode, on the CPU.

    FileNotFoundError or WeightsError for a file without weights of this network.
    """
    parser = ConfigParser()
    parser.read_config(str(config_file))
    network: HeadPoseNet = parser.get_parsed_content("network_def")
    load_weights(network, ckpt_file)
    return network.eval()


@torch.no_grad()
def export_program(network: HeadPoseNet) -> ExportedProgram:
    """The whole chain by ``torch.export``, for any batch and volumes of 16 voxels and more."""
    sizes = {2: Dim("x", min=16), 3: Dim("y", min=16), 4: Dim("z", min=16)}
    # sizes that no two axes share, none of them special
    example = torch.rand(2, 1, 90, 70, 66)
    return torch.export.export(
        network.plain(), (example,), dynamic_shapes=({0: Dim("batch"), **sizes},), strict=False
    )


def write_pt2(program: ExportedProgram, path: str | os.PathLike[str]) -> None:
    """A file for ``torch.export.load``, whole or not there."""
    with replacing(path) as partial:
        torch.export.save(program, partial)


def write_onnx(program: ExportedProgram, path: str | os.PathLike[str]) -> None:
    """An ONNX file with the weights inside, whole or not there.

    ModuleNotFoundError without the packages ``onnx`` and ``onnxscript``.
    """
    model = torch.onnx.export(
        program,
        dynamo=True,
        opset_version=OPSET,
        input_names=["volume"],
        output_names=["head_to_grid"],
    )
    assert model is not None  # that of dynamo=True is returned
    with replacing(path) as partial:
        model.save(partial, external_data=False)


WRITERS = {"pt2": write_pt2, "onnx": write_onnx}


def main() -> None:
    """Command line."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("kind", choices=sorted(WRITERS))
    options.add_argument("--config_file", default=ROOT / "configs/inference.json")
    options.add_argument("--ckpt_file", default=ROOT / "models/model.pt")
    options.add_argument("--filepath", help="default: models/model.<kind>")
    given = options.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    path = Path(given.filepath or ROOT / f"models/model.{given.kind}")
    try:
        network = declared_network(given.config_file, given.ckpt_file)
    except (WeightsError, OSError) as error:
        options.error(str(error))
    program = export_program(network)
    WRITERS[given.kind](program, path)
    logger.info("wrote %s, %.1f MB", path, path.stat().st_size / 1e6)


if __name__ == "__main__":
    main()
