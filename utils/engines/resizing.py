"""Antialiased resizing in exported files, as matrix products.

OpenVINO (2026.4) weighs the pixels of an antialiased Resize differently from PyTorch and ONNX Runtime. In deepfake-v3,
which resizes its input and its position embeddings in this way, that changes logits by 0.2.
"""

from __future__ import annotations

from typing import Any

import numpy as np

MATRIX_PREFIX = "resizing_"  # of the names of the matrices, which stay in float32


def replace_antialiased_resizes(onnx: Any, graph: Any) -> None:
    """Replace each antialiased bicubic Resize of a fixed size by two products with constant matrices.

    Works in place on an ``onnx.GraphProto`` whose tensors have shapes.
    """
    shapes = {
        value.name: [axis.dim_value for axis in value.type.tensor_type.shape.dim]  # 0: dynamic
        for value in (*graph.input, *graph.value_info, *graph.output)
    }
    shapes |= {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    nodes = list(graph.node)
    del graph.node[:]
    for node in nodes:
        before, after = shapes.get(node.input[0]) if node.input else None, shapes.get(node.output[0])
        if is_antialiased_bicubic(onnx, node) and before and after and all(before[1:] + after[1:]):
            graph.node.extend(as_products(onnx, graph, node, before[1:], after[1:]))
        else:
            graph.node.append(node)


def is_antialiased_bicubic(onnx: Any, node: Any) -> bool:
    """Whether a node resizes as ``F.interpolate(mode="bicubic", antialias=True)`` does."""
    settings = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    return node.op_type == "Resize" and settings.get("antialias") == 1 and settings.get("mode") == b"cubic"


def as_products(onnx: Any, graph: Any, node: Any, before: list[int], after: list[int]) -> list[Any]:
    """Return nodes that resize ``(N, C, H, W)`` from ``before`` to ``after``, both ``[C, H, W]``; adds their constants.

    The planes are flattened to ``(N * C, H, W)``: OpenVINO fails on products of four dimensions before a normalisation.
    """
    name = f"{MATRIX_PREFIX}{node.output[0]}"
    constants = {
        "planes": np.array([-1, *before[1:]], np.int64),
        "rows": resizing_matrix(before[1], after[1]),
        "columns": resizing_matrix(before[2], after[2]).T.copy(),
        "images": np.array([-1, *after], np.int64),
    }
    graph.initializer.extend(onnx.numpy_helper.from_array(array, f"{name}_{key}") for key, array in constants.items())
    make = onnx.helper.make_node
    return [
        make("Reshape", [node.input[0], f"{name}_planes"], [f"{name}_flat"]),
        make("MatMul", [f"{name}_rows", f"{name}_flat"], [f"{name}_lower"], f"{name}_along_rows"),
        make("MatMul", [f"{name}_lower", f"{name}_columns"], [f"{name}_small"], f"{name}_along_columns"),
        make("Reshape", [f"{name}_small", f"{name}_images"], list(node.output)),
    ]


def resizing_matrix(before: int, after: int) -> np.ndarray:
    """The matrix ``(after, before)`` float32 that resizes columns of pixels."""
    import torch
    from torch.nn import functional as F

    unit = torch.eye(before)[None, None]
    return F.interpolate(unit, (after, before), mode="bicubic", antialias=True)[0, 0].numpy()
