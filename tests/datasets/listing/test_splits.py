"""Which images are trained on, chosen on and reported on."""

import shutil
from pathlib import Path

import pytest

from datasets.listing.spec import Record, open_records
from datasets.listing.splits import check_two_classes, count, fake_generators, hold_out, open_training_data
from utils.errors import UserError


def names(listing) -> list[str]:
    return [record.path.removeprefix(listing.root).lstrip("/") for record in listing.records]


def test_a_set_with_all_splits_is_taken_as_it_is(image_folder):
    data = open_training_data([str(image_folder)])
    assert [len(part[0].records) for part in (data.train, data.valid, data.test)] == [16, 8, 8]
    assert [part[0].split for part in (data.train, data.valid, data.test)] == ["train", "valid", "test"]
    assert data.notes == []
    assert [(row["dataset"], row["split"], row["n_real"], row["n_fake"]) for row in data.describe()] == [
        ("faces", "train", 8, 8),
        ("faces", "valid", 4, 4),
    ]
    assert data.describe()[0]["fingerprint"] == open_records(f"{image_folder}@split=train").fingerprint


def test_a_set_without_a_test_split_has_no_test_rows(make_folder):
    folder = make_folder("x", {"train/real": 2, "train/fake": 2, "valid/real": 2, "valid/fake": 2})
    data = open_training_data([str(folder)])
    assert data.test == []
    assert len(data.valid[0].records) == 4


def test_without_a_valid_split_a_tenth_of_the_training_images_is_held_out(make_folder):
    folder = make_folder("x", {"train/real": 100, "train/fake": 100, "test/real": 2, "test/fake": 2})
    data = open_training_data([str(folder)])
    train, valid = set(names(data.train[0])), set(names(data.valid[0]))
    assert not train & valid
    assert train | valid == set(names(open_records(str(folder), "train")))
    assert 8 <= len(valid) <= 36
    assert len(data.test[0].records) == 4
    assert "x has no valid split: a tenth of its training images is held out" in data.notes[0]


def test_without_any_split_nothing_is_left_for_a_test(make_folder):
    folder = make_folder("x", {"real": 30, "fake": 30})
    data = open_training_data([str(folder)])
    assert data.test == []
    assert len(data.train[0].records) + len(data.valid[0].records) == 60
    assert "x has no splits" in data.notes[0]
    assert "there is no test set" in data.notes[0]


def test_two_folders_of_one_name_are_noted(make_folder):
    parts = {f"{split}/{name}": 2 for split in ("train", "valid") for name in ("real", "fake")}
    first, second = (str(make_folder(f"{place}/faces", parts)) for place in "ab")
    assert open_training_data([first, f"{first}@classes=real"]).notes == []
    (note,) = open_training_data([first, second]).notes
    assert note == f"{first} and {second} are both named faces and count as one source; rename one"


def test_what_is_held_out_depends_on_the_names_below_the_folder_only(make_folder, tmp_path, monkeypatch):
    folder = make_folder("x", {"train/real": 40, "train/fake": 40})
    expected = names(open_training_data([str(folder)]).valid[0])
    copy = shutil.copytree(folder, tmp_path / "elsewhere" / "y")
    monkeypatch.chdir(tmp_path)
    for text in (str(copy), "x", "x/", "./x", f"{tmp_path}/elsewhere/../x"):
        assert names(open_training_data([text]).valid[0]) == expected, text
    monkeypatch.chdir(folder)
    for text in (".", "train"):
        held_out = {"/".join(Path(name).parts[-2:]) for name in names(open_training_data([text]).valid[0])}
        assert held_out == {"/".join(Path(name).parts[-2:]) for name in expected}, text


def test_new_images_do_not_move_the_old_ones(make_folder):
    folder = make_folder("x", {"train/real": 60, "train/fake": 60})
    before = [set(names(part)) for part in hold_out(open_records(str(folder), "train"))]
    for index in range(60, 90):
        shutil.copy(folder / "train/fake/000.png", folder / f"train/fake/{index:03}.png")
    after = [set(names(part)) for part in hold_out(open_records(str(folder), "train"))]
    assert all(old <= new for old, new in zip(before, after, strict=True))


@pytest.mark.parametrize("images", [2, 3, 5])
def test_a_handful_of_images_is_enough(make_folder, images):
    """A tenth of a few images may be none of a class; one is taken then."""
    data = open_training_data([str(make_folder("x", {"real": images, "fake": images}))])
    for part in (data.train, data.valid):
        assert count(part[0].records, 0) >= 1
        assert count(part[0].records, 1) >= 1


def test_repeat_multiplies_training_images_only(image_folder, make_folder):
    data = open_training_data([f"{image_folder}@repeat=3"])
    assert [len(part[0].records) for part in (data.train, data.valid, data.test)] == [48, 8, 8]
    folder = make_folder("x", {"train/real": 30, "train/fake": 30})
    once, thrice = open_training_data([str(folder)]), open_training_data([f"{folder}@repeat=3"])
    assert names(thrice.valid[0]) == names(once.valid[0])
    assert len(thrice.train[0].records) == 3 * len(once.train[0].records)
    assert not set(names(thrice.train[0])) & set(names(thrice.valid[0]))


