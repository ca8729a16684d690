"""Antialiased resizing in exported files."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from datasets.transforms import Geometry
from models.detector import Detector
from utils.engines.export import trace
from utils.engines.exported import exported_engine
from utils.engines.resizing import replace_antialiased_resizes
from utils.engines.weight_only import quantize_weights, store_as_half

onnx = pytest.importorskip("onnx", reason="exports need onnx")
pytest.importorskip("onnxscript", reason="exports need onnxscript")


class Resizer(Detector):
    """Resizes images to another size, and constants with them, as towers do with position embeddings."""

    def __init__(self, side):
        super().__init__(64, geometry=Geometry("crop", 64))
        self.side = side
        draw = torch.Generator().manual_seed(0)
        # The exporter folds smaller constants.
        self.embedding = torch.nn.Parameter(torch.rand(1, 64, 14, 14, generator=draw))

    def forward(self, images):
        pixels, embedding = (
            F.interpolate(x, (self.side, self.side), mode="bicubic", antialias=True) for x in (images, self.embedding)
        )
        return (pixels * embedding.amax(1, keepdim=True)).sum((1, 2, 3))


@pytest.fixture(scope="module", params=[44, 96])
def resizer(request, tmp_path_factory):
    """A detector that resizes to a smaller or larger side, and its export."""
    detector = Resizer(request.param)
    model = trace(detector)
    assert sum(node.op_type == "Resize" for node in model.graph.node) == 2
    replace_antialiased_resizes(onnx, model.graph)
    # Int8 weights and half precision leave the matrices alone.
    quantize_weights(onnx, model.graph)
    assert not any(tensor.data_type == onnx.TensorProto.INT8 for tensor in model.graph.initializer)
    store_as_half(onnx, model.graph, exact=True)
    onnx.checker.check_model(model)
    assert not any(node.op_type == "Resize" for node in model.graph.node)
    file = tmp_path_factory.mktemp("resizer") / "model.onnx"
    onnx.save(model, file)
    return detector, file


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_engines_resize_as_pytorch_does(engine, resizer):
    pytest.importorskip({"onnx": "onnxruntime"}.get(engine, engine))
    detector, file = resizer
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    logits = exported_engine(engine, file, threads=1)(images.numpy())
    assert np.allclose(logits, detector(images).detach(), rtol=1e-4)
