"""Exports: one ONNX file gives the answers of its checkpoint in every script, and bad files one clear line."""

import csv
import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import benchmark
import evaluate
import predict
from datasets.decoding.images import read_record
from datasets.listing.records import Record
from datasets.transforms import Geometry
from models.operating_point import OperatingPoint
from models.registry import create_model
from tests.utils.engines.exporting import FLOAT_BOUND, INT8_BOUND, export
from utils.checkpoint_files import SOURCES_SUFFIX
from utils.checkpoints.file import load_checkpoint, load_detector, save_checkpoint
from utils.engines.exported import choose_engine, load_onnx_detector, read_description
from utils.errors import UserError
from utils.files import ROOT
from utils.scoring.prediction import Predictor, predict_records

pytest.importorskip("onnx", reason="exports need onnx")
pytest.importorskip("onnxscript", reason="exports need onnxscript")
pytest.importorskip("onnxruntime", reason="exports need onnxruntime")

pytestmark = pytest.mark.usefixtures("no_evaluation_figures")


@pytest.fixture(scope="module")
def exported(tmp_path_factory, _tiny_checkpoint_file):
    """The tiny checkpoint as float32 export, with the parity report of the export."""
    file = tmp_path_factory.mktemp("export") / "tiny.onnx"
    _tiny_checkpoint_file.with_suffix(SOURCES_SUFFIX).write_text("[]")
    result = benchmark.main(["--checkpoint", str(_tiny_checkpoint_file), "--export", "onnx", "--output", str(file)])
    assert result["exit_code"] == 0
    return file


def refused(script, *arguments):
    with pytest.raises(UserError) as error:
        script.main([str(argument) for argument in arguments])
    assert "\n" not in str(error.value)
    return str(error.value)


