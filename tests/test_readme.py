"""The README keeps its word: its commands parse, its links lead somewhere, its numbers are those of results/."""

import re
from pathlib import Path

import pytest

from tests.pages import command_lines, command_problems, link_problems, table_problems
from utils.evaluation.finalize import summary_line
from utils.files import ROOT, read_json

CHECKS = [command_problems, link_problems, table_problems]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_readme(check):
    assert check((ROOT / "README.md").read_text(encoding="utf-8"), ROOT) == []


def test_readme_shows_every_script_and_the_two_commands():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = [" ".join(words[:2]) for words in command_lines(text)]
    assert {"make demo", "make test"} <= set(commands)
    assert not [file.name for file in ROOT.glob("*.py") if file.name not in text]


# The checks themselves


@pytest.fixture
def root(tmp_path) -> Path:
    (tmp_path / "Makefile").write_text("demo: install\n\techo\ntest-slow:\n")
    for script in ("train.py", "evaluate.py"):
        (tmp_path / script).write_text((ROOT / script).read_text())
    (tmp_path / "results").mkdir()
    table = "| Data | AUC                  |\n| ---- | -------------------- |\n| demo | 0.968 [0.951, 0.983] |\n"
    (tmp_path / "results" / "metrics.md").write_text(f"Caption.\n\n{table}")
    return tmp_path


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("```\npython train.py --epochs 3\nmake demo\n```\nand `make test-slow`", None),
        ("```bash\n$ A=1 .venv/bin/python train.py \\\n    --epochs 3 | tee x  # three\ntrain_loss 0.5\n```", None),
        ("```\npython evaluate.py --checkpoint a --data 'x@split=test,limit=5' > out.txt\n```", None),
        ("```\npython train.py --help && python evaluate.py --from-scores a/*.csv\n```", None),
        ("```json\npython nothing.py\n```", None),
        ("```\npython train.py --epoch 3\n```", "unrecognized arguments"),
        ("```\npython train.py \\\n  --epochs none\n```", "expected an integer"),
        ("`python train.py\n--augmentation heavy`", "invalid choice"),
        (
            "```\necho\n```\ncode\n```\ncd x\npython evaluate.py --help; python evaluate.py --nonsense\n```",
            "unrecognized",
        ),
        ("```\npython nothing.py --epochs 3\n```", "no such script"),
        ("`make install`", "make install: no such target"),
        ("`make -j2 tset-slow`", "make tset-slow: no such target"),
    ],
)
def test_command_check(text, problem, root):
    found = command_problems(text, root)
    assert bool(found) == bool(problem) and (not problem or problem in found[0]), found


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ('# A b, c\n![x](train.py) [y](https://e.org/x) [z](#a-b-c) <img src="Makefile"> `[a](none)`', []),
        ('```\n[a](none)\n```\n[b](results/metrics.md#caption "title")', []),
        ("![x](results/none.png)", ["results/none.png: no such file"]),
        ('<img width="3" src="none.png">', ["none.png: no such file"]),
        ("[z](#nowhere)", ["#nowhere: no such heading"]),
    ],
)
def test_link_check(text, problems, root):
    assert link_problems(text, root) == problems


MARK = "<!-- table: results/metrics.md -->\n"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (f"{MARK}| Data | AUC |\n|---|---|\n| demo | 0.968 [0.951, 0.983] |\n", None),
        (f"{MARK}\n| Data | AUC |\n|---|---|\n| demo |  0.968 [0.951, 0.983] |", None),
        ("| script | question |\n|---|---|\n| a | b 0.5 |", None),
        (f"{MARK}| Data | AUC |\n|---|---|\n| demo | 0.969 [0.951, 0.983] |", "demo | 0.969 [0.951, 0.983]"),
        (f"{MARK}| Data | AUC |\n|---|---|\n", "missing"),
        (f"{MARK}No table.\n", "no table after"),
        (MARK, "no table after"),
        ("<!-- table: results/none.md -->\n| a |\n|---|", "no such file"),
        ("| Data | AUC |\n|---|---|\n| demo | 0.968 [0.951, 0.983] |", "has intervals, but no"),
        (f"{MARK}Text.\n\n| Data | AUC |\n|---|---|\n| demo | 0.968 [0.951, 0.983] |", "no table after"),
    ],
)
def test_table_check(text, problem, root):
    found = table_problems(text, root)
    assert bool(found) == bool(problem) and (not problem or problem in found[0]), found


def test_the_timed_recipes_are_those_of_the_results_page():
    from studies.speed.recipes import RECIPES

    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert [name for name, recipe in RECIPES.items() if recipe not in text] == []


def test_the_example_prints_what_the_readme_shows(monkeypatch, capsys):
    import predict

    monkeypatch.chdir(ROOT)
    readme = (ROOT / "README.md").read_text("utf-8")
    shown = re.search(r"\npath,p_fake,verdict,logit,framed,finder\n(\S+)\n(1 image: .*)\n", readme)
    path, p_fake, verdict, logit, *framed = shown[1].split(",")
    predict.main([path, "--face-detector", "cascade"])
    printed = capsys.readouterr()
    found = printed.out.splitlines()[1].split(",")
    assert (found[0], found[2], found[4:], printed.err.splitlines()[-1]) == (path, verdict, framed, shown[2])
    assert [float(found[1]), float(found[3])] == pytest.approx([float(p_fake), float(logit)], abs=0.01)


def test_the_demo_ends_with_the_published_line():
    rows = read_json(ROOT / "results/demo/metrics.json")
    row = next(row for row in rows if row["tier"] == "clean" and row["generator"] == "all")
    shown = re.search(r"^(test demo .*) \.\.\.$", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE)[1]
    assert summary_line(row).startswith(shown)
