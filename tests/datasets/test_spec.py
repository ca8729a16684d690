"""Dataset specs: what text means, which layouts are recognised, and what a user's mistake is answered with."""

import os
import shutil
import sys
import types
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from datasets.images import UnreadableImage, read_image
from datasets.readers.csv_list import parse_labels, read_csv
from datasets.readers.folder import class_label, list_images, read_folder
from datasets.spec import KINDS, DatasetSpec, Kind, Record, Source, open_records, parse_spec
from utils.errors import UserError
from utils.files import ROOT

SHARED = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="session")
def tiny_jpeg(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny") / "tiny.jpg"
    Image.new("RGB", (2, 2), "grey").save(path)
    return path


@pytest.fixture
def build(tmp_path, tiny_jpeg):
    """Make files below tmp_path/name from lines such as `train/real 3` (three images) and return the folder."""

    def make(lines: str, name: str = "faces") -> Path:
        root = tmp_path / name
        for line in lines.split(","):
            folder, count = line.split()
            (root / folder).mkdir(parents=True, exist_ok=True)
            for number in range(int(count)):
                shutil.copy(tiny_jpeg, root / folder / f"{folder.replace('/', '_')}_{number:03d}.jpg")
        return root

    return make


def counts(listing_or_records) -> Counter:
    records = getattr(listing_or_records, "records", listing_or_records)
    return Counter((record.label, record.generator) for record in records)


def one_line(caught) -> str:
    text = str(caught.value)
    assert text and "\n" not in text
    return text


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


# Folders


@pytest.mark.parametrize(
    ("name", "label"),
    [
        *[(name, 0) for name in "real Real REALS 0_real original Originals authentic genuine nature".split()],
        *[(name, 0) for name in ("training_real", "real_images", "Real Faces", "real-faces", "original_sequences")],
        *[(name, 1) for name in "fake FAKE fakes 1_fake ai AI manipulated synthetic generated gan deepfakes".split()],
        *[(name, 1) for name in ("training_fake", "fake_images", "AI-generated", "manipulated_sequences")],
        *[(name, None) for name in "progan train 0 1 images faces realistic unreal masks".split()],
    ],
)
def test_class_names(name, label):
    assert class_label(name) is label


SPLITS_3 = "train/real 3,train/fake 3,{valid}/real 2,{valid}/fake 1,{test}/real 1,{test}/fake 2"
PLAIN = {(0, "real"): 1, (1, "faces"): 2}


@pytest.mark.parametrize(
    ("lines", "split", "splits", "expected"),
    [
        (SPLITS_3.format(valid="valid", test="test"), "test", "train valid test", PLAIN),
        (SPLITS_3.format(valid="Validation", test="Testing"), "test", "train valid test", PLAIN),
        (SPLITS_3.format(valid="VAL", test="TEST").upper(), "test", "train valid test", PLAIN),
        ("train/real 1,train/fake 1,val/real 1,val/fake 2", "valid", "train valid", PLAIN),
        ("real 1,fake 2", "all", "", PLAIN),
        ("0_real 1,1_fake 2", "all", "", PLAIN),
        ("training_real 1,training_fake 2", "all", "", PLAIN),
        ("Dataset/Test/Real 1,Dataset/Test/Fake 2,Dataset/Train/Real 3", "test", "train test", PLAIN),
        ("a/b/c/real 1,a/b/c/fake 2", "all", "", PLAIN),
        ("real/test 1,fake/test 2,real/train 4,fake/train 4", "test", "train test", PLAIN),
        ("real 1,fake/progan 2,fake/sd15/deep/er 3", "all", "", {(0, "real"): 1, (1, "progan"): 2, (1, "sd15"): 3}),
        ("test/real 1,test/fake/progan 2", "test", "test", {(0, "real"): 1, (1, "progan"): 2}),
        (
            "progan/0_real 1,progan/1_fake 2,gan/0_real 3,gan/1_fake 4",
            "all",
            "",
            {(0, "real"): 4, (1, "progan"): 2, (1, "gan"): 4},
        ),
        (
            "pg/car/0_real 1,pg/car/1_fake 2,pg/train/0_real 1,pg/train/1_fake 2,sg/0_real 1,sg/1_fake 1",
            "all",
            "",
            {(0, "real"): 3, (1, "pg"): 4, (1, "sg"): 1},
        ),
        (
            "sd/train/ai 1,sd/train/nature 1,sd/val/ai 2,sd/val/nature 1,mj/val/ai 3,mj/val/nature 1",
            "valid",
            "train valid",
            {(0, "real"): 2, (1, "sd"): 2, (1, "mj"): 3},
        ),
        ("test/progan/0_real 1,test/progan/1_fake 2", "test", "test", {(0, "real"): 1, (1, "progan"): 2}),
        ("fake/gan 2,fake/ai 1,real 1", "all", "", {(0, "real"): 1, (1, "gan"): 2, (1, "ai"): 1}),
        (
            "original_sequences/youtube 1,manipulated_sequences/Deepfakes 2,manipulated_sequences/FaceSwap 1",
            "all",
            "",
            {(0, "real"): 1, (1, "Deepfakes"): 2, (1, "FaceSwap"): 1},
        ),
        ("test/real 3", "test", "test", {(0, "real"): 3}),
        ("fake 3", "all", "", {(1, "faces"): 3}),
        ("real 1,fake 2,masks 3,.hidden/real 3,__MACOSX/real 1", "all", "", PLAIN),
    ],
)
def test_layouts_are_recognised(build, lines, split, splits, expected):
    listing = open_records(str(build(lines)))
    assert (listing.split, listing.splits, listing.name) == (split, tuple(splits.split()), "faces")
    assert counts(listing) == expected
    assert all(Path(record.path).is_file() for record in listing.records)


NESTED = "real_vs_fake/real-vs-fake"


@pytest.mark.parametrize("inner", ["", "real_vs_fake", NESTED, f"{NESTED}/test", f"{NESTED}/test/"])
def test_the_140k_set_is_the_same_from_any_folder_of_it(build, inner):
    root = build(
        ",".join(f"{NESTED}/{s}/{c} 2" for s in ("train", "valid", "test") for c in ("real", "fake")), "faces140k"
    )
    outer = open_records(str(root))
    listing = open_records(f"{root}/{inner}")
    assert (listing.name, listing.split, listing.fingerprint) == ("faces140k", "test", outer.fingerprint)
    assert counts(listing) == {(0, "real"): 2, (1, "faces140k"): 2}


def test_one_class_folder_of_a_set_keeps_split_and_label(build):
    listing = open_records(f"{build('test/real 2,test/fake 1')}/test/real")
    assert (listing.name, listing.split, counts(listing)) == ("faces", "test", {(0, "real"): 2})


def test_relative_locations_and_the_current_folder(build, monkeypatch):
    root = build("test/real 2,test/fake 1")
    absolute = open_records(str(root))
    for where, location in ((root.parent, "faces"), (root, "test"), (root, "."), (root, "./test")):
        monkeypatch.chdir(where)
        listing = open_records(location)
        assert (listing.name, listing.split, listing.fingerprint) == ("faces", "test", absolute.fingerprint)


def test_splits_below_a_folder_named_test_are_not_mixed(build):
    listing = open_records(f"{build('train/real 1,test/real 2,test/fake 2', 'test')}@split=train")
    assert len(listing.records) == 1


def test_folders_beside_the_splits_are_left_out_with_a_warning(build, caplog):
    listing = open_records(f"{build('train/real 1,test/real 2,samples 4')}@split=all")
    assert len(listing.records) == 3
    assert "samples" in caplog.text


def test_masks_of_fakes_are_found(build, tmp_path):
    root = build("test/real 1,test/fake/splice 2")
    (root / "masks" / "test").mkdir(parents=True)
    for stem in ("test_fake_splice_000", "test_real_000"):
        Image.new("L", (2, 2)).save(root / "masks" / "test" / f"{stem}.png")
    masks = {Path(r.path).name: r.mask for r in open_records(str(root)).records}
    assert masks["test_fake_splice_000.jpg"] == f"{root.as_posix()}/masks/test/test_fake_splice_000.png"
    assert masks["test_fake_splice_001.jpg"] is None and masks["test_real_000.jpg"] is None


def test_symbolic_link_loops_end(build):
    root = build("real 1,fake 2")
    os.symlink(root, root / "fake" / "again")
    assert len(open_records(str(root)).records) == 3


def test_list_images_ignores_the_layout(build):
    root = build("b 1,a/c 2,masks 1")
    (root / "notes.txt").write_text("no image")
    assert [Path(path).name for path in list_images(root)] == ["a_c_000.jpg", "a_c_001.jpg", "b_000.jpg"]


def test_files_are_recognised_by_content_and_the_others_named(build, tmp_path, caplog):
    folder = build("train/real 2,train/fake 2")
    image = next((folder / "train/real").iterdir()).read_bytes()
    heic = b"\x00\x00\x00\x18ftypheic" + bytes(40)
    for name, data in (("photo", image), ("shot.MPO", image), ("a.dat", image), ("b.HEIC", heic), ("c.bin", heic)):
        (folder / "train/real" / name).write_bytes(data)
    (folder / "train/notes.txt").write_text("BM, a text")
    (folder / "train/fake/empty").write_bytes(b"")
    (folder / "docs").mkdir()
    (folder / "docs/readme.md").write_text("text")
    records = open_records(f"{folder}@split=train").records
    assert {os.path.basename(record.path) for record in records} >= {"photo", "shot.MPO", "a.dat", "b.HEIC", "c.bin"}
    assert len(records) == 9 and len(list_images(folder)) == 9
    assert "ignored 3 files that are not images: docs/readme.md, train/fake/empty, train/notes.txt" in caplog.text
    assert read_image(folder / "train/real/photo").shape == (2, 2, 3)
    with pytest.raises(UnreadableImage, match="HEIC"):
        read_image(folder / "train/real/c.bin")


@pytest.mark.parametrize(
    ("lines", "location", "told"),
    [
        ("real 1", "facs", "did you mean faces"),
        ("real 1", "faces/real/real_000.jpg", "got the file"),
        ("cats 1,dogs 2", "faces", r"0_real.*1_fake.*got cats, dogs.*csv:"),
        ("real 1,fake 1,deepdream 2", "faces", "got deepdream"),
        ("photos/x 1", "faces", "got images without any"),
        ("real 0,fake 0", "faces", "expected images"),
        ("real/fake 1,fake 2", "faces", "other class"),
        ("train/real 1,valid/real 1", "faces@split=test", "expected a test split in .*got train, valid"),
        ("real 1,fake 1", "faces@split=train", "@split=all"),
        ("real 1", "faces@classes=fake", "got none"),
    ],
)
def test_folder_mistakes_are_told_in_one_line(build, monkeypatch, lines, location, told):
    monkeypatch.chdir(build(lines).parent)
    with pytest.raises(UserError, match=told) as caught:
        open_records(location)
    one_line(caught)


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


# CSV lists


@pytest.fixture
def write(build, tmp_path):
    def make(text: str | bytes, name: str = "wild.csv", encoding: str = "utf-8") -> str:
        build("img 4", "lists")
        path = tmp_path / "lists" / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
        return str(path)

    return make


A, B = "img/img_000.jpg", "img/img_001.jpg"


@pytest.mark.parametrize(
    "text",
    [
        f"path,label\n{A},real\n{B},fake\n",
        f"\ufeffPath,Label\r\n{A},Real\r\n{B},FAKE\r\n",
        f"filename;class\n{A};original\n{B};manipulated\n",
        f"label\tfile\n0_real\t{A}\n1_fake\t{B}\n\n",
        f'"image path","target"\n"./{A}", "nature"\n"{B}", "ai"\n',
        f"path,label,label_str\n{A},1,real\n{B},0,fake\n",
        f"path,label,class\n{A},1,real\n{B},0,fake\n",
        f"path,label\nimg\\img_000.jpg,real\n{B},fake\n",
    ],
)
def test_csv_spellings(write, text):
    listing = open_records(f"csv:{write(text)}")
    assert [(Path(r.path).name, r.label, r.generator) for r in listing.records] == [
        ("img_000.jpg", 0, "real"),
        ("img_001.jpg", 1, "wild"),
    ]
    assert (listing.name, listing.split, listing.splits) == ("wild", "all", ())
    assert all(Path(record.path).is_file() for record in listing.records)


def test_csv_generator_split_mask_and_meta(write):
    text = f"path,label,generator,split,mask,camera,note\n{A},real,x,val,,Canon,\n{B},fake,sd15,test,{A},,hi\n"
    location = write(text)
    everything = open_records(f"csv:{location}@split=all")
    assert everything.splits == ("valid", "test")
    first, second = everything.records
    assert (first.generator, first.mask, first.meta) == ("real", None, {"camera": "Canon"})
    assert (second.generator, second.meta) == ("sd15", {"note": "hi"})
    assert Path(second.mask).name == "img_000.jpg" and Path(second.mask).is_file()
    assert [r.label for r in open_records(f"csv:{location}").records] == [1]


def test_numbers_are_mapped_only_when_told_how(write):
    location = write(f"path,label\n{A},1\n{B},0\n")
    with pytest.raises(UserError, match=r"numbers mean different things.*labels=0:real\+1:fake") as caught:
        open_records(f"csv:{location}")
    one_line(caught)
    assert [r.label for r in open_records(f"csv:{location}@labels=0:real+1:fake").records] == [1, 0]
    assert [r.label for r in open_records(f"csv:{location}@labels=1:real+0:fake").records] == [0, 1]


@pytest.mark.parametrize("text", ["0", "0:cat", "real", ":real"])
def test_wrong_label_maps(text):
    with pytest.raises(UserError, match="labels=VALUE:real"):
        parse_labels(text)


def test_lists_of_the_140k_set_say_one_is_real(build):
    root = build(f"{NESTED}/train/real 1,{NESTED}/train/fake 1,{NESTED}/test/real 2,{NESTED}/test/fake 1", "faces140k")
    prefix = NESTED.replace("/", "_")
    for split, names in (("train", ("real_000", "fake_000")), ("test", ("real_000", "real_001", "fake_000"))):
        rows = [",original_path,id,label,label_str,path"]
        for name in names:
            label = name[:4]
            path = f"{split}/{label}/{prefix}_{split}_{name}.jpg"
            rows.append(f"0,/kaggle/input/1.jpg,1,{int(label == 'real')},{label},{path}")
        (root / f"{split}.csv").write_text("\n".join(rows))
    listing = open_records(f"csv:{root}")
    assert (listing.name, listing.split, listing.splits) == ("faces140k", "test", ("train", "test"))
    assert counts(listing) == {(0, "real"): 2, (1, "faces140k"): 1}
    assert all(Path(r.path).parent.name == ("real", "fake")[r.label] for r in listing.records)
    # Folder and list are the same data, so they have the same fingerprint.
    assert listing.fingerprint == open_records(str(root)).fingerprint
    assert open_records(f"csv:{root}/test.csv").fingerprint == listing.fingerprint
    assert open_records(f"csv:{root}/test.csv").name == "faces140k"


def test_a_list_without_labels_is_legal_for_prediction(write):
    location = write(f"path,note\n{A},x\n{B},y\n")
    assert [r.label for r in read_csv(location, require_labels=False).by_split[""]] == [None, None]
    with pytest.raises(UserError, match="expected a column label"):
        read_csv(location)


def test_missing_files_are_counted_and_kept(write, caplog):
    listing = open_records(f"csv:{write(f'path,label{chr(10)}{A},real{chr(10)}gone.jpg,fake{chr(10)}')}")
    assert len(listing.records) == 2
    assert "1 of 2 files are missing" in caplog.text and "gone.jpg" in caplog.text


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "empty file"),
        ("path,label\n", "rows below the header"),
        ("picture,label\na,real\n", "expected a column path.*'picture', 'label'"),
        (f"{A},real\n{B},fake\n", "expected a column path"),
        (f"path,label\n{A},real\n{B},cat\n", "row 3, got 'cat'"),
        (f"path,label\n{A},\n", "row 2, got ''"),
        ("path,label\n,real\n", "row 2, got an empty cell"),
        (f"path,label,split\n{A},real,holdout\n", "row 2, got 'holdout'"),
        ("path,label\ngone.jpg,real\nlost.jpg,fake\n", "2 missing files, the first is .*gone.jpg"),
        ("path,label\ncaf\xe9.jpg,real\n".encode("latin-1"), "UTF-8.*0xe9"),
        ("path,label\na.jpg,real\n".encode("utf-16"), "UTF-8"),
    ],
)
def test_csv_mistakes_are_told_in_one_line(write, text, told):
    with pytest.raises(UserError, match=told) as caught:
        open_records(f"csv:{write(text)}")
    one_line(caught)


def test_absent_csv_names_the_closest(write, tmp_path):
    write(f"path,label\n{A},real\n")
    with pytest.raises(UserError, match=r"did you mean wild\.csv"):
        open_records(f"csv:{tmp_path}/lists/wold.csv")
    with pytest.raises(UserError, match="write csv:"):
        open_records(f"{tmp_path}/lists/wild.csv")


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


def test_read_folder_takes_a_name(build):
    assert read_folder(build("real 1,fake 1"), name="demo").by_split[""][0].generator == "demo"


def test_a_set_whose_name_sounds_like_a_class_keeps_it(tmp_path):
    folder = tmp_path / "sets" / "generated_photos" / "test" / "fake"
    folder.mkdir(parents=True)
    (folder / "a.jpg").write_bytes(b"x")
    for location in (folder, folder.parent, folder.parent.parent):
        listing = open_records(str(location))
        assert (listing.name, listing.records[0].generator) == ("generated_photos", "generated_photos")
