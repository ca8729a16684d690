"""Composites: what is pasted where, and which photograph it comes from."""

import numpy as np
import pytest

from datasets.composites import align, choose_donor, composite, describe, match_colours, part_mask

FACE = np.array([[80, 90], [120, 90], [100, 113], [83, 133], [117, 133]], float)


def photograph(seed, side=200):
    """Smooth noise, as colourful as a photograph."""
    import cv2

    rng = np.random.default_rng(seed)
    small = rng.integers(40, 216, (12, 12, 3)).astype(np.uint8)
    return cv2.resize(small, (side, side), interpolation=cv2.INTER_CUBIC)


def moved(landmarks, scale=1.0, turn=0.0, shift=(0.0, 0.0)):
    cosine, sine = np.cos(turn), np.sin(turn)
    return scale * landmarks @ np.array([[cosine, sine], [-sine, cosine]]) + shift


def test_faces_are_aligned_by_a_similarity():
    matrix, scale, error = align(moved(FACE, 1.3, 0.2, (20, -7)), FACE)
    assert scale == pytest.approx(1 / 1.3) and error == pytest.approx(0, abs=1e-9)
    back = moved(FACE, 1.3, 0.2, (20, -7)) @ matrix[:, :2].T + matrix[:, 2]
    assert np.allclose(back, FACE)
    mirrored = FACE * (-1, 1)
    assert align(mirrored, FACE)[2] > 10  # no mirror image


def test_the_donor_has_a_similar_pose_and_colour():
    target = describe(photograph(0), FACE)
    same = describe(photograph(0), moved(FACE, 1.1))
    narrow = describe(photograph(0), FACE * (0.6, 1))
    dark = describe(photograph(0) // 3, FACE)
    far = describe(photograph(0), 3 * FACE)
    assert choose_donor(target, [narrow, far, same, dark]) == 2
    assert choose_donor(target, [far, describe(photograph(0), 0.6 * FACE)]) is None  # coarser and finer
    assert choose_donor(target, []) is None


def test_small_faces_are_left_out():
    assert describe(photograph(0), None) is None
    assert describe(photograph(0), FACE / 3) is None


@pytest.mark.parametrize("own", [False, True], ids=["donor", "altered copy"])
def test_only_the_face_changes_and_the_draw_decides(own):
    image, landmarks = photograph(1), FACE
    donor = None if own else (photograph(2), moved(FACE, 1.2, 0.1))
    results = [composite(image, landmarks, donor, np.random.default_rng(seed)) for seed in range(30)]
    made = [fake for fake in results if fake is not None]
    assert len(made) > 20
    corner = np.zeros((200, 200), bool)
    corner[:15], corner[:, :15], corner[185:], corner[:, 185:] = True, True, True, True
    for fake in made:
        assert fake.shape == image.shape and fake.dtype == np.uint8
        change = np.abs(fake.astype(int) - image)
        assert change[~corner].max() > 8
        assert change[corner].max() <= 2
    again = composite(image, landmarks, donor, np.random.default_rng(0))
    assert (results[0] is None and again is None) or np.array_equal(results[0], again)


def test_a_donor_without_the_part_gives_none():
    donor = (photograph(2)[:, :10], FACE)
    assert all(composite(photograph(1), FACE, donor, np.random.default_rng(seed)) is None for seed in range(10))


def test_a_donor_that_ends_within_the_face_is_pasted_up_to_its_border():
    image, donor = photograph(1), (photograph(2)[:, :100], FACE)  # cut along the nose
    for seed in range(20):
        fake = composite(image, FACE, donor, np.random.default_rng(seed))
        assert fake is None or np.abs(fake[:, 125:].astype(int) - image[:, 125:]).max() <= 2


def test_each_part_lies_on_the_face():
    seen = set()
    for seed in range(100):
        mask = part_mask((200, 200), FACE, np.random.default_rng(seed))
        assert set(np.unique(mask)) == {0, 1}
        rows, columns = np.nonzero(mask)
        assert 20 < columns.mean() < 180 and 50 < rows.mean() < 170
        seen.add(round(mask.sum() / 1600, 1))  # in squares of the distance of the eyes
    assert min(seen) < 0.6 and max(seen) > 3


def test_parts_turn_with_the_face():
    upright = part_mask((400, 400), FACE + 100, np.random.default_rng(3))
    turned = part_mask((400, 400), moved(FACE, turn=np.pi / 2, shift=(310, 100)), np.random.default_rng(3))
    assert turned.sum() == pytest.approx(upright.sum(), rel=0.02)


def test_colours_are_matched_in_the_region():
    image, target = photograph(3), photograph(4)
    where = np.zeros((200, 200), bool)
    where[50:150, 50:150] = True
    before = np.abs(image[where].mean(0) - target[where].mean(0)).max()
    after = np.abs(match_colours(image, target, where, 1.0)[where].mean(0) - target[where].mean(0)).max()
    assert before > 8 and after < before / 3
