"""Reproduction: steps run in order and once, are resumed, and every committed figure is compared."""

import csv
import os
import shutil
from pathlib import Path

import pytest

from studies import reproduce
from utils.errors import UserError
from utils.reproduction import steps
from utils.reproduction.report import compare_results, read_rows
from utils.reproduction.steps import OUTPUTS, Step, read_steps

ROWS = [
    {
        "checkpoint": "a",
        "dataset": "d",
        "tier": tier,
        "n_real": 5,
        "n_fake": 5,
        "auc": 0.9,
        "auc_low": 0.85,
        "auc_high": 0.95,
    }
    for tier in ("clean", "web", "hard")
]

FAKE_SCRIPT = """
import json, pathlib, sys
flags = dict(zip(sys.argv[1:], sys.argv[2:]))
out = pathlib.Path(flags["--output-dir"])
out.mkdir(parents=True, exist_ok=True)
with (out.parent / "calls.txt").open("a") as calls:
    print(*sys.argv[1:], file=calls)
if flags.get("--fail"):
    (out / "last.pt").touch()
    sys.exit("no luck")
(out / NAME).touch()
rows = [dict(row, auc=float(flags.get("--auc", 0.9))) for row in ROWS]
lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
(out / "metrics.csv").write_text("\\n".join(lines))
print("ran")
"""


