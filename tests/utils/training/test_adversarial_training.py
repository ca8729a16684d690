"""Adversarial training: the loss of a batch, batch norm, the guard, and runs of train.py end to end."""

import shlex

import pytest
import torch
from torch import nn

import train
from models.detector import Detector
from tests.runs import TINY, assert_same_run
from utils.attacks.gradient import DecisionLogit
from utils.checkpoints.file import load_checkpoint
from utils.errors import UserError
from utils.training.adversarial import (
    FALLBACK_STEPS,
    Adversary,
    bernoulli_divergence,
    has_collapsed,
    make_adversary,
    probe,
    reason_to_stop,
    selection_score,
)
from utils.training.state import TrainingState

FP32 = torch.float32
pytestmark = pytest.mark.usefixtures("no_curves")


class Recorder(Detector):
    """A small network that keeps the batches it sees in training mode."""

    def __init__(self):
        super().__init__(input_size=16, mean=(0.5,) * 3, std=(1.0,) * 3)
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Linear(4, 1)
        self.seen = []

    def forward(self, images):
        if self.training:
            self.seen.append(images.detach())
        return self.head(self.body(self.normalize(images)).mean((2, 3))).squeeze(1)


@pytest.fixture
def recorder():
    torch.manual_seed(0)
    return Recorder().train()


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.rand(8, 3, 16, 16, generator=generator), torch.arange(8).float() % 2


def row(pgd, fgsm, auc=0.9, loss=0.4, collapsed=0.0) -> dict:
    return {"pgd_acc": pgd, "fgsm_acc": fgsm, "valid_auc": auc, "valid_loss": loss, "collapsed": collapsed}


# The loss of a batch


@pytest.mark.parametrize("method", ["fgsm", "pgd"])
def test_a_share_stays_clean_and_the_rest_is_attacked_in_one_forward_pass(method, recorder, batch):
    adversary = Adversary(method, 0.02, 2, 0.0, 0.25, 0.0)
    adversary.loss(recorder, *batch, 1.0, FP32).backward()
    (seen,) = recorder.seen
    change = (seen - batch[0]).abs().amax((1, 2, 3))
    assert change[:2].max() == 0 and change[2:].min() > 0.01 and change.max() <= 0.02 + 1e-6
    assert all(parameter.grad is not None for parameter in recorder.parameters())
    assert recorder.training and recorder.body[1].num_batches_tracked == 1, "the attack leaves running averages alone"


def test_attacked_images_are_harder(recorder, batch):
    losses = [Adversary("pgd", eps, 5, 0.0, 0.0, 0.0).loss(recorder, *batch, 1.0, FP32).item() for eps in (0.0, 0.1)]
    assert losses[1] > losses[0]


def test_eps_rises_linearly_and_is_zero_at_the_start(recorder, batch):
    adversary = Adversary("fgsm", 0.02, 1, 0.4, 0.0, 0.0)
    assert [adversary.current_eps(p) for p in (0.0, 0.2, 0.4, 1.0)] == pytest.approx([0.0, 0.01, 0.02, 0.02])
    adversary.loss(recorder, *batch, 0.0, FP32)
    assert torch.equal(recorder.seen[0], batch[0])


def test_trades_is_the_clean_loss_plus_what_the_attack_changes(recorder, batch):
    plain = Adversary("trades", 0.0, 2, 0.0, 0.0, 5.0).loss(recorder, *batch, 1.0, FP32)
    attacked = Adversary("trades", 0.1, 5, 0.0, 0.0, 5.0).loss(recorder, *batch, 1.0, FP32)
    recorder.seen.clear()
    expected = nn.functional.binary_cross_entropy_with_logits(recorder(batch[0].repeat(2, 1, 1, 1))[:8], batch[1])
    assert plain.item() == pytest.approx(expected.item(), rel=1e-5) and attacked > plain
    p, q = torch.tensor([0.3, -2.0]), torch.tensor([1.0, -2.0])
    coins = torch.distributions.Bernoulli
    exact = torch.distributions.kl_divergence(coins(logits=p), coins(logits=q))
    assert torch.allclose(bernoulli_divergence(p, q), exact, atol=1e-6)


def test_probe_measures_at_logit_zero_and_leaves_the_random_state(recorder, batch):
    state = torch.get_rng_state()
    found = probe(recorder, *batch, 0.05, FP32, 3, seed=0)
    assert torch.equal(torch.get_rng_state(), state) and recorder.training
    recorder.eval()
    clean = ((DecisionLogit(recorder)(batch[0]) > 0) == (batch[1] > 0.5)).float().mean().item()
    assert found["pgd_acc"] <= found["fgsm_acc"] + 1 / 8 <= clean + 1 / 8


# The guard


def test_guard_recognises_both_kinds_of_collapse_and_nothing_else():
    healthy = [row(0.4, 0.5), row(0.6, 0.65)]
    assert has_collapsed(healthy, row(0.1, 0.8), True)  # catastrophic overfitting
    assert has_collapsed(healthy, row(0.3, 0.6), True)  # its beginning
    assert has_collapsed(healthy, row(0.5, 0.5, auc=0.55), True)  # a constant answer
    assert has_collapsed([], row(0.1, 0.8), True) and not has_collapsed([], row(0.1, 0.8), False)
    assert not has_collapsed([], row(0.0, 0.5), True)  # as any natural model
    assert not has_collapsed(healthy, row(0.55, 0.7), True)  # the noise of 200 images
    assert not has_collapsed(healthy, row(0.3, 0.35), True)  # both fell: a bad epoch, no overfitting
    assert not has_collapsed([row(0.9, 0.95, auc=0.99, collapsed=1.0)], row(0.3, 0.4), True)


