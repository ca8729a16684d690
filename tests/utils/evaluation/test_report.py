"""The report of evaluate.py on a file of scores of several data sets and tiers."""

import numpy as np

import evaluate
from utils.scoring.table import ScoreTable, write_scores, write_sidecar


def test_file_of_several_sets_and_tiers_gives_a_row_and_figures_for_each(tmp_path, figures):
    parts = [("a/b", "clean"), ("a/b", "web"), ("c", "clean")]
    n = 6
    table = ScoreTable(
        path=[f"{i}.png" for _ in parts for i in range(n)],
        label=np.tile([0, 1], n * len(parts) // 2),
        dataset=[dataset for dataset, _ in parts for _ in range(n)],
        generator=["real", "gan"] * (n * len(parts) // 2),
        tier=[tier for _, tier in parts for _ in range(n)],
        logit=np.linspace(-1, 1, n * len(parts)),
        p_fake=np.linspace(0.1, 0.9, n * len(parts)),
    )
    write_scores(tmp_path / "s.csv", table)
    broken = {"path": "x.png", "reason": "truncated", "dataset": "a/b", "tier": "web"}
    write_sidecar(tmp_path / "s.csv", checkpoint="net", model="cnn", threshold=0.3, unreadable=[broken])
    result = evaluate.main(["--from-scores", str(tmp_path / "s.csv"), "--n-boot", "0", "--output-dir", str(tmp_path)])
    assert [(row["dataset"], row["tier"], row["unreadable"]) for row in result["rows"]] == [
        ("a/b", "clean", 0),
        ("a/b", "web", 1),
        ("c", "clean", 0),
    ]
    assert result["exit_code"] == 1
    assert "confusion__net__a_b__web" in figures and len(set(figures)) == 2 * 4 + 2 * 3
