"""Every model of model_table.py, for real: it trains, reloads bit-equal, and every script gives the same p_fake."""

import contextlib
import csv
import io

import pytest
import torch

import evaluate
import predict
import train
from studies.model_table import CLASSICAL, ENTRIES
from utils.checkpoints.file import load_checkpoint, load_detector
from utils.scoring.table import read_scores

SMALLEST = {"inception_resnet_v2": 96, "vit_small_patch16_224": 224}  # px; the others work at 64


def p_fakes(text: str) -> dict[str, float]:
    return {row["path"]: float(row["p_fake"]) for row in csv.DictReader(io.StringIO(text))}


@pytest.mark.slow
@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_a_model_of_the_table_trains_reloads_and_agrees_with_itself(entry, image_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    size = SMALLEST.get(entry.name, 64)
    flags = f"--model {entry.model} --data {image_folder} --output-dir run --batch-size 8 --threads 1"
    if entry.model not in CLASSICAL:
        flags += f" --epochs 1 --geometry resize --image-size {size}"
    if entry.model_args:
        flags += " --model-args " + " ".join(argument.format(size=size) for argument in entry.model_args)
    assert train.main(flags.split())["exit_code"] == 0

    first, second = load_detector("run/best.pt")[0], load_detector("run/best.pt")[0]
    stored = load_checkpoint("run/best.pt")["state_dict"]
    assert all(torch.equal(value, stored[key]) for key, value in first.named_buffers() if key in stored)
    assert all(torch.equal(value, stored[key]) for key, value in first.named_parameters())
    images = torch.rand(2, 3, first.geometry.size, first.geometry.size)
    with torch.inference_mode():
        assert torch.equal(first.eval()(images), second.eval()(images))

    evaluate.main(f"--checkpoint run --data {image_folder} --n-boot 0 --threads 1 --output-dir out".split())
    stdout = io.StringIO()
    with contextlib.redirect_stdout(stdout):
        predict.main(f"--checkpoint run {image_folder}/test --threads 1".split())
    scores = read_scores("out/scores/run__faces__test.csv.gz")
    evaluated = {f"{image_folder}/{path}": p_fake for path, p_fake in zip(scores.path, scores.p_fake, strict=True)}
    predicted = p_fakes(stdout.getvalue())
    assert predicted.keys() == evaluated.keys()
    assert predicted == pytest.approx(evaluated, abs=1e-6)
