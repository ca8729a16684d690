"""Any timm backbone with a one-logit head; normalisation, input size and CAM layer come from timm's tables.

Ross Wightman, "PyTorch Image Models", 2019, github.com/huggingface/pytorch-image-models.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import timm
import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from models.detector import Detector
from utils.errors import UserError

HEADS = ("linear", "dense512")


class TimmBackbone(Detector):
    """A timm feature extractor, pooled, followed by a linear or a 512-unit head."""

    def __init__(self, backbone: nn.Module, head: str, dropout: float) -> None:
        config = resolve_model_data_config(backbone)
        width, layer, reshape = probe(backbone)
        super().__init__(
            input_size=config["input_size"][-1],
            mean=config["mean"],
            std=config["std"],
            cam_layer=f"backbone.{layer}" if layer else None,
        )
        self.cam_reshape = reshape
        self.any_size = not hasattr(backbone, "patch_embed") or getattr(backbone, "dynamic_img_size", False)
        self.backbone = backbone
        self.head = make_head(head, width, dropout)

    def forward(self, images: Tensor) -> Tensor:
        """Score ``(N, 3, H, W)`` RGB images in [0, 1]; returns logits ``(N,)``."""
        features = self.backbone(self.normalize(images))  # (N, C)
        return self.head(features).squeeze(1)


def timm_backbone(
    name: str, head: str = "linear", dropout: float = 0.0, stem_stride: int | None = None, **timm_args
) -> TimmBackbone:
    """Build a detector around a timm model; further arguments (``drop_path_rate``, ``pad_type``...) go to timm.

    ``stem_stride=1`` removes the first down-sampling, at four times the cost (see `set_stem_stride`).

    Raises:
        UserError: timm rejects an argument, or the stride of the stem cannot be set.
    """
    # Transformers are told to take any input size; other families do not know this argument.
    flexible: dict[str, Any] = (
        {"dynamic_img_size": True} if name.startswith(("vit_", "deit", "eva", "test_vit")) else {}
    )
    try:
        try:
            backbone = timm.create_model(name, pretrained=False, num_classes=0, **flexible, **timm_args)
        except TypeError as error:
            if "dynamic_img_size" not in str(error):
                raise
            backbone = timm.create_model(name, pretrained=False, num_classes=0, **timm_args)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"timm cannot build {name!r} with {timm_args or 'its defaults'}: {error}") from None
    if stem_stride is not None:
        set_stem_stride(backbone, stem_stride)
    return TimmBackbone(backbone, head, dropout)


def set_stem_stride(backbone: nn.Module, stride: int) -> None:
    """Change the stride of the first convolution; its weights keep their shape, so pretrained ones still fit.

    With stride 1 the fine traces of a generator reach deeper layers before they are averaged out. Gragnaniello et al.,
    "Are GAN Generated Images Easy to Detect? A Critical Analysis of the State-of-the-Art", ICME 2021 (arXiv
    2104.02617), also remove the first pooling, which is kept here.

    Raises:
        UserError: the stride is neither 1 nor 2, or the stem is not a convolution of stride 2 and 3 x 3 px or larger.
    """
    if stride not in (1, 2):
        raise UserError(f"expected --model-args stem_stride=1 or stem_stride=2, got {stride!r}")
    stem = next((module for module in backbone.modules() if isinstance(module, nn.Conv2d)), None)
    # Not for patch embeddings, whose kernel is as large as their stride.
    if stem is None or stem.stride != (2, 2) or stem.kernel_size[0] < 3:
        found = f"stride {stem.stride[0]}, kernel {stem.kernel_size[0]}" if stem else "no convolution"
        raise UserError(f"expected a backbone that begins with a convolution of stride 2 for stem_stride, got {found}")
    stem.stride = (stride, stride)


def make_head(kind: str, width: int, dropout: float) -> nn.Sequential:
    """Build the classifier on pooled features ``(N, width)``.

    ``linear`` is dropout and one layer. ``dense512`` is the head of the usual InceptionResNetV2 recipe for the 140k
    set: dense 512, ReLU, batch norm, dropout (0.5 by default), one layer.
    """
    if kind == "linear":
        return nn.Sequential(nn.Dropout(dropout), nn.Linear(width, 1))
    if kind == "dense512":
        return nn.Sequential(
            nn.Linear(width, 512), nn.ReLU(), nn.BatchNorm1d(512), nn.Dropout(dropout or 0.5), nn.Linear(512, 1)
        )
    raise UserError(f"expected --model-args head={' or head='.join(HEADS)}, got {kind!r}")


@torch.no_grad()
def probe(backbone: nn.Module) -> tuple[int, str | None, Callable[[Tensor], Tensor] | None]:
    """Run one black image through a backbone, to measure what timm's tables do not tell reliably.

    Returns:
        The width of the pooled features (for some families ``num_features`` is the width before a last layer),
        the layer that Grad-CAM should read, and how to make a feature map of its output. Both are None where
        the output of that layer is no map.
    """
    layer = find_cam_layer(backbone)
    outputs: list = []
    hook = backbone.get_submodule(layer).register_forward_hook(lambda *call: outputs.append(call[2])) if layer else None
    size = resolve_model_data_config(backbone)["input_size"]
    was_training = backbone.training
    width = backbone.eval()(torch.zeros(1, *size)).shape[1]
    backbone.train(was_training)
    if hook:
        hook.remove()
    shape = outputs[0].shape if outputs and isinstance(outputs[0], Tensor) else ()
    if len(shape) == 4:
        channels_last = getattr(backbone, "output_fmt", None) == "NHWC"
        return width, layer, _channels_first if channels_last else None
    # Hiera keeps its tokens in the order of its windows: they are no map.
    if len(shape) == 3 and not hasattr(backbone, "reroll"):
        return width, layer, _TokensToMap(shape[1] - math.isqrt(shape[1]) ** 2)
    return width, None, None


def find_cam_layer(backbone: nn.Module) -> str | None:
    """Name the layer that Grad-CAM should read.

    For convolutional families it is the last stage that timm lists; for plain transformers the first norm of
    the last block, since the class token alone carries gradient after it.
    """
    blocks = getattr(backbone, "blocks", None)
    is_plain = hasattr(backbone, "patch_embed")
    if is_plain and isinstance(blocks, nn.Sequential | nn.ModuleList) and hasattr(blocks[-1], "norm1"):
        return f"blocks.{len(blocks) - 1}.norm1"
    stages = getattr(backbone, "feature_info", None)
    if stages:
        module = stages[-1]["module"] if isinstance(stages, list) else stages.module_name(-1)
        if module in dict(backbone.named_modules()):
            return module
    return None


def _channels_first(features: Tensor) -> Tensor:
    return features.permute(0, 3, 1, 2)


class _TokensToMap:
    """Turn ``(N, prefix + h * w, C)`` tokens of a square input into a map ``(N, C, h, w)``."""

    def __init__(self, prefix_tokens: int) -> None:
        self.prefix_tokens = prefix_tokens

    def __call__(self, tokens: Tensor) -> Tensor:
        tokens = tokens[:, self.prefix_tokens :]
        side = round(tokens.shape[1] ** 0.5)
        return tokens.transpose(1, 2).unflatten(2, (side, side))
