"""The released file: small, free of local paths, equal to its source, and what scripts use without --checkpoint."""

import importlib
import json
import re
from pathlib import Path

import cv2
import pytest
import torch

import explain
import predict
import serve
from studies import release
from utils.checkpoint_files import RELEASE_FILE, RELEASES, check_checkpoint_file
from utils.checkpoints import slimming
from utils.checkpoints.file import load_checkpoint, load_detector, save_checkpoint
from utils.checkpoints.slimming import description_file, logits_of, sample_images, slim, without_paths
from utils.errors import UserError
from utils.files import file_digest

RUN_PATH = "/" + "home/somebody/runs/a-run/best.pt"


@pytest.fixture(autouse=True)
def small_golden_images(monkeypatch):
    """Smaller and fewer generated images: the tiny checkpoint sees 32 px of them anyway."""
    monkeypatch.setattr(slimming, "GOLDEN_SIDE", 64)
    monkeypatch.setattr(slimming, "PARITY_COUNT", 3)
    monkeypatch.setattr(slimming, "SMALL", 0)  # or none of its kernels would be rounded


@pytest.fixture
def released(tiny_checkpoint, tmp_path, capsys) -> tuple[Path, dict, str]:
    """A release of the tiny checkpoint: its file, the result of main and what was printed."""
    file = tmp_path / "out" / "tiny-v1.pt"
    result = release.main(["--checkpoint", str(tiny_checkpoint.parent), "--output", str(file)])
    return file, result, capsys.readouterr().out


def test_release_is_described_by_its_json_file(released):
    file, result, printed = released
    description = json.loads(description_file(file).read_text())
    assert result == {**description, "exit_code": 0}
    assert description["sha256"] == file_digest(file) and description["bytes"] == file.stat().st_size
    assert f"sha256 {file_digest(file)}\nbytes {file.stat().st_size}\n" in printed
    assert [item["index"] for item in description["golden"]] == [0, 1, 2]
    assert description["members"] == description["base"] == []
    assert description["fitted_on"] == load_checkpoint(file).get("fitted_on", [])
    assert {path.name for path in file.parent.iterdir()} == {"tiny-v1.pt", "tiny-v1.json"}


def test_kernels_are_stored_in_half_precision_and_loaded_in_single(released, tiny_checkpoint):
    file, result, _ = released
    stored = torch.load(file, weights_only=True)["state_dict"]
    source = load_checkpoint(tiny_checkpoint)["state_dict"]
    assert {key: value.dtype for key, value in stored.items() if value.ndim > 1 and value.dtype != torch.float16} == {
        "head.weight": torch.float32  # one output
    }
    assert all(torch.equal(stored[key], source[key]) for key in source if source[key].ndim <= 1)
    assert {value.dtype for value in load_checkpoint(file)["state_dict"].values()} <= {torch.float32, torch.int64}
    detector, checkpoint = load_detector(file)
    assert {value.dtype for value in detector.parameters()} == {torch.float32}
    assert checkpoint["thresholds"] == load_checkpoint(tiny_checkpoint)["thresholds"]
    assert 0 < result["parity"]["max_logit_difference"] < 0.01


