"""Pruning: channels are really gone, and a pruned detector is an ordinary checkpoint."""

import numpy as np
import pytest
import torch

import train
from datasets.transforms import Geometry
from models.detector import count_parameters
from models.pruning import prune_channels
from models.registry import create_model
from utils.checkpoints.file import load_checkpoint, load_detector
from utils.engines.pytorch import sparsify
from utils.errors import UserError

pytestmark = pytest.mark.usefixtures("no_curves")

pytest.importorskip("torch_pruning", reason="--prune needs torch-pruning")


def small_cnn(width=32):
    torch.manual_seed(0)
    detector = create_model("cnn", width=width).eval()
    detector.geometry = Geometry("crop", 32)
    return detector


@pytest.mark.parametrize("name", ["cnn", "cnn_baseline", "mobilenetv2_100"])
def test_channels_are_gone_and_the_checkpoint_rebuilds_the_rest(name):
    torch.manual_seed(0)
    model_args = {"input_size": 48} if name == "cnn_baseline" else {}
    detector = create_model(name, **model_args)
    detector.geometry = Geometry("crop", 48)
    before = count_parameters(detector)
    channels = prune_channels(detector, 0.5)
    assert count_parameters(detector) < 0.35 * before
    again = create_model(name, **model_args, channels=channels).eval()
    again.load_state_dict(detector.eval().state_dict())
    images = torch.rand(2, 3, 48, 48)
    with torch.no_grad():
        assert torch.equal(again(images), detector(images))


def test_small_channels_go_first():
    detector = small_cnn()
    with torch.no_grad():
        detector.trunk[2][0].weight[::2] *= 100
        detector.trunk[3].second.weight[::2] *= 100
        kept = detector.trunk[2][0].weight[::2].abs().amax()
    prune_channels(detector, 0.5)
    left = detector.trunk[2][0].weight.abs().amax((1, 2, 3))
    assert len(left) == 32 and left.min() > 0.1 * kept


def test_train_prunes_and_resumes(image_folder, tmp_path):
    common = [
        "--model",
        "cnn",
        "--model-args",
        "width=16",
        "--data",
        str(image_folder),
        "--image-size",
        "32",
        "--batch-size",
        "8",
        "--threads",
        "1",
        "--output-dir",
        str(tmp_path / "run"),
    ]
    train.main([*common, "--prune", "0.5", "--epochs", "1"])
    checkpoint = load_checkpoint(tmp_path / "run" / "best.pt")
    assert checkpoint["model"] == "cnn" and checkpoint["model_args"]["channels"]
    detector = load_detector(tmp_path / "run" / "best.pt")[0]
    assert count_parameters(detector) < 0.7 * count_parameters(create_model("cnn", width=16))
    assert train.main(["--resume", "--output-dir", str(tmp_path / "run")])["exit_code"] == 0
    resumed = load_detector(tmp_path / "run" / "best.pt")[0]
    assert count_parameters(resumed) == count_parameters(detector)


def test_unstructured_pruning_keeps_every_channel():
    detector = small_cnn()
    before = count_parameters(detector)
    sparsify(detector, 0.7)
    weights = detector.trunk[1].second.weight
    assert count_parameters(detector) == before
    assert np.isclose(float((weights == 0).float().mean()), 0.7, atol=0.01)


@pytest.mark.parametrize("share", ["1.0", "-0.1", "half"])
def test_share_out_of_range(share, capsys):
    with pytest.raises(SystemExit) as error:
        train.main(["--prune", share])
    assert error.value.code == 2 and "[0, 0.95]" in capsys.readouterr().err


def test_what_has_no_channels():
    with pytest.raises(UserError, match="has no channels"):
        prune_channels(create_model("logistic_regression", features="color"), 0.5)


def test_layers_that_cannot_be_rebuilt_are_refused_at_once():
    detector = create_model("cnn_lstm")
    detector.geometry = Geometry("crop", 48)
    with pytest.raises(UserError, match=r"batch norms for --prune, got cnn_lstm with reader\.lstm, a LSTM"):
        prune_channels(detector, 0.3)


def test_published_weights_are_not_pruned():
    with pytest.raises(UserError, match="trains as a whole for --prune, got foundation"):
        prune_channels(create_model("foundation", backbone="test_vit"), 0.5)


def test_channels_of_another_model():
    with pytest.raises(UserError, match=r"no\.such\.layer"):
        create_model("cnn", channels={"no.such.layer": [8, 8, 1]})
