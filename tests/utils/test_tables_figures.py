"""Tables in three formats, and figures that are drawn, legible in grey and the same each time."""

import csv
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.conftest import make_scores
from utils import figures
from utils.evaluation import figures as score_figures
from utils.evaluation.curves import confusion, pr_curve, reliability, roc_curve
from utils.files import ROOT
from utils.tables import csv_table, format_value, latex_table, markdown_table, unique_names, write_table

COLUMNS = [("model", "Model"), ("n_fake", "Fakes"), ("auc", "AUC"), ("acc", "Acc. %")]
ROWS = [
    {"model": "efficientnet_b0", "n_fake": 100, "auc": 0.96812345678, "auc_ci": [0.951, 0.98349], "acc": None},
    {"model": "a|b & 50%", "n_fake": 7, "auc": np.float64("nan"), "auc_ci": None, "acc": np.float32(0.5)},
]


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["a", "b"], ["a", "b"]),
        (["a", "b", "a"], ["a-1", "b", "a-2"]),
        (["a", "a", "a-1"], ["a-2", "a-3", "a-1"]),
        (["a", "a", "a-1", "a-1"], ["a-2", "a-3", "a-1-1", "a-1-2"]),
    ],
)
def test_unique_names(names, wanted):
    assert unique_names(names) == wanted


@pytest.mark.parametrize(
    ("value", "fmt", "interval", "text"),
    [
        (0.96812, ".3f", [0.951, 0.98349], "0.968 [0.951, 0.983]"),
        (0.5, ".1%", None, "50.0%"),
        (np.float64(0.25), ".2f", None, "0.25"),
        (None, ".3f", [0.1, 0.2], "\N{EN DASH}"),
        (float("nan"), ".3f", None, "\N{EN DASH}"),
        (12, ".3f", None, "12"),
        (np.int64(12), ".3f", None, "12"),
        (True, ".3f", None, "yes"),
        ("cnn", ".3f", None, "cnn"),
    ],
)
def test_format_value(value, fmt, interval, text):
    assert format_value(value, fmt, interval) == text


def test_markdown_is_aligned_and_keeps_cells_apart():
    assert markdown_table(ROWS, COLUMNS) == (
        "| Model           | Fakes |                  AUC | Acc. % |\n"
        "| --------------- | ----: | -------------------: | -----: |\n"
        "| efficientnet_b0 |   100 | 0.968 [0.951, 0.983] |      \N{EN DASH} |\n"
        "| a\\|b & 50%      |     7 |                    \N{EN DASH} |  0.500 |\n"
    )
    assert markdown_table([], COLUMNS).count("\n") == 2


def test_latex_is_escaped_booktabs():
    text = latex_table(ROWS, COLUMNS, caption="100% of model_names", label="tab:x")
    assert r"efficientnet\_b0 & 100 & 0.968 [0.951, 0.983] & -- \\" in text
    assert r"a|b \& 50\% & 7 & -- & 0.500 \\" in text
    assert r"\caption{100\% of model\_names}" in text and r"\begin{tabular}{lrrr}" in text
    assert [rule for rule in ("toprule", "midrule", "bottomrule") if text.count(rule) != 1] == []
    assert not re.search(r"(?<!\\)[_%&](?! )(?<!% needs)", text.split("toprule")[1].replace(" & ", " ")), text


def test_csv_has_full_precision_and_the_interval_in_columns_of_its_own():
    lines = list(csv.DictReader(csv_table(ROWS, COLUMNS).splitlines()))
    assert list(lines[0]) == ["model", "n_fake", "auc", "auc_low", "auc_high", "acc"]
    assert float(lines[0]["auc"]) == 0.96812345678 and float(lines[0]["auc_high"]) == 0.98349
    assert lines[1]["auc"] == lines[1]["auc_low"] == lines[0]["acc"] == ""


def test_write_table_writes_three_files_and_keeps_dots_in_the_stem(tmp_path):
    paths = write_table(ROWS, COLUMNS, tmp_path / "eps_0.5", caption="Caption.", fmt={"acc": ".0%"})
    assert [path.name for path in paths] == ["eps_0.5.csv", "eps_0.5.md", "eps_0.5.tex"]
    markdown = paths[1].read_text(encoding="utf-8")
    assert markdown.startswith("Caption.\n\n| Model") and "50%" in markdown and "0.968" in markdown
    assert sorted(tmp_path.iterdir()) == sorted(paths)


