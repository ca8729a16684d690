"""Handcrafted feature banks: names match columns, values are finite, and each bank sees what it is there for."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from models.features.bank import feature_bank
from models.features.extract import FEATURE_BANKS, extract_features, feature_names
from utils.errors import UserError

BANKS = ("spectrum", "dct", "srm", "lbp", "color")


def smooth_noise(n: int = 2, height: int = 64, width: int = 64, seed: int = 0) -> torch.Tensor:
    """Photograph-like random images: coarse structure, fine noise, correlated colours, 8-bit values."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 3, 6, 6, generator=generator)
    images = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)
    images = images + 0.03 * torch.randn(n, 1, height, width, generator=generator)
    return (images.clamp(0, 1) * 255).round() / 255


def jpeg(images: torch.Tensor, quality: int) -> torch.Tensor:
    decoded = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray((image.permute(1, 2, 0) * 255).round().byte().numpy()).save(buffer, "JPEG", quality=quality)
        decoded.append(torch.from_numpy(np.array(Image.open(buffer))).permute(2, 0, 1).float() / 255)
    return torch.stack(decoded)


def column(features: np.ndarray, bank: str, name: str) -> np.ndarray:
    return features[:, feature_names([bank]).index(f"{bank}: {name}")]


def thin_column_upsampled() -> torch.Tensor:
    return torch.rand(1, 3, 50, 1, generator=torch.Generator().manual_seed(3)).expand(1, 3, 50, 64).contiguous()


HOSTILE = {
    "black": torch.zeros(2, 3, 64, 64),
    "white": torch.ones(2, 3, 64, 64),
    "one colour": torch.tensor([0.9, 0.1, 0.4]).view(1, 3, 1, 1).expand(1, 3, 40, 56),
    "one column stretched": thin_column_upsampled(),
    "33 x 47": smooth_noise(1, 33, 47),
    "8 x 8": smooth_noise(1, 8, 8),
    "1 x 1": smooth_noise(1, 1, 1),
    "1 x 200": smooth_noise(1, 1, 200),
    "checkerboard": ((torch.arange(64)[:, None] + torch.arange(64)) % 2).float().expand(1, 3, 64, 64),
    "out of range": smooth_noise(1) * 3 - 1,
}


def test_the_five_banks_are_registered():
    assert set(FEATURE_BANKS) == set(BANKS)


@pytest.mark.parametrize("bank", BANKS)
@pytest.mark.parametrize("height, width", [(32, 32), (64, 96), (131, 77), (256, 256)])
def test_names_match_columns_at_every_size(bank, height, width):
    names = feature_names([bank])
    features = extract_features(smooth_noise(2, height, width), [bank])
    assert features.shape == (2, len(names))
    assert features.dtype == np.float32
    assert len(set(names)) == len(names) and all(names)


@pytest.mark.parametrize("bank", BANKS)
@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_images_give_finite_and_moderate_values(bank, case):
    features = extract_features(HOSTILE[case], [bank])
    assert np.isfinite(features).all()
    assert np.abs(features).max() < 1e4, "a single degenerate image would ruin a standardisation"


