"""A pretrained vision transformer, read at several blocks and mostly frozen, with a linear head.

Only the LayerNorms, or all weights, of the last blocks are tuned: a detector that may change all weights soon memorises
its training sources. LayerNorm tuning and features of unit norm: A. Yermakov et al., "Deepfake
Detection that Generalizes Across Benchmarks" (GenD), 2025 (arXiv 2508.06248). Features of several blocks with learnt
weights: C. Koutlis, S. Papadopoulos, "Leveraging Representations from Intermediate Encoder-blocks for Synthetic Image
Detection" (RINE), ECCV 2024 (arXiv 2402.19091).
"""

from __future__ import annotations

import math
import re
from typing import Any, Self

import torch
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from models.detector import Detector
from models.registry import create_model, register_model
from models.timm_backbone import TimmBackbone, TokensToMap
from utils.errors import UserError

TOKENS = ("class", "patch", "both")
TUNES = "tune=none, norms, norms_K or last_K"


class Foundation(Detector):
    """The class token, the mean patch token or both after some blocks, and one linear layer on all of them.

    Each read-out is scaled to unit norm; all are standardised by a batch norm without weights; each is multiplied by a
    learnt weight. (RINE learns its weights before a projection; before a batch norm they would cancel.) A backbone
    without a class token, such as SigLIP, is read at its mean patch token. Blocks after the last one read are dropped.

    Args:
        like: a detector around the whole backbone.
        blocks: the numbers of the blocks to read, ascending, from 1.
        first_tuned: index of the first block that training changes; the number of blocks kept if it changes none.
        norms_only: change only the norms of these blocks.
    """

    backbone: Any  # of timm: mypy knows none of its attributes
    caches_tokens = True
    base_prefix = "backbone."

    def __init__(self, like: TimmBackbone, blocks: list[int], tokens: str, first_tuned: int, norms_only: bool) -> None:
        backbone: Any = like.backbone
        super().__init__(
            like.input_size,
            mean=like.mean.flatten().tolist(),
            std=like.std.flatten().tolist(),
            cam_layer=f"backbone.blocks.{blocks[-1] - 1}.norm1",
        )
        backbone.prune_intermediate_layers([number - 1 for number in blocks], prune_norm=True)
        self.prefix_tokens = backbone.num_prefix_tokens  # class and register tokens, before those of the patches
        self.cam_reshape = TokensToMap(self.prefix_tokens)
        self.base_name = like.name
        self.any_size, self.size_step = like.any_size, like.size_step
        self.blocks, self.first_tuned, self.norms_only = blocks, first_tuned, norms_only
        has_class = getattr(backbone, "cls_token", None) is not None
        self.reads_class = has_class and tokens != "patch"
        self.reads_patches = not has_class or tokens != "class"
        read_outs = len(blocks) * (self.reads_class + self.reads_patches)
        self.backbone = backbone
        self.weights = nn.Parameter(torch.ones(read_outs, 1))
        # Standard deviations of unit vectors of a thousand numbers are far below the usual eps.
        self.norm = nn.BatchNorm1d(read_outs * backbone.embed_dim, eps=1e-8, affine=False)
        self.head = nn.Linear(read_outs * backbone.embed_dim, 1)
        for parameter in self.fixed_parameters():
            parameter.requires_grad_(False)
        self.train()

    def forward(self, images: Tensor) -> Tensor:
        """Score ``(N, 3, H, W)`` RGB images in [0, 1]; returns logits ``(N,)``."""
        return self.from_tokens(self.frozen_tokens(images))

    def frozen_tokens(self, images: Tensor) -> Tensor:
        """Compute what training does not change, ``(N, R, D)``: all tokens before the first tuned block, if there is
        one, followed by the read-outs of the blocks before it.
        """
        tokens, read = self._run(self._embed(images), 0, self.first_tuned)
        return torch.cat([tokens, *read] if self.first_tuned < len(self.backbone.blocks) else read, dim=1)

    def from_tokens(self, tokens: Tensor) -> Tensor:
        """Turn the output of `frozen_tokens` into logits ``(N,)``."""
        early = sum(number <= self.first_tuned for number in self.blocks) * (self.reads_class + self.reads_patches)
        tokens, read = tokens.split([tokens.shape[1] - early, early], dim=1)
        _, late = self._run(tokens, self.first_tuned, len(self.backbone.blocks))
        return self._classify(torch.cat([read, *late], dim=1))

    def stem(self, images: Tensor, depth: int) -> Tensor:
        """Compute the tokens ``(N, T, D)`` after the first ``depth`` blocks, fewer than up to the first one read."""
        return self._run(self._embed(images), 0, depth)[0]

    def from_stem(self, tokens: Tensor, depth: int) -> Tensor:
        """Turn the output of `stem`, also that of a detector with the same stem, into logits ``(N,)``."""
        return self._classify(torch.cat(self._run(tokens, depth, len(self.backbone.blocks))[1], dim=1))

    def _embed(self, images: Tensor) -> Tensor:
        """Compute the tokens ``(N, T, D)`` before the first block."""
        embedded = self.backbone._pos_embed(self.backbone.patch_embed(self.normalize(images)))
        tokens = embedded[0] if isinstance(embedded, tuple) else embedded  # Eva adds its rotations
        return self.backbone.norm_pre(tokens)

    def _classify(self, read: Tensor) -> Tensor:
        """Turn the read-outs ``(N, R, D)`` into logits ``(N,)``."""
        # In float32: the differences between images are small beside the tokens themselves.
        with torch.autocast(read.device.type, enabled=False):
            unit = F.normalize(read.float(), dim=2)
            standard = self.norm(unit.flatten(1)).unflatten(1, unit.shape[1:])
            return self.head((standard * self.weights).flatten(1)).squeeze(1)

    def _run(self, tokens: Tensor, start: int, stop: int) -> tuple[Tensor, list[Tensor]]:
        """Pass tokens ``(N, T, D)`` through some blocks; returns them and the read-outs ``(N, 1, D)`` after each."""
        rotations = {}
        if start < stop and getattr(self.backbone, "rope", None) is not None:
            side = math.isqrt(tokens.shape[1] - self.prefix_tokens)
            rotations["rope"] = self.backbone.rope.get_embed(shape=(side, side))
        read = []
        for index in range(start, stop):
            tokens = self.backbone.blocks[index](tokens, **rotations)
            if index + 1 in self.blocks:
                read += [tokens[:, :1]] if self.reads_class else []
                read += [tokens[:, self.prefix_tokens :].mean(1, keepdim=True)] if self.reads_patches else []
        return tokens, read

    def fixed_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the tower that training never changes."""
        tuned = {
            id(parameter)
            for block in self.backbone.blocks[self.first_tuned :]
            for name, parameter in block.named_parameters()
            if "norm" in name or not self.norms_only
        }
        return [parameter for parameter in self.backbone.parameters() if id(parameter) not in tuned]

    def head_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the linear layer, and the weights of the read-outs."""
        return [self.weights, *self.head.parameters()]

    def train(self, mode: bool = True) -> Self:
        """Enter training mode, except for the frozen part, which has no dropout."""
        super().train(mode)
        self.backbone.eval()
        for block in self.backbone.blocks[self.first_tuned :]:
            block.train(mode)
        return self