def write_rows(file: Path, rows: list[dict]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(ROWS[0]), extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def workshop(tmp_path, monkeypatch):
    """Return a function that runs reproduce.main over a table of fake steps; results are committed for one of them."""
    for name in ("train", "evaluate"):
        text = FAKE_SCRIPT.replace("NAME", repr(OUTPUTS[name])).replace("ROWS", repr(ROWS))
        (tmp_path / "scripts").mkdir(exist_ok=True)
        (tmp_path / "scripts" / f"{name}.py").write_text(text)
    write_rows(tmp_path / "committed" / "a" / "metrics.csv", ROWS)
    monkeypatch.setattr(reproduce, "ROOT", tmp_path / "scripts")
    monkeypatch.setattr(reproduce, "COMMITTED", tmp_path / "committed")
    monkeypatch.setattr(reproduce, "STEPS_FILE", tmp_path / "steps.txt")
    monkeypatch.setattr(steps, "code_digest", lambda *patterns: (tmp_path / "scripts" / patterns[0]).read_text())
    monkeypatch.chdir(tmp_path)

    def run(table: str | None = None, *flags: str) -> dict:
        if table is not None:
            (tmp_path / "steps.txt").write_text(table)
        return reproduce.main([*flags, "--output-dir", "out"])

    return run


TABLE = """# a comment
demo python train.py --lr 1 --output-dir {out}/runs/a

demo-evaluate python evaluate.py --checkpoint {out}/runs/a --output-dir {out}/results/a
unseen python evaluate.py --data {data}/wild@limit=5 --weights {weights}/w.safetensors --output-dir {out}/results/b
again python evaluate.py --checkpoint {out}/results/b/x --output-dir {out}/results/c
"""


def calls(folder: str = "runs") -> list[str]:
    file = Path("out") / folder / "calls.txt"
    return file.read_text().splitlines() if file.exists() else []


def test_steps_run_in_order_and_the_numbers_are_compared(workshop, capsys):
    result = workshop(TABLE)
    assert result["steps"] == {"demo": "done", "demo-evaluate": "done", "unseen": "skipped", "again": "skipped"}
    assert result["exit_code"] == 0
    assert [(row["figure"], row["verdict"]) for row in result["rows"]] == [("auc", "agrees")] * 3
    printed = capsys.readouterr().out
    assert "skipped   no data at data/wild" in printed and "skipped   needs unseen" in printed
    assert "3 figures agree, 0 differ, 0 of other images, 0 missing, 0 not made, 0 rows not published" in printed
    assert Path("out/logs/demo.txt").read_text() == "ran\n"
    assert Path("out/comparison.md").read_text() in printed
    assert len(read_rows(Path("committed/a/metrics.csv"))) == 3


def test_finished_steps_are_not_run_again(workshop):
    workshop(TABLE)
    assert workshop()["steps"]["demo"] == "done"
    assert len(calls()) == len(calls("results")) == 1


def test_a_changed_command_is_run_again_with_what_builds_on_it(workshop):
    workshop(TABLE)
    Path("out/runs/a/rest-of-the-old-run").touch()
    workshop(TABLE.replace("--lr 1", "--lr 2"))
    assert [line.split()[1] for line in calls()] == ["1", "2"] and len(calls("results")) == 2
    assert not Path("out/runs/a/rest-of-the-old-run").exists()


def test_a_lost_or_an_old_output_is_made_again(workshop):
    workshop(TABLE)
    Path("out/results/a/metrics.json").unlink()
    workshop()
    assert len(calls("results")) == 2
    os.utime("out/results/a/metrics.json", (1, 1))
    workshop()
    assert len(calls("results")) == 3 and len(calls()) == 1


def test_an_interrupted_training_is_resumed_and_a_new_one_is_not(workshop):
    failing = TABLE.replace("--lr 1", "--lr 1 --fail yes")
    result = workshop(failing)
    assert result["steps"]["demo"] == "failed" and result["steps"]["demo-evaluate"] == "skipped"
    assert result["exit_code"] == 1
    workshop(failing)
    assert calls()[-1] == "--resume --output-dir out/runs/a"
    workshop(TABLE)
    assert calls()[-1] == "--lr 1 --output-dir out/runs/a"


def test_data_and_weights_that_are_there_are_used(workshop):
    Path("sets/wild").mkdir(parents=True)
    Path("w.safetensors").touch()
    result = workshop(TABLE, "--data-root", "sets", "--weights-dir", ".")
    assert result["steps"]["unseen"] == result["steps"]["again"] == "done"
    assert "--data sets/wild@limit=5 --weights ./w.safetensors" in Path("out/results/calls.txt").read_text()
    assert {row["verdict"] for row in result["rows"]} == {"agrees"} and result["exit_code"] == 0


def test_a_number_outside_of_its_interval_is_reported(workshop, capsys):
    result = workshop(TABLE.replace("--checkpoint", "--auc 0.84 --checkpoint"))
    assert result["exit_code"] == 1 and {row["verdict"] for row in result["rows"]} == {"DIFFERS"}
    assert "| auc    | 0.900 [0.850, 0.950] | 0.840 | DIFFERS |" in capsys.readouterr().out


def test_changed_code_is_run_again(workshop, tmp_path):
    workshop(TABLE)
    with (tmp_path / "scripts" / "evaluate.py").open("a") as file:
        file.write("# changed")
    assert workshop(TABLE)["steps"]["demo-evaluate"] == "done"
    assert len(calls()) == 1 and len(calls("results")) == 2


def test_nothing_compared_is_not_success(workshop, capsys):
    skipped = workshop(TABLE, "--only", "unseen")
    assert skipped["steps"] == {"unseen": "skipped"} and skipped["exit_code"] == 1
    assert workshop(TABLE, "--only", "demo")["exit_code"] == 1, "a checkpoint alone proves no figure"
    (Path("committed") / "a" / "metrics.csv").unlink()
    assert workshop(TABLE, "--quick")["exit_code"] == 1
    assert "no committed table for results/a" in capsys.readouterr().out


def test_steps_that_share_a_folder_keep_each_others_tables(workshop):
    table = TABLE.replace("results/b\n", "results/a\n").replace("{out}/results/b/x", "{out}/runs/a")
    Path("sets/wild").mkdir(parents=True)
    Path("w.safetensors").touch()
    workshop(table, "--only", "demo", "demo-evaluate")
    Path("out/results/a/first").touch()
    workshop(table, "--data-root", "sets", "--weights-dir", ".")
    assert Path("out/results/a/first").exists()


def test_list_quick_and_only(workshop, capsys):
    assert workshop(TABLE, "--list")["steps"] == {
        "demo": "todo",
        "demo-evaluate": "todo",
        "unseen": "skipped",
        "again": "skipped",
    }
    assert calls() == [] and "python train.py --lr 1" in capsys.readouterr().out
    assert workshop(TABLE, "--only", "demo-evaluate")["steps"] == {"demo-evaluate": "skipped"}
    assert workshop(TABLE, "--quick")["steps"] == {"demo": "done", "demo-evaluate": "done"}
    with pytest.raises(UserError, match="did you mean demo-evaluate"):
        workshop(TABLE, "--only", "demo-evalute")
    with pytest.raises(UserError, match="outside of the committed"):
        reproduce.main(["--output-dir", "committed/a"])


@pytest.mark.parametrize(
    "line",
    [
        "nonsense",
        "a python nothing.py --output-dir {out}/a",
        "a python train.py --epochs 3",
        "demo python train.py --output-dir {out}/twice",
    ],
)
def test_a_line_that_is_no_step_is_named(workshop, line):
    with pytest.raises(UserError, match=r"line 7 of .*steps\.txt"):
        workshop(TABLE + line)


MAKE = Step("make", "evaluate.py --output-dir {out}/results/x")
MORE = Step("more", "evaluate.py --output-dir {out}/results/x")


def verdicts(tmp_path, found: list[dict], published: list[dict] = ROWS, steps=(MAKE,), done=(MAKE,)) -> list[str]:
    write_rows(tmp_path / "out" / "results" / "x" / "metrics.csv", found)
    write_rows(tmp_path / "committed" / "x" / "metrics.csv", published)
    return [row["verdict"] for row in compare_results(tmp_path / "out", tmp_path / "committed", steps, done)]


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({}, ["agrees"]),
        ({"auc": 0.9504}, ["agrees"]),
        ({"auc": 0.951}, ["DIFFERS"]),
        ({"auc": 0.5, "n_real": 4}, ["OTHER IMAGES"]),
        ({"tier": "common"}, ["MISSING", "not published"]),
        ({"checkpoint": "b", "auc": 0.5}, ["MISSING", "not published"]),
        ({"auc": None}, ["MISSING"]),
        ({"auc": "nan"}, ["DIFFERS"]),
    ],
)
def test_verdict_of_a_figure(change, verdict, tmp_path):
    found = verdicts(tmp_path, [{**ROWS[0], **change}, *ROWS[1:]])
    assert sorted(found) == sorted([*verdict, "agrees", "agrees"])


