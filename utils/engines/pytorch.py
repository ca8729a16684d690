"""Engines that run a checkpoint in torch: eager, other layouts and precisions, compiled, quantised, sparse."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor, nn

from models.detector import Detector
from utils.engines.exported import Engine
from utils.runtime import PRECISIONS, autocast, set_threads

SPARSITY = 0.7


def torch_engine(
    detector: Detector,
    threads: int | None = None,
    *,
    channels_last: bool = False,
    precision: str = "fp32",
    compiled: bool = False,
    transform: str | None = None,
    cuda_graph: bool = False,
) -> Engine:
    """Turn a detector into an engine: images ``(N, 3, H, W)`` float32 in [0, 1] to logits ``(N,)`` float32."""
    set_threads(threads)
    device = detector.mean.device
    module: nn.Module = detector.requires_grad_(False)
    if transform:
        module = TRANSFORMS[transform](module)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    module = module.to(memory_format=layout)
    if cuda_graph:
        return CudaGraphs(module)
    if compiled:
        import torch._inductor.config as inductor

        inductor.freezing = True  # without it int8 and bfloat16 gain next to nothing on a CPU
        module.compile(dynamic=False)

    @torch.no_grad()
    def run(images: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(images).to(device, memory_format=layout)
        with autocast(device, PRECISIONS[precision]):
            return module(x).float().cpu().numpy()

    return run


def dynamic_int8(module: nn.Module) -> nn.Module:
    """Quantise the weights of Linear and LSTM layers to int8; torch has no such kernel for convolutions."""
    with warnings.catch_warnings():  # torch deprecates it in favour of another package
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(module, {nn.Linear, nn.LSTM}, dtype=torch.qint8)


def sparsify(module: nn.Module, share: float = SPARSITY) -> nn.Module:
    """Set the smallest ``share`` of each convolution's and each linear layer's weights to zero, without fine-tuning.

    Unstructured magnitude pruning: Han et al., "Learning both Weights and Connections for Efficient Neural Networks",
    NeurIPS 2015 (arXiv 1506.02626), who fine-tune afterwards. The tensors stay dense, so this saves no time.
    """
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                size = layer.weight.abs().flatten()
                count = int(share * size.numel())
                if count:
                    layer.weight[layer.weight.abs() <= size.kthvalue(count).values] = 0
    return module


TRANSFORMS = {"dynamic_int8": dynamic_int8, "sparse": sparsify}


class CudaGraphs:
    """Replays a captured CUDA graph per batch size, in half precision, so that Python launches no kernels."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.captured: dict[tuple[int, ...], tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = {}

    @torch.no_grad()
    def __call__(self, images: np.ndarray) -> np.ndarray:
        if images.shape not in self.captured:
            self.captured[images.shape] = self._capture(images)
        graph, x, logits = self.captured[images.shape]
        x.copy_(torch.from_numpy(images))
        graph.replay()
        return logits.float().cpu().numpy()

    def _capture(self, images: np.ndarray) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor]:
        device = next(self.module.parameters()).device
        x = torch.from_numpy(images).to(device)
        with torch.cuda.device(device), torch.autocast("cuda", torch.float16, cache_enabled=False):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):  # lets libraries choose their kernels before the capture
                for _ in range(3):
                    self.module(x)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                logits = self.module(x)
        return graph, x, logits
