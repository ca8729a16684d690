"""Detectors around timm backbones: heads, stems, feature maps, and the input sizes that each family takes."""

import time

import pytest
import timm
import torch

import train
from models.registry import create_model
from utils.errors import UserError

SMALL_WORDS = "femto atto pico nano xxtiny xx_small tiny xx mini xs small _s s0 m0 b0 lite 050 18 11 b1 base".split()


def test_dense_head():
    detector = create_model("test_resnet", head="dense512").eval()
    assert [m.out_features for m in detector.head if isinstance(m, torch.nn.Linear)] == [512, 1]
    assert next(m.p for m in detector.head if isinstance(m, torch.nn.Dropout)) == 0.5
    assert detector(torch.rand(2, 3, 64, 64)).shape == (2,)


def test_cam_map_of_a_transformer_drops_the_class_token_and_keeps_the_order():
    reshape = create_model("test_vit").cam_reshape
    tokens = torch.arange(10.0).view(1, 10, 1)
    assert reshape(tokens)[0, 0].tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]


def test_stem_stride_keeps_weights_and_doubles_the_map():
    plain, fine = create_model("resnet18"), create_model("resnet18", stem_stride=1)
    fine.load_state_dict(plain.state_dict())
    images = torch.rand(1, 3, 64, 64)
    sizes = [detector.backbone.forward_features(images).shape[-1] for detector in (plain, fine)]
    assert sizes == [2, 4]


@pytest.mark.parametrize(
    ("name", "stride", "message"),
    [("resnet18", 3, "stem_stride=1 or"), ("vit_tiny_patch16_224", 1, "begins with a convolution of stride 2")],
)
def test_stem_stride_that_cannot_be_set_is_refused(name, stride, message):
    with pytest.raises(UserError, match=message):
        create_model(name, stem_stride=stride)


# ------------------------------------------------------------------------------------------------- input sizes


@pytest.mark.parametrize("name", ["test_vit", "vit_tiny_patch16_224", "deit_tiny_patch16_224", "test_resnet"])
def test_these_take_any_size(name):
    detector = create_model(name).eval()
    assert detector.any_size and detector.training is False
    for height, width in ((96, 96), (75, 90)):
        assert detector(torch.rand(1, 3, height, width)).shape == (1,)
    assert detector.choose_size(70) == 64


@pytest.mark.parametrize(
    ("name", "sizes", "allowed"),
    [
        (
            "levit_128s",
            {40: 224, 200: 224, 640: 224},
            "expected --image-size that levit_128s takes, such as 224, got 200",
        ),
        ("swin_tiny_patch4_window7_224", {100: 224}, "such as 224"),
        ("coatnet_pico_rw_224", {100: 224}, "such as 224"),
        ("gmixer_12_224", {100: 224}, "such as 224"),
        ("crossvit_tiny_240", {100: 96, 640: 240}, None),
        ("vit_tiny_r_s16_p8_224", {40: 32, 250: 224}, None),
        ("inception_v3", {40: 96, 200: 192}, None),  # its pooling leaves nothing of 64 px
    ],
)
def test_a_size_is_chosen_that_the_model_takes(name, sizes, allowed):
    detector = create_model(name)
    assert {side: detector.choose_size(side) for side in sizes} == sizes
    for size in sizes.values():
        detector.check_size(size)
    assert all(module.training for module in detector.modules())
    if allowed:
        with pytest.raises(UserError, match=allowed):
            detector.check_size(200)


def test_patches_of_14_px_are_whole_at_the_size_that_is_chosen():
    detector = create_model("eva02_tiny_patch14_224")
    assert detector.any_size and detector.size_step == 28
    assert (detector.choose_size(100), detector.choose_size(640)) == (84, 224)


@pytest.mark.parametrize("flag", ["--image-size", "--train-size"])
def test_training_at_a_size_that_does_not_fit_is_one_line(flag, image_folder, tmp_path):
    flags = ["--data", str(image_folder), "--output-dir", str(tmp_path / "run"), flag, "48"]
    with pytest.raises(UserError, match=f"expected {flag} that cnn_baseline takes, such as 64, got 48"):
        train.main(["--model", "cnn_baseline", "--model-args", "input_size=64", *flags])


def family_name(module: str) -> str:
    """Name a small model of a timm module."""

    def rank(name: str) -> tuple:
        return next((i for i, word in enumerate(SMALL_WORDS) if word in name), len(SMALL_WORDS)), len(name), name

    return min((name for name in timm.list_models(module=module) if not name.startswith("test_")), key=rank)


@pytest.mark.slow
@pytest.mark.parametrize("module", timm.list_modules())
def test_a_model_of_every_family_trains_at_the_size_that_is_chosen(module):
    name = family_name(module)
    started = time.perf_counter()
    timm.create_model(name, pretrained=False, num_classes=0)
    if time.perf_counter() - started > 2:
        pytest.skip(f"{name} is slow to build")
    detector = create_model(name)
    for side in (40, 250):
        size = detector.choose_size(side)
        logits = detector.train()(torch.rand(2, 3, size, size))
        torch.nn.functional.binary_cross_entropy_with_logits(logits, torch.tensor([0.0, 1.0])).backward()
        with torch.no_grad():
            assert torch.isfinite(detector.eval()(torch.rand(1, 3, size, size))).all()
    if not detector.fits(200):
        with pytest.raises(UserError, match="expected --image-size that"):
            detector.check_size(200)
