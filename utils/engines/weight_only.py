"""Compact ONNX files whose arithmetic stays in float: int8 weights for transformers, half-precision constants.

Eight bits are too few for the activations of a transformer: a few channels are a hundred times larger than the others,
so a common range rounds the rest to zero (Dettmers et al., "LLM.int8()", NeurIPS 2022, arXiv
2208.07339). The weights alone, with a scale for each output channel, take a quarter of the space.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from utils.engines.resizing import MATRIX_PREFIX

LARGE = 1024  # numbers; smaller constants stay in float32


def has_attention(graph: Any) -> bool:
    """Whether a product follows a softmax somewhere, as in a transformer."""
    weighed = {node.output[0] for node in graph.node if node.op_type == "Softmax"}
    return any(node.op_type == "MatMul" and weighed.intersection(node.input) for node in graph.node)


def quantize_weights(onnx: Any, graph: Any) -> None:
    """Store the large matrices of linear layers as int8 with a float32 scale for each output channel.

    Convolution kernels stay: the one that reads the patches of an image is small, and rounding it costs most. So does
    a layer with one output, which is the head. A cast and a product give the weights back; engines fold both when they
    load the file, or keep the weights compressed.
    """
    products = [node for node in graph.node if node.op_type in ("MatMul", "Gemm")]
    axes = {node.input[1]: 0 if _is_transposed(node) else 1 for node in products}
    nodes, kind, to_array = [], onnx.TensorProto.FLOAT, onnx.numpy_helper.to_array
    for tensor in [tensor for tensor in graph.initializer if tensor.name in axes and _is_large(onnx, tensor)]:
        name, axis, values = tensor.name, axes[tensor.name], to_array(tensor)
        if values.ndim > 2 or values.shape[axis] == 1:
            continue
        scale = np.abs(values).max(1 - axis, keepdims=True).clip(np.finfo(np.float32).tiny) / np.float32(127)
        tensor.CopyFrom(onnx.numpy_helper.from_array(np.rint(values / scale).astype(np.int8), f"{name}.int8"))
        graph.initializer.append(onnx.numpy_helper.from_array(scale, f"{name}.scale"))
        nodes += [
            onnx.helper.make_node("Cast", [f"{name}.int8"], [f"{name}.cast"], f"{name}.cast", to=kind),
            onnx.helper.make_node("Mul", [f"{name}.cast", f"{name}.scale"], [name], f"{name}.mul"),
        ]
    _prepend(graph, nodes)


def store_as_half(onnx: Any, graph: Any, exact: bool = False) -> None:
    """Store large float32 constants as float16, each with a cast back that the engines fold when they load the file.

    Vectors stay in float32: they may be scales, which the engines do not accept behind a cast.

    Args:
        exact: only those that this does not change, such as base weights that were published in half precision.
    """
    casts, kind = [], onnx.TensorProto.FLOAT
    for tensor in graph.initializer:
        if not _is_large(onnx, tensor):
            continue
        name, values = tensor.name, onnx.numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        if np.isfinite(half).all() and (not exact or np.array_equal(half.astype(np.float32), values)):
            tensor.CopyFrom(onnx.numpy_helper.from_array(half, f"{name}.half"))
            casts.append(onnx.helper.make_node("Cast", [f"{name}.half"], [name], f"{name}.cast", to=kind))
    _prepend(graph, casts)


def restore_halves(onnx: Any, graph: Any) -> None:
    """Undo `store_as_half`: constants become float32 again, with the values that they have after the cast."""
    stored = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT16}
    casts = [node for node in graph.node if node.op_type == "Cast" and node.input[0] in stored]
    for node in casts:
        tensor = stored[node.input[0]]
        values = onnx.numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, node.output[0]))
        graph.node.remove(node)


def _is_large(onnx: Any, tensor: Any) -> bool:
    is_weight = tensor.data_type == onnx.TensorProto.FLOAT and not tensor.name.startswith(MATRIX_PREFIX)
    return is_weight and len(tensor.dims) > 1 and np.prod(tensor.dims) >= LARGE


def _is_transposed(node: Any) -> bool:
    return any(attribute.name == "transB" and attribute.i for attribute in node.attribute)


def _prepend(graph: Any, nodes: list[Any]) -> None:
    following = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *following])
