"""The failure gallery: the right images, safe markup, and a list that evaluate.py can read again."""

import base64
import hashlib
import re
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest

from datasets.listing.spec import open_records, parse_spec
from models.operating_point import sigmoid
from tests.conftest import make_scored, make_table
from utils.errors import UserError
from utils.evaluation.gallery import THUMBNAIL_SIDE, find_failures, write_gallery

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Reads a page strictly: every element closed in order; keeps tags, attributes and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def attributes(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def read_gallery(paths):
    text = paths[0].read_text(encoding="utf-8")
    return Page(text), text


def test_the_most_confident_errors_come_first():
    logits = [3.0, -2.0, -50.0, 60.0, 40.0, 0.5, 5.0]
    table = make_table("abcdefg", [0, 1, 1, 0, 0, 0, 1], logits)
    (source,) = find_failures([make_scored(table, checkpoint="run")], 24)
    assert [item.path for item in source.failures] == list("dceabf")  # d, c and e tie in p_fake
    (few,) = find_failures([make_scored(table, checkpoint="run")], 2)
    assert [item.path for item in few.failures] == ["d", "c"]
    # At a threshold of 0.01, a fake at 0.0067 is a near miss and a real at 0.62 is not.
    (low,) = find_failures([make_scored(make_table("ab", [1, 0], [-5.0, 0.5]), threshold=0.01)], 24)
    assert [item.path for item in low.failures] == ["b", "a"]


def test_tiers_are_joined_and_sources_kept_apart():
    clean = make_scored(make_table("abc", [0, 1, 1], [2.0, -1.0, 3.0]), checkpoint="run")
    web = make_scored(make_table("ab", [0, 1], [-2.0, -3.0], tier="web"), checkpoint="run")
    other = make_scored(make_table("xy", [0, 1], [-1.0, 1.0], dataset="wild"), checkpoint="run")
    # Two tiers of one set and another set; a second file of the first set's clean tier stays apart.
    sources = find_failures([web, clean, other, clean], 24)
    assert [(s.title, list(s.tiers), s.shown.tier) for s in sources] == [
        ("run on faces", ["web", "clean"], "clean"),
        ("run on wild", ["clean"], "clean"),
        ("run on faces", ["clean"], "clean"),
    ]
    first, second = sources[0].failures
    assert (first.path, second.path) == ("a", "b")
    assert first.others == {"web": pytest.approx(sigmoid(-2.0))}
    assert not sources[1].failures
    (web_only,) = find_failures([make_scored(web.table, threshold=None)], 24)
    assert web_only.shown.tier == "web" and web_only.shown.threshold == 0.5


def test_the_page_shows_each_error_and_whether_it_flips(image_folder, tmp_path):
    images = sorted(str(path) for path in (image_folder / "test").rglob("*.png"))
    labels = [int("/fake/" in path) for path in images]
    wrong = np.where(np.array(labels) == 1, -2.0, 2.0)
    facts = {"checkpoint": "run", "split": "valid"}
    web = make_table(images, labels, np.where(np.arange(8) < 3, -wrong, wrong), tier="web")
    sets = [make_scored(make_table(images, labels, wrong), **facts), make_scored(web, **facts)]
    paths = write_gallery(sets, tmp_path / "out")
    page, text = read_gallery(paths)
    assert text.count("the verdict flips") == 3 and text.count("same verdict") == 5
    assert "run on faces (valid)" in text and "clean: 8 of 8 wrong; web: 5 of 8 wrong" in text
    sources = [attributes["src"] for attributes in page.attributes("img")]
    assert len(sources) == 8
    for source in sources:
        kind, _, data = source.partition(",")
        assert kind == "data:image/jpeg;base64"
        assert cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR).shape == (40, 40, 3)
    assert "gan &lt;1&gt;" in text and all(path in text for path in images)


