"""Docs: their code runs, their commands parse, their links and tables hold."""

import re

import pytest
import torch

from tests.pages import CHECKPOINT_PAGES, command_problems, link_problems, table_problems, tables
from utils.checkpoint_files import RELEASES
from utils.errors import UserError
from utils.files import ROOT

PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "CHANGELOG.md", *CHECKPOINT_PAGES]
BLOCK = re.compile(r"^```python\n# (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
EXAMPLES = dict(BLOCK.findall((ROOT / "docs" / "extending.md").read_text(encoding="utf-8")))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_links_tables_and_numbers_of_a_page(page):
    text = page.read_text(encoding="utf-8")
    assert command_problems(text, ROOT) == []
    assert link_problems(text, page.parent) == []
    assert table_problems(text, ROOT) == []


def test_every_page_is_held_to_its_word_and_has_one_title():
    assert {"method.md", "results.md", "limits.md", "extending.md"} <= {page.name for page in PAGES}
    for page in PAGES:
        assert re.findall(r"^# .+", page.read_text(encoding="utf-8"), re.MULTILINE)[0]


@pytest.mark.parametrize("name", RELEASES)
def test_the_model_card_has_every_section_and_table(name):
    text = (ROOT / "checkpoints" / f"{name}.md").read_text(encoding="utf-8")
    sections = (
        "Identity, Summary, Training data and their terms, Licence of the weights, Intended use, Out-of-scope use, "
    )
    sections += "Thresholds, Figures, Verdicts, Limits, Ethics"
    assert [section for section in sections.split(", ") if f"## {section}\n" not in text] == []
    shown = [source for source, _ in tables(text) if source]
    assert sorted(shown) == [f"results/{name}/{table}.md" for table in ("card", "identity", "overview", "verdicts")]
    for page in (ROOT / "README.md", ROOT / "checkpoints" / "README.md"):
        assert f"{name}.md" in page.read_text(encoding="utf-8")


def test_worked_example_of_base_rates():
    """The arithmetic of docs/limits.md, from the two rates that it names."""
    text = " ".join((ROOT / "docs" / "limits.md").read_text(encoding="utf-8").split())
    rates = re.search(r"calls (\d+) % of the reals real and (\d+) % of the fakes fake", text)
    real_acc, fake_acc = (int(value) / 100 for value in rates.groups())
    hits, alarms = 10 * fake_acc, 9990 * (1 - real_acc)
    assert f"| 10 fakes | {hits:.1f} | {10 - hits:.1f} |" in text
    assert f"| 9,990 reals | {alarms:.1f} | {9990 - alarms:,.1f} |" in text
    shares = [fake_acc * q / (fake_acc * q + (1 - real_acc) * (1 - q)) for q in (0.001, 0.01, 0.5)]
    rare, some, half = (f"{share:.0%}".replace("%", " %") for share in shares)
    assert f"which is {rare} at q = 0.1 %, {some} at 1 % and {half} at 50 %" in text


def test_citation_names_the_version_of_the_changelog():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    version, day = re.search(r"^## (\S+) \((\S+)\)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE).groups()
    assert f"\nversion: {version}\n" in citation and f'\ndate-released: "{day}"\n' in citation
    assert f'\nversion = "{version}"\n' in (ROOT / "pyproject.toml").read_text()
    assert "\nlicense: MIT\n" in citation and (ROOT / "LICENSE").read_text().startswith("MIT License")


# ------------------------------------------------------------------------------------ the examples of extending.md


@pytest.fixture
def run_example():
    """Return a function that runs the example for a file; the registries are restored after the test."""
    from datasets.listing.spec import KINDS
    from models import registry
    from utils.attacks import registry as attack_registry
    from utils.explanations import registry as explanations

    tables = [KINDS, registry._FACTORIES, attack_registry._ATTACKS, explanations._METHODS]
    registry.list_models()  # registers the project's own before the tables are copied
    explanations.all_methods()
    attack_registry._register_all()
    before = [dict(table) for table in tables]

    def run(path: str) -> dict:
        for named, defined in re.findall(r'@register_\w+(?:\("([\w-]+)")?.*?\ndef (\w+)', EXAMPLES[path]):
            for table in tables:  # a reader may have saved the example where the page says
                table.pop(named or defined, None)
        scope: dict = {"__name__": "example"}
        exec(compile(EXAMPLES[path], path, "exec"), scope)
        return scope

    yield run
    for table, known in zip(tables, before, strict=True):
        table.clear()
        table.update(known)


def test_there_is_one_example_for_each_kind_of_part():
    assert len(EXAMPLES) == 4 and all(code.count("\n") <= 30 for code in EXAMPLES.values())


def test_example_architecture_scores_and_learns(run_example):
    from models.registry import create_model

    run_example("models/ring_net.py")
    detector = create_model("ring_net", rings=8)
    images = torch.rand(3, 3, 40, 48)
    logits = detector(images)
    assert logits.shape == (3,)
    logits.sum().backward()
    assert detector.head.weight.grad.abs().sum() > 0
    with pytest.raises(UserError, match="rings"):
        create_model("ring_net", circles=8)


def test_example_data_set_is_listed(run_example, make_folder, tmp_path, monkeypatch):
    from datasets.listing.spec import KINDS, Kind, open_records

    example = run_example("datasets/named_files.py")
    monkeypatch.setitem(KINDS, "names", Kind(example["read_named_files"]))
    folder = make_folder("names", {"real": 2, "fake": 2})
    for file in [*folder.glob("real/*"), *folder.glob("fake/*")]:
        words = "real" if file.parent.name == "real" else "fake_stylegan"
        file.rename(folder / f"{words}_{file.name}")
    listing = open_records(f"names:{folder}")
    assert [(record.label, record.generator) for record in listing.records] == [(1, "stylegan")] * 2 + [(0, "real")] * 2
    with pytest.raises(UserError, match="expected real_"):
        open_records(f"names:{tmp_path}")


def test_example_attack_stays_in_the_ball_and_does_harm(run_example):
    from utils.attacks.gradient import margin_of
    from utils.attacks.registry import run_attack
    from utils.attacks.threat_model import Plan

    run_example("utils/attacks/methods/corners.py")
    weights = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(0))
    images, labels = torch.full((4, 3, 8, 8), 0.5), torch.tensor([0.0, 1.0, 0.0, 1.0])

    def logit_of(x):
        return (x * weights).sum((1, 2, 3))

    attacked = run_attack(Plan("corners", "linf", 8 / 255, queries=20), logit_of, images, labels)
    assert (attacked - images).abs().max() <= 8 / 255 + 1e-6
    assert (margin_of(logit_of, attacked, labels) > margin_of(logit_of, images, labels)).all()


def test_example_explanation_makes_maps(run_example):
    from models.registry import create_model
    from utils.explanations.maps import explain

    run_example("utils/explanations/methods/sensitivity.py")
    torch.manual_seed(0)
    detector = create_model("cnn", width=4).eval()
    heat = explain(detector, torch.rand(2, 3, 64, 64), ["sensitivity"], torch.ones(2))["sensitivity"]
    assert heat.shape == (2, 64, 64) and heat.min() >= 0 and heat.max() > 0