def test_fgsm_goes_on_with_pgd_after_a_collapse_and_stops_at_the_next():
    assert make_adversary(None, 0.02, 3, []) is None
    assert make_adversary("fgsm", 0.02, 3, [row(0.5, 0.6)]).method == "fgsm"
    fallback = make_adversary("fgsm", 0.02, 3, [row(0.5, 0.6), row(0, 0.9, collapsed=1.0)])
    assert (fallback.method, fallback.steps, fallback.eps) == ("pgd", FALLBACK_STEPS, 0.02)

    def reason(method, *collapses):
        state = TrainingState(None, None, None, None, epoch=3, best_epoch=1)
        state.history = [row(0.5, 0.6, collapsed=float(flag)) for flag in collapses]
        return reason_to_stop(0, method, state)

    assert reason("fgsm", 0, 1, 0) is None and "collapsed" in reason("fgsm", 1, 0, 1)
    assert "collapsed" in reason("pgd", 0, 1) and "collapsed" in reason("trades", 1)
    assert reason(None) is None


def test_best_epoch_is_the_most_robust_one_that_still_tells_clean_images_apart():
    assert selection_score({"valid_auc": 0.8, "valid_loss": 9.0}) == 0.8
    order = [row(0.9, 0.9, collapsed=1.0), row(0.8, 0.8, loss=0.69), row(0.2, 0.9), row(0.5, 0.5)]
    scores = [selection_score(entry) for entry in order]
    assert scores == sorted(scores) and len(set(scores)) == len(scores)


# train.py


def run(faces, folder, *flags):
    return train.main([*TINY, "--data", str(faces), "--output-dir", str(folder), *map(str, flags)])


@pytest.mark.parametrize("method", ["fgsm", "pgd", "trades"])
def test_adversarial_run_lowers_its_loss_and_logs_robustness(method, faces, tmp_path):
    flags = ["--adversarial", method, "--adv-eps", "1/255", "--adv-steps", "2", "--epochs", "4", "--lr", "3e-3"]
    history = run(faces, tmp_path / "run", *flags)["history"]
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    assert all(0 <= entry["pgd_acc"] <= 1 and entry["collapsed"] in (0.0, 1.0) for entry in history)
    settings = load_checkpoint(tmp_path / "run" / "best.pt")["train_args"]
    assert settings["adversarial"] == method and settings["adv_eps"] == 1 / 255


def test_collapse_goes_back_falls_back_and_resumes_exactly(faces, tmp_path, monkeypatch, capsys):
    figures = {1: (0.7, 0.7), 2: (0.1, 0.9), 3: (0.6, 0.7), 4: (0.1, 0.9), 5: (0.9, 0.9)}
    epochs = iter([])

    def fake_probe(*args):
        pgd, fgsm = figures[next(epochs)]
        return {"fgsm_acc": fgsm, "pgd_acc": pgd}

    methods = []
    original = Adversary._attack
    monkeypatch.setattr("utils.training.validation.probe", fake_probe)
    monkeypatch.setattr(Adversary, "_attack", lambda self, *args: methods.append(self.method) or original(self, *args))
    for module in ("adversarial", "validation"):
        monkeypatch.setattr(f"utils.training.{module}.RAMP", 0.0)
    flags = ["--adversarial", "fgsm", "--epochs", "6"]
    epochs = iter(range(1, 6))
    result = run(faces, tmp_path / "whole", *flags)
    error = capsys.readouterr().err
    assert [entry["collapsed"] for entry in result["history"]] == [0, 1, 0, 1], "the second collapse ends the run"
    assert "collapsed in epoch 2: restored the best weights so far (epoch 1)" in error and "stopped" in error
    assert list(dict.fromkeys(methods)) == ["fgsm", "pgd"] and methods.count("fgsm") == methods.count("pgd")
    assert load_checkpoint(tmp_path / "whole" / "best.pt")["epoch"] == 1

    epochs = iter([1, 2, 3, 4])
    with monkeypatch.context() as patch:
        patch.setattr("utils.training.state.TrainingState.save", save_and_stop_after(2))
        with pytest.raises(KeyboardInterrupt):
            run(faces, tmp_path / "run", *flags)
    train.main(["--resume", "--output-dir", str(tmp_path / "run")])
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def save_and_stop_after(epoch):
    original = TrainingState.save

    def save(self, path, description):
        original(self, path, description)
        if self.epoch == epoch:
            raise KeyboardInterrupt

    return save


def test_eps_in_grey_levels_is_answered_with_the_fraction(faces, tmp_path):
    with pytest.raises(UserError, match=r"expected --adv-eps in \[0, 1\] \(pixel units\), got 2; did you mean 2/255\?"):
        train.main([*TINY, *shlex.split("--adversarial fgsm --adv-eps 2 --output-dir"), str(tmp_path / "run")])
