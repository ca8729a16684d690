"""Maps: agreement with the grad-cam package, every family of detectors, geometry, overlays, errors."""

import itertools

import numpy as np
import pytest
import torch

from datasets.transforms import Geometry
from models.registry import create_model
from utils.errors import UserError
from utils.explanations.layers import capture, find_layer
from utils.explanations.maps import Question, blurred, enlarge, explain, targets_of
from utils.explanations.methods.features import attribute
from utils.explanations.methods.integrated_gradients import attributions
from utils.explanations.methods.lstm_steps import step_relevance
from utils.explanations.methods.occlusion import spans
from utils.explanations.methods.superpixels import local_weights
from utils.explanations.overlay import normalise, overlay, place_map, seen_mask, view_box
from utils.explanations.regions import segment, top_segments
from utils.explanations.registry import (
    FILES,
    all_methods,
    check_methods,
    check_usable,
    method_names,
    register_explanation,
    usable_methods,
)

TINY = {
    "scorecam": {"channels": 2},
    "integrated_gradients": {"gradient_steps": 1},
    "occlusion": {"grid": 2},
    "superpixels": {"samples": 4, "segments": 6},
}
MAPS = [name for name, method in all_methods().items() if method.makes_maps]


class TwoLogits(torch.nn.Module):
    """A detector as a two-class classifier with logits ``[0, z]``, as the package expects."""

    def __init__(self, detector):
        super().__init__()
        self.detector = detector

    def forward(self, batch):
        logits = self.detector(batch)
        return torch.stack([torch.zeros_like(logits), logits], dim=1)


def run(method, question, **options):
    return all_methods()[method].function(question, **options)


def build(name, **args):
    torch.manual_seed(0)
    return create_model(name, **args).eval()


def images(count=2, size=64, seed=0):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def scaled(maps):
    """Per map, from 0 to 1, as the package does."""
    maps = maps - maps.amin((1, 2), keepdim=True)
    return maps / (maps.amax((1, 2), keepdim=True) + 1e-7)


FAMILIES = {
    "cnn": ("cnn", {"width": 4}),
    "timm": ("mobilenetv2_050", {}),
    "transformer": ("test_vit", {}),
    "foundation": ("foundation", {"backbone": "test_vit", "blocks": "3-5"}),
    "cnn_lstm": ("cnn_lstm", {"width": 4, "hidden": 8}),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_formulas_agree_with_the_grad_cam_package(family):
    import pytorch_grad_cam as package
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    name, args = FAMILIES[family]
    detector, batch = build(name, **args), images(size=96 if family == "timm" else 64)
    classes = {
        "gradcam": package.GradCAM,
        "gradcam++": package.GradCAMPlusPlus,
        "hirescam": package.HiResCAM,
        "layercam": package.LayerCAM,
    }
    question = Question(detector, batch, torch.ones(2))
    for method, cls in classes.items():
        layer = detector.get_submodule(find_layer(detector, None))
        with cls(TwoLogits(detector), [layer], reshape_transform=detector.cam_reshape) as cam:
            theirs = cam(batch, targets=[ClassifierOutputTarget(1)] * 2)
        ours = scaled(enlarge(scaled(run(method, question)), batch.shape[-2:]))
        np.testing.assert_allclose(ours.numpy(), theirs, atol=2e-3, err_msg=method)


def test_eigen_and_score_cam_agree_with_the_package():
    from pytorch_grad_cam import ScoreCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    from pytorch_grad_cam.utils.svd_on_activations import get_2d_projection

    detector, batch = build("cnn", width=4), images()
    question = Question(detector, batch, torch.ones(2))
    theirs = get_2d_projection(question.capture.activations.numpy())
    ours = run("eigencam", question).numpy()
    for one, other in zip(ours, theirs, strict=True):  # the sign of a component is arbitrary
        assert min(np.abs(one - np.maximum(s * other, 0)).max() for s in (1, -1)) < 1e-4
    with ScoreCAM(TwoLogits(detector), [detector.get_submodule("trunk")]) as cam:
        theirs = cam(batch, targets=[ClassifierOutputTarget(1)] * 2)
    # The package enlarges the channels with aligned corners, which the deprecated layer that it uses implies.
    ours = scaled(enlarge(scaled(run("scorecam", question)), batch.shape[-2:])).numpy()
    assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.98


@pytest.mark.parametrize("family", FAMILIES)
def test_every_usable_method_gives_a_map_of_the_size_of_the_input(family):
    name, args = FAMILIES[family]
    detector, batch = build(name, **args), images()
    methods = [method for method in usable_methods(detector) if method in MAPS]
    assert ("steps" in methods) == (family == "cnn_lstm")
    assert ("attention" in methods) == (family in ("transformer", "foundation"))
    assert len(set(MAPS) - set(methods)) == (2 if family in ("cnn", "timm") else 1)
    maps = explain(detector, batch, methods, torch.tensor([1.0, -1.0]), options=TINY)
    for method, heat in maps.items():
        assert heat.shape == (2, 64, 64) and heat.dtype == torch.float32, method
        assert torch.isfinite(heat).all() and (heat >= 0).all(), method
    assert any(heat.max() > 0 for heat in maps.values())


def test_fake_and_real_are_explained_by_opposite_evidence():
    detector, batch = build("cnn", width=4), images(1)
    fake, real = (explain(detector, batch, ["hirescam"], torch.tensor([s]))["hirescam"] for s in (1.0, -1.0))
    assert fake.max() > 0 and real.max() > 0 and not torch.allclose(fake, real)
    assert targets_of(torch.tensor([True, False]), "predicted").tolist() == [1, -1]
    assert targets_of(torch.tensor([True, False]), "real").tolist() == [-1, -1]


def test_a_frozen_detector_is_explained_alike_and_nothing_is_left_behind():
    detector, batch, sign = build("cnn", width=4), images(), torch.ones(2)
    before = explain(detector, batch, ["gradcam", "integrated_gradients"], sign, options=TINY)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in detector.parameters())
    detector.requires_grad_(False)
    after = explain(detector, batch, ["gradcam", "integrated_gradients"], sign, options=TINY)
    assert all(torch.equal(before[method], after[method]) for method in before)
    assert not any(module._forward_hooks for module in detector.modules())


