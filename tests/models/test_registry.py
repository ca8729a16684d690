"""The registry of models: names, arguments, and one new file as a new model."""

import subprocess
import sys
from pathlib import Path

import pytest

from models.registry import create_model, list_models, register_model
from utils.errors import UserError
from utils.files import ROOT
from utils.model_names import check_model_name, own_names, timm_names


def test_names_read_from_source_are_the_registered_ones():
    assert sorted(own_names()) == list_models()


def test_names_read_from_source_hold_all_of_timm():
    import timm

    assert set(timm.list_models()) <= timm_names()
    assert not own_names() & timm_names()


def test_a_name_can_be_registered_once():
    def cnn():
        """Has the name of a model that exists."""

    with pytest.raises(ValueError, match="'cnn' is registered twice"):
        register_model(cnn)


@pytest.mark.parametrize(("name", "close"), [("cnm", "cnn"), ("resnet_18", "resnet18"), ("Xception", "xception")])
def test_unknown_names_list_close_matches(name, close):
    for refuse in (check_model_name, create_model):
        with pytest.raises(UserError, match=rf"got '{name}'; did you mean .*\b{close}\b"):
            refuse(name)


def test_a_hopeless_name_points_to_the_list():
    with pytest.raises(UserError, match="--list-models"):
        check_model_name("zzzzzzzzzzzzzzzzzz")


@pytest.mark.parametrize(
    ("name", "model_args", "message"),
    [
        ("cnn", {"depth": 3}, "--model-args of cnn among width, dropout.*, got depth"),
        ("cnn", {"width": "wide"}, "--model-args that cnn can be built with, got width=wide"),
        ("cnn", {"dropout": 7}, "got dropout=7"),
        ("test_resnet", {"nonsense": 3}, "nonsense"),
        ("test_resnet", {"dropout": 7}, "got dropout=7"),
        ("test_resnet", {"head": "round"}, "head=linear or head=dense512, got 'round'"),
        ("resnet18.no_such_tag", {}, "no_such_tag"),
        ("test_resnet", {"features_only": True}, "--model-args of the architecture of test_resnet, got features_only"),
        ("test_resnet", {"checkpoint_path": "/etc/passwd"}, "got checkpoint_path; use --weights"),
        ("test_resnet", {"pretrained_cfg": "x"}, "got pretrained_cfg; use --weights"),
        ("test_resnet", {"num_classes": 5, "in_chans": 1}, "got num_classes, in_chans"),
        ("cnn_lstm", {"backbone": "test_resnet", "checkpoint_path": "x"}, "got checkpoint_path"),
        ("test_resnet", {"global_pool": ""}, r"pooled features \(N, C\), got \(1, "),
        ("test_vit", {"global_pool": "none"}, "timm cannot build 'test_vit'"),
        ("test_vit", {"img_size": "wide"}, "timm cannot build 'test_vit'"),
        ("test_resnet", {"act_layer": "rely"}, "timm cannot build 'test_resnet'"),
        ("test_resnet", {"name": "resnet18"}, "got name=resnet18"),
        ("cnn", {"channels": 3}, "got channels=3"),
        ("cnn", {"width": -1}, "got width=-1"),
        ("views", {"member": 3}, "got member=3"),
    ],
)
def test_arguments_that_do_not_fit_are_the_users_mistake(name, model_args, message):
    with pytest.raises(UserError, match=message):
        create_model(name, **model_args)


def test_a_mistake_in_a_factory_is_not_blamed_on_the_user(monkeypatch):
    def broken():
        raise TypeError("a bug")

    monkeypatch.setitem(sys.modules["models.registry"]._FACTORIES, "broken", broken)
    with pytest.raises(TypeError, match="a bug"):
        create_model("broken")


def run_python(code: str, folder: Path = ROOT) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=800)


def test_names_are_checked_without_torch():
    code = "import sys; from utils.model_names import check_model_name as c; c('cnn'); c('resnet18'); c('xception')"
    result = run_python(code + "; print(sorted({'torch', 'timm', 'numpy', 'cv2'} & set(sys.modules)))")
    assert result.stdout.strip() == "[]", result.stderr


def test_one_new_file_is_a_new_model(tmp_path, monkeypatch):
    """A copy of the package with one more file: found by name without torch, registered, and buildable."""
    (tmp_path / "models").mkdir()
    for file in ("detector.py", "registry.py", "operating_point.py", "__init__.py"):
        (tmp_path / "models" / file).write_text((ROOT / "models" / file).read_text())
    (tmp_path / "models" / "brightness.py").write_text(
        "from torch import nn\n"
        "from models.detector import Detector\n"
        "from models.registry import register_model\n\n\n"
        "class Brightness(Detector):\n"
        "    def __init__(self):\n"
        "        super().__init__(input_size=32)\n"
        "        self.head = nn.Linear(3, 1)\n\n"
        "    def forward(self, images):\n"
        "        return self.head(self.normalize(images).mean((2, 3))).squeeze(1)\n\n\n"
        "@register_model\n"
        "def brightness():\n"
        "    return Brightness()\n"
    )
    for package in ("datasets", "utils"):
        (tmp_path / package).symlink_to(ROOT / package)
    result = run_python(
        "import utils.model_names as names; from pathlib import Path; names.MODELS_DIR = Path('models')\n"
        "names.check_model_name('brightness')\n"
        "import torch; from models.registry import create_model, list_models\n"
        "print(list_models(), create_model('brightness')(torch.rand(2, 3, 8, 8)).shape)",
        tmp_path,
    )
    assert result.stdout.strip() == "['brightness'] torch.Size([2])", result.stderr
