"""The ensemble as a detector: what its members see, their calibration and their class activation maps."""

import numpy as np
import pytest
import torch

from datasets.transforms import EvalTransform, Geometry
from models.ensemble import common_frame, member_view
from models.operating_point import OperatingPoint, sigmoid
from models.registry import create_model
from utils.checkpoints.file import describe_checkpoint, save_checkpoint
from utils.checkpoints.weights import load_weights
from utils.errors import UserError
from utils.explanations.layers import capture
from utils.explanations.maps import Question
from utils.explanations.methods.cam import gradcam

SHARP = {"method": "temperature", "temperature": 0.5}
SHIFTED = {"method": "temperature", "temperature": 4.0, "bias": -0.7}
ISOTONIC = {"method": "isotonic", "x": [-2.0, -0.5, 1.0], "y": [0.1, 0.4, 0.9]}


@pytest.mark.parametrize("calibration", [None, SHARP, SHIFTED, ISOTONIC], ids=["none", "sharp", "shifted", "isotonic"])
def test_logits_are_calibrated_as_everywhere_else(calibration):
    description = {"model": "cnn", "model_args": {"width": 4}, "geometry": Geometry("crop", 32).to_dict()}
    joined = create_model("ensemble", members=[{**description, "calibration": calibration}]).eval()
    images = torch.rand(6, 3, 32, 32)
    with torch.no_grad():
        logits, found = joined.members[0](images), joined.evidence(images)[:, 0]
    assert np.allclose(sigmoid(found.numpy()), OperatingPoint(calibration).p_fake(logits.numpy()), atol=1e-9)


def test_maps_of_an_ensemble_are_the_weighted_sum_of_those_of_its_members():
    geometry = Geometry("crop", 64).to_dict()
    cnn = {"model": "cnn", "model_args": {"width": 4}, "geometry": geometry, "calibration": SHARP}
    timm = {"model": "mobilenetv2_050", "model_args": {}, "geometry": geometry, "calibration": None}
    torch.manual_seed(0)
    joined = create_model("ensemble", members=[cnn, timm, cnn | {"geometry": Geometry("crop", 32).to_dict()}]).eval()
    joined.weights.copy_(torch.tensor([0.5, 0.3, 0.2]))
    assert joined.cam_layer == "members.0.trunk members.1.backbone.blocks.6"  # the third sees less of the image
    images, sign = torch.rand(2, 3, 64, 64), torch.ones(2)
    found = capture(joined, images, sign)
    wanted, effects = torch.zeros(()), []
    for number, factor in ((0, 0.5 / SHARP["temperature"]), (1, 0.3)):
        alone = capture(joined.members[number], images, sign)
        signed = (alone.activations * alone.gradients.mean((2, 3), keepdim=True)).sum(1, keepdim=True)
        sides = found.activations.shape[2:]
        share = signed[0].numel() / sides.numel()  # a place that is drawn on many counts as often in each of them
        wanted = wanted + factor * share * torch.nn.functional.interpolate(signed, sides)
        effects.append(factor * (alone.activations * alone.gradients).sum((1, 2, 3)))
    assert torch.allclose(gradcam(Question(joined, images, sign)), wanted[:, 0].relu(), atol=1e-6)
    assert wanted.max() > 1e-4
    assert torch.allclose((found.activations * found.gradients).sum((1, 2, 3)), sum(effects), rtol=1e-4)


def towers(*tunes, blocks="4-6", size=64):
    """An ensemble on one vision transformer: its weights, the calls of each member's first block are counted."""
    geometry = Geometry("crop", size).to_dict()
    members = [
        {
            "model": "foundation",
            "model_args": {"backbone": "test_vit", "blocks": blocks, "tune": tune},
            "geometry": geometry,
            "calibration": None,
        }
        for tune in tunes
    ]
    torch.manual_seed(0)
    joined = create_model("ensemble", members=members).eval()
    for member in joined.members[1:]:
        member.backbone.load_state_dict(joined.members[0].backbone.state_dict())
    calls = []
    for number, member in enumerate(joined.members):
        member.backbone.blocks[0].register_forward_hook(lambda *_, number=number: calls.append(number))
    return joined, calls


@torch.no_grad()
def test_members_on_one_transformer_compute_the_blocks_that_they_share_once():
    joined, calls = towers("norms_4", "none", "none")
    joined.members[0].backbone.blocks[2].norm1.weight.add_(0.5)  # the first of the four blocks whose norms are tuned
    images = torch.rand(3, 3, 64, 64)
    alone = torch.stack([member(images).double() for member in joined.members], dim=1)
    assert calls == [0, 1, 2]
    joined.load_state_dict(joined.state_dict())  # as after reading a checkpoint
    assert (joined.stem_depth, joined.on_stem) == (2, {0, 1, 2})
    calls.clear()
    assert torch.allclose(joined.evidence(images), alone, atol=1e-6)
    assert calls == [0]
    assert torch.allclose(joined.evidence(images, slice(1, None)), alone[:, 1:], atol=1e-6)  # without the first member


