"""CSV lists: columns, labels and paths, and the errors for mistakes."""

from pathlib import Path

import pytest

from datasets.listing.readers.csv_list import NESTED_140K as NESTED
from datasets.listing.readers.csv_list import parse_labels, read_csv
from datasets.listing.spec import open_records
from tests.datasets.conftest import counts, one_line
from utils.errors import UserError
from utils.files import ROOT

SHARED = ROOT.parent / "shared" / "data"


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
    with pytest.raises(UserError, match=rf"did you mean {tmp_path}/lists/wild\.csv"):
        open_records(f"csv:{tmp_path}/lists/wold.csv")
    with pytest.raises(UserError, match="write csv:"):
        open_records(f"{tmp_path}/lists/wild.csv")
