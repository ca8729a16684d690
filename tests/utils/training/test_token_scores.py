"""Scores from cached tokens are those of the images, as each tier delivers them."""

from dataclasses import replace

import pytest
import torch

from datasets.listing.spec import open_records
from datasets.transforms import Geometry
from models.registry import create_model
from utils.scoring.scorer import Job, Settings, score
from utils.training.token_scores import score_by_tokens


@pytest.fixture
def detector():
    torch.manual_seed(0)
    found = create_model("foundation", backbone="test_vit", blocks="3-6", tune="norms_2")
    found.geometry = Geometry("crop", 32)
    return found.eval()


def test_scores_are_those_of_the_images(detector, image_folder, tmp_path):
    (image_folder / "valid" / "real" / "000.png").write_bytes(b"no image")
    listings = [open_records(str(image_folder), split) for split in ("train", "valid")]
    tiers = ["clean", "common", "web"]
    found = score_by_tokens(detector, torch.float32, listings, tiers, tmp_path / "cache", Settings(4))
    assert [len(by_tier) for by_tier in found] == [3, 3]
    for listing, by_tier in zip(listings, found, strict=True):
        wanted = score([Job(detector, tier) for tier in tiers], listing.records, Settings(4))
        for one, other in zip(by_tier, wanted, strict=True):
            assert one.indices.tolist() == other.indices.tolist()
            assert [index for index, _ in one.unreadable] == [index for index, _ in other.unreadable]
            assert one.logits == pytest.approx(other.logits, abs=5e-3)
    clean, common, _ = found[0]
    assert abs(clean.logits - common.logits).max() > 0.02, "the tiers differ by more than the rounding of tokens"


def test_other_weights_above_the_frozen_part_find_the_cache(detector, image_folder, tmp_path, monkeypatch):
    listing = open_records(str(image_folder), "train")

    def scores(listing):
        (((found,),)) = score_by_tokens(detector, torch.float32, [listing], ["common"], tmp_path, Settings(4))
        return found.logits

    before = scores(listing)
    torch.nn.init.normal_(detector.head.weight)
    passed = []
    original = detector.frozen_tokens
    monkeypatch.setattr(detector, "frozen_tokens", lambda images: passed.append(len(images)) or original(images))
    after = scores(listing)
    assert abs(after - before).max() > 0.01
    assert sum(passed) <= 3, "one to see the shape, two to see that they are still the same"
    half = scores(replace(listing, records=listing.records[::2]))
    assert sum(passed) >= 8 and half == pytest.approx(after[::2], abs=1e-5)
