"""The table of sources left out: known scores, runs on different scales, and files that are missing."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from models.operating_point import sigmoid
from studies.left_out_table import RATES, write_left_out
from tests.conftest import make_table
from utils.errors import UserError
from utils.evaluation.operating_point import fit_operating_point, verdict_shares
from utils.metrics.binary import auc
from utils.scoring.table import ScoreTable, read_scores, write_scores, write_sidecar


def write_run(folder, run, left_out, parts, temperature=1.0):
    """Write the files of a run; ``parts`` maps each part to a mapping of source to (labels, logits)."""
    files = []
    for part, found in parts.items():
        tables = [
            make_table([f"{i}.png" for i in range(len(labels))], labels, logits, "common", name)
            for name, (labels, logits) in found.items()
        ]
        files.append(folder / f"{run}__{part}.csv.gz")
        table = ScoreTable.join(tables)
        write_scores(files[-1], replace(table, p_fake=sigmoid(table.logit / temperature)))
        info = {"thresholds": {}, "threshold": 0.5, "trained_on": ["x"]}
        write_sidecar(files[-1], checkpoint=run, split=part, left_out=left_out, **info)
    return files


def drawn(seed, n_real, n_fake, shift=0.0):
    rng = np.random.default_rng(seed)
    labels = np.repeat([0, 1], [n_real, n_fake])
    return labels, rng.normal(size=len(labels)) + 2 * labels + shift


def test_the_table_of_known_scores(tmp_path, capsys):
    swaps, sdxl = drawn(0, 0, 60), drawn(1, 0, 80)
    pairs, stock = drawn(2, 50, 40), drawn(3, 70, 0, shift=0.5)
    inner = drawn(4, 30, 0)
    one = write_run(tmp_path, "sdxl", "sdxl", {"left-out": {"sdxl": sdxl}, "valid": {"pairs": pairs, "stock": stock}})
    parts = {"left-out": {"pairs": pairs, "swaps": inner}, "valid": {"swaps": swaps, "stock": stock, "sdxl": sdxl}}
    two = write_run(tmp_path, "pairs+swaps-real", "pairs,swaps:real", parts)
    rows, means, unreadable = write_left_out([*one, *two], tmp_path / "out", n_boot=200)
    assert unreadable == 0 and [row["source"] for row in rows] == ["sdxl", "pairs", "swaps", "all"]

    def pair(fakes, reals):
        f, r = fakes[1][fakes[0] == 1], reals[1][reals[0] == 0]
        return auc(np.repeat([1, 0], [len(f), len(r)]), 1 / (1 + np.exp(-np.concatenate([f, r]))))

    first, second, third, mean = rows
    assert first["auc_fakes"] == pytest.approx((pair(sdxl, pairs) + pair(sdxl, stock)) / 2)
    assert "auc_reals" not in first and "auc_own" not in first and "real_fake" not in first
    assert second["auc_fakes"] == pytest.approx((pair(pairs, inner) + pair(pairs, stock)) / 2)
    assert second["auc_reals"] == pytest.approx((pair(swaps, pairs) + pair(sdxl, pairs)) / 2)
    assert second["auc_own"] == pytest.approx(pair(pairs, pairs))
    assert third["auc_reals"] == pytest.approx((pair(pairs, inner) + pair(sdxl, inner)) / 2)
    assert "auc_own" not in third, "its fakes were trained on"
    sources = {"sdxl": sdxl, "pairs": pairs, "swaps": inner}
    tables = [make_table([f"{i}.png" for i in range(len(y))], y, z, "common", name) for name, (y, z) in sources.items()]
    point = fit_operating_point(tables)
    said = {(row["dataset"], row["label"]): row for row in verdict_shares(tables, point)}
    assert second["real_fake"] == said["pairs", "real"]["fake"]
    assert second["real_unsure"] == said["pairs", "real"]["unsure"]
    assert second["fake_fake"] == said["pairs", "fake"]["fake"]

    assert mean["auc_fakes"] == pytest.approx((first["auc_fakes"] + second["auc_fakes"]) / 2)
    assert mean["auc_own"] == second["auc_own"] and mean["real_fake"] == (second["real_fake"] + third["real_fake"]) / 2
    figure = (mean["auc_own"] + (mean["auc_fakes"] + mean["auc_reals"]) / 2) / 2
    assert means["common"]["figure"] == pytest.approx(figure)
    for row, keys in ((first, ["auc_fakes"]), (second, ["auc_fakes", "auc_reals", "auc_own"]), (mean, ["figure"])):
        for key in keys:
            low, high = row[f"{key}_ci"]
            assert low <= row[key] <= high and 0.01 < high - low < 0.3
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith(f"common: fakes {mean['auc_fakes']:.3f} [") and f": {figure:.3f} [" in line


def test_verdicts_put_the_runs_on_one_scale(tmp_path):
    """A run with logits three times as large has the same rows: its calibration says so."""
    fakes, reals, others = drawn(0, 0, 60), drawn(1, 70, 0, shift=0.5), drawn(2, 50, 40)
    tables = []
    for scale in (1, 3):
        folder = tmp_path / str(scale)
        folder.mkdir()
        parts = {"left-out": {"stock": (reals[0], scale * reals[1])}, "valid": {"pairs": others, "sdxl": fakes}}
        two = write_run(folder, "stock", "stock", parts, temperature=float(scale))
        one = write_run(folder, "sdxl", "sdxl", {"left-out": {"sdxl": fakes}, "valid": {"pairs": others}})
        tables.append(write_left_out([*one, *two], folder / "out", n_boot=0)[0])
    first, second = ([[row.get(key) for key in RATES] for row in rows] for rows in tables)
    assert first == second
    assert 0 < tables[0][-1]["real_unsure"] <= 0.2


def test_the_table_needs_both_files_of_a_run(tmp_path):
    parts = {"left-out": {"sdxl": drawn(1, 0, 8)}, "valid": {"pairs": drawn(2, 5, 4)}}
    files = write_run(tmp_path, "sdxl", "sdxl", parts)
    with pytest.raises(UserError, match="expected both files of each run"):
        write_left_out(files[:1], tmp_path / "out", 0)
    shutil.copy(files[0], tmp_path / "other.csv.gz")
    with pytest.raises(UserError, match=r"expected scores written by leave_source_out\.py"):
        write_left_out([tmp_path / "other.csv.gz"], tmp_path / "out", 0)
    assert len(read_scores(files[0])) == 8