def test_int8_weights_are_within_half_a_step_and_loaded_in_single(tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(slimming, "MAX_DIFFERENCE", 1.0)  # a network of few channels has none to spare
    sizes = {}
    for precision in ("fp16", "int8"):
        file = tmp_path / f"{precision}.pt"
        flags = ["--checkpoint", str(tiny_checkpoint), "--output", str(file), "--precision", precision]
        sizes[precision] = release.main(flags)["bytes"]
    assert sizes["int8"] < sizes["fp16"]
    source, loaded = load_checkpoint(tiny_checkpoint)["state_dict"], load_checkpoint(file)["state_dict"]
    assert loaded.keys() == source.keys()
    for key, weights in source.items():
        assert loaded[key].dtype == weights.dtype and loaded[key].shape == weights.shape
        if weights.ndim > 1:
            largest = weights.abs().flatten(1).amax(1).view(-1, *[1] * (weights.ndim - 1))
            assert ((loaded[key] - weights).abs() <= largest / 127 * 0.501).all()
    assert load_detector(file)[0].training is False


def test_odd_packed_weights_are_one_line(tiny_checkpoint, tmp_path):
    checkpoint = load_checkpoint(tiny_checkpoint)
    key = next(iter(checkpoint["state_dict"]))
    checkpoint["state_dict"][key] = {"int8": "no", "scale": 1.0}
    save_checkpoint(tmp_path / "odd.pt", checkpoint)
    with pytest.raises(UserError, match="expected the weights of cnn"):
        load_detector(tmp_path / "odd.pt")


def test_channels_of_zeros_stay_zero():
    packed = slimming.as_int8(torch.zeros(3, 2))
    assert (packed["int8"].float() * packed["scale"] == 0).all()


def test_fp32_is_exact(tiny_checkpoint, tmp_path):
    result = release.main(
        ["--checkpoint", str(tiny_checkpoint), "--output", str(tmp_path / "a.pt"), "--precision", "fp32"]
    )
    assert result["parity"]["max_logit_difference"] == 0


def golden_problems(checkpoint_file: Path, description: dict, tolerance: float = 1e-2) -> list[str]:
    """What is wrong with a released file: its hash, its size or its logits on the golden images."""
    problems = []
    if file_digest(checkpoint_file) != description["sha256"]:
        problems.append(f"expected sha256 {description['sha256']}, got {file_digest(checkpoint_file)}")
    if checkpoint_file.stat().st_size > slimming.MAX_BYTES:
        problems.append(f"expected at most {slimming.MAX_BYTES} bytes, got {checkpoint_file.stat().st_size}")
    golden = description["golden"]
    found = logits_of(checkpoint_file, sample_images(max(item["index"] for item in golden) + 1))
    for item in golden:
        if not abs(found[item["index"]] - item["logit"]) <= tolerance:
            problems.append(f"golden image {item['index']}: {item['logit']:.4f}, got {found[item['index']]:.4f}")
    return problems


def test_golden_scores_notice_another_file(released):
    file, result, _ = released
    assert golden_problems(file, result) == []
    broken = {**result, "golden": [{"index": 1, "logit": result["golden"][1]["logit"] + 0.02}], "sha256": "0"}
    assert [problem.split(":")[0].split(" ")[0] for problem in golden_problems(file, broken)] == ["expected", "golden"]


def test_small_kernels_keep_their_precision(monkeypatch):
    monkeypatch.setattr(slimming, "SMALL", 100)
    weights = {"small": torch.rand(10, 10), "large": torch.rand(10, 11), "vector": torch.rand(110)}
    kinds = {key: value.dtype for key, value in slim({"state_dict": weights}, "fp16")["state_dict"].items()}
    assert kinds == {"small": torch.float32, "large": torch.float16, "vector": torch.float32}


def test_local_paths_and_training_state_are_left_out(tiny_checkpoint):
    checkpoint = load_checkpoint(tiny_checkpoint) | {
        "metrics": {"test": [{"checkpoint": RUN_PATH, "auc": 0.5}]},
        "train_args": {"output_dir": str(Path(RUN_PATH).parent), "data": ["../shared/data/faces@limit=5"]},
        "optimizer": {"lr": 1},
    }
    kept = slim(checkpoint, "fp16")
    assert "optimizer" not in kept and "format_version" not in kept
    assert kept["metrics"]["test"] == [{"checkpoint": "a-run/best.pt", "auc": 0.5}]
    assert kept["train_args"] == {"output_dir": "a-run", "data": ["faces@limit=5"]}


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        (f"train.py --weights {RUN_PATH} --adv-eps 2/255", "train.py --weights a-run/best.pt --adv-eps 2/255"),
        ("../../other/data/faces140k", "faces140k"),
        ("~/photos", "photos"),
        ("C:\\runs\\a\\best.pt", "a/best.pt"),
        ("csv:/lists/wild.csv", "csv:wild.csv"),
        ("features=embedding:/runs/a/best.pt", "features=embedding:a/best.pt"),
        ("data/140k", "data/140k"),
        ("checkpoints/a/best.pt at 8/255, 224 x 224", "checkpoints/a/best.pt at 8/255, 224 x 224"),
    ],
)
def test_paths_out_of_the_project_are_shortened(text, clean):
    assert without_paths(text) == clean
    assert without_paths({"a": [text, 3, None]}) == {"a": [clean, 3, None]}


def test_sample_images_are_the_same_every_time():
    first, second = sample_images(3), sample_images(4)
    assert [image.shape for image in first] == [(64, 64, 3)] * 3
    assert all((a == b).all() for a, b in zip(first, second[:3], strict=True))


def refused(*flags: str) -> str:
    with pytest.raises(UserError) as caught:
        release.main(flags)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_cannot_be_released_is_refused_and_leaves_nothing(tiny_checkpoint, tmp_path, monkeypatch):
    source, output = str(tiny_checkpoint), tmp_path / "out" / "a.pt"
    assert "another file than the source" in refused("--checkpoint", source, "--output", source)
    assert "FILE.pt" in refused("--checkpoint", source, "--output", str(tmp_path))
    monkeypatch.setattr(slimming, "MAX_DIFFERENCE", 0.0)
    assert "finer --precision" in refused("--checkpoint", source, "--output", str(output))
    monkeypatch.setattr(slimming, "MAX_BYTES", 1000)
    assert "distilled" in refused("--checkpoint", source, "--output", str(output))
    assert list(output.parent.iterdir()) == []
    unfinished = {**load_checkpoint(source), "thresholds": None}
    save_checkpoint(tmp_path / "half.pt", unfinished)
    assert "--resume" in refused("--checkpoint", str(tmp_path / "half.pt"), "--output", str(output))


