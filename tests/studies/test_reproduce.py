"""Reproduction: steps run in order and once, go on where they were, and numbers are held to the committed ones."""

import importlib
import json
import os
from pathlib import Path

import pytest

from studies import reproduce
from tests.pages import script_problems
from utils.errors import UserError
from utils.files import ROOT
from utils.reproduction.report import compare_folders
from utils.reproduction.steps import OUTPUTS, read_steps

ROW = {
    "checkpoint": "a",
    "dataset": "d",
    "split": "test",
    "tier": "clean",
    "generator": "all",
    "n_real": 5,
    "n_fake": 5,
    "auc": 0.9,
    "auc_ci": [0.85, 0.95],
    "acc": None,
    "acc_ci": None,
}

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
(out / NAME).write_text(json.dumps([dict(ROW, auc=float(flags.get("--auc", 0.9)))]))
print("ran")
"""


@pytest.fixture
def workshop(tmp_path, monkeypatch):
    """Return a function that runs reproduce.main over a table of fake steps; results are committed for one of them."""
    for name in ("train", "evaluate"):
        text = FAKE_SCRIPT.replace("NAME", repr(OUTPUTS[name])).replace("ROW", repr(ROW))
        (tmp_path / "scripts").mkdir(exist_ok=True)
        (tmp_path / "scripts" / f"{name}.py").write_text(text)
    (tmp_path / "committed" / "a").mkdir(parents=True)
    (tmp_path / "committed" / "a" / "metrics.json").write_text(json.dumps([ROW]))
    monkeypatch.setattr(reproduce, "ROOT", tmp_path / "scripts")
    monkeypatch.setattr(reproduce, "COMMITTED", tmp_path / "committed")
    monkeypatch.setattr(reproduce, "STEPS_FILE", tmp_path / "steps.txt")
    monkeypatch.chdir(tmp_path)

    def run(table: str | None = None, *flags: str) -> dict:
        if table is not None:
            (tmp_path / "steps.txt").write_text(table)
        return reproduce.main([*flags, "--output-dir", "out"])

    return run


TABLE = """# a comment
demo python train.py --lr 1 --output-dir {out}/runs/a

