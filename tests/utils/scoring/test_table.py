"""The scores file gives back what was written, bit for bit, and refuses what is not one."""

import json
from pathlib import Path

import numpy as np
import pytest

from utils.errors import UserError
from utils.files import atomic_write_bytes, atomic_write_text, plain_values, read_json, write_json
from utils.scoring.table import (
    COLUMNS,
    ScoreTable,
    read_scores,
    read_sidecar,
    sidecar_path,
    write_scores,
    write_sidecar,
)

AWKWARD_PATHS = [
    "a.jpg",
    "with, comma.png",
    'with "quotes".png',
    "line\nbreak.png",
    "carriage\rreturn.png",
    "d\xe9j\xe0 vu/\u4eba.webp",
    "not-utf8-\udcff.jpg",
    " space ",
]


N_ROWS = len(AWKWARD_PATHS)
HEADER = ",".join(COLUMNS)


def make_table(n=N_ROWS, seed=0):
    rng = np.random.default_rng(seed)
    logit = np.concatenate([[0.1, -1e-310, 3e300, 1 / 3], rng.normal(size=max(0, n - 4)) * 7])[:n]
    return ScoreTable(
        path=AWKWARD_PATHS[:n],
        label=np.arange(n) % 2,
        dataset=["demo"] * n,
        generator=["stylegan" if i % 2 else "real" for i in range(n)],
        tier=["clean", "web"] * (n // 2) + ["web"] * (n % 2),
        logit=logit,
        p_fake=rng.random(n),
    )


def write_csv(path, *rows, header=HEADER):
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def test_scores_come_back_bit_equal(tmp_path):
    table = make_table()
    write_scores(tmp_path / "new folder" / "scores.csv", table)
    back = read_scores(tmp_path / "new folder" / "scores.csv")
    for name in COLUMNS:
        written, read = getattr(table, name), getattr(back, name)
        if isinstance(written, np.ndarray):
            assert written.tobytes() == read.tobytes() and written.dtype == read.dtype, name
        else:
            assert written == read, name


def test_float32_logits_keep_their_value(tmp_path):
    table = make_table(2)
    table = ScoreTable(**{**vars(table), "logit": np.array([0.1, -2.7], dtype=np.float32)})
    write_scores(tmp_path / "s.csv", table)
    assert read_scores(tmp_path / "s.csv").logit.astype(np.float32).tolist() == table.logit.tolist()


def test_column_order_further_columns_and_a_byte_order_mark_do_not_matter(tmp_path):
    path = tmp_path / "s.csv"
    path.write_text(
        "\ufeffp_fake,note,logit,tier,generator,dataset,label,path\r\n0.75,x,1.5,clean,g,d,1,a.jpg\r\n\r\n",
        encoding="utf-8",
    )
    table = read_scores(path)
    assert (table.path, table.label.tolist(), table.logit.tolist(), table.p_fake.tolist()) == (
        ["a.jpg"],
        [1],
        [1.5],
        [0.75],
    )


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "got none"),
        (["a,1,d,g,clean,nan,0.5"], "column logit .* got 1 of 1 NaN"),
        (["a,1,d,g,clean,1.0,nan"], "column p_fake"),
        (["a,1,d,g,clean,-inf,0.5"], "infinite"),
        (["a,1,d,g,clean,1.0,1.5"], r"p_fake in \[0, 1\]"),
        (["a,1,d,g,clean,one,0.5"], "column logit, image row 1 .* got 'one'"),
        (["a,2,d,g,clean,1.0,0.5"], "labels 0 .* the first is 2"),
        (["a,,d,g,clean,1.0,0.5"], "column label"),
        (["a,1,d,g,clean,1.0"], "expected 7 fields in image row 1 .* got 6"),
        (["a,1,d,g,clean,1.0,0.5", "a,1,d,g,clean,1.0,0.5"], r"1 repeated, the first is a \(d, clean\) 2 times"),
    ],
)
def test_a_broken_scores_file_is_named_in_one_line(tmp_path, rows, message):
    path = write_csv(tmp_path / "broken.csv", *rows)
    with pytest.raises(UserError, match=message) as caught:
        read_scores(path)
    assert "broken.csv" in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file_or_column_is_named(tmp_path):
    with pytest.raises(UserError, match=r"scores file at .*absent\.csv, got no such file"):
        read_scores(tmp_path / "absent.csv")
    with pytest.raises(UserError, match="missing: generator, tier, p_fake"):
        read_scores(write_csv(tmp_path / "s.csv", header="path,label,dataset,logit"))
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(UserError, match="an empty file"):
        read_scores(tmp_path / "empty.csv")
    (tmp_path / "binary.csv").write_bytes(b'"' + bytes(200_000))
    with pytest.raises(UserError, match="not CSV"):
        read_scores(tmp_path / "binary.csv")
    with pytest.raises(UserError, match="scores file at"):
        read_scores(tmp_path)


