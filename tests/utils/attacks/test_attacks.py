"""Attacks: agreement with torchattacks, ball and box, what is restored, certificates."""

import argparse
import math

import numpy as np
import pytest
import torch
import torchattacks
from torch import nn

from datasets.listing.records import Listing, Record
from models.detector import Detector
from models.operating_point import OperatingPoint
from tests.utils.attacks.linear import Linear
from utils.attacks.export import recompressed, rounded
from utils.attacks.gradient import DecisionLogit, attackable, check_change, check_images, input_gradient, margin_of, pgd
from utils.attacks.registry import _ATTACKS, register_attack, run_attack
from utils.attacks.runs import boundary_logit, evenly_spaced
from utils.attacks.smoothing import certified_radius, certify
from utils.attacks.threat_model import SETTINGS, Plan, attack_traits, check_linf_eps, parse_size, size_name
from utils.attacks.torchattacks_bridge import TwoClass
from utils.errors import UserError
from utils.evaluation.operating_point import fit_isotonic

EPS = 4 / 255


class Smooth(Detector):
    """A small network with batch norm and dropout, so that its mode matters."""

    def __init__(self) -> None:
        super().__init__(input_size=16, mean=(0.5,) * 3, std=(0.25,) * 3)
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.SiLU(), nn.Dropout(0.5))
        self.head = nn.Linear(8, 1)

    def forward(self, images):
        return self.head(self.body(self.normalize(images)).mean((2, 3))).squeeze(1)


@pytest.fixture
def labels():
    return torch.arange(8).float() % 2


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Smooth().eval()


