"""Initial weights: what fits is loaded, what does not is named, and nothing fails silently."""

import io
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from models.registry import create_model
from utils.checkpoints import sources
from utils.checkpoints.file import load_checkpoint, save_checkpoint
from utils.checkpoints.slimming import as_int8
from utils.checkpoints.weights import load_weights, match_weights, read_weights_file
from utils.errors import UserError
from utils.files import ROOT

SHARED = ROOT.parent / "shared" / "weights"
NAME = "test_resnet"


@pytest.fixture(scope="module")
def backbone_weights() -> dict[str, torch.Tensor]:
    """A state dict as timm publishes it: the names of the bare backbone, and a classifier of 10 classes."""
    import timm

    torch.manual_seed(5)
    model = timm.create_model(NAME, num_classes=10)
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)  # running statistics of a trained net
    return model.state_dict()


@pytest.fixture
def detector():
    torch.manual_seed(6)
    return create_model(NAME)


def test_all_but_the_classifier_is_loaded(backbone_weights, detector, tmp_path):
    head = detector.head[1].weight.clone()
    torch.save(backbone_weights, tmp_path / "net.pth")
    report = load_weights(detector, str(tmp_path / "net.pth"))
    for key, value in detector.backbone.state_dict().items():
        assert torch.equal(value, backbone_weights[key]), key  # including running_mean and running_var
    assert torch.equal(detector.head[1].weight, head)
    assert report.random == ["head.1.bias", "head.1.weight"]
    assert report.unused == ["backbone.fc.bias", "backbone.fc.weight"]
    assert len(report.loaded) == len([key for key in backbone_weights if "tracked" not in key and "fc." not in key])
    assert "still random: head.1 (2)" in str(report)
    assert "backbone.fc (2)" in str(report)


def wrapped(content: dict, form: str) -> dict:
    zero = torch.zeros(1)
    forms = {
        "state_dict": {"state_dict": content, "epoch": 3},
        "model": {"model": content},
        "ema before plain": {"state_dict": {"conv1.0.weight": torch.zeros(1)}, "state_dict_ema": content},
        "module.": {f"module.{key}": value for key, value in content.items()},
        "module. in model": {"model": {f"module.{key}": value for key, value in content.items()}},
        "backbone.": {f"backbone.{key}": value for key, value in content.items()},
        "net": {"net": content, "optimizer": {"state": {0: {"step": torch.zeros(1)}}}},
        "model_state": {"epoch": 3, "model_state": content},
        "ema_state_dict": {
            "state_dict": {k: torch.zeros_like(v) for k, v in content.items()},
            "ema_state_dict": content,
        },
        "nested": {"trainer": {"weights": {"student": content}}},
        "model.": {"state_dict": {f"model.{key}": value for key, value in content.items()}},
        "encoder.": {f"{part}.{key}": value for part in ("encoder", "decoder.up") for key, value in content.items()},
        "model.encoder.": {f"model.encoder.{key}": value for key, value in content.items()} | {"model.fc.weight": zero},
    }
    return forms.get(form, forms)


@pytest.mark.parametrize("form", wrapped({}, ""))
def test_wrapped_and_prefixed_files(form, backbone_weights, detector, tmp_path):
    torch.save(wrapped(backbone_weights, form), tmp_path / "net.pth")
    report = load_weights(detector, str(tmp_path / "net.pth"))
    assert report.random == ["head.1.bias", "head.1.weight"]
    assert torch.equal(detector.backbone.conv1[0].weight, backbone_weights["conv1.0.weight"])


def test_half_precision_safetensors_become_float32(backbone_weights, detector, tmp_path):
    half = {k: v.half() if v.is_floating_point() else v for k, v in backbone_weights.items()}
    save_file(half, tmp_path / "net.safetensors")
    load_weights(detector, str(tmp_path / "net.safetensors"))
    assert {p.dtype for p in detector.parameters()} == {torch.float32}
    assert torch.equal(detector.backbone.conv1[0].weight, half["conv1.0.weight"].float())


def test_one_of_our_checkpoints_gives_all_weights(tiny_checkpoint):
    detector = create_model("cnn", width=4)
    report = load_weights(detector, str(tiny_checkpoint))
    saved = load_checkpoint(tiny_checkpoint)["state_dict"]
    assert report.random == report.unused == []
    assert all(torch.equal(value, saved[key]) for key, value in detector.state_dict().items())


