"""The score cache: what it gives back, what makes it look again, and that damage costs time and nothing else."""

import ast
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from datasets.listing.spec import open_records
from utils.files import ROOT, file_digest
from utils.runtime import LIBRARIES
from utils.scoring import cache as score_cache
from utils.scoring.cache import ScoreCache, listing_digest
from utils.scoring.scorer import Scores
from utils.source import code_files

SCORES = Scores(np.array([0, 2, 3]), np.array([0.1, -2.5, 1 / 3]), [(1, "truncated"), (4, "Datei fehlt: ä")])
KEY = ("c" * 64, "d" * 64, "web")


@pytest.fixture
def cache(tmp_path) -> ScoreCache:
    return ScoreCache(tmp_path / "scores", "cpu float32")


def entry(cache: ScoreCache) -> Path:
    (file,) = cache.folder.iterdir()
    return file


def test_an_entry_comes_back_bit_for_bit(cache):
    assert cache.load(*KEY, 5) is None
    cache.store(*KEY, SCORES)
    again = cache.load(*KEY, 5)
    assert np.array_equal(again.indices, SCORES.indices) and np.array_equal(again.logits, SCORES.logits)
    assert again.unreadable == SCORES.unreadable and again.logits.dtype == np.float64


def test_nothing_and_nothing_readable_can_be_kept(cache):
    for number, scores in enumerate(
        (Scores(np.empty(0, np.int64), np.empty(0)), Scores(np.empty(0, np.int64), np.empty(0), [(0, "empty file")]))
    ):
        cache.store("c", str(number), "clean", scores)
        assert cache.load("c", str(number), "clean", number).unreadable == scores.unreadable


def test_whatever_decides_a_logit_is_part_of_the_name(cache, monkeypatch):
    cache.store(*KEY, SCORES)
    for part in range(3):
        assert cache.load(*(f"other {key}" if n == part else key for n, key in enumerate(KEY)), 5) is None
    assert ScoreCache(cache.folder, "cpu bfloat16").load(*KEY, 5) is None
    for name, value in (("FORMAT_VERSION", 999), ("code_digest", lambda *_: "x"), ("versions", lambda: {"torch": "9"})):
        with monkeypatch.context() as patch:
            patch.setattr(score_cache, name, value)
            assert ScoreCache(cache.folder, "cpu float32").load(*KEY, 5) is None, name
    assert ScoreCache(cache.folder, "cpu float32").load(*KEY, 5) is not None


def test_code_and_libraries_that_score_are_watched():
    watched = code_files(*score_cache.SCORING_CODE)
    names = {str(file.relative_to(ROOT)) for file in watched}
    assert {
        "models/cnn.py",
        "models/pruning.py",
        "datasets/augmentation.py",
        "datasets/decoding/images.py",
        "datasets/perturbations.py",
        "datasets/listing/storage.py",
        "datasets/transforms.py",
        "utils/checkpoints/file.py",
        "utils/engines/exported.py",
        "utils/scoring/scorer.py",
    } <= names
    assert not any(name.startswith(("studies/", "utils/training/", "utils/serving/")) for name in names)
    imported = {name.partition(".")[0] for file in watched for name in imported_names(file)}
    libraries = imported - set(sys.stdlib_module_names) - {"models", "datasets", "utils"}
    assert libraries - {"tqdm"} <= set(LIBRARIES)


def imported_names(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "text", "pickle", "another entry", "short"])
def test_a_damaged_entry_counts_as_none_and_says_so(cache, damage, capsys):
    cache.store(*KEY, SCORES)
    file = entry(cache)
    data = bytearray(file.read_bytes())
    if damage == "flipped":
        data[data.index(np.float64(-2.5).tobytes())] ^= 1
    elif damage == "pickle":
        with file.open("wb") as stream:
            np.savez(stream, facts=np.array([{"a": 1}], dtype=object))
        data = bytearray(file.read_bytes())
    elif damage == "another entry":
        cache.store("e" * 64, *KEY[1:], SCORES)
        data = bytearray(next(other for other in cache.folder.iterdir() if other != file).read_bytes())
    replacements = {"empty": b"", "cut": data[: len(data) // 2], "text": b"path,logit\n"}
    file.write_bytes(replacements.get(damage, data))
    capsys.readouterr()
    assert cache.load(*KEY, 6 if damage == "short" else 5) is None
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and str(file) in error and "scored again" in error
    cache.store(*KEY, SCORES)
    assert cache.load(*KEY, 5) is not None


def test_no_folder_keeps_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cache = ScoreCache(None, "cpu float32")
    cache.store(*KEY, SCORES)
    assert cache.load(*KEY, 5) is None and not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_to_is_named_once(tmp_path, capsys):
    (tmp_path / "scores").write_text("a file")
    cache = ScoreCache(tmp_path / "scores", "cpu float32")
    assert cache.load(*KEY, 5) is None
    capsys.readouterr()
    cache.store(*KEY, SCORES)
    cache.store(*KEY, SCORES)
    assert capsys.readouterr().err.count("scores are not kept") == 1


def test_digest_of_images_notices_every_change(image_folder):
    def digest() -> str:
        return listing_digest(open_records(str(image_folder), "test"))

    first = digest()
    assert digest() == first
    file = sorted((image_folder / "test").rglob("*.png"))[0]
    stat = file.stat()
    data = bytearray(file.read_bytes())
    data[-20] ^= 1
    file.write_bytes(data)  # the same size
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    second = digest()
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    file.chmod(0o600 if stat.st_mode & 0o077 else 0o644)
    third = digest()
    file.unlink()
    assert len({first, second, third, digest()}) == 4
    assert listing_digest(open_records(str(image_folder), "valid")) != first


def test_a_set_that_was_moved_is_the_same_set(image_folder):
    first = listing_digest(open_records(str(image_folder), "test"))
    moved = image_folder.rename(image_folder.parent / "elsewhere")
    assert listing_digest(open_records(str(moved), "test")) == first


def test_digest_of_a_missing_image(image_folder):
    listing = open_records(str(image_folder), "test")
    first = listing_digest(listing)
    Path(listing.records[0].path).unlink()
    assert listing_digest(listing) != first


def test_digest_of_a_file(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert file_digest(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
