"""What HeadPoseNet finds, as MONAI's evaluators need it."""

from __future__ import annotations

import torch
from monai.inferers import Inferer
from torch import Tensor

from ..cubes import Cube
from ..network import HeadPoseNet


class HeadPoseInferer(Inferer):
    """``HeadPoseNet.predict`` as a dictionary, without gradients.

    With the ``cube`` around the reference brains there is also ``reference_crop``, the pose when
    the crop is placed by the reference: the error whatever the localizer does.
    """

    @torch.no_grad()
    def __call__(  # type: ignore[override]
        self, inputs: Tensor, network: HeadPoseNet, cube: Cube | None = None, *_: Tensor | None
    ) -> dict[str, Tensor]:
        inputs = torch.as_tensor(inputs)
        output = network.predict(inputs)._asdict()
        if cube is not None:
            output["reference_crop"] = network.predict(inputs, cube).head_to_grid
        return output
