"""benchmark.py: every cell is measured once, marked where it is slow, and made into tables from its file alone."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

import benchmark
from datasets.listing.spec import open_records
from utils.benchmarking.cells import score
from utils.benchmarking.images import read_images
from utils.benchmarking.report import pareto_front, summary_row, write_benchmark
from utils.benchmarking.subject import open_subject
from utils.benchmarking.worker import Served, Worker, as_floats
from utils.checkpoints.file import load_detector
from utils.engines.registry import BASELINE, ENGINES, missing
from utils.errors import UserError

FLAGS = [
    "--engines",
    "eager",
    "dynamic-int8",
    "--batch-sizes",
    "1",
    "2",
    "--repeats",
    "1",
    "--threads",
    "1",
    "--adversarial-images",
    "2",
]


def cell(engine, rate, auc, ratio, checkpoint="a"):
    batch = {
        "batch_size": 1,
        "latency_p50_ms": 1000 / rate,
        "latency_p95_ms": 1100 / rate,
        "images_per_s": rate,
        "images_per_s_ci": [rate, rate],
        "ratio": ratio,
        "ratio_ci": [ratio, ratio],
    }
    return {
        "checkpoint": checkpoint,
        "engine": engine,
        "batches": [batch],
        "auc": auc,
        "auc_ci": [auc, auc],
        "acc": auc,
        "acc_ci": None,
        "ece": 0.1,
        "ece_ci": None,
        "agreement": 1.0,
        "load_s": 1.0,
        "first_answer_s": 2.0,
        "file_bytes": 2_000_000,
        "peak_memory_bytes": 3_000_000,
    }


@pytest.fixture(scope="module")
def benchmarked(tmp_path_factory, _tiny_checkpoint_file, _render):
    """One small benchmark in processes of their own; returns its result, its folders and the files it wrote."""
    from tests.conftest import write_image

    root = tmp_path_factory.mktemp("benchmark")
    for label in ("real", "fake"):
        for index in range(3):
            write_image(root / "faces" / "test" / label / f"{index}.png", index, label == "fake")
    flags = [
        "--checkpoint",
        str(_tiny_checkpoint_file),
        "--data",
        str(root / "faces"),
        *FLAGS,
        "--output-dir",
        str(root / "out"),
        "--cache-dir",
        str(root / "cache"),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("matplotlib.figure.Figure.savefig", _render)
        result = benchmark.main(flags)
    written = {file.name: file.read_bytes() for file in (root / "out").glob("*.*")}  # other tests write them again
    return {"result": result, "flags": flags, "root": root, "written": written}


def test_rows_have_every_figure(benchmarked):
    rows = benchmarked["result"]["rows"]
    assert [row["engine"] for row in rows] == ["eager", "dynamic-int8"]
    for row in rows:
        for key in ("latency_p50_ms", "latency_p95_ms", "images_per_s", "load_s", "first_answer_s", "memory_mb"):
            assert row[key] > 0, key
        assert row["first_answer_s"] > row["load_s"] and row["latency_p95_ms"] >= row["latency_p50_ms"]
        assert 0 <= row["auc"] <= 1 and 0 <= row["robust_acc"] <= 1
    assert rows[0]["note"] == "baseline" and rows[0]["ratio"] == 1.0 and rows[0]["agreement"] == 1.0


def test_cells_hold_the_logits_of_the_checkpoint(benchmarked, _tiny_checkpoint_file):
    import torch

    detector = load_detector(_tiny_checkpoint_file)[0]
    listing = open_records(str(benchmarked["root"] / "faces"))
    images = as_floats(read_images(listing.records, detector.geometry)[0])
    file = next((benchmarked["root"] / "out" / "cells").glob("*__eager.json"))
    with torch.no_grad():
        expected = detector(torch.from_numpy(images)).numpy()
    assert np.allclose(json.loads(file.read_text())["logits"], expected, atol=1e-6)


def test_a_second_run_measures_nothing(benchmarked, monkeypatch):
    def refuse(*arguments):
        raise AssertionError("measured again")

    monkeypatch.setattr("utils.benchmarking.cells.start", refuse)
    monkeypatch.setattr("utils.benchmarking.cells.measure_cell", refuse)
    assert benchmark.main(benchmarked["flags"])["rows"] == benchmarked["result"]["rows"]


@pytest.mark.parametrize("change", ["code_digest", "versions", "hardware", "file_digest", "image"])
def test_other_code_libraries_machines_checkpoints_or_images_are_measured_again(change, benchmarked, monkeypatch):
    def refuse(*arguments):
        raise RuntimeError("measured again")

    monkeypatch.setattr("utils.benchmarking.cells.measure_cell", refuse)
    benchmark.main(benchmarked["flags"])
    if change == "image":
        image = benchmarked["root"] / "faces" / "test" / "real" / "0.png"
        known = image.stat()
        os.utime(image, ns=(0, 0))
    else:
        monkeypatch.setattr(f"utils.benchmarking.subject.{change}", lambda *arguments: "other")
    with pytest.raises(RuntimeError, match="measured again"):
        benchmark.main(benchmarked["flags"])
    if change == "image":
        os.utime(image, ns=(known.st_atime_ns, known.st_mtime_ns))


def test_exports_of_another_recipe_or_calibration_set_are_written_again(tiny_checkpoint, image_folder, tmp_path):
    written = []

    def export(code):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("utils.benchmarking.subject.code_digest", lambda *patterns: code)
            patch.setattr("utils.benchmarking.subject.export_onnx", lambda file, output: make(output))
            patch.setattr("utils.benchmarking.subject.write_int8", lambda a, b, output, c: make(output))
            subject = open_subject(tiny_checkpoint, str(image_folder), str(image_folder), None, 0, ENGINES, tmp_path)
        return subject.key("onnx"), subject.key("onnx-int8")

    def make(output):
        written.append(output.stem.split("-")[1] if "int8" in output.stem else "float")
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_bytes(b"")

    first = export("one recipe")
    assert export("one recipe") == first and written == ["float", "int8"]
    assert export("another recipe")[0] != first[0] and written == ["float", "int8"] * 2
    os.utime(image_folder / "train" / "real" / "000.png", ns=(0, 0))
    last = export("one recipe")
    assert last[0] == first[0] and last[1] != first[1] and written[4:] == ["int8"], "calibration concerns int8 alone"


def test_report_needs_the_cells_alone(benchmarked, tmp_path, rendered):
    files = sorted((benchmarked["root"] / "out" / "cells").glob("*.json"), key=lambda file: "eager" not in file.name)
    write_benchmark([json.loads(file.read_text()) for file in files], tmp_path)
    for name in ("benchmark.csv", "benchmark.md", "benchmark.tex", "speed.csv", "pareto.pdf", "pareto.png"):
        assert (tmp_path / name).read_bytes() == benchmarked["written"][name], name


def test_slower_engines_are_marked_and_missing_ones_shown():
    rates = {1: 10.0}
    assert summary_row(cell("onnx", 5, 0.9, 0.5), rates)["note"] == "slower than the baseline"
    assert summary_row(cell("onnx", 50, 0.9, 5.0), rates)["note"] == ""
    assert summary_row(cell("onnx", 50, 0.9, 5.0), rates)["over_first"] == 5.0
    failed = {"checkpoint": "a", "engine": "onnx", "note": "failed: no export"}
    assert summary_row(failed, rates) == failed


def test_pareto_front_keeps_what_nothing_beats():
    rows = [
        summary_row(cell(name, rate, auc, 1.0), {})
        for name, rate, auc in (("a", 1, 0.9), ("b", 5, 0.95), ("c", 9, 0.8), ("d", 8, 0.7))
    ]
    assert [row["engine"] for row in pareto_front(rows)] == ["b", "c"]


def test_the_last_batch_is_filled_up_and_cut_again():
    class Echo:
        sizes: list[int] = []  # noqa: RUF012

        def ask(self, command, images):
            self.sizes.append(len(images))
            return images[:, 0, 0, 0].astype(float)

    images = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1)
    assert score(Echo(), images, 3).tolist() == [0, 1, 2, 3, 4] and Echo.sizes == [3, 3]


def test_a_turn_lasts_long_enough_to_be_measured(tiny_checkpoint):
    served = Served(BASELINE, tiny_checkpoint, 1, "cpu")
    served.prepare(np.zeros((2, 3, 32, 32), np.uint8))
    assert sum(served.time()) >= 0.3 and served.peak_memory() > 50_000_000


def test_failure_of_an_engine_is_one_line(tmp_path):
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    with pytest.raises(UserError, match=r"^\w+: ") as error:
        Worker("onnx", tmp_path / "broken.onnx", 1, "cpu", np.zeros((1, 3, 32, 32), np.uint8))
    assert "\n" not in str(error.value)


def test_engines_that_cannot_run_say_why(monkeypatch):
    assert missing("cuda-graph", "cpu") == "needs --device cuda"
    assert missing("onnx", "cuda") == "runs on the CPU only"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert missing("openvino", "cpu") == "openvino is not installed"
    assert all(missing(name, "cpu") for name in ENGINES)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--engines", "warp"], "invalid choice"),
        ([], "expected --data SPEC"),
        (["--export", "onnx"], "--output FILE.onnx"),
        (["--data", "demo", "--output", "x.onnx"], "expected --export {int8,onnx,openvino} with --output, got none"),
        (["--export", "int8", "--output", "x.onnx"], "expected --calibration-data SPEC"),
        (["--export", "onnx", "--output", "x.onnx", "--calibration-data", "demo"], "expected --export int8 with"),
        (
            ["--export", "onnx", "--output", "x.onnx", "--limit", "3", "--threads", "9"],
            "expected no --limit, --threads",
        ),
    ],
)
def test_usage_errors(flags, expected, tiny_checkpoint, capsys):
    with pytest.raises(SystemExit) as error:
        benchmark.main(["--checkpoint", str(tiny_checkpoint), *flags])
    assert error.value.code == 2 and expected in capsys.readouterr().err


def test_unknown_device_is_one_line(tiny_checkpoint, image_folder, tmp_path):
    flags = ["--checkpoint", str(tiny_checkpoint), "--output-dir", str(tmp_path / "out"), "--engines", "eager"]
    with pytest.raises(UserError, match="expected --device"):
        benchmark.main([*flags, "--data", str(image_folder), "--device", "gpu"])


def test_data_is_checked_before_an_export(tiny_checkpoint, tmp_path):
    flags = ["--checkpoint", str(tiny_checkpoint), "--export", "onnx", "--output", str(tmp_path / "x.onnx")]
    with pytest.raises(UserError, match="no such folder"):
        benchmark.main([*flags, "--data", str(tmp_path / "absent")])
    assert not (tmp_path / "x.onnx").exists()


def test_missing_checkpoint(tmp_path):
    with pytest.raises(UserError, match="found none"):
        benchmark.main(["--checkpoint", str(tmp_path / "none.pt"), "--data", "demo"])


def test_nothing_but_results_is_in_the_folder(benchmarked):
    names = {Path(file).suffix for file in (benchmarked["root"] / "out").rglob("*") if file.is_file()}
    assert names == {".json", ".csv", ".md", ".tex", ".pdf", ".png"}  # no image, adversarial or not