def test_the_model_runs_once_for_all_maps_of_a_layer():
    detector, calls = build("cnn", width=4), []
    detector.register_forward_hook(lambda *_: calls.append(1))
    explain(detector, images(), ["gradcam", "hirescam", "layercam", "eigencam"], torch.ones(2))
    assert len(calls) == 1


@torch.no_grad()
def test_attention_rollout_of_one_block_is_the_attention_of_its_class_token():
    detector, batch = build("foundation", backbone="test_vit", blocks=1, tune="none"), images()
    block, rows = detector.backbone.blocks[0], []
    block.norm1.register_forward_hook(lambda *call: rows.append(call[2]))
    heat = run("attention", Question(detector, batch, torch.ones(2)))
    qkv = block.attn.qkv(rows[0]).reshape(2, 17, 3, block.attn.num_heads, -1).permute(2, 0, 3, 1, 4)
    wanted = (qkv[0] @ qkv[1].transpose(2, 3) * block.attn.scale).softmax(3).mean(1)[:, 0, 1:] / 2
    assert torch.allclose(heat.flatten(1), wanted, atol=1e-6) and block.attn.fused_attn


@pytest.mark.parametrize("name", ["xcit_nano_12_p16_224", "gmixer_12_224", "swin_tiny_patch4_window7_224"])
def test_attention_of_windows_channels_or_none_is_no_map_of_patches(name):
    assert "attention" not in usable_methods(build(name))


def test_an_unknown_layer_lists_the_closest_first():
    with pytest.raises(UserError, match=r"got 'trunk\.9'; it has trunk\.\d.*and \d+ more"):
        capture(build("cnn", width=4), images(1), torch.ones(1), "trunk.9")
    for odd in (" ", "trunk none"):
        with pytest.raises(UserError, match="expected --layer to be a layer of the detector"):
            capture(build("cnn", width=4), images(1), torch.ones(1), odd)
    with pytest.raises(UserError, match=r"own layer is trunk"):
        capture(build("cnn", width=4), images(1), torch.ones(1), "head")


def test_methods_without_their_means_are_refused_with_those_that_work():
    classical = build("logistic_regression", features="dct")
    assert usable_methods(classical) == ["features", "occlusion", "superpixels"]
    with pytest.raises(UserError, match="no gradient; use --methods features occlusion superpixels"):
        check_usable(classical, ["gradcam"])
    with pytest.raises(UserError, match="reads no sequence"):
        check_usable(build("cnn", width=4), ["steps"])
    with pytest.raises(UserError, match="did you mean gradcam"):
        check_methods(["gradcamm"])


def test_steps_and_clips_of_a_cnn_lstm():
    detector, clips = build("cnn_lstm", width=4, hidden=8), images(6).unflatten(0, (2, 3))
    question = Question(detector, clips, torch.ones(2))
    rows, columns = step_relevance(question)
    assert rows.shape == columns.shape == (2, 3 * 4)  # three frames, four steps each
    assert run("gradcam", question).shape == (2 * 3, 4, 4)  # a map for each frame


def test_names_read_from_the_source_are_those_that_are_registered():
    assert method_names() == list(all_methods())
    assert {method.function.__module__.rpartition(".")[2] for method in all_methods().values()} == {
        file.stem for file in FILES
    }
    with pytest.raises(ValueError, match="registered twice"):
        register_explanation("gradcam", "Grad-CAM")(print)