def test_sets_are_mixed_and_stay_apart_in_the_report(image_folder, make_folder):
    other = make_folder("other", {"real": 12, "fake": 12})
    data = open_training_data([str(image_folder), str(other)])
    assert [listing.name for listing in data.train] == ["faces", "other"]
    assert [listing.name for listing in data.valid] == ["faces", "other"]
    assert [listing.name for listing in data.test] == ["faces"]
    assert [row["dataset"] for row in data.describe()] == ["faces", "other", "faces", "other"]


def test_sets_of_one_class_each_make_a_mix_of_two(make_folder):
    reals, fakes = make_folder("photos", {"real": 12}), make_folder("renders", {"fake": 12})
    data = open_training_data([str(reals), str(fakes)])
    assert sum(count(listing.records, 0) for listing in data.train) >= 8
    assert sum(count(listing.records, 1) for listing in data.train) >= 8


def test_one_class_alone_is_refused(make_folder):
    folder = make_folder("photos", {"train/real": 5, "valid/real": 2})
    with pytest.raises(UserError, match="real and fake images in the train split, got 5 real and 0 fake; add a --data"):
        open_training_data([str(folder)])
    folder = make_folder("x", {"train/real": 2, "train/fake": 2, "valid/fake": 2})
    with pytest.raises(UserError, match="in the valid split, got 0 real and 2 fake"):
        open_training_data([str(folder)])


@pytest.mark.parametrize("split", ["train", "test", "all"])
def test_the_splits_are_not_for_the_user_to_choose(image_folder, split):
    with pytest.raises(UserError, match="expected --data without split= for training"):
        open_training_data([f"{image_folder}@split={split}"])


def test_a_set_for_testing_only_is_refused(make_folder):
    folder = make_folder("x", {"test/real": 2, "test/fake": 2})
    with pytest.raises(UserError, match=r"expected a train split in .*, found test only"):
        open_training_data([str(folder)])


def test_unlabelled_images_are_refused(image_folder, tmp_path):
    (tmp_path / "list.csv").write_text("path\nfaces/train/real/000.png\nfaces/train/fake/000.png\n")
    with pytest.raises(UserError, match="label"):
        open_training_data([f"csv:{tmp_path}/list.csv"])
    records = [Record("a", 0, "real"), Record("b", 1, "x"), Record("c", None, "")]
    with pytest.raises(UserError, match="a label for every image of the valid split, got 1 without"):
        check_two_classes(records, "valid")


def test_an_excluded_generator_is_left_to_the_test_split(make_folder):
    counts = {f"{split}/fake/{name}": 3 for split in ("train", "valid", "test") for name in ("gan", "blend")}
    folder = make_folder("x", counts | {f"{split}/real": 3 for split in ("train", "valid", "test")})
    data = open_training_data([str(folder)], ["GAN"])
    found = [fake_generators(part[0]) for part in (data.train, data.valid, data.test)]
    assert found == [["blend"], ["blend"], ["blend", "gan"]]
    assert data.train[0].fingerprint != open_records(str(folder), "train").fingerprint


def test_excluding_works_where_only_some_sets_and_splits_have_the_generator(make_folder):
    first = make_folder(
        "a", {"train/real": 3, "train/fake/gan": 3, "train/fake/blend": 3, "valid/real": 2, "valid/fake/blend": 2}
    )
    second = make_folder("b", {"train/real": 3, "train/fake": 3, "valid/real": 2, "valid/fake": 2})
    data = open_training_data([f"{first}@exclude_generator=blend", str(second)], ["gan"])
    assert [count(listing.records, 1) for listing in data.train] == [0, 3]


def test_a_set_of_one_excluded_generator_is_left_out_as_a_whole(make_folder):
    first = make_folder(
        "faces", {f"{split}/{name}": 4 for split in ("train", "valid") for name in ("real", "fake/gan")}
    )
    second = make_folder("sdxl", {f"{split}/fake": 3 for split in ("train", "valid", "test")})
    data = open_training_data([str(first), str(second)], ["sdxl"])
    assert [listing.name for listing in (*data.train, *data.valid)] == ["faces", "faces"]
    assert [len(listing.records) for listing in data.test] == [3]


def test_an_unknown_generator_to_exclude_lists_those_there_are(image_folder):
    with pytest.raises(UserError, match=r"--exclude-generator with generators of the data \(faces\), got stylegan9"):
        open_training_data([str(image_folder)], ["stylegan9"])


# -------------------------------------------------------------------------------------------- groups and labels


def frames(make_folder, videos: int = 30, each: int = 4) -> Path:
    """Frames NN_F.png of videos; each video has its own class."""
    folder = make_folder("frames", {"real": 0, "fake": 0})
    source = make_folder("source", {"real": 1, "fake": 1})
    for video in range(videos):
        name = ("real", "fake")[video % 2]
        (folder / name).mkdir(parents=True, exist_ok=True)
        for frame in range(each):
            shutil.copy(source / name / "000.png", folder / name / f"{video:02}_{frame}.png")
    return folder


