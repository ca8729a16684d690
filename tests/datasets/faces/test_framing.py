"""Geometry face: the square around a face, its jitter in training, and loaders that frame without searching again."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from datasets.decoding.images import read_image
from datasets.faces.framing import Box, square_around
from datasets.listing.records import Record
from datasets.loading import ImageDataset, make_loader
from datasets.transforms import EvalTransform, Geometry, TrainTransform
from tests.conftest import write_image

CENTRE = Box(0.4, 0.3, 0.2, 0.4)
FACE = Geometry("face", 32, margin=1.5)


def picture(height: int = 120, width: int = 160) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize(
    ("box", "square"),
    [
        (CENTRE, (24, 44, 72)),  # 48 px high: 1.5 times that, around (80, 60)
        (Box(0.0, 0.0, 0.25, 0.2), (0, 0, 60)),  # moved inside at a corner
        (Box(-0.1, 0.7, 0.25, 0.5), (30, 0, 90)),  # cut by the border
        (Box(0.1, 0.0, 0.9, 1.0), (0, 28, 120)),  # not larger than the picture
        (Box(0.5, 0.5, 0.0001, 0.0001), (60, 80, 1)),
        (None, (0, 20, 120)),
    ],
)
def test_the_square_around_a_face(box, square):
    assert square_around((120, 160, 3), box, 1.5) == square


def test_a_frame_is_resampled_to_the_input_size():
    image = picture()
    framed = FACE(image, CENTRE)
    assert framed.shape == (32, 32, 3)
    assert np.abs(framed.mean((0, 1)) - image[24:96, 44:116].mean((0, 1))).max() < 1.5
    assert np.array_equal(Geometry("face", 72, margin=1.5)(image, CENTRE), image[24:96, 44:116])
    assert FACE(image, Box(0.5, 0.5, 20 / 160, 20 / 120)).shape == (32, 32, 3)  # 20 px, enlarged
    assert np.array_equal(Geometry("face", 120)(image), image[:, 20:140])  # no face: the middle of the picture


def test_other_geometries_ignore_the_box_and_see_a_single_face_with_its_surroundings():
    image = picture()
    for geometry in (Geometry("crop", 32), Geometry("resize", 32)):
        assert np.array_equal(geometry(image, CENTRE), geometry(image))
        top, left, side = geometry.square(image.shape, CENTRE)
        assert side == round(1.6 * 48)
        assert np.array_equal(geometry.of_face(image, CENTRE), geometry(image[top : top + side, left : left + side]))
    assert np.array_equal(FACE.of_face(image, CENTRE), FACE(image, CENTRE))


def test_a_reduced_picture_shows_the_same_frame():
    rows, columns = np.indices((240, 320))
    image = np.dstack([rows, columns % 256, columns // 2]).astype(np.uint8)
    half = np.ascontiguousarray(image[::2, ::2])
    assert np.abs(FACE(image, CENTRE).astype(int) - FACE(half, CENTRE))[..., [0, 2]].max() <= 2


def test_the_margin_is_stored_for_frames_of_faces_only():
    assert FACE.to_dict() == {"mode": "face", "size": 32, "resize_to": None, "margin": 1.5}
    assert Geometry(**FACE.to_dict()) == FACE and "margin" not in Geometry("crop", 32).to_dict()


def test_training_frames_vary_with_the_seed_within_bounds():
    columns = np.tile(np.arange(160, dtype=np.uint8), (120, 1))
    image = np.dstack([columns] * 3)
    transform = TrainTransform(FACE, "light", as_bytes=True)
    spans, middles = [], []
    for seed in range(200):
        view = transform(image, seed, CENTRE).numpy()
        assert np.array_equal(view, transform(image, seed, CENTRE).numpy()) and view.shape == (32, 32, 3)
        left, right = sorted((float(view[0, 0, 0]), float(view[0, -1, 0])))
        spans.append((right - left) * 32 / 31)
        middles.append((left + right) / 2)
    assert min(spans) > 72 * 0.78 and max(spans) < 72 * 1.28 and max(spans) / min(spans) > 1.3
    assert 1 < max(abs(middle - 79.5) for middle in middles) < 0.06 * 72 * 1.25 + 1.5
    plain = TrainTransform(FACE, "none", as_bytes=True)
    assert np.array_equal(plain(image, 5, CENTRE).numpy(), FACE(image, CENTRE))
    assert TrainTransform(FACE, "wild", train_size=48)(image, 3, None).shape == (3, 48, 48)


def test_loaders_frame_the_largest_face_of_their_records(tmp_path):
    write_image(tmp_path / "a.png", 1, False, 120, 160)
    path = str(tmp_path / "a.png")
    records = [Record(path, 0, "", faces=faces) for faces in ((CENTRE, Box(0, 0, 0.1, 0.1)), ())]
    (batch,) = make_loader(ImageDataset(records, EvalTransform(FACE)), 2, workers=1)
    image = read_image(path)
    for found, box in zip(batch.images, (CENTRE, None), strict=True):
        assert torch.equal(found, EvalTransform(FACE)(image, 0, box))


def test_pictures_that_were_not_searched_are_a_mistake(tmp_path):
    write_image(tmp_path / "a.png", 1, False)
    with pytest.raises(ValueError, match="faces are known"):
        ImageDataset([Record(str(tmp_path / "a.png"), 0, "")], EvalTransform(FACE))[0]
