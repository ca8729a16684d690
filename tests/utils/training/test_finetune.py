"""Transfer learning: stages, freezing, thawing, rates per layer, mixing of images, and weights that do not fit."""

from pathlib import Path

import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

import train
from models.registry import create_model
from utils.checkpoints.file import load_checkpoint
from utils.errors import UserError
from utils.training.finetune import frozen_stages, mix_images, parameter_groups, set_frozen, stages, train_mode

MODELS = {
    "cnn": {"width": 4},
    "npr": {},
    "cnn_lstm": {"width": 4, "hidden": 8},
    "cnn_baseline": {"input_size": 32},
    "resnet18": {},
    "mobilenetv3_small_050": {},
    "vit_tiny_patch16_224": {},
}
RUN = ["--model", "test_resnet", "--image-size", "32", "--batch-size", "8", "--epochs", "1", "--threads", "1"]


@pytest.fixture(scope="module", params=MODELS)
def detector(request):
    torch.manual_seed(0)
    return create_model(request.param, **MODELS[request.param])


@pytest.fixture(autouse=True)
def no_curves(monkeypatch):
    """Drawing takes longer than training here."""
    monkeypatch.setattr("utils.training.log.save_figure", lambda figure, stem: None)
    monkeypatch.setattr("utils.training.log.training_curve_figure", lambda history: None)


@pytest.fixture
def run(image_folder, tmp_path):
    """Train on the tiny set; returns the checkpoints of the last and of the best epoch."""

    def run_(*flags: str, name: str = "run") -> dict:
        folder = tmp_path / name
        train.main([*RUN, "--data", str(image_folder), "--output-dir", str(folder), *flags])
        return load_checkpoint(folder / "last.pt")

    return run_


def trained_names(detector) -> set[str]:
    return {name for name, parameter in detector.named_parameters() if parameter.requires_grad}


# Stages


def test_every_parameter_is_in_exactly_one_stage(detector):
    members = [id(parameter) for _, parameters in stages(detector) for parameter in parameters]
    assert len(members) == len(set(members))
    assert set(members) == {id(parameter) for parameter in detector.parameters()}


def test_stages_have_distinct_names_and_the_head_is_the_last_one(detector):
    names = [name for name, _ in stages(detector)]
    assert len(names) == len(set(names)) >= 2
    assert names[-1] == "head"
    assert {id(p) for p in stages(detector)[-1][1]} == {id(p) for p in detector.head_parameters()}
    assert all(parameters for _, parameters in stages(detector))


def test_stages_are_ordered_from_input_to_output(detector):
    """No layer runs before one of an earlier stage."""
    stage_of = {id(p): number for number, (_, parameters) in enumerate(stages(detector)) for p in parameters}
    entered, hooks = [], []
    for module in detector.modules():
        own = [stage_of[id(p)] for p in module.parameters(recurse=False)]
        if own and not list(module.children()):
            hooks.append(module.register_forward_pre_hook(lambda *_, number=own[0]: entered.append(number)))
    side = 64 if detector.any_size else detector.input_size
    with torch.no_grad():
        detector.eval()(torch.rand(1, 3, side, side))
    for hook in hooks:
        hook.remove()
    assert entered == sorted(entered)


def test_timm_stages_are_finer_than_the_whole_backbone():
    assert [name for name, _ in stages(create_model("resnet18"))][:2] == ["stage 0", "stage 1"]
    assert len(stages(create_model("resnet18"))) == 6  # stem, four stages, head
    assert len(stages(create_model("vit_tiny_patch16_224"))) > 12


# Freezing


def test_freeze_takes_none_backbone_or_a_number():
    detector = create_model("resnet18")
    assert [frozen_stages(value, detector) for value in ("none", "backbone", "0", "2", "5")] == [0, 5, 0, 2, 5]


@pytest.mark.parametrize("value", ["some", "-1", "1.5", "²", ""])
def test_freeze_refuses_what_is_no_count(value):
    with pytest.raises(UserError, match="expected --freeze none, backbone or a number of stages, got"):
        frozen_stages(value, create_model("test_resnet"))


def test_freezing_more_stages_than_there_are_lists_them():
    with pytest.raises(UserError, match=r"at most 5 for this model \(stage 0, .*, stage 4\), got 6"):
        frozen_stages("6", create_model("resnet18"))
    with pytest.raises(UserError, match=r"at most 1 for this model \(trunk\), got 2"):
        frozen_stages("2", create_model("cnn", width=4))