def test_the_same_image_in_another_tier_or_dataset_is_no_copy(tmp_path):
    path = write_csv(tmp_path / "s.csv", "a,1,d,g,clean,1,0.5", "a,1,d,g,web,1,0.5", "a,1,e,g,web,1,0.5")
    assert len(read_scores(path)) == 3


def test_nothing_broken_is_written(tmp_path):
    table = make_table()
    table.logit[2:4] = np.nan
    with pytest.raises(UserError, match=f"2 of {len(table)} NaN"):
        write_scores(tmp_path / "s.csv", table)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="equal length"):
        ScoreTable(**{**vars(table), "tier": ["clean"]})


def test_select_groups_and_join():
    table = make_table()
    groups = dict(table.groups("dataset", "tier"))
    assert list(groups) == [("demo", "clean"), ("demo", "web")]
    assert groups["demo", "web"].path == AWKWARD_PATHS[1::2]
    assert groups["demo", "web"].p_fake.tolist() == table.p_fake[1::2].tolist()
    joined = ScoreTable.join(list(groups.values()))
    assert joined.path == AWKWARD_PATHS[::2] + AWKWARD_PATHS[1::2] and joined.label.dtype == table.label.dtype
    assert len(table.select(table.label > 5)) == 0


def test_the_sidecar_comes_back_and_is_optional(tmp_path):
    scores = tmp_path / "run.v2.csv"
    assert read_sidecar(scores)["unreadable"] == [] and read_sidecar(scores)["threshold"] is None
    written = write_sidecar(
        scores,
        model="cnn",
        threshold=np.float64(0.1),
        thresholds={"balanced": 0.1},
        unreadable=[{"path": "x.jpg", "reason": "truncated"}],
        n_images=3,
        seed=1,
    )
    assert written == sidecar_path(scores) == tmp_path / "run.v2.json"
    info = read_sidecar(scores)
    assert (info["model"], info["threshold"], info["n_images"], info["seed"]) == ("cnn", 0.1, 3, 1)
    assert info["unreadable"] == [{"path": "x.jpg", "reason": "truncated"}] and info["checkpoint"] is None
    for broken in ("[]", "{", '{"unreadable": ["x.jpg"]}'):
        written.write_text(broken)
        with pytest.raises(UserError, match=r"run\.v2\.json"):
            read_sidecar(scores)
    with pytest.raises(UserError, match=r"ends in \.csv"):
        write_sidecar(tmp_path / "scores.json")


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    target = tmp_path / "s.csv"
    atomic_write_text(target, "old")

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("utils.files.os.fsync", full_disk)
    with pytest.raises(UserError, match="No space left on device"):
        atomic_write_text(target, "new")
    assert target.read_text() == "old" and list(tmp_path.iterdir()) == [target]


