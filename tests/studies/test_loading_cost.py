"""The study of what loading costs: real and synthetic epochs take the same steps."""

import json

from studies.speed import loading_cost


def test_epochs_of_files_are_compared_with_epochs_of_one_batch(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = "--data demo@n=60,size=64 --models cnn --augmentations light --image-size 32 --batch-size 16 --turns 2"
    loading_cost.main([*flags.split(), "--device", "cpu", "--workers", "0", "--output", "cost.json"])
    found = json.loads((tmp_path / "cost.json").read_text())
    (row,) = found["rows"]
    assert row["synthetic_images_per_s"] > 0 and row["turns"] == 2
    speed, ratio = found["summary"]
    assert speed["unit"] == "images/s" and ratio["range"][0] <= ratio["value"] <= ratio["range"][1]
    assert "train.py against synthetic images: cnn" in capsys.readouterr().out
