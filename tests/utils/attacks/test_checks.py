"""The checks of attack.py: on the detector, on each attacked image, and between the rows of a table."""

import torch

from tests.utils.attacks.linear import Linear
from utils.attacks.checks import accuracy_without_bound, check_detector
from utils.attacks.gradient import check_change
from utils.attacks.report import compare_rows
from utils.attacks.threat_model import Plan


class Masked(Linear):
    """Rounds its logit, which hides the gradient and defends nothing."""

    def forward(self, images):
        return super().forward(images).mul(16).round().div(16)


class Restless(Linear):
    def forward(self, images):
        return super().forward(images) + 1e-3 * torch.randn(len(images))


def failed_checks(detector, **changes) -> list[str]:
    x = torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    y = (detector(x) > 0).float().detach()
    plan = Plan("pgd", "linf", 8 / 255, steps=5, **changes)
    return [check["check"] for check in check_detector(detector, x, y, plan, True) if not check["passed"]]


def test_checks_pass_an_honest_detector_and_name_what_is_wrong_with_others():
    assert failed_checks(Linear(scale=0.3)) == []
    masked = failed_checks(Masked(scale=0.3))
    assert (
        "gradients are not zero" in masked
        and "eps = 1 leaves nothing" in masked
        and "Square does not beat PGD" in masked
    )
    assert "logits are deterministic" in failed_checks(Restless(scale=0.3))


def test_without_bound_a_detector_with_a_narrow_gap_falls():
    x, y = torch.full((2, 3, 8, 8), 0.5), torch.ones(2)
    detector = Linear()

    def gap(images):  # wrong only close to the image: large steps jump over it
        distance = (images - 0.5).abs().mean((1, 2, 3))
        return torch.where((distance > 0.004) & (distance < 0.05), -1.0, 1.0) - 0.01 * detector(images)

    assert accuracy_without_bound(gap, x, y, 20) == 0.0


def test_change_outside_ball_or_box_is_named(images):
    assert check_change(images, (images + 0.1).clamp(0, 1), 0.05, "linf") == ["left the ball"]
    assert "left the box" in check_change(images, images - 0.9, 1.0, "linf")
    assert check_change(images, images / 0, 1.0, "l2") == ["values are not finite"]


def test_rows_that_contradict_each_other_are_marked():
    def row(attack, eps, robust_acc):
        same = dict.fromkeys(["checkpoint", "source", "dataset", "split", "data_fingerprint", "norm", "direction"], 1)
        return {**same, "attack": attack, "attack_name": attack, "eps": eps, "robust_acc": robust_acc, "failed": []}

    rows = [
        row("fgsm", 1, 0.5),
        row("pgd", 1, 0.6),
        row("pgd", 2, 0.3),
        row("pgd", 4, 0.4),
        row("strong", 2, 0.3),
        row("square", 2, 0.1),
    ]
    compare_rows(rows)
    assert [r["failed"] for r in rows] == [
        [],
        ["weaker than fgsm"],
        ["weaker than square"],
        ["larger eps helps the defender"],
        ["weaker than square"],
        [],
    ]
