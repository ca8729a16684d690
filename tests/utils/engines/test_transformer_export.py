"""Exports of transformers, in float and in int8."""

import numpy as np
import pytest
import torch

from datasets.transforms import Geometry
from models.registry import create_model
from tests.utils.engines.exporting import INT8_BOUND, export
from utils.benchmarking.export import parity_report, write_int8
from utils.benchmarking.images import open_calibration
from utils.checkpoints.file import describe_checkpoint, load_checkpoint, load_detector, save_checkpoint
from utils.engines.exported import load_onnx_detector

pytest.importorskip("onnx", reason="exports need onnx")
pytest.importorskip("onnxscript", reason="exports need onnxscript")
pytest.importorskip("onnxruntime", reason="exports need onnxruntime")

pytestmark = pytest.mark.usefixtures("no_evaluation_figures")


@pytest.fixture(scope="module")
def foundation(tmp_path_factory):
    """A foundation model whose tower was published in half precision; its features spread as those of a trained one."""
    torch.manual_seed(0)
    detector = create_model("foundation", backbone="test_vit", blocks="3-6", tokens="both").eval()
    detector.geometry = Geometry("crop", 64)
    detector.backbone.load_state_dict({key: value.half() for key, value in detector.backbone.state_dict().items()})
    images = torch.rand(8, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        detector.norm.momentum = None
        detector.norm.train()
        detector(images)
        detector.eval()
    file = tmp_path_factory.mktemp("foundation") / "best.pt"
    description = {**describe_checkpoint(detector, {}, []), "state_dict": detector.state_dict()}
    save_checkpoint(file, description)
    export(file, file.with_name("float.onnx"), "--export", "onnx")
    return file, images.numpy(), detector(images).detach().numpy()


def difference(file, engine, images, logits):
    """The largest difference of a logit, by the spread of the logits; in batches of one and of all."""
    detector = load_onnx_detector(file, engine, threads=1)
    assert np.allclose(detector(images)[:1], detector(images[:1]), atol=0.02)
    return np.abs(detector(images) - logits).max() / logits.std()


def test_a_transformer_answers_alike_in_every_engine(foundation):
    file, images, logits = foundation
    exported = file.with_name("float.onnx")
    assert difference(exported, "onnx", images, logits) < 1e-3
    # The tower was half precision, and stays so in the file.
    tower = sum(parameter.numel() for parameter in load_detector(file)[0].backbone.parameters())
    assert exported.stat().st_size < 3 * tower
    pytest.importorskip("openvino")
    assert difference(exported, "openvino", images, logits) < 1e-3
    assert difference(exported, "openvino-bf16", images, logits) < 0.2


def test_a_transformer_in_int8_keeps_its_activations_in_float(foundation, image_folder):
    import onnx

    file, images, logits = foundation
    int8 = file.with_name("int8.onnx")
    write_int8(file, file.with_name("float.onnx"), int8, open_calibration(str(image_folder)))
    graph = onnx.load(int8).graph
    assert not {node.op_type for node in graph.node} & {"QuantizeLinear", "DequantizeLinear", "MatMulInteger"}
    weights = [tensor for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.INT8]
    scales = {tensor.name: tensor.dims for tensor in graph.initializer if tensor.name.endswith(".scale")}
    assert len(weights) == len(scales) == 4 * 6  # the products of each block
    assert all(max(dims) == np.prod(dims) > 1 for dims in scales.values())  # one for each output channel
    assert 0 < difference(int8, "onnx-int8", images, logits) < 0.1
    assert int8.stat().st_size < 0.7 * file.with_name("float.onnx").stat().st_size
    pytest.importorskip("openvino")
    assert difference(int8, "openvino-int8", images, logits) < 0.2


def test_halves_that_a_file_holds_exactly_are_quantised_as_floats(tiny_checkpoint, image_folder, tmp_path):
    """The export of a released checkpoint, whose kernels are half precision."""
    checkpoint = load_checkpoint(tiny_checkpoint)
    checkpoint["state_dict"] = {
        key: value.half() if value.ndim > 1 else value for key, value in checkpoint["state_dict"].items()
    }
    save_checkpoint(tmp_path / "half.pt", checkpoint)
    half, exported, int8 = (tmp_path / name for name in ("half.pt", "float.onnx", "int8.onnx"))
    assert export(half, exported, "--export", "onnx")["parity"]["max_logit_difference"] < 1e-4
    write_int8(half, exported, int8, open_calibration(str(image_folder)))
    assert 0 < parity_report(half, int8, str(image_folder))["max_logit_difference"] < INT8_BOUND
