"""The engines of PyTorch give the answers of eager float32."""

import numpy as np
import pytest
import torch

from utils.checkpoints.file import load_detector
from utils.engines.pytorch import torch_engine
from utils.engines.registry import ENGINES


def engine_of(name, file):
    return torch_engine(load_detector(file)[0], 1, **ENGINES[name].options)


@pytest.mark.parametrize("name", [name for name, kind in ENGINES.items() if kind.source == "pt"])
def test_torch_engines_agree_with_eager(name, tiny_checkpoint):
    if ENGINES[name].needs_cuda:
        pytest.skip("needs a GPU")
    if name.startswith("compile"):
        pytest.skip("compiles for a minute; benchmark.py measures it")
    images = np.random.default_rng(0).random((4, 3, 32, 32), dtype=np.float32)
    eager = engine_of("eager", tiny_checkpoint)(images)
    with torch.no_grad():
        assert np.allclose(eager, load_detector(tiny_checkpoint)[0](torch.from_numpy(images)).numpy(), atol=1e-6)
    bound = {"sparse": 1.0, "bf16": 0.1, "fp16": 0.05, "dynamic-int8": 0.1}.get(name, 1e-5)
    assert np.abs(engine_of(name, tiny_checkpoint)(images) - eager).max() < bound
