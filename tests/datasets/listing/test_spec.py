"""Dataset specs: parsing, options, and the datasets behind the published tables."""

import sys
import types
from collections import Counter
from pathlib import Path

import pytest

from datasets.listing.spec import KINDS, DatasetSpec, Kind, Record, Source, open_records, parse_spec
from tests.datasets.conftest import counts, one_line
from utils.errors import UserError
from utils.files import ROOT

SHARED = ROOT.parent / "shared" / "data"


# Parsing


@pytest.mark.parametrize(
    ("text", "kind", "location", "options"),
    [
        ("demo", "demo", "", {}),
        ("demo@n=60,seed=0", "demo", "", {"n": "60", "seed": "0"}),
        ("data/140k", "folder", "data/140k", {}),
        ("data/x@split=test,limit=500", "folder", "data/x", {"split": "test", "limit": "500"}),
        ("csv:lists/wild.csv", "csv", "lists/wild.csv", {}),
        ("csv:a.csv@labels=0:real+1:fake", "csv", "a.csv", {"labels": "0:real+1:fake"}),
        ("C:\\faces", "folder", "C:\\faces", {}),
        ("C:\\faces@limit=2", "folder", "C:\\faces", {"limit": "2"}),
        ("me@home/x", "folder", "me@home/x", {}),
        ("me@home/x@limit=2", "folder", "me@home/x", {"limit": "2"}),
        ("folder:demo", "folder", "demo", {}),
        ("folder:csv:odd", "folder", "csv:odd", {}),
    ],
)
def test_specs_parse_and_print_back(text, kind, location, options):
    spec = parse_spec(text)
    assert (spec.kind, spec.location, spec.options) == (kind, location, options)
    assert str(spec) == text
    assert parse_spec(spec) == spec


def test_other_spellings_mean_the_same():
    assert parse_spec("demo:@n=60") == parse_spec("demo@n=60")
    assert parse_spec("folder:data/x") == parse_spec("data/x")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "without|no location"),
        ("csv:", "no location"),
        ("demo:somewhere", "demo set has no location"),
        ("data/x@limt=5", "limit"),
        ("data/x@n=5", "split, limit, repeat"),
        ("data/x@limit=0", "whole number >= 1"),
        ("data/x@limit=ten", "whole number"),
        ("data/x@limit=", "key=value"),
        ("data/x@limit=5,limit=6", "each key once"),
        ("data/x@limit=5,test", "key=value"),
        ("data/x@classes=cat", "classes=real"),
        ("data/x@split=tset", "train, valid, test or all"),
        ("data/x@repeat=-1", "whole number"),
    ],
)
def test_wrong_specs_say_what_is_wrong(text, told):
    with pytest.raises(UserError, match=told) as caught:
        parse_spec(text)
    one_line(caught)


def test_unknown_option_names_the_closest():
    with pytest.raises(UserError, match=r"did you mean exclude_generator\?"):
        parse_spec("data/x@exclude_generators=a")


def test_a_new_kind_is_one_entry(monkeypatch):
    def read(spec: DatasetSpec) -> Source:
        return Source(spec.location, "", {"": [Record("a.jpg", 0, "real")]})

    monkeypatch.setitem(KINDS, "wds", Kind(read, ("shards",)))
    assert open_records("wds:x.tar@shards=3").name == "x.tar"


def test_default_split_must_exist_and_spec_wins(build):
    root = build("train/real 1,test/real 2")
    assert open_records(f"{root}@split=test", default_split="train").split == "test"
    assert open_records(str(root), default_split="train").split == "train"
    with pytest.raises(UserError, match="expected a valid split"):
        open_records(str(root), default_split="valid")


# Options


def test_limit_is_balanced_repeatable_and_nested(build):
    root = build("real 20,fake 6")
    small, large = (open_records(f"{root}@limit={n}").records for n in (8, 18))
    assert counts(small) == {(0, "real"): 4, (1, "faces"): 4}
    assert counts(large) == {(0, "real"): 12, (1, "faces"): 6}
    assert {r.path for r in small} < {r.path for r in large}
    assert [r.path for r in small] == sorted(r.path for r in small)
    # Not the first ones: file names often follow the person or the video.
    assert [Path(r.path).name for r in small if r.label == 0] != [f"real_{n:03d}.jpg" for n in range(4)]
    assert len(open_records(f"{root}@limit=999").records) == 26


