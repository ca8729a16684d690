"""The commands in results/steps.txt parse, build on each other, and cover what is published."""

import importlib

import pytest

from studies import reproduce
from tests.pages import script_problems
from utils.checkpoint_files import RELEASES
from utils.files import ROOT
from utils.reproduction.steps import Step, read_steps


def test_every_step_is_a_command_that_its_script_takes():
    for step in read_steps(reproduce.STEPS_FILE):
        words = step.command.replace("{data}", "data").replace("{weights}", "w").replace("{out}", "out").split()
        assert script_problems(words, ROOT) == [], step.name


@pytest.mark.parametrize(
    ("command", "output"),
    [
        ("train.py --output-dir {out}/runs/a", "runs/a/best.pt"),
        (
            "-m studies.release --checkpoint {out}/runs/a --output {out}/release/a/deepfake-v9.pt",
            "release/a/deepfake-v9.json",
        ),
        ("-m studies.reconstruct --data {data}/x --output-dir {out}/data/pairs", "data/pairs/."),
        ("-m studies.leave_source_out --output-dir {out}/results/l --runs-dir {out}/runs/l", "results/l/sources.json"),
    ],
)
def test_a_finished_step_has_an_output(command, output):
    assert Step("a", command).output == output


def test_what_a_step_reads_is_made_before():
    found = read_steps(reproduce.STEPS_FILE)
    for place, step in enumerate(found):
        needed = step.needs(found)
        assert {other.name for other in needed} <= {other.name for other in found[:place]}
        covered = [folder for other in needed for folder in other.folders]
        lost = [path for path in step.inputs if not any(f"{path}/".startswith(f"{own}/") for own in covered)]
        assert lost == [], step.name


def test_every_published_table_of_metrics_has_a_step():
    outputs = {step.output for step in read_steps(reproduce.STEPS_FILE)}
    published = {f"results/{file.relative_to(reproduce.COMMITTED)}" for file in ROOT.glob("results/*/metrics.json")}
    assert published - outputs == set()


@pytest.mark.parametrize("name", RELEASES)
def test_a_release_its_figures_and_its_card_are_steps(name):
    found = read_steps(reproduce.STEPS_FILE)
    ends = (f"/{name}.json", f"results/{name}/metrics.json", f"tables/{name}/card.md", "tables/releases/overview.md")
    release, figures, card, table = (next(step for step in found if step.output.endswith(end)) for end in ends)
    assert release in figures.needs(found)
    assert {release, figures} <= set(card.needs(found)) and card in table.needs(found)


@pytest.mark.parametrize(("script", "tables"), [("summarize", ["summary"]), ("releases_table", ["releases/overview"])])
def test_the_tables_made_of_tables_are_those_of_their_results(script, tables, tmp_path, monkeypatch):
    module = importlib.import_module(f"studies.{script}")
    module.main(["--output-dir", str(tmp_path)])
    for table in tables:
        published = reproduce.COMMITTED / f"{table}.md"
        assert (tmp_path / published.name).read_text() == published.read_text()


def test_steps_that_make_tables_of_tables_have_flags_that_exist():
    names = "summarize candidates_table model_card releases_table"
    made_of_tables = {f"studies.{name}" for name in names.split()}
    steps = [step for step in read_steps(reproduce.STEPS_FILE) if step.module in made_of_tables]
    for step in steps:
        module = importlib.import_module(step.module)
        module.get_args_parser().parse_args(step.command.split()[2:])
    assert {step.module for step in steps} == made_of_tables
