"""Attention rollout: which patches the tokens that a transformer is read at attend to, over all blocks."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from models.timm_backbone import TokensToMap
from utils.explanations.maps import Question
from utils.explanations.registry import attention_layers, register_explanation


@register_explanation("attention", "Attention rollout", needs=("attention",))
@torch.no_grad()
def attention(question: Question) -> Tensor:
    """Abnar and Zuidema, "Quantifying Attention Flow in Transformers", ACL 2020 (arXiv 2005.00928).

    The attention of each block, averaged over its heads and with half an identity for the skip connection, multiplied
    from the first block to the last. The map is the row of the class token; where there is none, the mean over the
    patches. It does not depend on the verdict to explain.
    """
    detector = question.detector
    seen: list[Tensor] = []
    layers = attention_layers(detector)
    fused = [layer.fused_attn for layer in layers]

    def keep(_module: nn.Module, _inputs: tuple, output: Tensor) -> None:
        seen.append(output.float().mean(1))  # (N, T, T)

    handles = [layer.attn_drop.register_forward_hook(keep) for layer in layers]
    try:
        for layer in layers:
            layer.fused_attn = False  # the fused kernel never has the matrix
        detector(question.images)
    finally:
        for layer, was_fused, handle in zip(layers, fused, handles, strict=True):
            layer.fused_attn = was_fused
            handle.remove()
    flow = torch.eye(seen[0].shape[-1], device=seen[0].device)
    for block in seen:
        flow = (block + torch.eye(len(block[0]), device=block.device)) / 2 @ flow
    to_map = cast(TokensToMap, detector.cam_reshape)
    row = flow[:, :1] if to_map.prefix_tokens else flow.mean(1, keepdim=True)
    return to_map(row.transpose(1, 2))[:, 0]