def test_integrated_gradients_sum_to_the_difference_of_the_logits():
    detector, batch = build("cnn", width=4), images()
    total = attributions(Question(detector, batch, torch.tensor([1.0, -1.0])), 64).sum((1, 2))
    with torch.no_grad():
        gap = (detector(batch) - detector(blurred(batch))) * torch.tensor([1.0, -1.0])
    torch.testing.assert_close(total, gap, atol=0.03, rtol=0.1)


class Corner(torch.nn.Module):
    """Says fake by the contrast of the top left quarter, and sees nothing else."""

    has_input_gradient, cam_layer, cam_reshape = True, None, None

    def forward(self, batch):
        return 50 * (batch[..., :32, :32] - batch[..., :32, :32].mean((2, 3), keepdim=True)).square().mean((1, 2, 3))


@pytest.mark.parametrize("method", ["occlusion", "superpixels", "integrated_gradients"])
def test_a_detector_that_looks_at_one_corner_is_found_out(method):
    options = {"superpixels": {"samples": 80, "segments": 16}, "integrated_gradients": {"gradient_steps": 8}}
    heat = explain(Corner(), images(1), [method], torch.ones(1), options=options)[method][0]
    assert heat[:32, :32].mean() > 5 * heat[32:, 32:].mean()


def test_a_local_model_finds_the_coefficients_of_a_linear_target():
    kept = np.random.default_rng(0).random((400, 5)) < 0.5
    truth = np.array([3.0, 0, -2, 0, 1])
    np.testing.assert_allclose(local_weights(kept, kept @ truth), truth, atol=0.2)


def test_windows_cover_a_side_and_overlap_by_half():
    found = spans(65, 7)
    assert found[0][0] == 0 and found[-1][1] == 65 and len(found) == 7
    assert all(after[0] < before[1] for before, after in itertools.pairwise(found))


def test_a_map_that_is_zero_stays_zero():
    heat = np.zeros((8, 8), np.float32)
    assert normalise(heat).max() == 0
    picture = np.full((8, 8, 3), 77, np.uint8)
    assert np.array_equal(overlay(picture, heat), picture)
    assert not top_segments(heat, segment(picture, 4), 2).any()


@pytest.mark.parametrize("geometry", [Geometry("crop", 32), Geometry("crop", 32, 48), Geometry("resize", 32)])
@pytest.mark.parametrize("shape", [(32, 32), (60, 90), (100, 47), (20, 200), (9, 7)])
def test_the_view_box_is_where_the_geometry_looks(geometry, shape):
    rows, columns = np.mgrid[: shape[0], : shape[1]].astype(np.float32) + 0.5
    seen = geometry(np.dstack([rows, columns, columns]))
    top, left, bottom, right = view_box(geometry, *shape)
    steps = (np.arange(32) + 0.5) / 32
    inner = slice(8, 24)  # interpolation flattens coordinates at the border
    for found, (low, high) in ((seen[:, 16, 0], (top, bottom)), (seen[16, :, 1], (left, right))):
        error = (found - (low + steps * (high - low)))[inner] / (high - low) * 32
        assert (
            np.abs(error).max() < 0.5
        )  # px of the view; OpenCV itself shifts by a third where it shrinks one side only


def test_a_map_goes_back_to_its_place_in_the_picture():
    geometry, heat = Geometry("crop", 32), np.zeros((32, 32), np.float32)
    heat[10, 20] = 1
    edges = view_box(geometry, 64, 96)
    placed = place_map(heat, edges, 64, 96)
    assert np.unravel_index(placed.argmax(), placed.shape) == (16 + 10, 32 + 20)
    assert seen_mask(edges, 64, 96).sum() == 32 * 32
    covered = overlay(np.full((64, 96, 3), 100, np.uint8), placed, seen_mask(edges, 64, 96))
    assert covered.shape == (64, 96, 3) and covered[0, 0, 0] < 100 and covered[20, 40, 0] == 100


@pytest.mark.parametrize("name", ["logistic_regression", "xgboost", "lightgbm", "random_forest"])
def test_features_are_credited_for_the_logit(name):
    generator = np.random.default_rng(0)
    labels = np.arange(80) % 2
    detector = build(name, features="dct", **({"trees": 20} if name == "random_forest" else {}))
    x = generator.normal(size=(80, len(detector.feature_names()))).astype(np.float32)
    x += 2 * labels[:, None]  # all features tell, because boosting sees a twentieth of them in each round
    detector.fit((x, labels), (x, labels), seed=0)
    contributions, how = attribute(detector, x)
    assert contributions.shape == x.shape
    assert contributions[labels == 1].sum(1).mean() > contributions[labels == 0].sum(1).mean()
    if how == "SHAP values":  # they add up to the logit, but for a constant
        assert np.ptp(detector.estimator.logits(x) - contributions.sum(1)) < 1e-3
    else:  # a feature that is not replaced by anything else adds nothing
        median = np.median(x, axis=0, keepdims=True)
        assert np.abs(attribute(detector, np.concatenate([median, x]))[0][0]).max() < 1e-6