# ------------------------------------------------------------------------------------ the default of the scripts


@pytest.fixture
def photo(tmp_path) -> str:
    cv2.imwrite(str(tmp_path / "photo.png"), sample_images(1)[0])
    return str(tmp_path / "photo.png")


def test_scripts_use_the_release_from_any_folder(released, photo, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("utils.checkpoint_files.RELEASE_FILE", released[0])
    monkeypatch.chdir(tmp_path / "out")
    assert predict.main([photo, "--threads", "1"])["n_images"] == 1
    by_default = capsys.readouterr().out
    predict.main([photo, "--threads", "1", "--checkpoint", str(released[0])])
    assert capsys.readouterr().out == by_default
    rows = explain.main([photo, "--threads", "1", "--output-dir", str(tmp_path / "maps")])["rows"]
    assert [row["path"] for row in rows] == [photo]


def test_serve_offers_the_release(released, monkeypatch):
    offered = []
    monkeypatch.setattr("utils.checkpoint_files.RELEASE_FILE", released[0])
    monkeypatch.setattr(serve, "create_app", lambda files, *_, **__: offered.append(files) or 1 / 0)
    for flags, files in [([], [released[0]]), (["--checkpoint", str(released[0])], [released[0]])]:
        with pytest.raises(ZeroDivisionError):
            serve.main(flags)
        assert offered.pop() == files


def test_the_flag_wins_over_the_release(released, tiny_checkpoint, monkeypatch):
    monkeypatch.setattr("utils.checkpoint_files.RELEASE_FILE", released[0])
    assert check_checkpoint_file(str(tiny_checkpoint)) == tiny_checkpoint
    assert check_checkpoint_file(None) == released[0]


@pytest.mark.parametrize(
    ("script", "flags"),
    [("predict", ["a.jpg"]), ("explain", ["a.jpg"]), ("explain", ["--faithfulness", "--data", "demo"]), ("serve", [])],
)
def test_without_a_release_one_line_says_what_to_do(script, flags, tmp_path, monkeypatch):
    monkeypatch.setattr("utils.checkpoint_files.RELEASE_FILE", tmp_path / "absent.pt")
    with pytest.raises(UserError, match=r"expected --checkpoint PT, or the released .*absent\.pt.*train\.py"):
        importlib.import_module(script).main(flags)
    assert f"checkpoints/{RELEASE_FILE.name}" in importlib.import_module(script).get_args_parser().format_help()


# -------------------------------------------------------------------------------------------- the file itself


@pytest.mark.parametrize("name", RELEASES)
def test_the_released_file_gives_its_golden_scores(name, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr("utils.checkpoints.sources._hub_reachable", lambda: False)
    file = RELEASE_FILE.with_name(f"{name}.pt")
    description = json.loads(description_file(file).read_text())
    try:
        checkpoint = load_checkpoint(file)
    except UserError as error:
        if not description.get("base"):
            raise
        pytest.skip(f"no base weights: {error}")
    assert golden_problems(file, description) == []
    assert description["parity"]["max_logit_difference"] <= slimming.MAX_DIFFERENCE
    assert not re.search(r"(?<![\w.])(/|\.\./)\w", json.dumps(description))
    checkpoint.pop("state_dict")
    assert without_paths(checkpoint["metrics"]) == checkpoint["metrics"]
    assert without_paths(checkpoint["train_args"]) == checkpoint["train_args"]


def test_the_candidates_are_compared_by_their_mean_on_validation():
    table = importlib.import_module("studies.candidates_table")
    sets = {"faces140k": 0.9, "openforensics": 1.0, "dfdc": 0.8}
    figures = [
        {"dataset": name, "generator": kind, "auc": auc - (kind == "blend"), "auc_ci": [0.0, 1.0]}
        for name, auc in sets.items()
        for kind in ("all", "blend")
    ]
    row = table.candidate_row("plain", "what it is", {"valid": figures, "test": figures})
    assert abs(row["valid_mean"] - 0.9) < 1e-9 and row["test_dfdc"] == 0.8 and row["test_dfdc_ci"] == [0.0, 1.0]
    assert {key for key, _ in table.COLUMNS} <= set(row) | {"tier_mean"}
    of_tiers = [
        {"checkpoint": "tf_efficientnet_b0-plain", "generator": kind, "auc": auc}
        for kind, auc in (("all", 0.9), ("all", 0.7), ("all", None), ("blend", 0.1))
    ]
    assert table.tier_means(of_tiers) == {"-plain": pytest.approx(0.8)}
