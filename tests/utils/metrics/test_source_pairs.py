"""AUC over pairs of sources, and the figure by which a mix of sources is judged."""

import numpy as np
import pytest

from tests.conftest import make_scores
from utils.metrics.binary import auc
from utils.metrics.source_pairs import across, mix_auc, pair_aucs, within


def source(seed: int, n: int = 120, only: int | None = None, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Labels and p_fake of a source, of one class if ``only`` says so."""
    labels, p_fake = make_scores(n, seed=seed)
    keep = np.full(n, True) if only is None else labels == only
    return labels[keep], np.clip(p_fake[keep] + shift, 0, 1)


def mix() -> list[tuple[np.ndarray, np.ndarray]]:
    return [source(1), source(2, only=1, shift=-0.1), source(3, n=600), source(4, only=0), source(5, n=9, only=1)]


def figure(sources) -> float:
    return float(mix_auc(pair_aucs(sources))[0])


def test_each_pair_is_the_auc_of_its_images():
    sources = mix()
    found = pair_aucs(sources)
    assert found.shape == (1, 5, 5)
    for f, (fake_labels, fake_scores) in enumerate(sources):
        for r, (real_labels, real_scores) in enumerate(sources):
            fakes, reals = fake_scores[fake_labels == 1], real_scores[real_labels == 0]
            labels = np.repeat([1, 0], [len(fakes), len(reals)])
            expected = auc(labels, np.concatenate([fakes, reals]))
            assert np.isnan(found[0, f, r]) if expected is None else found[0, f, r] == expected
    assert np.isnan(found[0]).sum() == 25 - 4 * 3


def test_with_two_classes_everywhere_it_is_the_mean_of_their_own_aucs():
    """To the last bit: the published detectors were chosen by this mean."""
    for count in (1, 2, 3, 6):
        sources = [source(seed, 50 + 70 * seed, shift=0.1 * seed) for seed in range(count)]
        assert figure(sources) == float(np.mean([auc(*one) for one in sources]))


def test_a_mix_counts_pairs_within_and_across_sources_by_half():
    found = pair_aucs(mix())
    own, others = found[0, [0, 2], [0, 2]], found[0][~np.eye(5, dtype=bool)]
    assert within(found)[0] == pytest.approx(own.mean())
    assert across(found)[0] == pytest.approx(np.nanmean(others)) and np.isfinite(others).sum() == 10
    assert mix_auc(found)[0] == pytest.approx((own.mean() + np.nanmean(others)) / 2)


def test_without_a_source_of_both_classes_the_pairs_are_all_there_is():
    found = pair_aucs([source(1, only=0), source(2, only=1), source(3, only=1)])
    assert np.isnan(within(found)[0]) and mix_auc(found)[0] == across(found)[0] == np.nanmean(found)
    assert np.isnan(figure([source(1, only=0), source(2, only=0)])) and np.isnan(figure([source(0, n=0)]))


def test_the_order_of_sources_and_images_and_their_number_do_not_matter():
    sources = mix()
    wanted = figure(sources)
    assert figure(sources[::-1]) == pytest.approx(wanted)
    shuffled = [np.random.default_rng(0).permutation(len(labels)) for labels, _ in sources]
    moved = [(labels[order], p_fake[order]) for (labels, p_fake), order in zip(sources, shuffled, strict=True)]
    assert figure(moved) == pytest.approx(wanted)
    larger = [(np.tile(labels, times), np.tile(p, times)) for times, (labels, p) in enumerate(sources, start=1)]
    assert figure(larger) == pytest.approx(wanted)
    assert figure([*sources, (np.empty(0), np.empty(0))]) == pytest.approx(wanted), "a source without readable images"


def test_any_rising_change_of_the_scores_keeps_it_and_the_opposite_scores_turn_it_around():
    sources = mix()
    wanted = figure(sources)
    assert figure([(labels, p_fake**3) for labels, p_fake in sources]) == pytest.approx(wanted)
    assert figure([(labels, 1 - p_fake) for labels, p_fake in sources]) == pytest.approx(1 - wanted)


def test_a_detector_of_sources_is_not_rewarded_for_its_own_pairs():
    """It calls fake whatever is not from the sets of both classes, and cannot tell anything within these."""
    constant = (np.repeat([0, 1], 40), np.full(80, 0.2))
    sources = [constant, constant, (np.ones(30), np.full(30, 0.9))]
    assert figure(sources) == pytest.approx((0.5 + (2 * 1.0 + 2 * 0.5) / 4) / 2) and figure(sources) < 0.65


def test_resamples_surround_the_observed_pairs_and_share_their_images():
    sources = mix()
    observed, drawn = pair_aucs(sources)[0], pair_aucs(sources, n_boot=300, seed=1)
    assert drawn.shape == (300, 5, 5)
    np.testing.assert_array_equal(np.isnan(drawn[7]), np.isnan(observed))
    here = ~np.isnan(observed)
    assert np.abs(drawn[:, here].mean(axis=0) - observed[here]).max() < 0.02
    np.testing.assert_array_equal(drawn[:40], pair_aucs(sources, n_boot=40, seed=1))
    together = np.corrcoef(drawn[:, 1, 0], drawn[:, 1, 3])[0, 1]  # the same fakes in both
    apart = np.corrcoef(drawn[:, 1, 0], drawn[:, 4, 3])[0, 1]
    assert together > 0.3 > abs(apart)
