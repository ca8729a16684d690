"""Export checkpoints to ONNX files, which predict.py, evaluate.py and serve.py take as --checkpoint."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from models.detector import Detector
from utils.checkpoints.file import DESCRIPTION_KEYS, load_detector
from utils.engines.exported import ONNX_FORMAT, PREFIX, read_description, require
from utils.engines.resizing import MATRIX_PREFIX, replace_antialiased_resizes
from utils.engines.weight_only import has_attention, quantize_weights, restore_halves, store_as_half
from utils.errors import UserError
from utils.files import atomic_write_bytes, file_digest, plain_values

# Without Mul, Sigmoid and the like: eight bits are too few for the product of a gate and its input.
# The first layers have the widest ranges per channel: in float they cost little, in int8 EfficientNet falls to chance.
# The ranges leave out one activation in 100,000: with the extremes, EfficientNet loses more than a point. Both were
# chosen on validation images of openforensics.
FLOAT_LAYERS, FLOAT_SHARE = 4, 10  # at most 4 convolutions, and at most one in 10
PERCENTILE = 99.999
IMAGES_AT_ONCE = 8  # in calibration, which keeps all their activations in memory
INT8_OPERATIONS = ("Conv", "Gemm", "MatMul", "Add", "Relu", "MaxPool", "Concat")


def export_onnx(checkpoint_file: Path, output: Path, engine: str = "onnx") -> None:
    """Write a checkpoint's detector as float32 ONNX with a dynamic batch size, and its description as metadata.

    ``engine`` is the engine that ``--engine auto`` selects for the file.

    Raises:
        UserError: a part of the detector has no counterpart in ONNX; the message names the part.
    """
    require("onnxscript")
    onnx = require("onnx")  # before the seconds of tracing
    detector, checkpoint = load_detector(checkpoint_file)
    refuse_classical(detector, checkpoint["model"])
    model = trace(detector)
    replace_antialiased_resizes(onnx, model.graph)
    store_as_half(onnx, model.graph, exact=True)
    keep_description(model, checkpoint, engine, file_digest(checkpoint_file))
    atomic_write_bytes(output, model.SerializeToString())


def refuse_classical(detector: Detector, model: str) -> None:
    """Raise UserError if the detector or one of its members is a classical learner."""
    for name, module in detector.named_modules():
        if isinstance(module, Detector) and module.is_classical:
            part = f"its part {name} ({type(module).__name__})" if name else type(module).__name__
            raise UserError(
                f"expected a detector made of network layers to export, but in {model} {part} is a classical learner "
                "on handcrafted features, which ONNX cannot hold; export a network, or distil this one with --teacher"
            )


def trace(detector: Detector) -> Any:
    """Trace a detector at the size of its geometry; returns an ``onnx.ModelProto``.

    Raises:
        UserError: the exporter does not support an operation.
    """
    import torch

    side = detector.geometry.size
    images = torch.zeros(2, 3, side, side)
    detector.requires_grad_(False)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            program = torch.onnx.export(
                detector,
                (images,),
                input_names=["images"],
                output_names=["logits"],
                dynamo=True,
                verbose=False,
                dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
            )
        except Exception as error:  # each stage of the exporter raises its own types
            cause = error.__cause__ or error
            reason = " ".join(str(cause).split())[:160]
            raise UserError(
                f"expected every part of the detector to have a counterpart in ONNX, but {failing_part(detector)} "
                f"has none: {reason}"
            ) from None
    assert program is not None  # None comes only from the older exporter, dynamo=False
    return program.model_proto


def failing_part(detector: Detector) -> str:
    """Name the innermost child that cannot be traced alone, or the detector if each of them can."""
    import torch

    calls: dict[str, tuple] = {}
    modules = {name: module for name, module in detector.named_modules() if name}
    hooks = [
        module.register_forward_pre_hook(lambda _, inputs, name=name: calls.setdefault(name, inputs))
        for name, module in modules.items()
    ]
    side = detector.geometry.size
    with torch.no_grad():
        detector(torch.zeros(2, 3, side, side))
    for hook in hooks:
        hook.remove()
    # Inner modules follow their parents, so the first failure from the back is an innermost module.
    for name in reversed(list(calls)):
        try:
            torch.export.export(modules[name], calls[name])
        except Exception:
            return f"{name} ({type(modules[name]).__name__})"
    return type(detector).__name__


def keep_description(model: Any, checkpoint: dict[str, Any], engine: str, fingerprint: str) -> None:
    """Store everything in a checkpoint except the weights as metadata of the file, one JSON value per key."""
    import onnx

    description = {key: checkpoint.get(key) for key in DESCRIPTION_KEYS}
    description |= {"format": ONNX_FORMAT, "source": "onnx", "engine": engine, "fingerprint": fingerprint}
    _set_metadata(onnx, model, description)


def _set_metadata(onnx: Any, model: Any, description: dict[str, Any]) -> None:
    del model.metadata_props[:]  # the exporter's own
    for node in model.graph.node:  # its place in the Python source: a tenth of a small file
        del node.metadata_props[:]
    entries = {PREFIX + key: json.dumps(plain_values(value)) for key, value in description.items()}
    onnx.helper.set_model_props(model, entries)


def quantize_onnx(float_file: Path, output: Path, images: np.ndarray, constants: set[str]) -> None:
    """Quantise an exported file to int8: weights per channel, activations by their ranges on ``images``.

    A transformer, or an ensemble with one, has int8 weights only (see `quantize_weights`).

    Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR
    2018 (arXiv 1712.05877); here after training, with per-channel weights. Everything before the first trained layer
    (normalisation, the DCT of ``cnn``) and the first convolutions of a deep network stay in float.

    Args:
        images: ``(N, 3, H, W)`` float32 in [0, 1] from the training split.
        constants: names of the detector's buffers, which are not trained weights.
    """
    onnx = require("onnx")
    description = read_description(float_file)
    model = onnx.load(float_file)
    restore_halves(onnx, model.graph)
    if has_attention(model.graph):
        quantize_weights(onnx, model.graph)
    else:
        model = static_int8(onnx, model, images, constants)
    store_as_half(onnx, model.graph)
    _set_metadata(onnx, model, {**description, "source": "int8", "engine": "onnx-int8"})
    atomic_write_bytes(output, model.SerializeToString())


def static_int8(onnx: Any, model: Any, images: np.ndarray, constants: set[str]) -> Any:
    """Return an ``onnx.ModelProto`` with static int8 weights and activations."""
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    at_once = min(IMAGES_AT_ONCE, len(images))
    images = images[: len(images) // at_once * at_once]
    quiet = contextlib.redirect_stdout(io.StringIO())  # the quantiser prints its settings, among our results
    with quiet, quiet_root_logger(), tempfile.TemporaryDirectory() as folder:
        source, prepared, quantized = (Path(folder) / f"{name}.onnx" for name in ("float", "prepared", "int8"))
        onnx.save(model, source)  # the quantiser stumbles over a model in memory
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        excluded = float_nodes(onnx.load(prepared).graph, constants)
        quantize_static(
            prepared,
            quantized,
            CalibrationImages(images),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=excluded,
            op_types_to_quantize=list(INT8_OPERATIONS),
            calibrate_method=CalibrationMethod.Percentile,
            extra_options={"CalibPercentile": PERCENTILE, "CalibStridedMinMax": at_once},
        )
        return onnx.load(quantized)


@contextlib.contextmanager
def quiet_root_logger() -> Iterator[None]:
    """Silence the advice that the quantiser logs to the root logger."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)


def float_nodes(graph: Any, constants: set[str]) -> list[str]:
    """Return the nodes that stay in float: those before the first trained layer, and the first convolutions."""
    trained = {
        tensor.name
        for tensor in graph.initializer
        if len(tensor.dims) > 1 and tensor.name not in constants and not tensor.name.startswith(MATRIX_PREFIX)
    }
    names, convolutions = [], []
    for node in graph.node:  # in the order of computation
        if trained.intersection(node.input):
            trained.update(node.output)
            convolutions += [node.name] if node.op_type == "Conv" else []
        else:
            names.append(node.name)
    return names + convolutions[: min(FLOAT_LAYERS, len(convolutions) // FLOAT_SHARE)]


class CalibrationImages:
    """Feeds images one by one to onnxruntime's calibrator; has the interface of its CalibrationDataReader."""

    def __init__(self, images: np.ndarray) -> None:
        self.images = images
        self.set_range(0, len(images))

    def __len__(self) -> int:
        return len(self.images)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Continue with these images."""
        self.next_images = iter(self.images[start_index:end_index])

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next input, None at the end."""
        image = next(self.next_images, None)
        return None if image is None else {"images": image[None]}
