"""Gradient attacks on a detector, in pixel units: FGSM, PGD and MI-FGSM, under the L-infinity and the L2 norm.

Every attack takes ``logit_of``, which maps images ``(N, 3, H, W)`` in [0, 1] to logits ``(N,)`` whose sign is the
decision (:class:`DecisionLogit` makes one of a detector and its threshold), the images, and their labels ``(N,)`` with
0 real and 1 fake. It returns images of the same shape within ``eps`` of the given ones and within [0, 1].

Run them inside :func:`attackable`: the detector is in evaluation mode then, and no gradient of a parameter is computed,
so that a step costs one forward pass and one backward pass to the image. There is no early stopping: the images of a
batch do not influence each other, and the result is the one of torchattacks 3.5.1 for the same seed.
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
NORMS = ("linf", "l2")
TINY = 1e-10  # keeps the direction of a gradient that is zero from becoming NaN


class DecisionLogit(nn.Module):
    """The logit of a detector above its threshold: positive where the image is called fake.

    ``threshold`` is a logit. The arithmetic is that of ``dtype``; the result is float32.
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
    """Put a detector into evaluation mode without gradients of its parameters; everything is restored at the end.

    Batch norm uses its running averages, which the attack does not touch: the attacked function is the one deployed.
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
            "leave the normalisation to the detector"
        )


def loss_per_image(logits: Tensor, labels: Tensor, loss: str) -> Tensor:
    """What an attack raises, ``(N,)``: ``ce`` is the cross-entropy, ``margin`` the signed logit.

    Of one logit both have the same direction, but the gradient of the cross-entropy is rounded to zero where the
    detector is sure (a logit above 17 in float32), and that of the margin is not.
    """
    if loss == "ce":
        return F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    return logits * (1 - 2 * labels)


def input_gradient(logit_of: LogitOf, images: Tensor, labels: Tensor, loss: str = "margin") -> Tensor:
    """Gradient of the summed loss with respect to the images, of their shape."""
    leaf = images.detach().requires_grad_(True)
    with torch.enable_grad():
        total = loss_per_image(logit_of(leaf), labels, loss).sum()
    return torch.autograd.grad(total, leaf)[0]


def fgsm(
    logit_of: LogitOf, images: Tensor, labels: Tensor, eps: float, norm: str = "linf", loss: str = "margin"
) -> Tensor:
    """One step of size eps along the sign of the gradient (along the gradient itself under L2).

    Goodfellow, Shlens, Szegedy, "Explaining and Harnessing Adversarial Examples", ICLR 2015 (arXiv 1412.6572).
    """
    return pgd(logit_of, images, labels, eps, norm=norm, alpha=eps, steps=1, random_start=False, loss=loss)


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
    """Projected gradient ascent from a random point of the ball.

    Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018 (arXiv 1706.06083). Of
    several restarts each image keeps the one with the greatest margin.

    Args:
        alpha: step size, by default 2.5 eps / steps and at most eps.
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
        if restarts == 1:  # no need for the pass that compares
            return adversarial
        with torch.no_grad():
            margin = loss_per_image(logit_of(adversarial), labels, "margin")
        better = margin > best_margin
        best = torch.where(better[:, None, None, None], adversarial, best)
        best_margin = torch.where(better, margin, best_margin)
    return best


def mifgsm(
    logit_of: LogitOf,
    images: Tensor,
    labels: Tensor,
    eps: float,
    *,
    alpha: float | None = None,
    steps: int = 20,
    decay: float = 1.0,
) -> Tensor:
    """Iterated FGSM whose direction is a running sum of gradients, each divided by its mean magnitude; L-infinity only.

    Dong et al., "Boosting Adversarial Attacks with Momentum", CVPR 2018 (arXiv 1710.06081).
    """
    check_images(images)
    alpha = default_alpha(eps, steps) if alpha is None else alpha
    ball = Ball(images, eps, "linf")
    adversarial, momentum = images.clone(), torch.zeros_like(images)
    for _ in range(steps):
        gradient = input_gradient(logit_of, adversarial, labels)
        momentum.mul_(decay).add_(gradient / gradient.abs().mean((1, 2, 3), keepdim=True).clamp_(min=1e-38))
        adversarial = ball.step(adversarial, momentum.clone(), alpha)
    return adversarial


def default_alpha(eps: float, steps: int) -> float:
    """The step of Madry et al.: enough to cross the ball, and room to move along its surface."""
    return min(eps, 2.5 * eps / steps)


class Ball:
    """The images within eps of the given ones and within [0, 1]: where an attack starts, and where each step ends."""

    def __init__(self, images: Tensor, eps: float, norm: str) -> None:
        self.images, self.eps, self.norm = images, eps, norm
        if norm == "linf":  # ball and box together are a box of their own
            self.low, self.high = (images - eps).clamp_(min=0), (images + eps).clamp_(max=1)

    @torch.no_grad()
    def random_point(self) -> Tensor:
        """A random point around each image: uniform in the cube, or with a uniform radius under L2."""
        noise = torch.empty_like(self.images)
        if self.norm == "linf":
            return noise.uniform_(-self.eps, self.eps).add_(self.images).clamp_(0, 1)
        noise.normal_()
        radius = torch.zeros(len(noise), 1, 1, 1, device=noise.device).uniform_(0, 1)
        return noise.mul_(radius / _norms(noise) * self.eps).add_(self.images).clamp_(0, 1)

    @torch.no_grad()
    def step(self, adversarial: Tensor, gradient: Tensor, alpha: float) -> Tensor:
        """Go one step up and back into the ball; overwrites ``adversarial`` and ``gradient``."""
        adversarial = adversarial.detach()
        if self.norm == "linf":
            adversarial.add_(gradient.sign_(), alpha=alpha)
            return torch.clamp(adversarial, self.low, self.high, out=adversarial)
        adversarial.add_(gradient.div_(_norms(gradient) + TINY), alpha=alpha)
        delta = adversarial.sub_(self.images)
        delta.mul_((self.eps / _norms(delta)).clamp_(max=1))
        return delta.add_(self.images).clamp_(0, 1)


def _norms(images: Tensor) -> Tensor:
    """L2 norm of each image, ``(N, 1, 1, 1)``."""
    return torch.linalg.vector_norm(images, dim=(1, 2, 3), keepdim=True)