def all_figures():
    labels, p_fake = make_scores()
    roc, pr = roc_curve(labels, p_fake), pr_curve(labels, p_fake)
    history = [
        {"epoch": "1", "train_loss": "0.6", "valid_loss": "0.7", "valid_auc": "", "lr": "0.001"},
        {"epoch": "2", "train_loss": "0.4", "valid_loss": "0.5", "valid_auc": "0.8", "lr": "0.0001"},
    ]
    return {
        "roc": score_figures.roc_figure({"a_b": roc[:2], "b": roc[:2]}),
        "pr": score_figures.pr_figure({"a": pr[:2]}),
        "confusion": score_figures.confusion_figure(confusion(labels, p_fake, 0.5)),
        "histogram": score_figures.score_histogram_figure(labels, p_fake, 0.5),
        "reliability": score_figures.reliability_figure({"a": reliability(labels, p_fake)}),
        "training": figures.training_curve_figure(history, title="cnn"),
        "intervals": figures.interval_bar_figure(["a", "b"], [0.9, None], [(0.8, 0.95), None], chance=0.5),
    }


@pytest.fixture(scope="module")
def drawn():
    return all_figures()


def texts(figure):
    import matplotlib.text

    return {item.get_text() for item in figure.findobj(matplotlib.text.Text) if item.get_text()}


def test_every_figure_has_ink_and_fits_its_page(drawn):
    for name, figure in drawn.items():
        figure.canvas.draw()
        ink = np.asarray(figure.canvas.buffer_rgba())[..., :3].mean(axis=2) < 200
        assert 0.005 < ink.mean() < 0.6, name
        frame = np.concatenate([ink[0], ink[-1], ink[:, 0], ink[:, -1]])
        assert not frame.any(), f"{name}: something is cut off at the edge"


def test_saved_figures_are_the_same_each_time(tmp_path, rendered):
    labels, p_fake = make_scores()
    saved = []
    for stem in ("first.v1", "again.v1"):
        figure = score_figures.score_histogram_figure(labels, p_fake, 0.5)
        paths = figures.save_figure(figure, tmp_path / stem)
        assert [path.name for path in paths] == [f"{stem}.pdf", f"{stem}.png"]
        saved.append([path.read_bytes() for path in paths])
    assert saved[0] == saved[1]
    with Image.open(tmp_path / "first.v1.png") as image:
        assert image.size == (1080, 680), "5.4 x 3.4 inches at 200 dpi"
    assert b"CreationDate" not in saved[0][0]
    assert b"/Type3" not in saved[0][0], "embed TrueType fonts: journals refuse Type 3"


def test_figures_say_what_they_show(drawn):
    assert {"a_b", "b", "chance"} <= texts(drawn["roc"])
    labels, p_fake = make_scores()
    counts = confusion(labels, p_fake, 0.5)
    assert f"{counts[0, 0] / counts[0].sum():.1%}\n({counts[0, 0]})" in texts(drawn["confusion"])
    assert f"real (n = {np.sum(labels == 0)})" in texts(drawn["histogram"])
    assert "best: 0.800 (epoch 2)" in texts(drawn["training"])
    assert {"0.900 [0.800, 0.950]", "\N{EN DASH}"} <= texts(drawn["intervals"])


def test_curves_can_be_told_apart_without_colour():
    styles = [figures.line_style(index) for index in range(8)]
    assert len({(style["linestyle"], style["marker"]) for style in styles}) == 8
    assert len({style["color"] for style in styles}) == 8


def test_figures_survive_little_data():
    empty = np.zeros((0,))
    one_class = np.ones(3, dtype=int)
    for figure in (
        score_figures.roc_figure({}),
        score_figures.roc_figure({"perfect": (np.array([0.0, 0.0, 1.0]), np.array([0.0, 1.0, 1.0]))}),
        score_figures.pr_figure({"two points": (np.array([0.0, 1.0]), np.array([1.0, 0.5]))}),
        score_figures.confusion_figure(np.array([[0, 0], [1, 2]])),
        score_figures.score_histogram_figure(one_class, np.array([0.2, 1.0, 1.0]), 0.5),
        score_figures.reliability_figure({"a": reliability(empty, empty)}),
        figures.training_curve_figure([{"epoch": 1, "train_loss": 0.5, "valid_loss": None, "valid_auc": None}]),
        figures.interval_bar_figure([], []),
    ):
        figure.canvas.draw()


def test_figures_leave_matplotlib_as_it_was_and_cost_nothing_to_import():
    import matplotlib

    before = dict(matplotlib.rcParams)
    all_figures()
    assert dict(matplotlib.rcParams) == before
    code = "import sys, utils.figures, utils.evaluation.figures; print('matplotlib' in sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert printed.stdout.strip() == "False"