@pytest.mark.parametrize("pattern", [r"(\d+)_\d", r"\d+(?=_)", "/.._"])
def test_groups_of_a_folder_are_not_divided(make_folder, pattern):
    data = open_training_data([f"{frames(make_folder)}@group_by={pattern}"])
    train, valid = ({Path(name).name[:2] for name in names(part[0])} for part in (data.train, data.valid))
    assert valid and not train & valid and len(train | valid) == 30
    assert len(data.valid[0].records) == 4 * len(valid)


def test_groups_of_a_list_are_not_divided_and_do_not_depend_on_the_class(make_folder):
    folder = frames(make_folder)
    files = sorted(folder.rglob("*.png"))
    rows = [f"{file.relative_to(folder)},{file.parent.name},person {int(file.name[:2]) // 4}" for file in files]
    (folder / "list.csv").write_text("path,label,group\n" + "\n".join(rows) + "\n")
    data = open_training_data([f"csv:{folder}/list.csv"])
    groups = [{record.group for record in part[0].records} for part in (data.train, data.valid)]
    assert groups[1] and not groups[0] & groups[1] and len(groups[0] | groups[1]) == 8


def test_a_single_group_of_a_class_stays_in_training(make_folder):
    folder = frames(make_folder, videos=4)
    train, valid = hold_out(open_records(f"{folder}@group_by=real|\\d+_,split=all"))
    assert count(train.records, 0) + count(valid.records, 0) == 8
    assert 0 in (count(train.records, 0), count(valid.records, 0)) and count(valid.records, 1) in (4, 8)


@pytest.mark.parametrize(
    ("pattern", "says"), [("(", "a regular expression"), ("clip", "to match some paths of .*fake/")]
)
def test_wrong_group_patterns_are_one_line(make_folder, pattern, says):
    with pytest.raises(UserError, match=says) as caught:
        open_records(f"{frames(make_folder, 2)}@group_by={pattern},split=all")
    assert "\n" not in str(caught.value)


def test_groups_in_several_splits_are_noted(make_folder):
    folder = make_folder(
        "x", {f"{split}/{name}": 2 for split in ("train", "valid", "test") for name in ("real", "fake")}
    )
    assert "2 groups are in training and in other splits" in open_training_data([f"{folder}@group_by=\\d+"]).notes[0]


@pytest.mark.parametrize("spelling", ["same", "other", "link", "hard link", "two specs"])
def test_an_image_with_both_labels_is_refused(image_folder, tmp_path, spelling):
    image = image_folder / "train/real/000.png"
    other = {"other": "faces/../faces/train/real/000.png"}.get(spelling, "faces/train/real/000.png")
    if spelling in ("link", "hard link"):
        other = "copy.png"
        (tmp_path / other).symlink_to(image) if spelling == "link" else (tmp_path / other).hardlink_to(image)
    rows = [f"faces/train/{name}/{n:03}.png,{name},train" for name in ("real", "fake") for n in range(4)]
    rows += [f"faces/valid/{name}/000.png,{name},valid" for name in ("real", "fake")] + [f"{other},fake,train"]
    (tmp_path / "list.csv").write_text("\n".join(["path,label,split", *rows]) + "\n")
    specs = [f"csv:{tmp_path}/list.csv"]
    if spelling == "two specs":
        (tmp_path / "list.csv").write_text(
            f"path,label,split\n{other},fake,train\nfaces/valid/real/000.png,real,valid\n"
        )
        specs.append(str(image_folder))
    with pytest.raises(UserError, match=r"one label per image, got real and fake for 1, such as .*000\.png"):
        open_training_data(specs)


def test_a_spec_says_which_parts_a_run_takes(make_folder):
    counts = {f"{split}/{label}": 4 for split in ("train", "valid", "test") for label in ("real", "fake")}
    whole, flat = make_folder("x", counts), make_folder("y", {"train/real": 30, "train/fake": 30})

    def parts(*specs):
        data = open_training_data(specs)
        return [
            [(listing.name, len(listing.records)) for listing in part] for part in (data.train, data.valid, data.test)
        ]

    assert parts(str(whole)) == [[("x", 8)], [("x", 8)], [("x", 8)]]
    assert parts(f"{whole}@use=train+valid") == [[("x", 8)], [("x", 8)], []]
    assert parts(str(whole), f"{flat}@use=train") == [[("x", 8), ("y", 60)], [("x", 8)], [("x", 8)]]
    held_out = parts(f"{flat}@use=train+val")
    assert held_out[0][0][1] + held_out[1][0][1] == 60 and held_out[1]
    with pytest.raises(UserError, match="expected images in the valid split, got none; use="):
        parts(f"{whole}@use=train+test")
    for wrong in ("valid", "all", "train+vlid"):
        with pytest.raises(UserError, match="expected"):
            parts(f"{whole}@use={wrong}")
