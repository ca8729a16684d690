"""The Detector contract over every registered model and some timm backbones."""

import pytest
import torch

from models.detector import Detector, count_parameters
from models.registry import create_model, list_models
from utils.checkpoints.file import load_detector, save_checkpoint
from utils.errors import UserError
from utils.model_names import check_model_name
from utils.runtime import autocast, depthwise_in_fp32

MEMBER = {"model": "cnn", "model_args": {"width": 4}, "geometry": {"mode": "crop", "size": 64}, "calibration": None}
# Same code, less work; a model that is not named here is built with its defaults.
SMALL_ARGS = {
    "cnn_baseline": {"input_size": 32},
    "foundation": {"backbone": "test_vit", "blocks": "3-6", "tokens": "both"},
    "ensemble": {"members": [MEMBER, {**MEMBER, "calibration": {"method": "temperature", "temperature": 2.0}}]},
    "views": {"member": MEMBER, "views": ["flip", "crops", "blur"]},
    "random_forest": {"features": "color", "trees": 20},
    "gradient_boosting": {"features": "color", "rounds": 10},
    "xgboost": {"features": "color", "rounds": 10},
    "lightgbm": {"features": "color", "rounds": 10},
    "logistic_regression": {"features": "color"},
}
TIMM_NAMES = ["mobilenetv3_small_050", "resnet18", "test_efficientnet", "test_mambaout", "vit_tiny_patch16_224"]
SIDE = 64  # px; or what the model insists on


def build(name: str) -> Detector:
    """Build a small version of a model, in evaluation mode; a classical one is fitted to tell dark from bright."""
    torch.manual_seed(0)
    detector = create_model(name, **SMALL_ARGS.get(name, {})).eval()
    if detector.is_classical:
        brightness = torch.linspace(0.1, 1, 60)
        x = detector.features(torch.rand(60, 3, SIDE, SIDE) * brightness.view(-1, 1, 1, 1))
        y = (brightness > 0.5).numpy().astype(int)
        detector.fit((x, y), (x, y), 0)
    return detector


@pytest.fixture(scope="module", params=[*list_models(), *TIMM_NAMES])
def detector(request) -> Detector:
    return build(request.param)


@pytest.fixture
def images(detector) -> torch.Tensor:
    side = min(SIDE, detector.geometry.size)
    noise = torch.rand(3, 3, side, side, generator=torch.Generator().manual_seed(1))
    return noise * torch.tensor([0.2, 0.6, 1.0]).view(3, 1, 1, 1)


def has_one_network(detector: Detector) -> bool:
    """Tell a network from learners and sums of logits, which compute in double precision."""
    return detector.has_input_gradient and not hasattr(detector, "members")


# --------------------------------------------------------------------------------------------- the contract


@torch.no_grad()
def test_logits_are_one_finite_number_per_image(detector, images):
    for count in (1, 3):
        logits = detector(images[:count])
        assert logits.shape == (count,)
        assert logits.dtype == (torch.float32 if has_one_network(detector) else torch.float64)
        assert torch.isfinite(logits).all()


@torch.no_grad()
def test_logits_are_finite_on_black_and_white_images(detector, images):
    flat = torch.stack([torch.zeros_like(images[0]), torch.ones_like(images[0])])
    assert torch.isfinite(detector(flat)).all()


@torch.no_grad()
def test_evaluation_is_deterministic_and_independent_of_the_batch(detector, images):
    together = detector(images)
    assert torch.equal(detector(images), together)
    alone = torch.cat([detector(image[None]) for image in images])
    assert torch.allclose(alone, together, atol=1e-4)
    assert len(set(together.tolist())) > 1  # the images have an influence at all


def test_the_constructor_leaves_the_model_ready_for_training():
    assert create_model("test_efficientnet").training


@torch.no_grad()
def test_normalisation_happens_inside(detector, images):
    """An input in [0, 1] reaches the first layer with the detector's own mean and deviation."""
    mean, std = detector.mean.view(1, 3, 1, 1), detector.std.view(1, 3, 1, 1)
    assert torch.allclose(detector.normalize(images) * std + mean, images, atol=1e-6)
    layers = (module for module in detector.modules() if isinstance(module, torch.nn.Conv2d))
    first = next(layers, None)
    if first is None or not hasattr(detector, "backbone"):
        return
    seen = []
    hook = first.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    detector(images)
    hook.remove()
    assert torch.allclose(seen[0], detector.normalize(images), atol=1e-6)


def test_normalisation_is_no_part_of_the_checkpoint(detector):
    assert not {"mean", "std"} & set(detector.state_dict())


def test_timm_normalisation_is_that_of_the_backbone():
    assert create_model("test_vit").mean.flatten().tolist() == [0.5] * 3
    assert create_model("test_efficientnet").mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])