def common_stem(one: Foundation, other: Foundation) -> int:
    """Count the first blocks that two detectors with the same inputs share, before the first one that either reads."""
    if one.base_name != other.base_name or one.geometry != other.geometry:
        return 0
    towers: list[Any] = [one.backbone, other.backbone]
    embeddings = [{k: v for k, v in tower.state_dict().items() if not k.startswith("blocks.")} for tower in towers]
    if not same_tensors(*embeddings):
        return 0
    for depth, pair in enumerate(zip(*(tower.blocks for tower in towers), strict=False), start=1):
        if depth == min(one.blocks[0], other.blocks[0]) or not same_tensors(*(block.state_dict() for block in pair)):
            return depth - 1
    return 0


def same_tensors(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether two state dicts are equal."""
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


@register_model
def foundation(
    backbone: str = "vit_base_patch16_clip_quickgelu_224.openai",
    blocks: str | int = "",
    tokens: str = "class",
    tune: str = "norms_2",
) -> Foundation:
    """Build a detector on a plain vision transformer of timm (CLIP, DINOv2, DINOv3, SigLIP, EVA-02...).

    Args:
        blocks: the blocks to read, such as ``8-12`` or ``6,9,12``, counted from 1; the second half by default.
        tokens: what to read of each: ``class``, ``patch`` (their mean) or ``both``.
        tune: what training changes besides the head: ``none``, ``norms`` (of all blocks), ``norms_K`` (of the last K
            blocks up to the last one read) or ``last_K`` (all their weights).

    Raises:
        UserError: an argument has another value, or the backbone is not a plain vision transformer.
    """
    if tokens not in TOKENS:
        raise UserError(f"expected --model-args tokens={' or tokens='.join(TOKENS)}, got {tokens!r}")
    like = create_model(backbone) if backbone != "foundation" else None
    tower: Any = getattr(like, "backbone", None)
    is_plain = isinstance(tower, VisionTransformer | Eva) and not getattr(tower, "rope_mixed", False)
    if not isinstance(like, TimmBackbone) or not is_plain:
        raise UserError(
            "expected --model-args backbone=NAME of a plain vision transformer in timm, such as "
            f"vit_base_patch16_clip_quickgelu_224 or vit_small_patch14_dinov2, got {backbone!r}"
        )
    numbers = parse_blocks(str(blocks), len(tower.blocks), backbone)
    first_tuned, norms_only = parse_tune(str(tune), numbers[-1])
    return Foundation(like, numbers, tokens, first_tuned, norms_only)


def parse_blocks(text: str, depth: int, backbone: str) -> list[int]:
    """Return the sorted numbers in a text such as ``6-12`` or ``3,6,12``; the second half of ``depth`` for none."""
    numbers: set[int] = set()
    for part in (text or f"{depth // 2}-{depth}").split(","):
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        span = range(int(found[1]), int(found[2] or found[1]) + 1) if found else range(0)
        if not span or span[0] < 1 or span[-1] > depth:
            raise UserError(
                f"expected --model-args blocks=FIRST-LAST, or numbers with commas, from 1 to the {depth} blocks of "
                f"{backbone}, got {text!r}"
            )
        numbers.update(span)
    return sorted(numbers)


def parse_tune(text: str, depth: int) -> tuple[int, bool]:
    """Return the index of the first block that is tuned (``depth`` for none), and whether only its norms are."""
    if text in ("none", "norms"):
        return (depth, True) if text == "none" else (0, True)
    found = re.fullmatch(r"(norms|last)_(\d+)", text)
    if not found or not 1 <= int(found[2]) <= depth:
        raise UserError(f"expected --model-args {TUNES} with K from 1 to {depth}, the last block read, got {text!r}")
    return depth - int(found[2]), found[1] == "norms"
