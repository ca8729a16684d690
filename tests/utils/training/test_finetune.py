"""Transfer learning: stages, freezing, and weights that do not fit."""

from pathlib import Path

import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

import train
from models.registry import create_model
from utils.checkpoints.file import load_checkpoint
from utils.errors import UserError
from utils.training.finetune import freeze, parameter_groups, stages, train_mode

MODELS = {
    "cnn": {"width": 4},
    "npr": {},
    "cnn_lstm": {"width": 4, "hidden": 8},
    "cnn_baseline": {"input_size": 32},
    "resnet18": {},
    "mobilenetv3_small_050": {},
    "vit_tiny_patch16_224": {},
}
pytestmark = pytest.mark.usefixtures("no_curves")
RUN = ["--model", "test_resnet", "--image-size", "32", "--batch-size", "8", "--epochs", "1", "--threads", "1"]


@pytest.fixture(scope="module", params=MODELS)
def detector(request):
    torch.manual_seed(0)
    return create_model(request.param, **MODELS[request.param])


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


def frozen_count(detector) -> int:
    return sum(not any(p.requires_grad for p in parameters) for _, parameters in stages(detector))


def test_freeze_takes_none_backbone_or_a_number():
    detector = create_model("resnet18")
    for value, count in {"none": 0, "backbone": 5, "0": 0, "2": 2, "5": 5}.items():
        freeze(detector, value)
        assert frozen_count(detector) == count


@pytest.mark.parametrize("value", ["some", "-1", "1.5", "²", ""])
def test_freeze_refuses_what_is_no_count(value):
    with pytest.raises(UserError, match="expected --freeze none, backbone or a number of stages, got"):
        freeze(create_model("test_resnet"), value)


def test_freezing_more_stages_than_there_are_lists_them():
    with pytest.raises(UserError, match=r"at most 5 for this model \(stage 0, .*, stage 4\), got 6"):
        freeze(create_model("resnet18"), "6")
    with pytest.raises(UserError, match=r"at most 1 for this model \(trunk\), got 2"):
        freeze(create_model("cnn", width=4), "2")


def test_freezing_starts_at_the_input_and_can_be_taken_back():
    detector = create_model("resnet18")
    freeze(detector, "2")
    wanted = {"backbone.layer2", "backbone.layer3", "backbone.layer4", "head.1"}
    assert {".".join(name.split(".")[:2]) for name in trained_names(detector)} == wanted
    freeze(detector, "none")
    assert all(parameter.requires_grad for parameter in detector.parameters())


@pytest.mark.parametrize(("name", "model_args", "side"), [("cnn", {"width": 4}, 32), ("resnet18", {}, 32)])
def test_a_frozen_backbone_stays_the_function_that_it_was(name, model_args, side):
    """Running statistics of frozen norms stand still, those without a scale of their own (in `cnn`) included."""
    detector = create_model(name, dropout=0, **model_args)
    freeze(detector, "backbone")
    before = {key: value.clone() for key, value in detector.state_dict().items()}
    train_mode(detector)
    detector(torch.rand(4, 3, side, side))
    after = detector.state_dict()
    assert [key for key, value in before.items() if not torch.equal(value, after[key])] == []


def test_thawed_norms_learn_their_statistics():
    detector = create_model("resnet18")
    freeze(detector, "2")
    train_mode(detector)
    for name, module in detector.named_modules():
        if isinstance(module, _BatchNorm):
            assert module.training == name.startswith(("backbone.layer2", "backbone.layer3", "backbone.layer4")), name
    freeze(detector, "none")
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
    freeze(detector, "2")
    for name, module in detector.named_modules():
        own = list(module.parameters(recurse=False))
        if own and not any(parameter.requires_grad for parameter in own):
            frozen |= {f"{name}.{key}" for key in module.state_dict() if "." not in key}
    assert frozen
    assert any("running_mean" in key for key in frozen)
    assert changed == set(before) - frozen


def test_a_wrong_freeze_ends_the_run_before_training(run):
    with pytest.raises(UserError, match="expected --freeze at most"):
        run("--freeze", "99")


def test_groups_hold_every_parameter_once_and_vectors_do_not_decay(detector):
    groups = list(parameter_groups(detector, 0.1))
    members = [parameter for group in groups for parameter in group["params"]]
    assert sorted(map(id, members)) == sorted(map(id, detector.parameters()))
    assert all((group["weight_decay"] == 0) == (p.ndim <= 1) for group in groups for p in group["params"])


# Weights


def test_weights_of_another_architecture_are_refused(run, tmp_path):
    file = tmp_path / "other.pth"
    torch.save(create_model("test_vit").state_dict(), file)
    with pytest.raises(UserError, match=r"expected weights of test_resnet in .* found 1 of 80 that fit"):
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