def test_tensors_of_another_shape_stay_random_and_are_named(backbone_weights, detector):
    changed = {**backbone_weights, "conv1.0.weight": torch.zeros(1, 1, 1, 1)}
    report, matched = match_weights(detector, changed)
    assert "backbone.conv1.0.weight" in report.random
    assert "backbone.conv1.0.weight" in report.unused
    assert "backbone.conv1.0.weight" not in matched


@pytest.mark.parametrize("other", ["mobilenetv3_small_050", "test_vit"])
def test_a_file_of_which_nothing_fits_is_an_error(other, backbone_weights, tmp_path):
    torch.save(backbone_weights, tmp_path / "net.pth")
    with pytest.raises(UserError, match=rf"expected weights of {other} .*found 0 of .*; the file has conv1.*--model"):
        load_weights(create_model(other), str(tmp_path / "net.pth"))


@pytest.mark.parametrize(
    ("name", "other"), [("resnet18", "resnet34"), ("resnet34", "resnet18"), ("efficientnet_b1", "efficientnet_b0")]
)
@pytest.mark.parametrize("is_ours", [False, True])
def test_weights_of_a_deeper_or_shallower_relative_are_refused(name, other, is_ours, tmp_path):
    """Every name and shape of the smaller network occurs in the larger one."""
    import timm

    network = create_model(other) if is_ours else timm.create_model(other, pretrained=False)
    torch.save(network.state_dict(), tmp_path / "net.pth")
    detector = create_model(name)
    before = {key: value.clone() for key, value in detector.state_dict().items()}
    with pytest.raises(
        UserError, match=rf"expected weights of {name} .* with 90% of the tensors fitting, found \d+ of"
    ):
        load_weights(detector, str(tmp_path / "net.pth"))
    assert all(torch.equal(value, before[key]) for key, value in detector.state_dict().items())


def test_modules_that_the_detector_lacks_do_not_count(tmp_path):
    """npr is the beginning of a ResNet-50: the later stages and the classifier of the file are not used."""
    import timm

    torch.save(timm.create_model("resnet50", pretrained=False).state_dict(), tmp_path / "net.pth")
    report = load_weights(create_model("npr"), str(tmp_path / "net.pth"))
    assert {key.split(".")[0] for key in report.random} == {"stem", "head"}
    assert {key.split(".")[0] for key in report.unused} >= {"layer3", "layer4", "fc"}


def test_a_released_file_gives_its_packed_weights(tiny_checkpoint, tmp_path):
    """Its kernels are dicts of int8 and scale."""
    checkpoint = load_checkpoint(tiny_checkpoint)
    checkpoint["state_dict"] = {
        key: as_int8(value) if value.ndim > 1 else value for key, value in checkpoint["state_dict"].items()
    }
    save_checkpoint(tmp_path / "small.pt", checkpoint)
    assert load_weights(create_model("cnn", width=4), str(tmp_path / "small.pt")).random == []


def test_garbage_is_an_error(detector, tmp_path):
    for name in ("a.pth", "a.safetensors", "a.pt"):
        for content in (b"", b"garbage" * 100):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(UserError, match="expected a safetensors file or a state dict") as caught:
                load_weights(detector, str(tmp_path / name))
            assert str(caught.value).isprintable()
    torch.save({"a": torch.zeros(1000)}, tmp_path / "a.pth")
    (tmp_path / "a.pth").write_bytes((tmp_path / "a.pth").read_bytes()[:700])
    with pytest.raises(UserError, match=r"failed finding central directory$"):
        load_weights(detector, str(tmp_path / "a.pth"))


def test_files_without_tensors_are_an_error(detector, tmp_path):
    for content in ({"epoch": 3}, [torch.zeros(3)], {}):
        torch.save(content, tmp_path / "a.pth")
        with pytest.raises(UserError, match="found no tensors") as caught:
            load_weights(detector, str(tmp_path / "a.pth"))
        assert ("but only epoch" in str(caught.value)) == (content == {"epoch": 3})


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = str(target)

    def __reduce__(self):
        return os.mknod, (self.target,)


def test_no_code_in_a_weights_file_runs(tmp_path):
    buffer = io.BytesIO()
    torch.save({"a": Bomb(tmp_path / "exploded")}, buffer)
    for content in (buffer.getvalue(), pickle.dumps(Bomb(tmp_path / "exploded"), protocol=2)):
        (tmp_path / "a.pth").write_bytes(content)
        with pytest.raises(
            UserError, match=r"it is a pickled .*mknod, which could run .* its state_dict.. instead$"
        ) as caught:
            read_weights_file(tmp_path / "a.pth")
        assert str(caught.value).isprintable()
    assert not (tmp_path / "exploded").exists()


# ------------------------------------------------------------------------------------------------ imagenet


