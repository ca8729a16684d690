"""Any timm backbone with a one-logit head; normalisation, input size and CAM layer come from timm's tables.

Ross Wightman, "PyTorch Image Models", 2019, github.com/huggingface/pytorch-image-models.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import timm
import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from models.detector import Detector
from utils.errors import UserError

HEADS = ("linear", "dense512")
# Arguments of timm that read files, or change what goes into and comes out of a model.
REFUSED = ("checkpoint_path", "cache_dir", "num_classes", "in_chans", "features_only", "out_indices", "scriptable")


class TimmBackbone(Detector):
    """A timm feature extractor, pooled, followed by a linear or a 512-unit head."""

    def __init__(self, backbone: nn.Module, head: str, dropout: float) -> None:
        config = resolve_model_data_config(backbone)
        found = probe(backbone)
        super().__init__(
            input_size=config["input_size"][-1],
            mean=config["mean"],
            std=config["std"],
            cam_layer=f"backbone.{found.cam_layer}" if found.cam_layer else None,
        )
        self.cam_reshape, self.any_size = found.cam_reshape, found.any_size
        self.backbone = backbone
        self.head = make_head(head, found.width, dropout)
        patches = getattr(getattr(backbone, "patch_embed", None), "proj", None)
        stride = patches.stride[0] if isinstance(patches, nn.Conv2d) else 1
        self.size_step = stride * max(1, 32 // stride)

    def forward(self, images: Tensor) -> Tensor:
        """Score ``(N, 3, H, W)`` RGB images in [0, 1]; returns logits ``(N,)``."""
        features = self.backbone(self.normalize(images))  # (N, C)
        return self.head(features).squeeze(1)


def timm_backbone(
    name: str, head: str = "linear", dropout: float = 0.0, stem_stride: int | None = None, **timm_args: Any
) -> TimmBackbone:
    """Build a detector around a timm model; further arguments (``drop_path_rate``, ``pad_type``...) go to timm.

    ``stem_stride=1`` removes the first down-sampling, at four times the cost (see `set_stem_stride`).

    Raises:
        UserError: timm rejects an argument or cannot pool features with it, the argument would read a file or change
            the input or output of the model, or the stride of the stem cannot be set.
    """
    refused = [key for key in timm_args if key in REFUSED or key.startswith("pretrained")]
    if refused:
        raise UserError(
            f"expected --model-args of the architecture of {name}, got {', '.join(refused)}; use --weights for weights"
        )
    # Transformers are told to take any input size, padded to whole patches; other families lack these arguments.
    flexible = name.startswith(("vit_", "deit", "eva", "test_vit"))
    attempts: list[dict[str, Any]] = [{"dynamic_img_size": True, "dynamic_img_pad": True}, {}] if flexible else [{}]
    for options in attempts:
        try:
            backbone = timm.create_model(name, pretrained=False, num_classes=0, **options, **timm_args)
            break
        except Exception as error:  # timm checks its arguments in many ways
            if options and any(key in str(error) for key in options):
                continue
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise UserError(f"timm cannot build {name!r} with {timm_args or 'its defaults'}: {reason}") from None
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


class Probe(NamedTuple):
    """What timm's tables do not state reliably about a backbone."""

    width: int  # of the pooled features; for some families ``num_features`` is the width before a last layer
    cam_layer: str | None  # None if no layer outputs a feature map
    cam_reshape: Callable[[Tensor], Tensor] | None
    any_size: bool


@torch.no_grad()
def probe(backbone: nn.Module) -> Probe:
    """Run a black image through a backbone: of an odd size that no usual stride divides, else 224 px or its default.

    Raises:
        UserError: the backbone takes none, or does not return pooled features.
    """
    layer = find_cam_layer(backbone)
    outputs: list = []
    hook = backbone.get_submodule(layer).register_forward_hook(lambda *call: outputs.append(call[2])) if layer else None
    own = resolve_model_data_config(backbone)["input_size"][-1]
    odd = own // 2 // 16 * 16 + 8
    was_training = backbone.training
    for size in (odd, min(224, own), own):
        outputs.clear()
        try:
            pooled = backbone.eval()(torch.zeros(1, 3, size, size))
            break
        except Exception as error:  # architectures refuse a size in many ways
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    else:
        raise UserError(f"expected a timm model that takes {own} px images, got: {reason}")
    backbone.train(was_training)
    if hook:
        hook.remove()
    if not isinstance(pooled, Tensor) or pooled.ndim != 2:
        found = tuple(pooled.shape) if isinstance(pooled, Tensor) else type(pooled).__name__
        raise UserError(f"expected a timm model with pooled features (N, C), got {found}; change --model-args")
    width, shape = pooled.shape[1], outputs[0].shape if outputs and isinstance(outputs[0], Tensor) else ()
    if len(shape) == 4:
        channels_last = getattr(backbone, "output_fmt", None) == "NHWC"
        return Probe(width, layer, _channels_first if channels_last else None, size == odd)
    # Hiera keeps its tokens in the order of its windows, which is not a map.
    if len(shape) == 3 and not hasattr(backbone, "reroll"):
        return Probe(width, layer, TokensToMap(shape[1] - math.isqrt(shape[1]) ** 2), size == odd)
    return Probe(width, None, None, size == odd)


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


class TokensToMap:
    """Turn ``(N, prefix + h * w, C)`` tokens of a square input into a map ``(N, C, h, w)``."""

    def __init__(self, prefix_tokens: int) -> None:
        self.prefix_tokens = prefix_tokens

    def __call__(self, tokens: Tensor) -> Tensor:
        tokens = tokens[:, self.prefix_tokens :]
        side = round(tokens.shape[1] ** 0.5)
        return tokens.transpose(1, 2).unflatten(2, (side, side))
