"""Figures by metadata column: the right images in each group, and honest marks on small ones."""

import csv

import numpy as np
import pytest

from tests.conftest import make_scored, make_table
from utils.errors import UserError
from utils.evaluation.subgroups import NO_VALUE, read_column, subgroup_rows, write_subgroups
from utils.metrics import binary as metrics


def make_group(n=60):
    rng = np.random.default_rng(0)
    label = np.arange(n) % 2
    return make_table([f"faces/{i:02}.png" for i in range(n)], label, rng.normal(size=n) + 1.5 * label - 0.75)


def test_each_group_is_measured_on_its_own_images():
    table = make_group()
    ages = {path: "old" if i >= 40 else "young" for i, path in enumerate(table.path) if i < 55}
    rows = subgroup_rows(make_scored(table, checkpoint="run"), ages, n_boot=50)
    assert [(row["subgroup"], row["n"], row["note"]) for row in rows] == [
        ("young", 40, ""),
        ("old", 15, ""),
        (NO_VALUE, 5, "fewer than 10 images"),
    ]
    old = slice(40, 55)
    assert rows[1]["auc"] == metrics.auc(table.label[old], table.p_fake[old])
    assert rows[1]["acc_ci"][0] <= rows[1]["acc"] <= rows[1]["acc_ci"][1]
    assert rows[0]["checkpoint"] == "run" and rows[0]["threshold"] == 0.5


def test_paths_agree_however_they_are_spelt():
    table = make_group(12)
    values = {f"./faces/../{path}": "a" for path in table.path}
    assert [row["subgroup"] for row in subgroup_rows(make_scored(table), values, n_boot=0)] == ["a"]


def test_a_group_of_one_class_or_one_image_has_only_the_rates_it_can_have():
    table = make_group(21)
    values = {
        path: "single" if i == 20 else ("real", "fake")[label]
        for i, (path, label) in enumerate(zip(table.path, table.label, strict=True))
    }
    rows = {row["subgroup"]: row for row in subgroup_rows(make_scored(table), values, n_boot=50)}
    assert rows["fake"]["auc"] is None and rows["fake"]["real_acc"] is None and rows["fake"]["fake_acc"] is not None
    assert rows["single"]["n"] == 1 and rows["single"]["acc_ci"] is None and rows["single"]["note"]
    assert not rows["fake"]["note"]


def test_no_path_in_common_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no path in common.*faces/00\.png.*other/1\.png") as error:
        write_subgroups([make_scored(make_group())], "age", {"other/1.png": "x"}, tmp_path, 0)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="no path in common"):
        write_subgroups([make_scored(make_group())], "age", {}, tmp_path, 0)


def test_a_data_set_without_values_is_named_and_left_out(tmp_path, capsys):
    table = make_group()
    other = make_table(["wild/1.png"], np.array([1]), np.array([0.0]))
    sets = [make_scored(table, dataset="faces"), make_scored(other, dataset="wild")]
    paths = write_subgroups(sets, "age", dict.fromkeys(table.path, "old"), tmp_path, 0)
    assert paths[0].read_text().count("\n") == 2
    assert capsys.readouterr().err == "note: no image of wild has a value of age\n"


def test_a_column_of_a_list_is_read_for_the_paths_that_evaluate_uses(image_folder, tmp_path):
    images = sorted((image_folder / "test").rglob("*.png"))
    listed = tmp_path / "list.csv"
    with open(listed, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "generator", "Skin Tone", "age"])
        for i, image in enumerate(images):
            writer.writerow([image.relative_to(tmp_path), image.parent.name, "gan", "dark" if i % 2 else "", i])
    values = read_column(listed, "skin tone")
    assert values == {str(image): "dark" for image in images[1::2]}
    assert set(read_column(listed, "generator").values()) == {"gan", "real"}
    assert len(read_column(listed, "age")) == len(images)
    with pytest.raises(UserError, match=r"age, Skin Tone.*'agee'; did you mean age"):
        read_column(listed, "agee")


def test_the_table_is_written(tmp_path):
    scored = make_scored(make_group(), root="somewhere")
    values = dict.fromkeys(scored.images, "a, b")
    paths = write_subgroups([scored], "Skin tone/type", values, tmp_path, 20)
    assert [path.name for path in paths] == [f"subgroups_skin_tone_type.{kind}" for kind in ("csv", "md", "tex")]
    with open(paths[0], newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["subgroup"] == "a, b" and float(row["auc_low"]) <= float(row["auc"]) <= float(row["auc_high"])