def test_an_interrupt_while_writing_leaves_the_old_file(tmp_path, monkeypatch):
    target = tmp_path / "s.csv"
    atomic_write_text(target, "old")

    def interrupt(*names):
        raise KeyboardInterrupt

    monkeypatch.setattr("utils.files.os.replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        atomic_write_text(target, "new")
    assert target.read_text() == "old" and list(tmp_path.iterdir()) == [target]


def test_writing_to_a_folder_or_below_a_file_is_the_users_mistake(tmp_path):
    (tmp_path / "file").write_text("x")
    for path in (tmp_path, tmp_path / "file" / "s.csv"):
        with pytest.raises(UserError, match="expected to write"):
            atomic_write_bytes(path, b"x")
    assert [item.name for item in tmp_path.iterdir()] == ["file"]


def test_a_link_is_followed_and_a_device_survives(tmp_path):
    (tmp_path / "real.csv").write_text("old")
    (tmp_path / "link.csv").symlink_to("real.csv")
    atomic_write_text(tmp_path / "link.csv", "new")
    assert (tmp_path / "link.csv").is_symlink() and (tmp_path / "real.csv").read_text() == "new"
    (tmp_path / "null").symlink_to("/dev/null")
    atomic_write_text(tmp_path / "null", "gone")
    assert (tmp_path / "null").is_char_device()


def test_json_holds_plain_values_only(tmp_path):
    value = {
        "a": np.float32(0.5),
        "b": np.array([1.0, np.nan]),
        "c": float("inf"),
        3: (np.int64(2), np.bool_(True)),
        "path": tmp_path,
        "third": 1 / 3,
        "none": None,
    }
    write_json(tmp_path / "v.json", value)
    assert (
        json.loads((tmp_path / "v.json").read_text())
        == read_json(tmp_path / "v.json")
        == {"a": 0.5, "b": [1.0, None], "c": None, "3": [2, True], "path": str(tmp_path), "third": 1 / 3, "none": None}
    )
    with pytest.raises(TypeError, match="object"):
        plain_values(object())


def test_compressed_scores_read_back_alike_and_have_the_same_bytes_each_time(tmp_path):
    table = make_table()
    for name in ("a.csv.gz", "b.csv.gz"):
        write_scores(tmp_path / name, table)
    write_scores(tmp_path / "a.csv", table)
    data = (tmp_path / "a.csv.gz").read_bytes()
    assert data == (tmp_path / "b.csv.gz").read_bytes() and len(data) < len((tmp_path / "a.csv").read_bytes())
    assert vars(read_scores(tmp_path / "a.csv.gz"))["path"] == read_scores(tmp_path / "a.csv").path
    assert sidecar_path("x/run.v2.csv.gz") == sidecar_path("x/run.v2.csv") == Path("x/run.v2.json")
    for broken in (data[:-9], data[:20], data[:-4] + b"\1\2\3\4"):
        (tmp_path / "broken.csv.gz").write_bytes(broken)
        with pytest.raises(UserError, match="damaged gzip file"):
            read_scores(tmp_path / "broken.csv.gz")


@pytest.mark.parametrize("change", [{"threshold": "x"}, {"split": 3}, {"unreadable": ["a.png"]}])
def test_a_sidecar_of_other_kinds_is_refused(change, tmp_path):
    sidecar = write_sidecar(tmp_path / "a.csv", checkpoint="net", threshold=0.5, split="test")
    sidecar.write_text(json.dumps({**json.loads(sidecar.read_text()), **change}))
    with pytest.raises(UserError, match="expected an object with names, a threshold and a list 'unreadable'"):
        read_sidecar(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("path", "root", "wanted"),
    [("a/b/c.png", "a/b", "c.png"), ("a/bc.png", "a/b", "a/bc.png"), ("/x/c.png", "", "/x/c.png"), ("c", "c", "c")],
)
def test_paths_relative_to_the_set(path, root, wanted):
    table = ScoreTable([path], np.array([1]), ["d"], ["g"], ["clean"], np.zeros(1), np.full(1, 0.5))
    assert table.relative_to(root).path == [wanted]
