"""Building blocks of gradient attacks under the L-infinity and the L2 norm, in pixel units.

``logit_of`` maps images ``(N, 3, H, W)`` in [0, 1] to logits ``(N,)`` whose sign is the decision; see
:class:`DecisionLogit`. Labels ``(N,)`` are 0 for real and 1 for fake.

Run attacks inside :func:`attackable`: a step then costs one forward pass and one backward pass to the image. Without
early stopping, the images of a batch do not influence each other, and the result equals that of torchattacks 3.5.1 for
the same seed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.detector import Detector
from utils.errors import UserError
from utils.runtime import autocast

LogitOf = Callable[[Tensor], Tensor]
BALL_TOLERANCE = 1e-6  # pixel units; float32 gives 8.000007/255, and L2 sums such errors
TINY = 1e-10  # keeps the direction of a zero gradient from becoming NaN


class DecisionLogit(nn.Module):
    """The logit of a detector minus a threshold (a logit): positive where the verdict is fake.

    The detector runs in ``dtype``; the result is float32.
    """

    def __init__(self, detector: nn.Module, threshold: float = 0.0, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.detector = detector
        self.threshold = threshold
        self.dtype = dtype

    def forward(self, images: Tensor) -> Tensor:
        with autocast(images.device, self.dtype):
            logits = self.detector(images)
        return (logits - self.threshold).float()


@contextlib.contextmanager
def attackable(detector: Detector) -> Iterator[None]:
    """Put a detector into evaluation mode and switch off its parameters' gradients; restore both at the end.

    Batch norm uses its running averages, so the attacked function is the one deployed.
    """
    modes = [(module, module.training) for module in detector.modules()]
    trained = [parameter for parameter in detector.parameters() if parameter.requires_grad]
    detector.eval()
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter in trained:
            parameter.requires_grad_(True)


def check_images(images: Tensor) -> None:
    """Raise UserError unless the images are finite and in [0, 1], the range in which eps is measured."""
    low, high = images.amin().item(), images.amax().item()
    if not (low >= 0 and high <= 1):
        raise UserError(
            f"expected images in [0, 1] (pixel units), got values from {low:.3g} to {high:.3g}; "
            "the detector normalises them itself"
        )


def loss_per_image(logits: Tensor, labels: Tensor, loss: str) -> Tensor:
    """The loss that an attack maximises, ``(N,)``: ``ce`` is the cross-entropy, ``margin`` the signed logit.

    Their gradients have the same direction, but that of the cross-entropy is rounded to zero where the detector is sure
    (a logit above 17 in float32).
    """
    if loss == "ce":
        return F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    return logits * (1 - 2 * labels)


@torch.no_grad()
def margin_of(logit_of: LogitOf, images: Tensor, labels: Tensor) -> Tensor:
    """How far each image is on the wrong side of the boundary, ``(N,)``; negative where the verdict is right."""
    return loss_per_image(logit_of(images), labels, "margin")


def input_gradient(logit_of: LogitOf, images: Tensor, labels: Tensor, loss: str = "margin") -> Tensor:
    """Gradient of the summed loss with respect to the images, in their shape."""
    leaf = images.detach().requires_grad_(True)
    with torch.enable_grad():
        total = loss_per_image(logit_of(leaf), labels, loss).sum()
    return torch.autograd.grad(total, leaf)[0]


def pgd(
    logit_of: LogitOf,
    images: Tensor,
    labels: Tensor,
    eps: float,
    *,
    norm: str = "linf",
    alpha: float | None = None,
    steps: int = 20,
    restarts: int = 1,
    random_start: bool = True,
    loss: str = "margin",
) -> Tensor:
    """Projected gradient ascent. With several restarts, each image keeps the result with the largest margin.

    Args:
        alpha: step size; see :func:`default_alpha`.
        random_start: start from a random point of the ball instead of the image.
        loss: see :func:`loss_per_image`.
    """
    check_images(images)
    alpha = default_alpha(eps, steps) if alpha is None else alpha
    ball = Ball(images, eps, norm)
    best, best_margin = images, torch.full((len(images),), -torch.inf, device=images.device)
    for _ in range(restarts):
        adversarial = ball.random_point() if random_start else images.clone()
        for _ in range(steps):
            gradient = input_gradient(logit_of, adversarial, labels, loss)
            adversarial = ball.step(adversarial, gradient, alpha)
        if restarts == 1:  # skip the forward pass that compares
            return adversarial
        margin = margin_of(logit_of, adversarial, labels)
        better = margin > best_margin
        best = torch.where(better[:, None, None, None], adversarial, best)
        best_margin = torch.where(better, margin, best_margin)
    return best


def default_alpha(eps: float, steps: int) -> float:
    """The step size of Madry et al., 2.5 eps / steps, and at most eps."""
    return min(eps, 2.5 * eps / steps)


class Ball:
    """The images within eps of the given ones and within [0, 1]."""

    def __init__(self, images: Tensor, eps: float, norm: str) -> None:
        self.images, self.eps, self.norm = images, eps, norm
        if norm == "linf":  # the intersection of ball and box is a box
            self.low, self.high = (images - eps).clamp_(min=0), (images + eps).clamp_(max=1)

    @torch.no_grad()
    def random_point(self) -> Tensor:
        """Draw a random point around each image: uniform in the cube, or with a uniform radius under L2."""
        noise = torch.empty_like(self.images)
        if self.norm == "linf":
            return noise.uniform_(-self.eps, self.eps).add_(self.images).clamp_(0, 1)
        noise.normal_()
        radius = torch.zeros(len(noise), 1, 1, 1, device=noise.device).uniform_(0, 1)
        return noise.mul_(radius / _norms(noise) * self.eps).add_(self.images).clamp_(0, 1)

    @torch.no_grad()
    def step(self, adversarial: Tensor, gradient: Tensor, alpha: float) -> Tensor:
        """Take one step up and project it into the ball; overwrites ``adversarial`` and ``gradient``."""
        adversarial = adversarial.detach()
        if self.norm == "linf":
            adversarial.add_(gradient.sign_(), alpha=alpha)
            return torch.clamp(adversarial, self.low, self.high, out=adversarial)
        adversarial.add_(gradient.div_(_norms(gradient) + TINY), alpha=alpha)
        delta = adversarial.sub_(self.images)
        delta.mul_((self.eps / _norms(delta)).clamp_(max=1))
        return delta.add_(self.images).clamp_(0, 1)


def change_size(change: Tensor, norm: str) -> Tensor:
    """Size of each image's change ``(N, 3, H, W)`` in a norm, ``(N,)``."""
    change = change.flatten(1)
    return change.abs().amax(1) if norm == "linf" else change.norm(dim=1)


def check_change(images: Tensor, adversarial: Tensor, eps: float, norm: str) -> list[str]:
    """List what is wrong with adversarial images: not finite, outside the eps ball, outside [0, 1]."""
    if not torch.isfinite(adversarial).all():
        return ["values are not finite"]
    size = change_size(adversarial - images, norm)
    failures = []
    if (size > eps + BALL_TOLERANCE * (1 if norm == "linf" else 10 * max(1.0, eps))).any():
        failures.append("left the ball")
    if adversarial.min() < 0 or adversarial.max() > 1:
        failures.append("left the box")
    return failures


def _norms(images: Tensor) -> Tensor:
    """L2 norm of each image, ``(N, 1, 1, 1)``."""
    return torch.linalg.vector_norm(images, dim=(1, 2, 3), keepdim=True)
