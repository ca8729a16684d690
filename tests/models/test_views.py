"""Test-time augmentation: what the views are, how they are averaged, and the checkpoint that ensemble.py makes."""

import sys

import pytest
import torch

import ensemble
from datasets.listing.spec import open_records
from datasets.transforms import Geometry
from models.registry import create_model
from models.views import VIEWS, blur, crops, flip
from utils.args import run_script
from utils.checkpoints.file import load_checkpoint, load_detector, save_checkpoint
from utils.errors import UserError
from utils.explanations.layers import capture
from utils.scoring.scorer import Job, score

CNN = {"model": "cnn", "model_args": {"width": 4}, "geometry": {"mode": "crop", "size": 32}}


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(2, 3, 64, 48, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def single(tmp_path):
    """The checkpoint of a random ``cnn`` of width 4."""
    torch.manual_seed(0)
    state = create_model("cnn", width=4).state_dict()
    facts = {"thresholds": None, "calibration": None, "train_args": {"augmentation": "forensic"}}
    save_checkpoint(tmp_path / "single" / "best.pt", {**CNN, **facts, "state_dict": state})
    return tmp_path / "single" / "best.pt"


def test_a_mirror_image_of_a_mirror_image_is_the_image(images):
    assert torch.equal(flip(flip(images)[0])[0], images)


def test_crops_are_the_corners_on_the_jpeg_grid(images):
    assert [tuple(crop.shape[-2:]) for crop in crops(images)] == [(56, 40)] * 4
    expected = [images[..., y : y + 56, x : x + 40] for y in (0, 8) for x in (0, 8)]
    assert all(torch.equal(found, wanted) for found, wanted in zip(crops(images), expected, strict=True))
    assert [crop.shape[-1] for crop in crops(images[..., :9, :9])] == [8] * 4


def test_blur_keeps_flat_images_and_takes_away_detail(images):
    flat = torch.full((1, 3, 8, 8), 0.3)
    assert torch.allclose(blur(flat)[0], flat)
    assert blur(images)[0].shape == images.shape and blur(images)[0].std() < images.std()


@pytest.mark.parametrize(("names", "passes"), [(["flip"], 2), (["crops"], 5), (["flip", "crops", "blur"], 7)])
def test_the_logit_is_the_mean_over_the_views(names, passes, images):
    detector = create_model("views", member=CNN, views=names).eval()
    views = [images] + [view for name in names for view in VIEWS[name](images)]
    expected = torch.stack([detector.member(view) for view in views]).mean(0)
    assert len(views) == passes and torch.allclose(detector(images), expected, atol=1e-6)


def test_flipped_images_get_the_same_logit(images):
    detector = create_model("views", member=CNN, views=["flip"]).eval()
    assert torch.equal(detector(images), detector(images.flip(-1)))
    assert not torch.equal(detector.member(images), detector.member(images.flip(-1)))


def test_explanations_read_the_image_as_it_is(images):
    detector = create_model("views", member=CNN, views=["flip", "crops"]).eval()
    sign = torch.ones(2)
    ours, plain = capture(detector, images, sign), capture(detector.member, images, sign)
    assert torch.equal(ours.activations, plain.activations)
    assert torch.allclose(ours.gradients, plain.gradients / 6, atol=1e-8)


def test_a_checkpoint_of_views_needs_the_single_one_no_more(single, image_folder, tmp_path):
    flags = ["--data", str(image_folder), "--device", "cpu", "--threads", "1", "--output-dir", str(tmp_path / "views")]
    ensemble.main(["--checkpoint", str(single), "--views", "flip", "blur", "flip", *flags])
    plain, _ = load_detector(single)
    single.unlink()
    detector, checkpoint = load_detector(tmp_path / "views" / "best.pt")
    assert checkpoint["thresholds"] and checkpoint["train_args"]["augmentation"] == "forensic"
    assert load_checkpoint(tmp_path / "views" / "best.pt")["train_args"]["method"] == "views"
    assert checkpoint["model_args"]["views"] == ["flip", "blur"]  # each once
    assert detector.geometry == plain.geometry == Geometry("crop", 32)
    records = open_records(f"{image_folder}@split=test").records
    found = score([Job(detector)], records)[0].logits
    assert found.shape == score([Job(plain)], records)[0].logits.shape
    assert not torch.allclose(torch.tensor(found), torch.tensor(score([Job(plain)], records)[0].logits))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--views", "flip", "--method", "soup"],
            "expected one --checkpoint and no --method with --views, got 1 and --method soup\n",
        ),
        (["--views", "flip", "--checkpoint", "FILE", "FILE"], "with --views, got 2\n"),
        (["--views", "sideways"], "invalid choice"),
    ],
)
def test_wrong_flags_are_one_line(flags, message, single, tmp_path, monkeypatch, capsys):
    flags = [str(single) if flag == "FILE" else flag for flag in flags]
    argv = ["ensemble.py", "--checkpoint", str(single), "--output-dir", str(tmp_path / "views"), *flags]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit) as stop:
        run_script(ensemble.main)
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_views_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match=r"make one with: ensemble.py --checkpoint A.pt --views"):
        create_model("views")
    with pytest.raises(UserError, match="expected --views among flip, crops, blur, got sideways"):
        create_model("views", member=CNN, views=["sideways"])
    fixed = {**CNN, "model": "cnn_baseline", "model_args": {"input_size": 32}}
    with pytest.raises(UserError, match="expected --views without crops for cnn_baseline"):
        create_model("views", member=fixed, views=["crops"])


def test_the_names_of_the_script_are_those_of_the_model():
    assert tuple(VIEWS) == ensemble.VIEWS