def test_freezing_starts_at_the_input_and_can_be_taken_back():
    detector = create_model("resnet18")
    set_frozen(detector, 2)
    wanted = {"backbone.layer2", "backbone.layer3", "backbone.layer4", "head.1"}
    assert {".".join(name.split(".")[:2]) for name in trained_names(detector)} == wanted
    set_frozen(detector, 0)
    assert all(parameter.requires_grad for parameter in detector.parameters())


@pytest.mark.parametrize(("name", "model_args", "side"), [("cnn", {"width": 4}, 32), ("resnet18", {}, 32)])
def test_a_frozen_backbone_stays_the_function_that_it_was(name, model_args, side):
    """Running statistics of frozen norms stand still, those without a scale of their own (in `cnn`) included."""
    detector = create_model(name, dropout=0, **model_args)
    set_frozen(detector, frozen_stages("backbone", detector))
    before = {key: value.clone() for key, value in detector.state_dict().items()}
    train_mode(detector)
    detector(torch.rand(4, 3, side, side))
    after = detector.state_dict()
    assert [key for key, value in before.items() if not torch.equal(value, after[key])] == []


def test_thawed_norms_learn_their_statistics():
    detector = create_model("resnet18")
    set_frozen(detector, 2)
    train_mode(detector)
    for name, module in detector.named_modules():
        if isinstance(module, _BatchNorm):
            assert module.training == name.startswith(("backbone.layer2", "backbone.layer3", "backbone.layer4")), name
    set_frozen(detector, 0)
    train_mode(detector)
    assert all(module.training for module in detector.modules())


def test_norms_without_a_scale_learn_when_their_neighbours_do():
    detector = create_model("cnn", width=4).eval()
    train_mode(detector)
    assert detector.stem.norm.training


def test_training_leaves_frozen_stages_as_they_were(run):
    torch.manual_seed(0)
    before = create_model("test_resnet").state_dict()
    checkpoint = run("--freeze", "2", "--lr", "0.01", "--ema-decay", "0")
    changed = {key for key, value in checkpoint["state_dict"].items() if not torch.equal(value, before[key])}
    frozen = set()
    detector = create_model("test_resnet")
    set_frozen(detector, 2)
    for name, module in detector.named_modules():
        own = list(module.parameters(recurse=False))
        if own and not any(parameter.requires_grad for parameter in own):
            frozen |= {f"{name}.{key}" for key in module.state_dict() if "." not in key}
    assert frozen
    assert any("running_mean" in key for key in frozen)
    assert changed == set(before) - frozen


