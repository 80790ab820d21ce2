"""smoothing.py against MONAI's filter, which it replaces."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.transforms import GaussianSmooth

from scripts.data.smoothing import smoothed


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("sigma", [(1.6, 1.6, 0.9), (0.6, 0.0, 2.0), (0, 0, 0), (4, 0.3, 0)])
def test_it_is_that_of_monai(order, sigma):
    values = np.asarray(
        np.random.default_rng(0).random((37, 70, 9)).astype(np.float32), order=order
    )
    kept = values.copy()
    expected = torch.from_numpy(values.copy()).unsqueeze(0)
    if any(sigma):
        expected = GaussianSmooth(sigma=list(sigma))(expected)
    found = smoothed(values, sigma)
    np.testing.assert_allclose(found, expected[0].numpy(), atol=1e-6)
    np.testing.assert_array_equal(values, kept)
    assert found.dtype == np.float32
