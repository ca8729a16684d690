"""The CNN-LSTM: images and clips, what its readers see, which trunks it takes, and weights for the trunk."""

import pytest
import torch

from models.cnn_lstm import PatchReader
from models.registry import create_model
from utils.checkpoints.weights import load_weights
from utils.errors import UserError


def build(**model_args):
    torch.manual_seed(0)
    return create_model("cnn_lstm", **{"backbone": "cnn", "width": 4, "hidden": 8, **model_args}).eval()


@pytest.fixture(scope="module", params=["lstm", "mean"])
def detector(request):
    return build(reader=request.param)


@pytest.fixture
def clips() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    brightness = torch.tensor([0.1, 0.5, 1.0]).view(1, 3, 1, 1, 1)
    return torch.rand(2, 3, 3, 48, 48, generator=generator) * brightness


@torch.no_grad()
def test_an_image_is_a_clip_of_one_frame(detector, clips):
    images = clips[:, 0]
    assert torch.equal(detector(images), detector(images[:, None]))


@torch.no_grad()
def test_clips_of_any_length_give_one_logit_each(detector, clips):
    for frames in (1, 2, 3):
        assert detector(clips[:, :frames]).shape == (2,)
    assert not torch.allclose(detector(clips), detector(clips[:, :1, :].expand(-1, 3, -1, -1, -1)))


@torch.no_grad()
def test_a_clip_is_scored_by_itself(detector, clips):
    assert torch.allclose(torch.cat([detector(clip[None]) for clip in clips]), detector(clips), atol=1e-5)


@torch.no_grad()
def test_the_order_of_frames_matters_to_the_lstm_only(detector, clips):
    forwards, backwards = detector(clips), detector(clips.flip(1))
    if detector.reader is None:
        assert torch.allclose(forwards, backwards, atol=1e-5)
    else:
        assert (forwards - backwards).abs().min() > 1e-5


@torch.no_grad()
def test_the_reader_tells_places_apart_where_a_mean_cannot():
    features = torch.zeros(2, 1, 6, 5, 5)
    features[0, ..., 0, 2] = 1  # the same trace near the top and near the bottom
    features[1, ..., 4, 2] = 1
    assert torch.equal(features.mean((1, 3, 4))[0], features.mean((1, 3, 4))[1])
    torch.manual_seed(0)
    summaries = PatchReader(6, 8)(features)
    assert summaries.shape == (2, 32)
    rows, columns = summaries.chunk(2, dim=1)
    assert not torch.allclose(rows[0], rows[1])
    assert torch.allclose(columns[0], columns[1], atol=1e-6)  # it stood in the same column


@torch.no_grad()
def test_rows_and_columns_need_not_be_as_many():
    assert PatchReader(6, 8)(torch.rand(2, 3, 6, 4, 7)).shape == (2, 32)
    assert build()(torch.rand(2, 3, 48, 80)).shape == (2,)


def test_gradient_reaches_the_lstm_and_the_trunk(clips):
    detector = build().train()
    detector(clips).sum().backward()
    missing = [name for name, p in detector.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert missing == []
    for name in ("weight_ih_l0", "weight_hh_l0", "weight_ih_l0_reverse", "weight_hh_l0_reverse"):
        assert getattr(detector.reader.lstm, name).grad.abs().max() > 0, name
    assert next(detector.trunk.parameters()).grad.abs().max() > 0


def test_layers_after_the_feature_map_are_not_trained(clips):
    """DistributedDataParallel waits for the gradient of each parameter that requires one."""
    detector = create_model("cnn_lstm", backbone="test_convnext", hidden=8)
    fixed = {id(parameter) for parameter in detector.fixed_parameters()}
    detector.train()(clips).sum().backward()
    without = {name for name, parameter in detector.named_parameters() if parameter.grad is None}
    assert without == {name for name, parameter in detector.named_parameters() if id(parameter) in fixed}
    assert without == {"trunk.backbone.head.norm.weight", "trunk.backbone.head.norm.bias"}
    assert not any(parameter.requires_grad for parameter in detector.fixed_parameters())


@pytest.mark.slow
def test_a_backbone_may_need_larger_images_than_the_probe():
    detector = create_model("cnn_lstm", backbone="inception_resnet_v2", hidden=8).eval()
    assert detector(torch.rand(1, 3, 128, 128)).shape == (1,)


@pytest.mark.parametrize(
    ("backbone", "backbone_args"),
    [("test_vit", {}), ("swin_tiny_patch4_window7_224", {"embed_dim": 8, "depths": (1, 1), "num_heads": (1, 1)})],
)
def test_backbones_without_a_map_are_refused(backbone, backbone_args):
    with pytest.raises(UserError, match=f"a backbone with a feature map, but '{backbone}' outputs tokens of shape"):
        create_model("cnn_lstm", backbone=backbone, **backbone_args)


@pytest.mark.parametrize("backbone", ["cnn_lstm", "npr", "cnn_baseline"])
def test_detectors_without_a_trunk_are_refused(backbone):
    with pytest.raises(UserError, match=f"backbone= cnn or a convolutional timm model, got '{backbone}'"):
        create_model("cnn_lstm", backbone=backbone)


@pytest.mark.parametrize(
    ("model_args", "message"),
    [
        ({"reader": "gru"}, "reader=lstm or reader=mean, got 'gru'"),
        ({"backbone": "resnet_18"}, "did you mean .*resnet18"),
        ({"backbone": "cnn", "nonsense": 1}, "got nonsense"),
        ({"dropout": 7}, "dropout=7"),
    ],
)
def test_arguments_that_do_not_fit_are_the_users_mistake(model_args, message):
    with pytest.raises(UserError, match=message):
        create_model("cnn_lstm", **model_args)


@pytest.mark.parametrize("reader", ["lstm", "mean"])
def test_weights_of_the_bare_backbone_fill_the_trunk(tmp_path, reader):
    torch.manual_seed(5)
    plain = create_model("test_resnet").backbone
    file = tmp_path / "test_resnet.pth"
    torch.save({**plain.state_dict(), "head.fc.weight": torch.zeros(1000, 7)}, file)
    detector = create_model("cnn_lstm", backbone="test_resnet", hidden=8, reader=reader)
    report = load_weights(detector, str(file))
    assert len(report.loaded) == sum("num_batches" not in key for key in plain.state_dict())
    assert report.unused == ["trunk.backbone.head.fc.weight"]
    assert {name.split(".")[0] for name in report.random} == ({"head", "reader"} if reader == "lstm" else {"head"})
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        wanted = plain.eval().forward_features(images)
        assert torch.equal(detector.eval().trunk(images), wanted)


def test_the_trunk_is_left_in_training_mode_with_untouched_statistics():
    detector = create_model("cnn_lstm", backbone="test_resnet", hidden=8)
    assert all(module.training for module in detector.modules())
    assert all(int(value) == 0 for key, value in detector.state_dict().items() if key.endswith("num_batches_tracked"))