def test_limit_draws_the_same_images_on_every_machine(build):
    first = open_records(f"{build('real 9,fake 9', 'one/faces')}@limit=6")
    second = open_records(f"{build('real 9,fake 9', 'two/faces')}@limit=6")
    assert [Path(r.path).name for r in first.records] == [Path(r.path).name for r in second.records]
    assert first.fingerprint == second.fingerprint


def test_repeat_weighs_but_keeps_the_fingerprint(build):
    root = build("real 2,fake 1")
    once, thrice = open_records(str(root)), open_records(f"{root}@repeat=3")
    assert counts(thrice) == {(0, "real"): 6, (1, "faces"): 3}
    assert once.fingerprint == thrice.fingerprint


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("generator=progan", {(0, "real"): 1, (1, "ProGAN"): 2}),
        ("generator=ProGAN+sd", {(0, "real"): 1, (1, "ProGAN"): 2, (1, "sd"): 3}),
        ("exclude_generator=progan", {(0, "real"): 1, (1, "sd"): 3}),
        ("classes=fake,exclude_generator=sd", {(1, "ProGAN"): 2}),
        ("classes=real", {(0, "real"): 1}),
    ],
)
def test_filters(build, options, expected):
    assert counts(open_records(f"{build('real 1,fake/ProGAN 2,fake/sd 3')}@{options}")) == expected


def test_a_generator_that_one_split_lacks_can_be_excluded(build):
    root = build("train/real 1,train/fake/progan 1,train/fake/sd 2,valid/real 1,valid/fake/progan 1")
    assert counts(open_records(f"{root}@exclude_generator=sd,split=valid")) == {(0, "real"): 1, (1, "progan"): 1}


def test_unknown_generator_names_those_present(build):
    with pytest.raises(UserError, match=r"progan, sd.*did you mean progan\?"):
        open_records(f"{build('real 1,fake/progan 1,fake/sd 1')}@generator=progn")


def test_fingerprint_sees_names_labels_and_sizes(build):
    root = build("real 2,fake 2")
    prints = [open_records(str(root)).fingerprint]
    (root / "real" / "real_000.jpg").rename(root / "real" / "renamed.jpg")
    prints.append(open_records(str(root)).fingerprint)
    with open(root / "fake" / "fake_000.jpg", "ab") as file:
        file.write(b"\0")
    prints.append(open_records(str(root)).fingerprint)
    (root / "fake" / "fake_001.jpg").rename(root / "real" / "fake_001.jpg")
    prints.append(open_records(str(root)).fingerprint)
    assert len(set(prints)) == 4 and all(len(text) == 16 and int(text, 16) >= 0 for text in prints)


# Demo


def test_demo_is_made_where_demo_dir_says_with_the_options(build, tmp_path, monkeypatch):
    calls = []

    def make_demo(root, **settings):
        calls.append((root, settings))
        return build("train/real 1,test/real 1,test/fake/splice 2", "demo-n60")

    monkeypatch.setitem(sys.modules, "datasets.demo_set.generate", types.SimpleNamespace(make_demo=make_demo))
    monkeypatch.setenv("DEMO_DIR", str(tmp_path / "sets"))
    listing = open_records("demo@n=60,seed=0")
    assert (listing.name, counts(listing)) == ("demo", {(0, "real"): 1, (1, "splice"): 2})
    monkeypatch.delenv("DEMO_DIR")
    open_records("demo")
    assert calls == [(tmp_path / "sets", {"n": 60, "seed": 0}), (Path("data"), {})]


# The sets that the tables are made from


@pytest.mark.parametrize(
    ("name", "split", "n_real", "n_fake"),
    [
        ("faces140k", "train", 514, 483),
        ("faces140k", "valid", 124, 113),
        ("faces140k", "test", 101, 125),
        ("openforensics", "train", 2200, 2200),
        ("openforensics", "valid", 300, 300),
        ("openforensics", "test", 300, 300),
        ("utkface", "test", 300, 0),
    ],
)
def test_counts_of_the_shared_sets(name, split, n_real, n_fake):
    if not (SHARED / name).is_dir():
        pytest.skip(f"needs the shared data set {name}")
    labels = Counter(record.label for record in open_records(f"{SHARED / name}@split={split}").records)
    assert (labels[0], labels[1]) == (n_real, n_fake)