@pytest.mark.parametrize("bank", BANKS)
def test_an_image_does_not_depend_on_its_batch(bank):
    images = smooth_noise(11, 80, 80)
    together = extract_features(images, [bank])
    alone = np.concatenate([extract_features(image[None], [bank]) for image in images])
    np.testing.assert_allclose(together, alone, rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(together, extract_features(images, [bank]))


@pytest.mark.parametrize("bank", BANKS)
def test_different_images_give_different_features(bank):
    first, second = extract_features(smooth_noise(2), [bank])
    assert np.abs(first - second).max() > 0.01


@pytest.mark.parametrize("bank", [b for b in BANKS if FEATURE_BANKS[b].flip_invariant])
def test_mirroring_changes_nothing_where_promised(bank):
    images = smooth_noise(2, 48, 70)
    np.testing.assert_allclose(
        extract_features(images, [bank]), extract_features(images.flip(3), [bank]), rtol=2e-3, atol=2e-3
    )


def test_dct_is_unchanged_by_mirroring_only_on_the_block_grid():
    on_grid, off_grid = smooth_noise(2, 64, 64), smooth_noise(2, 64, 70)
    np.testing.assert_allclose(
        extract_features(on_grid, ["dct"]), extract_features(on_grid.flip(3), ["dct"]), rtol=2e-3, atol=2e-3
    )
    assert np.abs(extract_features(off_grid, ["dct"]) - extract_features(off_grid.flip(3), ["dct"])).max() > 0.05
    assert not FEATURE_BANKS["dct"].flip_invariant


def test_banks_are_joined_in_the_order_asked_for():
    images = smooth_noise()
    joined = extract_features(images, ["color", "lbp"])
    np.testing.assert_array_equal(
        joined, np.concatenate([extract_features(images, ["color"]), extract_features(images, ["lbp"])], axis=1)
    )
    assert feature_names(["color", "lbp"]) == feature_names(["color"]) + feature_names(["lbp"])


def test_large_batches_are_cut_into_chunks_without_a_seam(monkeypatch):
    images = smooth_noise(7, 40, 40)
    whole = extract_features(images, BANKS)
    monkeypatch.setattr("models.features.extract.CHUNK_PIXELS", 3 * 40 * 40)
    np.testing.assert_allclose(whole, extract_features(images, BANKS), rtol=1e-3, atol=1e-3)


def test_spectral_peak_moves_the_spectrum_bank():
    plain = smooth_noise(1, 128, 128) * 0.8 + 0.1
    wave = 0.05 * torch.cos(2 * torch.pi * 0.25 * torch.arange(128))
    peaked = plain + wave
    before, after = extract_features(plain, ["spectrum"]), extract_features(peaked, ["spectrum"])
    peak = "luma log-power peak at fy=0 fx=0.25"
    assert column(after, "spectrum", peak) > column(before, "spectrum", peak) + 1.0
    elsewhere = "luma log-power peak at fy=0.25 fx=0"
    assert abs(column(after, "spectrum", elsewhere) - column(before, "spectrum", elsewhere)) < 0.3


def test_radial_spectrum_falls_where_an_image_is_blurred():
    sharp = smooth_noise(1, 128, 128)
    blurred = torch.nn.functional.avg_pool2d(torch.nn.functional.pad(sharp, (1, 1, 1, 1), mode="reflect"), 3, 1)
    change = extract_features(blurred, ["spectrum"]) - extract_features(sharp, ["spectrum"])
    assert change[0, 40:44].mean() < -0.5
    assert abs(change[0, 1]) < 0.1


def test_white_noise_power_does_not_depend_on_the_image_size():
    generator = torch.Generator().manual_seed(1)
    grey = [torch.rand(1, 1, side, side, generator=generator) for side in (64, 256)]
    small, large = (extract_features(noise.expand(-1, 3, -1, -1), ["spectrum"])[0, 8:40] for noise in grey)
    assert abs((small - large).mean()) < 0.1


def test_jpeg_zeroes_show_in_the_dct_bank():
    images = smooth_noise(2, 128, 128)
    name = "luma near zero of coefficient (5, 5)"
    fine, coarse = (column(extract_features(jpeg(images, q), ["dct"]), "dct", name) for q in (98, 50))
    assert (coarse > fine + 0.3).all()


def test_dct_knows_the_jpeg_grid():
    compressed = jpeg(smooth_noise(1, 136, 136), 50)
    name = "luma near zero of coefficient (5, 5)"
    aligned = column(extract_features(compressed[:, :, 8:, 8:], ["dct"]), "dct", name)
    shifted = column(extract_features(compressed[:, :, 4:-4, 4:-4], ["dct"]), "dct", name)
    assert aligned > shifted + 0.1


def test_block_dct_agrees_with_scipy():
    from scipy.fft import dctn

    from models.features.frequency import _block_dct

    plane = torch.rand(1, 16, 24)
    expected = dctn(plane[0, 8:16, 16:24].numpy(), norm="ortho")
    np.testing.assert_allclose(_block_dct(plane)[0, :, -1].reshape(8, 8).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("bank", ["srm", "lbp"])
def test_histograms_of_a_flat_image_have_one_bin_each(bank):
    features = extract_features(torch.full((1, 3, 64, 64), 0.5), [bank])
    np.testing.assert_allclose(features[features > 0], 1.0, atol=1e-6)


def test_cooccurrence_counts_match_a_direct_count():
    from models.features.texture import Residual, _cooccurrence, _merge_symmetric

    levels = torch.randint(-1, 2, (1, 9, 14), generator=torch.Generator().manual_seed(5), dtype=torch.int16)
    spec = Residual("luma", "diff1", 1, 1, 6, step=2)
    names = _merge_symmetric(1, 6, True)[1]
    expected = dict.fromkeys(names, 0)
    for row in levels[0].tolist():
        for start in range(14 - 10):
            members = tuple(row[start : start + 11 : 2])
            negated = tuple(-m for m in members)
            expected[" ".join(map(str, min(members, negated, members[::-1], negated[::-1])))] += 1
    counted = _cooccurrence(levels, spec, 2)[0] ** 2 * (9 * 4)
    np.testing.assert_allclose(counted, list(expected.values()), atol=1e-6)


def test_color_bank_reports_clipping_and_correlation():
    grey = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(2)).expand(1, 3, 64, 64)
    clipped = grey.clone()
    clipped[:, 0, :32] = 1.0
    features = extract_features(torch.cat([grey, clipped]), ["color"])
    assert column(features, "color", "R at or above 255")[1] == pytest.approx(0.5, abs=0.02)
    of_grey, of_clipped = column(features, "color", "horizontal diff (rgb): correlation of R and G")
    assert of_grey == pytest.approx(1, abs=1e-3)
    assert of_clipped < 0.9


def test_unknown_bank_names_the_closest():
    with pytest.raises(UserError, match="'spectrm'; did you mean spectrum"):
        extract_features(smooth_noise(), ["spectrm"])
    with pytest.raises(UserError, match=r"choose from .*dct"):
        feature_names(["zzzz"])
    with pytest.raises(UserError, match="at least one feature bank"):
        feature_names([])


@pytest.mark.parametrize("shape", [(3, 64, 64), (2, 1, 64, 64), (2, 3, 0, 64)])
def test_wrong_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="expected float images"):
        extract_features(torch.zeros(shape), ["color"])


def test_empty_batch_gives_no_rows():
    assert extract_features(torch.zeros(0, 3, 64, 64), BANKS).shape == (0, len(feature_names(BANKS)))


def test_a_bank_cannot_be_registered_twice():
    with pytest.raises(ValueError, match="registered twice"):
        feature_bank("dct", ["a"], flip_invariant=True)
    with pytest.raises(ValueError, match="same name"):
        feature_bank("new", ["a", "a"], flip_invariant=True)