demo-evaluate python evaluate.py --checkpoint {out}/runs/a --output-dir {out}/results/a
abroad python evaluate.py --data {data}/wild@limit=5 --weights {weights}/w.safetensors --output-dir {out}/results/b
again python evaluate.py --checkpoint {out}/results/b/x --output-dir {out}/results/c
"""


def calls(folder: str = "runs") -> list[str]:
    file = Path("out") / folder / "calls.txt"
    return file.read_text().splitlines() if file.exists() else []


def test_steps_run_in_order_and_the_numbers_are_compared(workshop, capsys):
    result = workshop(TABLE)
    assert result["steps"] == {"demo": "done", "demo-evaluate": "done", "abroad": "skipped", "again": "skipped"}
    assert result["exit_code"] == 0
    assert [(row["figure"], row["verdict"]) for row in result["rows"]] == [("auc", "agrees")]
    printed = capsys.readouterr().out
    assert "skipped   no data at data/wild" in printed and "skipped   needs abroad" in printed
    assert "1 figures agree, 0 differ, 0 have no published counterpart" in printed
    assert Path("out/logs/demo.txt").read_text() == "ran\n"
    assert Path("out/comparison.md").read_text() in printed
    assert json.loads(Path("committed/a/metrics.json").read_text()) == [ROW]


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
    assert result["steps"]["abroad"] == result["steps"]["again"] == "done"
    assert "--data sets/wild@limit=5 --weights ./w.safetensors" in Path("out/results/calls.txt").read_text()
    assert {row["verdict"] for row in result["rows"]} == {"agrees", "not published"} and result["exit_code"] == 0


def test_a_number_outside_of_its_interval_is_reported(workshop, capsys):
    result = workshop(TABLE.replace("--checkpoint", "--auc 0.84 --checkpoint"))
    assert result["exit_code"] == 1 and result["rows"][0]["verdict"] == "DIFFERS"
    assert "| auc    | 0.900 [0.850, 0.950] | 0.840 | DIFFERS |" in capsys.readouterr().out


def test_list_quick_and_only(workshop, capsys):
    assert workshop(TABLE, "--list")["steps"] == {
        "demo": "todo",
        "demo-evaluate": "todo",
        "abroad": "skipped",
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


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({}, "agrees"),
        ({"auc": 0.9504}, "agrees"),
        ({"auc": 0.951}, "DIFFERS"),
        ({"auc": 0.5, "n_real": 4}, "other images"),
        ({"tier": "web"}, "not published"),
        ({"auc": None}, None),
    ],
)
def test_verdict_of_a_figure(change, verdict, tmp_path):
    for name, rows in (("found", [{**ROW, **change}]), ("committed", [ROW])):
        (tmp_path / name / "x").mkdir(parents=True)
        (tmp_path / name / "x" / "metrics.json").write_text(json.dumps(rows))
    found = compare_folders(tmp_path / "found", tmp_path / "committed")
    assert [row["verdict"] for row in found] == ([verdict] if verdict else [])
    (tmp_path / "committed" / "x" / "metrics.json").write_text('{"auc": 1}')
    with pytest.raises(UserError, match="list of rows"):
        compare_folders(tmp_path / "found", tmp_path / "committed")


def test_what_is_published_agrees_with_itself():
    found = compare_folders(reproduce.COMMITTED, reproduce.COMMITTED)
    assert {row["verdict"] for row in found} == {"agrees"}
    assert {"demo", "attacks-demo", "generalisation", "deepfake-v2"} <= {row["results"] for row in found}
    assert any(row["dataset"] == "sfhq / faces140k + utkface" for row in found)  # from one_class.json


# ---------------------------------------------------------------------------------------- the table of the project


def test_every_step_is_a_command_that_its_script_takes():
    for step in read_steps(reproduce.STEPS_FILE):
        words = step.command.replace("{data}", "data").replace("{weights}", "w").replace("{out}", "out").split()
        assert script_problems(words, ROOT) == [], step.name


def test_what_a_step_reads_is_made_before():
    steps = read_steps(reproduce.STEPS_FILE)
    for place, step in enumerate(steps):
        needed = step.needs(steps)
        assert {other.name for other in needed} <= {other.name for other in steps[:place]}
        covered = [folder for other in needed for folder in other.folders]
        lost = [path for path in step.inputs if not any(f"{path}/".startswith(f"{own}/") for own in covered)]
        assert lost == [], step.name


def test_every_published_table_of_metrics_has_a_step():
    outputs = {step.output for step in read_steps(reproduce.STEPS_FILE)}
    published = {f"results/{file.relative_to(reproduce.COMMITTED)}" for file in ROOT.glob("results/*/metrics.json")}
    assert published - outputs == set()


@pytest.mark.parametrize(
    ("script", "table"), [("summarize", "summary"), ("ablation_table", "forgery_ablation/ablation")]
)
def test_the_tables_made_of_tables_are_those_of_their_results(script, table, tmp_path, monkeypatch):
    module = importlib.import_module(f"studies.{script}")
    monkeypatch.setattr(module, "save_figure", lambda figure, stem: None, raising=False)
    module.main(["--output-dir", str(tmp_path)])
    published = reproduce.COMMITTED / f"{table}.md"
    assert (tmp_path / published.name).read_text() == published.read_text()


def test_steps_that_make_tables_of_tables_have_flags_that_exist():
    made_of_tables = ("studies.summarize", "studies.ablation_table", "studies.candidates_table")
    steps = [step for step in read_steps(reproduce.STEPS_FILE) if step.module in made_of_tables]
    for step in steps:
        module = importlib.import_module(step.module)
        module.get_args_parser().parse_args(step.command.split()[2:])
    assert len(steps) == 3
