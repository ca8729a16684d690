"""The duplicate search: every kind of copy is found, different people are not paired, no all-with-all comparison."""

import cv2
import numpy as np
import pytest

from datasets.decoding.images import read_image
from datasets.demo_set.generate import make_demo
from utils.audit.duplicates import components, find_duplicates
from utils.audit.hamming_search import HashIndex
from utils.audit.image_facts import image_facts, jpeg_quality
from utils.audit.shortcuts import auc_with_interval

N_FACES = 60


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    """Sixty procedural portraits of different people."""
    folder = make_demo(tmp_path_factory.mktemp("demo"), n=N_FACES, size=64, workers=1, progress=False)
    return sorted(path for path in folder.rglob("*.jpg"))


def save(path, image, quality=90):
    cv2.imwrite(str(path), np.ascontiguousarray(image[:, :, ::-1]), [cv2.IMWRITE_JPEG_QUALITY, quality])
    return image_facts(str(path))


KINDS = {
    "jpeg": lambda image: (image, 50),
    "half": lambda image: (cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA), 90),
    "mirrored": lambda image: (image[:, ::-1], 90),
    "left": lambda image: (image[:, 3:], 90),
    "bottom": lambda image: (image[:-3], 90),
    "mirrored-crop": lambda image: (image[:, ::-1][:, 3:], 90),
}


@pytest.mark.parametrize("kind", KINDS)
def test_planted_copies_are_found_and_nothing_else(faces, tmp_path, kind):
    facts = [image_facts(str(path)) for path in faces]
    sources = range(0, N_FACES, 3)
    copies = []
    for at in sources:
        image, quality = KINDS[kind](read_image(faces[at]))
        copies.append(save(tmp_path / f"{at}.jpg", image, quality))
    pairs = find_duplicates([*facts, *copies]).pairs
    expected = {(at, N_FACES + place) for place, at in enumerate(sources)}
    found = {(pair.first, pair.second) for pair in pairs}
    assert found <= expected
    assert len(found) >= 0.95 * len(expected)
    assert {pair.mirrored for pair in pairs} == {"mirrored" in kind}


def test_different_people_are_not_paired(faces):
    result = find_duplicates([image_facts(str(path)) for path in faces])
    assert result.pairs == []
    assert result.n_flat == 0


def test_a_changed_face_is_no_copy(faces, tmp_path):
    image = read_image(faces[0]).copy()
    image[20:44, 20:44] = read_image(faces[1])[20:44, 20:44]
    assert find_duplicates([image_facts(str(faces[0])), save(tmp_path / "swap.jpg", image, 95)]).pairs == []


def test_equal_files_and_equal_pixels(faces, tmp_path):
    first, again, png = image_facts(str(faces[0])), image_facts(str(faces[0])), tmp_path / "same.png"
    cv2.imwrite(str(png), read_image(faces[0])[:, :, ::-1])
    pairs = find_duplicates([first, again, image_facts(str(png))]).pairs
    assert [(pair.first, pair.second, pair.kind) for pair in pairs] == [(0, 1, "same file"), (0, 2, "same pixels")]


def test_flat_images_are_not_near_duplicates(tmp_path):
    facts = []
    for value in (10, 12, 200):
        facts.append(save(tmp_path / f"{value}.jpg", np.full((64, 64, 3), value, np.uint8)))
    result = find_duplicates(facts)
    assert result.pairs == [] and result.n_flat == 3


def test_search_finds_neighbours_with_few_comparisons():
    rng = np.random.default_rng(0)
    n = 20_000
    words = rng.integers(0, 2**64, (n, 4), dtype=np.uint64)
    queries = words[:500].copy()
    for row in queries:  # 12 of 256 bits differ: fewer than there are bands, so one band must agree
        for bit in rng.choice(256, 12, replace=False):
            row[bit // 64] ^= np.uint64(1 << int(bit % 64))
    index = HashIndex(words)
    found = {
        (int(q), int(f)) for query, other, _ in index.search(queries, 20) for q, f in zip(query, other, strict=True)
    }
    assert found == {(at, at) for at in range(500)}
    list(index.search(words, 20))
    assert index.n_comparisons < n * n / 500


def test_weak_bits_reach_beyond_the_bands():
    rng = np.random.default_rng(1)
    words = rng.integers(0, 2**64, (100, 1), dtype=np.uint64)
    flipped = words ^ np.uint64(0x0001_0001_0001_0001)  # one bit in every band
    weak = np.zeros((100, 4, 1), dtype=np.uint8)
    assert not any(len(query) for query, _, _ in HashIndex(words).search(flipped, 4))
    hits = {int(q) for query, _, _ in HashIndex(words).search(flipped, 4, weak) for q in query}
    assert hits == set(range(100))


def test_components():
    assert components(6, [(0, 3), (3, 5), (1, 2)]) == [[0, 3, 5], [1, 2]]
    assert components(2, []) == []


@pytest.mark.parametrize("quality", [1, 25, 50, 75, 90, 95, 100])
def test_jpeg_quality_is_exact_for_libjpeg(tmp_path, quality):
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    assert save(tmp_path / "x.jpg", image, quality).quality == quality
    assert jpeg_quality(()) is None


def test_auc_with_interval_counts_ties():
    value, (low, high) = auc_with_interval(np.array([1.0, 2, 3, np.nan]), np.array([2.0, 3, 4]))
    assert value == pytest.approx(7 / 9)
    assert 0 <= low < value < high == 1
    assert auc_with_interval(np.array([1.0]), np.array([2.0, 3.0])) is None