@pytest.mark.parametrize("loss", ["ce", "margin"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_pgd_agrees_with_torchattacks(loss, norm, network, images, labels):
    eps, alpha = (EPS, 1 / 255) if norm == "linf" else (0.5, 0.1)
    reference = (torchattacks.PGD if norm == "linf" else torchattacks.PGDL2)(
        TwoClass(network, images.device), eps=eps, alpha=alpha, steps=7
    )
    torch.manual_seed(3)
    theirs = reference(images, labels.long())
    torch.manual_seed(3)
    ours = pgd(network, images, labels, eps, norm=norm, alpha=alpha, steps=7, loss=loss)
    assert (ours - theirs).abs().max() < 1e-5
    assert (ours - images).abs().max() > 0.9 * alpha / 10


def test_fgsm_and_mifgsm_agree_with_torchattacks(network, images, labels):
    model = TwoClass(network, images.device)
    theirs = torchattacks.FGSM(model, eps=EPS)(images, labels.long())
    assert (run_attack(Plan("fgsm", "linf", EPS), network, images, labels) - theirs).abs().max() < 1e-5
    theirs = torchattacks.MIFGSM(model, eps=EPS, alpha=EPS / 2, steps=5)(images, labels.long())
    ours = run_attack(Plan("mifgsm", "linf", EPS, steps=5), network, images, labels)
    assert (ours - theirs).abs().max() < 1e-5


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("attack", attack_traits())
def test_every_attack_stays_in_ball_and_box_and_helps(attack, norm, network, images, labels, capsys):
    if norm not in attack_traits()[attack].norms:
        pytest.skip("not a norm of this attack")
    plan = Plan(attack, norm, 0.05 if norm == "linf" else 0.8, steps=6, queries=20)
    before = images.clone()
    found = run_attack(plan, network, images, labels)
    assert check_change(images, found, plan.eps, norm) == [] and torch.equal(images, before)
    assert (margin_of(network, found, labels) >= margin_of(network, images, labels) - 1e-6).all()
    assert torch.equal(found, run_attack(plan, network, images, labels)), "the same seed gives the same images"
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("attack", attack_traits())
def test_no_attack_reads_a_setting_that_it_does_not_declare(attack, network, images, labels):
    class Watched(Plan):
        def __getattribute__(self, name):
            read.add(name)
            return super().__getattribute__(name)

    read: set[str] = set()
    plan = Watched(attack, "linf", 0.002, steps=2, queries=5)
    read.clear()
    run_attack(plan, network, images, labels)
    assert read & SETTINGS.keys() == set(attack_traits()[attack].settings)


def test_fgsm_and_pgd_reach_the_known_optimum_of_a_linear_detector():
    detector, x = Linear(), torch.full((2, 3, 8, 8), 0.5)
    y = torch.tensor([0.0, 1.0])
    best = EPS * detector.weight.abs().sum().item()
    for attack in ("fgsm", "pgd"):
        found = run_attack(Plan(attack, "linf", EPS, steps=10), detector, x, y)
        assert margin_of(detector, found, y).tolist() == pytest.approx([best, best], rel=1e-4)
    found = pgd(detector, x, y, 0.3, norm="l2", steps=30)
    assert margin_of(detector, found, y).tolist() == pytest.approx([0.3 * detector.weight.norm().item()] * 2, rel=0.03)


def test_margin_has_a_gradient_where_the_cross_entropy_is_rounded_to_zero():
    detector, x, y = Linear(bias=60.0), torch.full((1, 3, 8, 8), 0.5), torch.ones(1)
    assert input_gradient(detector, x, y, "ce").abs().max() == 0
    assert input_gradient(detector, x, y, "margin").abs().min() > 0


@pytest.mark.parametrize("attack", ["cw", "deepfool"])
def test_minimal_attacks_turn_both_classes_and_respect_eps(attack):
    detector = Linear(scale=0.05)
    x = torch.full((2, 3, 8, 8), 0.5)
    y = torch.tensor([0.0, 1.0])
    x = (x + 0.02 * (2 * y - 1)[:, None, None, None] * detector.weight.detach().sign()).clamp(0, 1)
    assert (margin_of(detector, x, y) < 0).all()
    found = run_attack(Plan(attack, "linf", 0.5, steps=50), detector, x, y)
    assert (margin_of(detector, found, y) >= -1e-5).all() and not torch.equal(found, x)
    assert torch.equal(run_attack(Plan(attack, "linf", 0.001, steps=50), detector, x, y), x)


def test_restarts_keep_the_best_and_strong_is_at_least_as_strong(network, images, labels):
    torch.manual_seed(0)
    one = margin_of(network, pgd(network, images, labels, 0.02, steps=3), labels)
    torch.manual_seed(0)
    three = margin_of(network, pgd(network, images, labels, 0.02, steps=3, restarts=3), labels)
    assert (three >= one).all() and (three > one).any()
    plan = Plan("strong", "linf", 0.02, steps=3, queries=5)
    right = {
        name: (margin_of(network, run_attack(Plan(name, "linf", 0.02, steps=3), network, images, labels), labels) < 0)
        for name in ("pgd", "fgsm")
    }
    alive = margin_of(network, run_attack(plan, network, images, labels), labels) < 0
    assert alive.sum() <= min(part.sum() for part in right.values())


def test_attackable_restores_modes_gradients_and_running_averages(network, images, labels):
    network.train()
    network.body[1].eval()  # as a frozen batch norm
    network.head.weight.requires_grad_(False)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with attackable(network):
        assert not any(module.training for module in network.modules())
        pgd(network, images, labels, EPS, steps=2)
    assert network.training and network.body[3].training and not network.body[1].training
    assert [p.requires_grad for p in network.parameters()] == [True] * 4 + [False, True]
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize("bad", [-0.1, 1.5, math.nan])
def test_images_outside_the_box_are_refused(bad, network, images, labels):
    images[3, 1, 2, 2] = bad
    for attack in attack_traits():
        with pytest.raises(UserError, match=r"expected images in \[0, 1\]"):
            run_attack(Plan(attack, "linf", EPS, steps=1, queries=1), network, images, labels)
    with pytest.raises(UserError):
        check_images(images)


def test_traits_read_from_the_source_cover_every_registered_attack(network, images, labels):
    run_attack(Plan("fgsm", "linf", EPS), network, images, labels)
    assert set(attack_traits()) == set(_ATTACKS)
    assert attack_traits()["square"].needs_gradient is False and attack_traits()["mifgsm"].norms == ("linf",)
    with pytest.raises(ValueError, match="registered twice"):
        register_attack()(_ATTACKS["fgsm"])


def test_sizes_are_read_and_written_as_people_write_them():
    assert parse_size("8/255") == 8 / 255 and parse_size("0.5/255") == 0.5 / 255 and parse_size("0.03") == 0.03
    assert [size_name(size) for size in (8 / 255, 0.5 / 255, 0.0123, 2.0)] == ["8/255", "0.5/255", "0.0123", "2"]
    assert [size_name(size) for size in (0.25, 0.5, 1.0, 1e-30)] == ["0.25", "0.5", "1", "1e-30"]
    for text in ("", "8/0", "a/255", "-1/255", "0", "nan", "inf", "1e30"):
        with pytest.raises(argparse.ArgumentTypeError):
            parse_size(text)
    with pytest.raises(UserError, match=r"got 8; did you mean 8/255\?"):
        check_linf_eps(8.0)


def test_threshold_becomes_the_boundary_of_the_attack(images):
    logits = np.linspace(-3, 3, 200)
    isotonic = fit_isotonic((logits + np.sin(9 * logits) > 0).astype(int), logits)
    for calibration in (None, {"method": "temperature", "temperature": 2.5}, isotonic):
        point = OperatingPoint(calibration, {"balanced": 0.7})
        boundary = boundary_logit(point)
        below, above = point.p_fake(np.array([boundary - 1e-6, boundary + 1e-6]))
        assert below < 0.7 <= above
    detector = Linear()
    x = images[..., :8, :8]
    assert torch.allclose(DecisionLogit(detector, 1.5)(x), detector(x) - 1.5)


@pytest.mark.parametrize("n", [16, 31, 99, 200])
def test_samples_of_a_sorted_listing_hold_both_classes(n):
    records = [Record(f"{index:03}.png", int(index < n / 2), "") for index in range(n)]
    sample = evenly_spaced(Listing("set", "test", records, "", "", ()), 16).records
    assert len(sample) == 16 and sum(record.label for record in sample) == 8
    assert len(evenly_spaced(Listing("set", "test", records[:3], "", "", ()), 16).records) == 3


# Survival, intervals, certificates


def test_rounding_and_jpeg_stay_images(images):
    assert (rounded(images) - images).abs().max() <= 0.5 / 255 + 1e-6
    assert torch.equal(rounded(rounded(images)), rounded(images))
    smooth = torch.linspace(0, 1, 16).expand(2, 3, 16, 16)
    assert 0 < (recompressed(smooth) - smooth).abs().max() < 0.1


def test_certificate_is_the_radius_of_cohen_et_al():
    assert certified_radius(256, 256, 0.5) == pytest.approx(0.5 * 1.9304, abs=2e-3)  # ppf(0.001 ** (1 / 256))
    assert certified_radius(140, 256, 0.5) == 0


def test_certified_radius_of_a_linear_detector_is_within_its_true_distance():
    detector = Linear()
    distance = 0.4
    direction = (detector.weight / detector.weight.norm()).detach()
    label, radius = certify(detector, 0.5 + distance * direction, 0.25, torch.Generator().manual_seed(0))
    assert label == 1 and 0.2 < radius <= distance
    assert certify(detector, 0.5 - distance * direction, 0.25, torch.Generator().manual_seed(0))[0] == 0
    assert certify(detector, torch.full((3, 8, 8), 0.5), 0.25, torch.Generator().manual_seed(0)) == (None, 0.0)


def test_square_names_a_size_that_its_l2_tiles_do_not_fit():
    plan = Plan("square", "l2", 0.5, queries=300)
    with pytest.raises(UserError, match=r"got 24 x 24 px.*--norm linf"):
        run_attack(plan, lambda images: images.mean((1, 2, 3)) - 0.5, torch.rand(2, 3, 24, 24), torch.tensor([0, 1]))