def test_every_published_row_counts(tmp_path):
    assert sorted(verdicts(tmp_path, ROWS[:1])) == ["MISSING", "MISSING", "agrees"]
    assert verdicts(tmp_path, []) == ["MISSING"] * 3
    assert verdicts(tmp_path, ROWS[:1], steps=(MAKE, MORE)) == ["agrees", "not made", "not made"]
    assert verdicts(tmp_path, ROWS, done=()) == []
    (tmp_path / "out" / "results" / "x" / "metrics.csv").unlink()
    assert {row["verdict"] for row in compare_results(tmp_path / "out", tmp_path / "committed", [MAKE], [MAKE])} == {
        "MISSING"
    }
    with pytest.raises(UserError, match="1 repeated"):
        verdicts(tmp_path, [*ROWS, ROWS[0]])


def copy_of_the_results(out: Path) -> list[Step]:
    """Lay out the committed results as if every step had just made them."""
    found = read_steps(reproduce.STEPS_FILE)
    shutil.copytree(reproduce.COMMITTED, out / "results", ignore=shutil.ignore_patterns("scores", "cells", "raw"))
    for step in found:
        if step.folders[0].startswith("tables/"):
            (out / step.folders[0]).mkdir(parents=True)
            own = reproduce.COMMITTED / Path(step.folders[0]).name
            for file in (own if own.is_dir() else reproduce.COMMITTED).rglob("*.csv"):
                more = ("verdicts", "overview") if step.module == "studies.model_card" else ()
                if file.stem in (Path(step.output).stem, *more):
                    shutil.copy(file, out / step.folders[0])
    return found


def test_what_is_published_agrees_with_itself_and_nearly_every_table_is_compared(tmp_path):
    found = copy_of_the_results(tmp_path)
    rows = compare_results(tmp_path, reproduce.COMMITTED, found, found)
    assert {row["verdict"] for row in rows} == {"agrees"}
    assert any(row["row"].startswith("deepfake-v2 sfhq / faces140k + utkface") for row in rows)  # of one_class.csv
    tables = {step.folders[0] for step in found if step.writes_tables}
    assert tables - {row["folder"] for row in rows} == {"results/explanations-demo", "results/benchmark-demo"}


def test_a_change_of_any_table_is_noticed(tmp_path):
    found = copy_of_the_results(tmp_path)
    tables = {row["results"] for row in compare_results(tmp_path, reproduce.COMMITTED, found, found)}
    for file in tmp_path.glob("**/*.csv"):
        if any(Path(table).name == file.name for table in tables):
            file.write_text(file.read_text().splitlines()[0] + "\n")
    rows = compare_results(tmp_path, reproduce.COMMITTED, found, found)
    assert {row["verdict"] for row in rows if not row["results"].endswith(".json")} == {"MISSING"}
