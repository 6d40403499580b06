"""The default adapter refuses a transformer that predicts more than it is given."""

import pytest
import torch
from fresco.adapters.models.plain import PlainAdapter

from fresco.errors import AdapterError
from fresco.layout import TokenLayout
from tests.families import FAMILIES


def test_learned_variances_are_no_prediction_to_step_with():
    adapter = PlainAdapter(FAMILIES["sd3"].make().transformer)
    layout, n = TokenLayout.whole(2, 2, 1, 2), adapter.config.in_channels
    assert adapter.unembed((torch.zeros(1, n, 4, 4),), layout).shape == (1, 4, n, 2, 2)
    with pytest.raises(AdapterError, match=rf"as many channels .* got {2 * n} of {n}\. Write an"):
        adapter.unembed((torch.zeros(1, 2 * n, 4, 4),), layout)