@torch.no_grad()
@pytest.mark.parametrize("tensor", ["pos_embed", "blocks.0.mlp.fc1.weight"])
def test_members_on_different_transformers_share_nothing(tensor):
    joined, _ = towers("none", "none")
    joined.members[1].backbone.get_parameter(tensor).add_(0.1)
    joined.find_stem()
    assert not joined.on_stem


def test_members_share_no_block_that_one_of_them_reads():
    joined, _ = towers("none", "none", blocks="2-6")
    joined.find_stem()
    assert (joined.stem_depth, joined.on_stem) == (1, {0, 1})


# What the members see


def prepared(geometry: Geometry, image: np.ndarray) -> torch.Tensor:
    return EvalTransform(geometry)(image)[None]


@pytest.mark.parametrize(
    "sizes", [((32, 48),), ((16, 48),), ((32, 64),), ((48, 32, 16),), ((33, 65, 49),)], ids=lambda sizes: str(sizes[0])
)
def test_a_cropping_member_sees_its_own_view_to_the_bit(sizes):
    """Over image sizes from the frame's on, odd ones included."""
    members = [Geometry("crop", size) for size in sizes[0]]
    frame = common_frame(members)
    assert frame.size == max(sizes[0])
    rng = np.random.default_rng(0)
    for height in [*range(frame.size, frame.size + 37, 3), 250]:
        for width in (frame.size, frame.size + 1, frame.size + 24, 187, 256):
            image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
            for wanted in members:
                view = member_view(prepared(frame, image), frame, wanted)
                assert torch.equal(view, prepared(wanted, image)), (height, width, wanted)


def test_other_crop_sizes_are_at_most_one_block_aside():
    frame = common_frame([Geometry("crop", 32), Geometry("crop", 43)])
    for side in range(43, 140):
        rows = np.arange(side, dtype=np.uint8)[:, None, None]
        image = np.broadcast_to(rows, (side, side, 3)).copy()
        view = member_view(prepared(frame, image), frame, Geometry("crop", 32))
        top, own = (round(float(part[0, 0, 0, 0]) * 255) for part in (view, prepared(Geometry("crop", 32), image)))
        assert abs(top - own) in (0, 8)
        assert top % 8 == 0


@pytest.mark.parametrize("resize", [32, 40, 48, 57])
def test_a_resizing_member_does_not_spoil_the_view_of_a_cropping_one(resize):
    crop, other = Geometry("crop", 32), Geometry("resize", resize)
    frame = common_frame([crop, other])
    assert frame.mode == "crop"
    assert frame.size >= resize
    image = np.random.default_rng(0).integers(0, 256, (91, 77, 3), dtype=np.uint8)
    images = prepared(frame, image)
    assert torch.equal(member_view(images, frame, crop), prepared(crop, image))
    view = member_view(images, frame, other)
    assert view.shape == (1, 3, resize, resize)
    assert 0 <= view.min() <= view.max() <= 1


def test_a_resizing_member_sees_the_whole_frame():
    frame = Geometry("crop", 48)
    images = torch.linspace(0, 1, 48).expand(1, 3, 48, 48)
    view = member_view(images, frame, Geometry("resize", 32))
    assert view[0, 0, 0, 0] < 0.03
    assert view[0, 0, 0, -1] > 0.97


def test_members_of_one_geometry_keep_it():
    for geometry in (Geometry("crop", 32), Geometry("resize", 32), Geometry("crop", 32, 40)):
        assert common_frame([geometry, geometry]) == geometry
    assert common_frame([Geometry("resize", 32), Geometry("resize", 48)]) == Geometry("resize", 48)
    assert common_frame([Geometry("crop", 32, 64), Geometry("crop", 48, 64)]) == Geometry("crop", 48, 64)


@pytest.mark.parametrize(
    "others",
    [
        [Geometry("crop", 32, 64)],
        [Geometry("crop", 32, 64), Geometry("crop", 32, 48)],
        [Geometry("crop", 32, 40), Geometry("resize", 64)],  # the frame would need images of 64 px at least
    ],
)
def test_members_that_see_images_at_different_scales_are_refused(others):
    geometries = others if others[-1].mode == "resize" else [Geometry("crop", 32), *others]
    with pytest.raises(UserError, match=r"expected members that crop with one --resize-to .*, got crop 32 px"):
        common_frame(geometries)


def test_an_ensemble_is_made_of_checkpoints():
    with pytest.raises(UserError, match=r"make one with: python ensemble\.py"):
        create_model("ensemble")


def test_an_ensemble_gives_the_weights_of_its_first_member_of_the_architecture(tmp_path):
    """So that users can fine-tune a release that has several networks."""
    members = [create_model(name) for name in ("test_vit", "test_resnet", "test_resnet")]
    described = [
        {"model": member.name, "model_args": {}, "geometry": member.geometry.to_dict(), "calibration": None}
        for member in members
    ]
    ensemble = create_model("ensemble", members=described)
    save_checkpoint(
        tmp_path / "three.pt", describe_checkpoint(ensemble, {}, []) | {"state_dict": ensemble.state_dict()}
    )
    network = create_model("test_resnet")
    report = load_weights(network, str(tmp_path / "three.pt"))
    assert report.random == []
    for key, value in network.state_dict().items():
        assert torch.equal(value, ensemble.state_dict()[f"members.1.{key}"]), key