def rows(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_float_export_answers_as_the_checkpoint(exported, tiny_checkpoint, image_folder, capsys):
    for file in (tiny_checkpoint, exported):
        assert predict.main(["--checkpoint", str(file), str(image_folder)])["exit_code"] == 0
    half = capsys.readouterr().out.splitlines()
    expected, found = (rows("\n".join(part)) for part in (half[: len(half) // 2], half[len(half) // 2 :]))
    assert len(expected) == len(found) == 32
    assert [row["path"] for row in found] == [row["path"] for row in expected]
    assert [row["verdict"] for row in found] == [row["verdict"] for row in expected]
    for key in ("logit", "p_fake"):
        assert np.allclose([float(row[key]) for row in found], [float(row[key]) for row in expected], atol=FLOAT_BOUND)


def test_any_batch_size(exported):
    detector = load_onnx_detector(exported, threads=1)
    images = np.random.default_rng(0).random((5, 3, 32, 32), dtype=np.float32)
    together = detector(images)
    assert together.shape == (5,) and np.std(together) > 0
    assert np.allclose(together, np.concatenate([detector(images[i : i + 1]) for i in range(5)]), atol=1e-5)


def test_evaluate_takes_an_export(exported, tiny_checkpoint, image_folder, tmp_path):
    flags = ["--data", str(image_folder), "--n-boot", "0", "--no-score-cache", "--threads", "1"]
    results = [
        evaluate.main(["--checkpoint", str(file), *flags, "--output-dir", str(tmp_path / name)])["rows"][0]
        for name, file in (("pt", tiny_checkpoint), ("onnx", exported))
    ]
    for key in ("n_real", "n_fake", "auc", "acc", "threshold", "model"):
        assert results[0][key] == results[1][key], key
    assert results[0]["ece"] == pytest.approx(results[1]["ece"], abs=FLOAT_BOUND)


def test_metadata_is_the_checkpoint_without_its_weights(exported, _tiny_checkpoint_file):
    description, checkpoint = read_description(exported), load_checkpoint(_tiny_checkpoint_file)
    for key in ("model", "model_args", "geometry", "thresholds", "calibration", "seed", "epoch"):
        assert description[key] == checkpoint[key], key
    assert description["source"] == description["engine"] == "onnx" and len(description["fingerprint"]) == 64


def test_export_reports_its_parity(exported):
    report = json.loads(exported.with_suffix(".json").read_text())
    assert report["max_logit_difference"] < FLOAT_BOUND and report["agreement"] == 1.0
    assert report["command"].startswith("python benchmark.py --checkpoint")
    assert exported.with_suffix(SOURCES_SUFFIX).read_text() == "[]", "what serve.py shows goes with the export"


def test_int8_export_is_small_and_near(tmp_path, image_folder, capsys):
    torch.manual_seed(0)
    detector = create_model("cnn", width=32)
    detector.geometry = Geometry("crop", 32)
    checkpoint = tmp_path / "best.pt"
    save_checkpoint(
        checkpoint,
        {
            "model": "cnn",
            "model_args": {"width": 32},
            "state_dict": detector.state_dict(),
            "geometry": detector.geometry.to_dict(),
            "thresholds": None,
            "calibration": None,
        },
    )
    file = tmp_path / "int8.onnx"
    report = export(checkpoint, file, "--export", "int8", "--data", image_folder)["parity"]
    assert len(capsys.readouterr().out.splitlines()) == 2, "the parity and the file, nothing of the quantiser"
    assert 0 < report["max_logit_difference"] < INT8_BOUND  # 0 would mean that nothing was quantised
    assert read_description(file)["engine"] == "onnx-int8"
    trunk = sum(parameter.numel() for parameter in detector.parameters())
    assert file.stat().st_size < 2.5 * trunk  # float takes 4 bytes a weight; beside the int8 lie scales and the DCT
    import onnx

    stored = onnx.load(file).graph.initializer
    floats = [np.prod(tensor.dims) for tensor in stored if tensor.data_type == onnx.TensorProto.FLOAT]
    assert max(floats) < 1024  # the DCT, too, is stored in half precision


def test_auto_falls_back_where_openvino_is_missing(monkeypatch, capsys):
    description = {"source": "onnx", "engine": "openvino-bf16"}
    monkeypatch.setattr("utils.engines.exported.missing", lambda name, device: None)
    assert choose_engine("auto", description) == "openvino-bf16"
    monkeypatch.setattr("utils.engines.exported.missing", lambda name, device: "it is not installed")
    assert choose_engine("auto", description) == "onnx"
    assert "openvino-bf16: it is not installed; running in onnx" in capsys.readouterr().err


def test_openvino_gives_the_same_logits(exported):
    pytest.importorskip("openvino", reason="openvino is optional")
    assert load_detector(exported)[0].engine == "onnx"
    images = np.random.default_rng(0).random((3, 3, 32, 32), dtype=np.float32)
    expected = load_onnx_detector(exported, "onnx", 1)(images)
    assert np.allclose(load_onnx_detector(exported, "openvino", 1)(images), expected, atol=FLOAT_BOUND)


def test_signals_are_handled_after_openvino_networks_were_dropped(exported):
    pytest.importorskip("openvino", reason="openvino is optional")
    code = """
import signal, sys
from pathlib import Path
from utils.engines.exported import load_onnx_detector
networks = [load_onnx_detector(Path(sys.argv[1]), "openvino", 1) for _ in range(2)]
while networks:
    del networks[0]
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
signal.raise_signal(signal.SIGUSR1)
"""
    run = subprocess.run([sys.executable, "-c", code, exported], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (0, "handled\n")


def test_predict_needs_no_torch_for_an_export(exported, image_folder):
    code = (
        "import sys; sys.modules['torch'] = None; import predict; from utils.args import run_script\n"
        f"sys.argv = ['predict.py', '--checkpoint', {str(exported)!r}, {str(image_folder)!r}]\n"
        "run_script(predict.main)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=800,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert len(rows(done.stdout)) == 32


def test_unreadable_images_keep_their_place(exported, image_folder, capsys):
    images = sorted(image_folder.rglob("*.png"))[:5]
    images[2].write_bytes(b"broken")
    result = predict.main(["--checkpoint", str(exported), *map(str, images), "--batch-size", "2", "--format", "json"])
    written = json.loads(capsys.readouterr().out)
    assert result["exit_code"] == 1 and result["n_unreadable"] == 1
    assert [item["path"] for item in written] == [str(path) for path in images]
    assert ["error" in item for item in written] == [False, False, True, False, False]


def test_batches_are_decoded_in_order_and_completely(image_folder):
    records = [Record(str(path), None, "") for path in sorted(image_folder.rglob("*.png"))]
    predictor = Predictor(Geometry("crop", 32), OperatingPoint(), lambda views: views.mean((1, 2, 3)))
    batches = list(predict_records(predictor, records, 3, workers=2))
    assert [len(indices) for indices, _, _ in batches] == [3] * 10 + [2]
    assert np.concatenate([indices for indices, _, _ in batches]).tolist() == list(range(len(records)))
    expected = [predictor.geometry(read_record(record)).mean() for record in records]
    assert np.allclose(np.concatenate([columns[0] for _, columns, _ in batches]), expected)


# ------------------------------------------------------------------------------------------------------- bad input


def test_classical_detector_cannot_be_exported(tmp_path):
    detector = create_model("logistic_regression", features="color")
    save_checkpoint(
        tmp_path / "best.pt",
        {
            "model": "logistic_regression",
            "model_args": {"features": "color"},
            "state_dict": detector.state_dict(),
            "geometry": detector.geometry.to_dict(),
            "thresholds": None,
            "calibration": None,
        },
    )
    message = refused(benchmark, "--checkpoint", tmp_path / "best.pt", "--export", "onnx", "--output", "x.onnx")
    assert "logistic_regression" in message and "classical learner" in message


def test_part_that_cannot_be_exported_is_named(monkeypatch):
    from utils.engines.export import trace

    class Odd(torch.nn.Module):
        def forward(self, features):
            return features if features.sum().item() > 0 else -features  # a branch on values

    detector = create_model("cnn", width=4)
    detector.geometry = Geometry("crop", 32)
    detector.trunk.add_module("odd", Odd())
    with pytest.raises(UserError, match=r"trunk\.odd \(Odd\)"):
        trace(detector)


def test_corrupt_and_foreign_files(exported, tmp_path, image_folder):
    import onnx

    corrupt, foreign, empty = (tmp_path / name for name in ("corrupt.onnx", "foreign.onnx", "empty.onnx"))
    corrupt.write_bytes(exported.read_bytes()[:1000])
    empty.write_bytes(b"")
    model = onnx.load(exported)
    del model.metadata_props[:]
    onnx.save(model, foreign)
    assert "can be run" in refused(predict, "--checkpoint", corrupt, image_folder)
    assert "an empty file" in refused(predict, "--checkpoint", empty, image_folder)
    message = refused(evaluate, "--checkpoint", foreign, "--data", image_folder, "--output-dir", tmp_path / "out")
    assert "written by benchmark.py --export" in message and "calibration" in message


def test_calibration_set_too_small_or_missing(tiny_checkpoint, tmp_path, make_folder, capsys):
    few = make_folder("few", {"train/real": 3, "train/fake": 3, "test/real": 2, "test/fake": 2})
    none = make_folder("none", {"test/real": 2, "test/fake": 2})
    flags = ("--checkpoint", tiny_checkpoint, "--export", "int8", "--output", tmp_path / "x.onnx")
    assert "at least 16 training images" in refused(benchmark, *flags, "--data", few)
    assert "training split" in refused(benchmark, *flags, "--data", none)
    with pytest.raises(SystemExit):
        benchmark.main([str(word) for word in flags])
    assert "--calibration-data" in capsys.readouterr().err
    assert not (tmp_path / "x.onnx").exists()


def test_runtime_that_is_not_installed(exported, tiny_checkpoint, image_folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "onnxruntime, which is not installed" in refused(predict, "--checkpoint", exported, image_folder)
    monkeypatch.setitem(sys.modules, "onnx", None)
    message = refused(benchmark, "--checkpoint", tiny_checkpoint, "--export", "onnx", "--output", tmp_path / "x.onnx")
    assert "onnx, which is not installed" in message


def test_flags_that_do_not_fit_the_file(exported, tiny_checkpoint, image_folder):
    assert "expected an export" in refused(predict, "--checkpoint", tiny_checkpoint, image_folder, "--engine", "onnx")
    assert "auto, onnx" in refused(predict, "--checkpoint", exported, image_folder, "--engine", "bf16")
    assert "--precision auto" in refused(predict, "--checkpoint", exported, image_folder, "--precision", "bf16")
    assert "got the export" in refused(benchmark, "--checkpoint", exported, "--data", image_folder)


def test_the_root_logger_is_quiet_during_an_int8_export_only():
    import logging

    from utils.engines.export import quiet_root_logger

    before = logging.getLogger().level
    with quiet_root_logger():
        assert logging.getLogger().level == logging.ERROR
    assert logging.getLogger().level == before