@pytest.fixture
def offline(monkeypatch):
    """No network, nothing in the cache, and any attempt to download is a failure."""
    monkeypatch.setattr(sources, "_hub_reachable", lambda *_: False)
    monkeypatch.setattr(sources, "_is_cached", lambda *_: False)
    monkeypatch.setattr("timm.create_model", lambda *_, **__: pytest.fail("tried to download"))


@pytest.mark.parametrize("name", ["resnet18", "resnet18.a1_in1k", "ssl_resnet18"])
def test_without_a_network_imagenet_says_what_to_do(name, request):
    detector = create_model(name)  # ssl_resnet18 is an old name that timm maps to a tag of resnet18
    request.getfixturevalue("offline")
    with pytest.raises(UserError, match=r"expected a network .* resnet18.*download timm/resnet18\..*--weights FILE"):
        load_weights(detector, "imagenet")


def test_a_model_without_published_weights_says_so(offline):
    with pytest.raises(UserError, match="'cnn' has none; pass --weights FILE"):
        load_weights(create_model("cnn", width=4), "imagenet")


def test_cached_weights_need_no_network(detector, backbone_weights, monkeypatch):
    model = type("Published", (), {"state_dict": lambda self: backbone_weights})
    monkeypatch.setattr(sources, "_hub_reachable", lambda *_: pytest.fail("asked the network"))
    monkeypatch.setattr(sources, "_is_cached", lambda *_: True)
    monkeypatch.setattr("timm.create_model", lambda *_, **__: model())
    assert load_weights(detector, "imagenet").random == ["head.1.bias", "head.1.weight"]


def test_a_download_that_breaks_off_is_one_line(detector, monkeypatch):
    def broken(*_args, **_kwargs):
        raise RuntimeError("connection lost\nTraceback of the client")

    monkeypatch.setattr(sources, "_hub_reachable", lambda *_: True)
    monkeypatch.setattr("timm.create_model", broken)
    with pytest.raises(UserError, match=r"connection lost; try again, or pass --weights FILE$"):
        load_weights(detector, "imagenet")


def test_a_proxy_or_a_mirror_is_asked_instead_of_the_hub(monkeypatch):
    from huggingface_hub import constants

    asked = []

    def refuse(address, timeout):
        asked.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr(sources.socket, "create_connection", refuse)
    monkeypatch.setattr(sources, "getproxies", dict)
    monkeypatch.setattr(constants, "ENDPOINT", "http://mirror.example:8080/hub")
    assert not sources._hub_reachable() and asked == [("mirror.example", 8080)]
    monkeypatch.setattr(sources, "getproxies", lambda: {"http": "http://proxy.example:3128"})
    assert sources._hub_reachable() and len(asked) == 1
    monkeypatch.setattr(sources, "getproxies", lambda: {"all": "socks5://proxy.example:1080"})
    assert sources._hub_reachable() and len(asked) == 1
    monkeypatch.setattr(sources, "getproxies", dict)
    monkeypatch.setattr(constants, "ENDPOINT", "http://mirror.example:eighty")
    assert not sources._hub_reachable() and len(asked) == 1


# ----------------------------------------------------------------------------------------- files of the shared


def shared_file(name: str) -> str:
    if not (SHARED / name).is_file():
        pytest.skip(f"{name} is not on this machine")
    return str(SHARED / name)


def test_efficientnet_from_the_shared_file():
    file = shared_file("tf_efficientnet_b0.safetensors")
    report = load_weights(create_model("tf_efficientnet_b0"), file)
    assert {key.rsplit(".", 1)[0] for key in report.random} == {"backbone.conv_head", "backbone.bn2", "head.1"}
    assert report.unused == []


def test_mobilenet_from_the_shared_file():
    file = shared_file("mobilenetv2_100.safetensors")
    detector = create_model("mobilenetv2_100", pad_type="same")
    report = load_weights(detector, file)
    assert report.random == ["head.1.bias", "head.1.weight"]
    assert {key.split(".")[1] for key in report.unused} == {"classifier"}
    assert next(detector.parameters()).dtype == torch.float32


@pytest.mark.parametrize(
    "content", [b"hello\n", b"\x89PNG\r\n\x1a\n" + bytes(40), b"\x80", b"PK\x03\x04" + bytes(9), b""]
)
def test_files_of_another_kind_are_one_clear_line(content, tmp_path):
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_weights_file(tmp_path / "w.pth")
    message = str(caught.value)
    assert message.startswith("expected a safetensors file or a state dict at") and "\n" not in message
    assert len(message.partition(", but ")[2]) > 10
