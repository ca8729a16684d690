"""Class activation maps: formulas over the activations and gradients of one layer."""

from __future__ import annotations

import torch
from torch import Tensor

from utils.explanations.maps import Question, enlarge
from utils.explanations.registry import register_explanation


@register_explanation("gradcam", "Grad-CAM", needs=("gradient", "layer"))
def gradcam(question: Question) -> Tensor:
    """Selvaraju et al., "Grad-CAM", ICCV 2017 (arXiv 1610.02391)."""
    found = question.capture
    return (found.activations * found.gradients.mean((2, 3), keepdim=True)).sum(1).relu()


@register_explanation("gradcam++", "Grad-CAM++", needs=("gradient", "layer"))
def gradcam_plus_plus(question: Question) -> Tensor:
    """Chattopadhay et al., "Grad-CAM++", WACV 2018 (arXiv 1710.11063), weights by its equation 19."""
    found = question.capture
    squares = found.gradients**2
    total = found.activations.sum((2, 3), keepdim=True)
    alpha = squares / (2 * squares + total * squares * found.gradients + 1e-6)
    weights = (found.gradients.relu() * alpha).sum((2, 3), keepdim=True)
    return (found.activations * weights).sum(1).relu()


@register_explanation("hirescam", "HiResCAM", needs=("gradient", "layer"))
def hirescam(question: Question) -> Tensor:
    """Draelos and Carin, "Use HiResCAM instead of Grad-CAM", 2020 (arXiv 2011.08891)."""
    return (question.capture.activations * question.capture.gradients).sum(1).relu()


@register_explanation("layercam", "LayerCAM", needs=("gradient", "layer"))
def layercam(question: Question) -> Tensor:
    """Jiang et al., "LayerCAM", IEEE TIP 2021."""
    return (question.capture.activations * question.capture.gradients.relu()).sum(1).relu()


@register_explanation("eigencam", "Eigen-CAM", needs=("layer",))
def eigencam(question: Question) -> Tensor:
    """Muhammad and Yeasin, "Eigen-CAM", IJCNN 2020 (arXiv 2008.00299): first principal component, without a target.

    The sign of a principal component is arbitrary; here strong activations are positive.
    """
    activations = question.capture.activations
    rows = activations.flatten(2).transpose(1, 2)  # (N, h * w, C)
    left, values, _ = torch.linalg.svd(rows - rows.mean(1, keepdim=True), full_matrices=False)
    projection = left[:, :, 0] * values[:, :1]
    strength = rows.abs().mean(2)
    along = ((strength - strength.mean(1, keepdim=True)) * projection).sum(1, keepdim=True)
    projection = torch.where(along < 0, -projection, projection)
    return projection.unflatten(1, activations.shape[2:]).relu()


@register_explanation("scorecam", "Score-CAM", needs=("layer",), table_options={"channels": 8})
@torch.no_grad()
def scorecam(question: Question, channels: int = 64) -> Tensor:
    """Wang et al., "Score-CAM", CVPR Workshops 2020 (arXiv 1910.01279): channels weighted by the score they preserve.

    Deviation: only the ``channels`` that vary most over the image are used, one forward pass each.
    """
    activations, images = question.capture.activations, question.images
    count = min(channels, activations.shape[1])
    chosen = activations.var((2, 3)).topk(count, dim=1).indices
    picked = activations.gather(1, chosen[:, :, None, None].expand(-1, -1, *activations.shape[2:]))
    low, high = picked.amin((2, 3), keepdim=True), picked.amax((2, 3), keepdim=True)
    masks = (picked - low) / (high - low + 1e-8)
    scores = [question.score(images * enlarge(mask, images.shape[-2:])[:, None]) for mask in masks.unbind(1)]
    weights = torch.stack(scores, dim=1).softmax(dim=1)
    return (picked * weights[:, :, None, None]).sum(1).relu()