def test_stages_thaw_one_by_one_and_on_resume(image_folder, tmp_path, monkeypatch):
    """Which parameters train in which epoch, in one go and interrupted after the second epoch."""
    seen: list[int] = []
    original = train_mode

    def spy(detector):
        frozen = [not any(p.requires_grad for p in parameters) for _, parameters in stages(detector)]
        assert frozen == sorted(frozen, reverse=True)  # from the input on, without a gap
        seen.append(sum(frozen))
        original(detector)

    monkeypatch.setattr("utils.training.finetune.train_mode", spy)
    flags = [*RUN, "--epochs", "5", "--data", str(image_folder), "--freeze", "2", "--unfreeze-every", "2"]
    train.main([*flags, "--output-dir", str(tmp_path / "whole")])
    assert seen == [2, 2, 1, 1, 0]

    seen.clear()
    saved = train.validate

    def interrupt(*arguments):
        if len(seen) == 3:
            raise KeyboardInterrupt
        return saved(*arguments)

    monkeypatch.setattr(train, "validate", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train.main([*flags, "--output-dir", str(tmp_path / "halted")])
    monkeypatch.setattr(train, "validate", saved)
    train.main(["--resume", "--output-dir", str(tmp_path / "halted")])
    assert seen == [2, 2, 1, 1, 1, 0]  # the third epoch was interrupted and is run again
    whole, halted = (load_checkpoint(tmp_path / name / "last.pt")["state_dict"] for name in ("whole", "halted"))
    assert all(torch.equal(value, halted[key]) for key, value in whole.items())


def test_a_wrong_freeze_ends_the_run_before_training(run):
    with pytest.raises(UserError, match="expected --freeze at most"):
        run("--freeze", "99")


# Rates


def test_rates_fall_geometrically_towards_the_input():
    detector = create_model("resnet18")
    scales: dict[str, set[float]] = {}
    for group in parameter_groups(detector, 0.1, layer_decay=0.5, head_lr=10):
        scales.setdefault(group["stage"], set()).add(group["lr_scale"])
    assert scales == {"head": {10}, **{f"stage {number}": {0.5 ** (5 - number)} for number in range(5)}}


def test_groups_hold_every_parameter_once_and_vectors_do_not_decay(detector):
    groups = list(parameter_groups(detector, 0.1))
    members = [parameter for group in groups for parameter in group["params"]]
    assert sorted(map(id, members)) == sorted(map(id, detector.parameters()))
    assert {group["lr_scale"] for group in groups} == {1.0}
    assert all((group["weight_decay"] == 0) == (p.ndim <= 1) for group in groups for p in group["params"])


def test_rates_reach_the_optimiser(run):
    groups = run("--layer-decay", "0.5", "--head-lr", "4", "--warmup", "0")["training"]["optimizer"]["param_groups"]
    rates = {group["stage"]: group["lr"] / group["lr_scale"] for group in groups}
    assert {group["lr_scale"] for group in groups if group["stage"] == "head"} == {4.0}
    assert len({group["lr_scale"] for group in groups}) == len(rates) > 2
    assert max(rates.values()) == pytest.approx(min(rates.values()))


# Weights


def test_weights_of_another_architecture_are_refused(run, tmp_path):
    file = tmp_path / "other.pth"
    torch.save(create_model("test_vit").state_dict(), file)
    with pytest.raises(UserError, match=r"expected weights of test_resnet in .* but no tensor fits"):
        run("--weights", str(file))


def test_weights_are_where_training_starts(run, tmp_path):
    torch.manual_seed(7)
    given = create_model("test_resnet").backbone
    torch.save(given.state_dict(), tmp_path / "given.pth")
    checkpoint = run("--weights", str(tmp_path / "given.pth"), "--freeze", "backbone", "--ema-decay", "0")
    for name, parameter in given.named_parameters():
        assert torch.equal(checkpoint["state_dict"][f"backbone.{name}"], parameter), name


def test_the_dense_head_trains_on_a_frozen_backbone(run, tmp_path: Path):
    checkpoint = run("--model-args", "head=dense512", "--freeze", "backbone")
    assert checkpoint["model_args"] == {"head": "dense512"}
    assert checkpoint["state_dict"]["head.0.weight"].shape[0] == 512
    with pytest.raises(UserError, match="head=linear or head=dense512, got 'dense'"):
        run("--model-args", "head=dense", name="other")


# Mixing


def test_without_alphas_nothing_is_mixed():
    images, labels = torch.rand(4, 3, 8, 8), torch.tensor([0.0, 1, 0, 1])
    state = torch.get_rng_state()
    same_images, same_labels = mix_images(images, labels, 0.0, 0.0)
    assert same_images is images
    assert same_labels is labels
    assert torch.equal(torch.get_rng_state(), state)  # a run without it draws what it always drew


@pytest.mark.parametrize(("mixup", "cutmix"), [(1.0, 0.0), (0.0, 1.0), (0.3, 0.3), (0.1, 5.0)])
@pytest.mark.parametrize("side", [(8, 8), (9, 13)])
def test_labels_are_the_shares_of_the_images(mixup, cutmix, side):
    """Real images are black and fakes white: the mean of a mixed image is its share of fake pixels, its label."""
    torch.manual_seed(0)
    labels = torch.tensor([0.0, 1, 0, 1, 1, 0])
    images = labels.view(-1, 1, 1, 1).expand(-1, 3, *side).clone()
    kept = images.clone()
    kinds = set()
    for _ in range(40):
        mixed, mixed_labels = mix_images(images, labels, mixup, cutmix)
        assert torch.allclose(mixed.mean((1, 2, 3)), mixed_labels, atol=1e-5)
        assert mixed.min() >= 0
        assert mixed.max() <= 1
        if ((mixed_labels > 0.01) & (mixed_labels < 0.99)).any():
            kinds.add("cut" if ((mixed == 0) | (mixed == 1)).all() else "blend")
    assert torch.equal(images, kept)  # the caller's images are as they were
    assert ("blend" in kinds) == bool(mixup)
    assert ("cut" in kinds) == bool(cutmix)


def test_cutmix_pastes_one_rectangle():
    torch.manual_seed(3)
    images = torch.stack([torch.zeros(3, 16, 16), torch.ones(3, 16, 16)])
    for _ in range(20):
        mixed, _labels = mix_images(images, torch.tensor([0.0, 1.0]), 0.0, 1.0)
        changed = (mixed[0, 0] != images[0, 0]).nonzero()
        if len(changed):
            low, high = changed.amin(0), changed.amax(0) + 1
            assert len(changed) == int((high - low).prod())
            assert torch.equal(mixed[0, 0], mixed[0, 1])


def test_mixed_runs_train(run):
    checkpoint = run("--mixup", "0.2", "--cutmix", "1.0")
    assert 0 < checkpoint["training"]["history"][0]["train_loss"] < 5