def test_gradient_reaches_the_input(detector, images):
    if not detector.has_input_gradient:
        pytest.skip("declared to have no input gradient")
    images = images.clone().requires_grad_(True)
    detector(images).sum().backward()
    assert torch.isfinite(images.grad).all()
    per_image = images.grad.abs().flatten(1).amax(1)
    assert (per_image > 0).all()


def test_the_loss_reaches_every_parameter(detector, images):
    if not any(parameter.requires_grad for parameter in detector.parameters()):
        pytest.skip("has nothing that a gradient step could change")
    before = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    detector.train()
    loss = torch.nn.functional.binary_cross_entropy_with_logits(detector(images).float(), torch.tensor([0.0, 1, 0]))
    loss.backward()
    missing = [
        name for name, parameter in detector.named_parameters() if parameter.requires_grad and parameter.grad is None
    ]
    detector.eval().zero_grad()
    detector.load_state_dict(before)  # the running statistics have moved
    assert not missing
    assert torch.isfinite(loss)


@torch.no_grad()
def test_the_cam_layer_exists_and_its_output_is_a_map(detector, images):
    if detector.cam_layer is None:
        pytest.skip("declares no layer for Grad-CAM")
    layers, outputs = detector.cam_layer.split(), []
    modules = dict(detector.named_modules())
    hooks = [modules[layer].register_forward_hook(lambda *event: outputs.append(event[2])) for layer in layers]
    detector(images)
    for hook in hooks:
        hook.remove()
    assert len(outputs) >= len(layers)
    for output in outputs:
        features = detector.cam_reshape(output) if detector.cam_reshape else output
        assert features.ndim == 4
        count, channels, height, width = features.shape
        assert count == len(images)
        assert height == width <= channels  # channels first: every last stage here is wider than its map


@torch.no_grad()
def test_a_checkpoint_gives_the_same_model_back(detector, images, request, tmp_path):
    name = request.node.callspec.params["detector"]
    state_dict = detector.state_dict()
    save_checkpoint(
        tmp_path / "best.pt",
        {
            "model": name,
            "model_args": SMALL_ARGS.get(name, {}),
            "state_dict": state_dict,
            "geometry": detector.geometry.to_dict(),
            "thresholds": None,
            "calibration": None,
        },
    )
    loaded, _ = load_detector(tmp_path / "best.pt")
    (tmp_path / "best.pt").unlink()
    assert list(loaded.state_dict()) == list(state_dict)
    for key, value in loaded.state_dict().items():
        # scikit-learn's own format has the time in it; that the learner is the same, its logits show.
        assert key.endswith("_extra_state") or torch.equal(value, state_dict[key])
    assert torch.equal(loaded(images), detector(images))
    assert loaded.geometry == detector.geometry


def test_head_parameters_are_parameters_of_the_model(detector):
    own = {id(parameter) for parameter in detector.parameters()}
    assert {id(parameter) for parameter in detector.head_parameters()} <= own
    assert detector.head_parameters() or not hasattr(detector, "head")


# ------------------------------------------------------------------------------------------- single families


def test_cnn_is_small_and_takes_any_size():
    detector = create_model("cnn").eval()
    assert count_parameters(detector) < 3_000_000
    for height, width in ((32, 32), (41, 57), (64, 40)):
        assert torch.isfinite(detector(torch.rand(1, 3, height, width))).all()


def test_cnn_baseline_names_the_size_it_was_built_for():
    with pytest.raises(UserError, match=r"expected 32 px images .* got \(48, 48\)"):
        create_model("cnn_baseline", input_size=32)(torch.rand(1, 3, 48, 48))


def test_old_and_new_timm_names_pass():
    for name in ("xception", "legacy_xception", "inception_resnet_v2", "resnet18.a1_in1k"):
        check_model_name(name)
    detector = create_model("xception")
    assert detector.input_size == 299
    assert detector.mean.flatten().tolist() == detector.std.flatten().tolist() == [0.5] * 3


def test_depthwise_convolutions_leave_bfloat16_without_changing_float32():
    detector = create_model("mobilenetv3_small_050").eval()
    images = torch.rand(2, 3, 32, 32)
    before, keys = detector(images), list(detector.state_dict())
    depthwise_in_fp32(detector)
    assert torch.equal(detector(images), before)
    assert list(detector.state_dict()) == keys
    dtypes = []
    depthwise = next(m for m in detector.modules() if isinstance(m, torch.nn.Conv2d) and m.groups > 1)
    depthwise.register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
    with autocast(torch.device("cpu"), torch.bfloat16):
        assert torch.isfinite(detector(images)).all()
    assert dtypes == [torch.float32]
