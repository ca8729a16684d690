"""Images that the tests of attacks share."""

import pytest
import torch


@pytest.fixture
def images():
    return torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(1))