def test_the_thumbnail_is_small_and_has_the_colours_of_the_file(tmp_path):
    image = np.zeros((300, 900, 3), np.uint8)
    image[..., 2] = 255  # red, in OpenCV's order
    cv2.imwrite(str(tmp_path / "wide.png"), image)
    paths = write_gallery([make_scored(make_table([str(tmp_path / "wide.png")], [0], [2.0]))], tmp_path)
    (attributes,) = read_gallery(paths)[0].attributes("img")
    data = base64.b64decode(attributes["src"].partition(",")[2])
    thumbnail = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert thumbnail.shape == (THUMBNAIL_SIDE // 3, THUMBNAIL_SIDE, 3)
    assert np.abs(thumbnail.mean(axis=(0, 1)) - [0, 0, 255]).max() < 4


def test_the_page_is_safe_and_loads_nothing(tmp_path):
    evil = '"><script>alert(1)</script>&.png'
    table = make_table([evil, "missing.png"], [0, 1], [2.0, -2.0], dataset="<i>set</i>")
    (tmp_path / "text.png").write_text("not an image")
    broken = make_table([str(tmp_path / "text.png")], [1], [-1.0], dataset="broken")
    page, text = read_gallery(
        write_gallery([make_scored(part, checkpoint="<b>run</b>") for part in (table, broken)], tmp_path)
    )
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "b", "i", "img"}
    assert not any(key.startswith("on") or key == "style" for _, attributes in page.tags for key in attributes)
    assert text.count("unreadable:") == 3 and "file not found" in text
    assert "http:" not in text and "https:" not in text and "url(" not in text
    (policy,) = [a["content"] for a in page.attributes("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL).group(1)
    assert f"'sha256-{base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()}'" in policy
    assert "default-src 'none'" in policy and "unsafe" not in policy and "prefers-color-scheme: dark" in style


def test_the_failures_are_a_data_set(image_folder, tmp_path):
    images = sorted(str(path) for path in (image_folder / "test").rglob("*.png"))
    labels = [int("/fake/" in path) for path in images]
    logits = np.where(np.array(labels) == 1, -2.0, 2.0)
    logits[0] *= -1  # right
    table = make_table(images, labels, logits)
    sets = [make_scored(table, checkpoint=name) for name in ("a", "b")]
    listed = write_gallery(sets, tmp_path / "deep" / "er")[1]
    listing = open_records(parse_spec(f"csv:{listed}"), default_split=None)
    found = {record.path: (record.label, record.generator) for record in listing.records}
    assert len(listing.records) == len(found) == 7, "each image once, whichever detectors fail on it"
    wanted = {path: (label, "gan <1>" if label else "real") for path, label in zip(images[1:], labels[1:], strict=True)}
    assert {str(type(image_folder)(path).resolve()): value for path, value in found.items()} == wanted
    assert all(record.meta["checkpoint"] == "a" for record in listing.records)
    assert all((float(record.meta["p_fake"]) > 0.5) == (record.label == 0) for record in listing.records)


def test_a_link_to_the_output_folder_does_not_lead_astray(image_folder, tmp_path):
    (tmp_path / "disk" / "far").mkdir(parents=True)
    (tmp_path / "results").symlink_to(tmp_path / "disk" / "far")
    images = [str(image_folder / "test" / "real" / "000.png")]
    listed = write_gallery([make_scored(make_table(images, [0], [2.0]))], tmp_path / "results")[1]
    assert len(open_records(parse_spec(f"csv:{listed}"), default_split=None).records) == 1


def test_no_error_and_one_image_are_fine(tmp_path):
    page, text = read_gallery(write_gallery([make_scored(make_table(["a.png"], [1], [2.0]))], tmp_path))
    assert "No error in tier clean." in text and not page.attributes("img")
    with pytest.raises(UserError, match="rows below the header"):
        open_records(parse_spec(f"csv:{tmp_path / 'failures.csv'}"))
    assert "<h1>" in read_gallery(write_gallery([], tmp_path))[1]
