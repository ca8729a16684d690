"""The measures: each must tell a map that knows the answer from one that does not."""

import numpy as np
import pytest
import torch

from models.registry import create_model
from utils.explanations.faithfulness.cells import spread
from utils.explanations.faithfulness.controls import control_maps, randomised, rank_correlation
from utils.explanations.faithfulness.removal import (
    attacked_segments,
    impute,
    insertion_deletion,
    removal_order,
    road_combined,
)
from utils.explanations.faithfulness.report import write_report
from utils.explanations.faithfulness.table import (
    FAITHFUL,
    METRICS,
    UNFAITHFUL,
    better,
    cell_rows,
    mean_interval,
    read_raw,
    write_raw,
)
from utils.explanations.regions import find_face, mask_iou, mosaics, pointing_game, segment, share_inside
from utils.files import ROOT

SIDE = 32


def noise_images(count=4):
    return torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def roughness_of_corner(batch):
    """A detector of fine noise in the top left quarter."""
    return 40 * (batch[..., :16, 1:16] - batch[..., :16, :15]).abs().mean((1, 2, 3)) - 4


def maps(kind):
    heat = np.zeros((SIDE, SIDE), np.float32)
    heat[(slice(0, 16),) * 2 if kind == "right" else (slice(16, 32),) * 2] = 1
    return torch.from_numpy(np.stack([removal_order(heat, seed) for seed in range(4)]))


def test_road_rewards_the_map_that_knows_where_the_evidence_is():
    images = noise_images()
    right, wrong = (road_combined(roughness_of_corner, images, maps(kind)) for kind in ("right", "wrong"))
    assert (right > 1).all() and (wrong < -1).all()


def test_insertion_and_deletion_order_the_maps_too():
    images = noise_images()
    (insertion, deletion), (other_insertion, other_deletion) = (
        insertion_deletion(roughness_of_corner, images, maps(kind)) for kind in ("right", "wrong")
    )
    assert (insertion > other_insertion).all() and (deletion < other_deletion).all()


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_imputation_is_close_to_the_exact_solution_of_the_package(share):
    from pytorch_grad_cam.metrics.road import NoisyLinearImputer

    rows, columns = torch.meshgrid(torch.linspace(0, 3, 48), torch.linspace(0, 2, 48), indexing="ij")
    image = torch.stack([(rows + columns).sin(), (rows * columns).cos(), rows.cos()]) / 2 + 0.5
    heat = control_maps(image[None], 0)["random"][0].numpy()
    missing = torch.from_numpy(removal_order(heat) < share * heat.size)
    exact = NoisyLinearImputer(noise=0)(image, (~missing).float())
    ours = impute(image[None], missing[None], noise=0)[0]
    assert torch.equal(ours[:, ~missing], image[:, ~missing])
    assert (ours - exact).abs()[:, missing].mean() < 0.02


def test_removal_orders_ties_at_random_and_the_rest_by_the_map():
    heat = np.zeros((8, 8))
    heat[5, 5] = 1
    ranks = removal_order(heat, 1)
    assert ranks[5, 5] == 0 and sorted(ranks.ravel()) == list(range(64))
    assert not np.array_equal(ranks, removal_order(heat, 2))


def test_pointing_iou_and_share():
    mask = np.zeros((10, 10), bool)
    mask[2:4, 2:4] = True
    hit, miss = np.zeros((10, 10)), np.ones((10, 10))
    hit[3, 3] = 1
    assert pointing_game(hit, mask) == 1 and pointing_game(miss, mask) == pytest.approx(0.04)
    assert pointing_game(np.zeros((10, 10)), mask) == 0
    assert mask_iou(removal_order(mask.astype(float)), mask) == 1
    assert share_inside(hit, (0, 0, 5, 5)) == 1 and np.isnan(share_inside(hit * 0, (0, 0, 5, 5)))
    assert find_face(np.full((64, 64, 3), 90, np.uint8)) is None and find_face(np.zeros((9, 7, 3), np.uint8)) is None


def test_a_mosaic_moves_the_mask_away_from_the_middle():
    fakes, reals = torch.ones(6, 3, 8, 8), list(torch.zeros(3, 3, 8, 8))
    mask = np.zeros((6, 8, 8), bool)
    mask[:, 2:6, 2:6] = True
    images, wide = mosaics(fakes, mask, reals, seed=0)
    assert images.shape == (6, 3, 16, 16)
    assert (images.mean((1, 2, 3)) == 0.25).all()
    assert wide.sum() == mask.sum() and (images[:, 0].numpy()[wide] == 1).all()
    centre = control_maps(images, 0)["centre"].numpy()
    assert sum(pointing_game(heat, part) for heat, part in zip(centre, wide, strict=True)) == 0


def test_only_the_top_segments_are_attacked():
    images = noise_images(1)
    segments = [segment((images[0].permute(1, 2, 0) * 255).byte().numpy(), 16)]
    heat = (segments[0] == 2)[None].astype(np.float32)
    changed = attacked_segments(images, torch.ones_like(images), heat, segments, torch.tensor([True]))
    assert np.array_equal((changed != images)[0].any(0).numpy() | (heat[0] == 0), np.ones((SIDE, SIDE), bool))
    assert (changed <= images).all() and torch.equal(changed[0][:, heat[0] == 0], images[0][:, heat[0] == 0])


def test_shuffled_weights_change_the_logits_and_not_the_original():
    detector = create_model("cnn", width=4).eval()
    norms = [module for module in detector.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.running_mean.copy_(torch.randn(len(norm.running_mean)))
    before = detector(noise_images()).detach()
    stranger = randomised(detector, 0)
    assert torch.equal(detector(noise_images()), before)
    assert not torch.allclose(stranger(noise_images()), before)
    for own, other in zip(detector.parameters(), stranger.parameters(), strict=True):
        assert torch.equal(own.flatten().sort().values, other.flatten().sort().values)
    for own, other in zip(norms, (m for m in stranger.modules() if isinstance(m, torch.nn.BatchNorm2d)), strict=True):
        assert torch.equal(own.running_mean.sort().values, other.running_mean.sort().values)
        assert not torch.equal(own.running_mean, other.running_mean)
    assert torch.equal(detector.mean, stranger.mean)
    ramp = np.arange(12.0)
    assert rank_correlation(ramp, ramp**3) == pytest.approx(1) and np.isnan(rank_correlation(ramp, ramp * 0))


def test_samples_are_spread_over_a_sorted_list():
    assert spread([0, 1, 2], 5) == [0, 1, 2] and spread([], 4) == []
    assert spread(list(range(100)), 4) == [0, 33, 66, 99]


def raw_cell(gains, similarity=0.1, shuffled=-1.0, n=30):
    """Raw rows: ROAD of the method is above each control by ``gains``, and above shuffled weights by ``-shuffled``."""
    generator = np.random.default_rng(0)
    rows = []
    for index in range(n):
        road = generator.normal()
        swing = 0.01 * (1 + index // 2) * (-1) ** index  # symmetric about 0
        values = {"gradcam": road, **{name: road - gain + swing for name, gain in gains.items()}}
        for method, value in values.items():
            row = dict.fromkeys(METRICS, float("nan")) | {"road": value, "zero": 0.0}
            if method == "gradcam":
                row |= {"random_weights": similarity, "random_weights_road": road + shuffled + swing}
            rows.append({"path": f"{index}.png", "label": 1, "generator": "", "logit": 0.0, "method": method, **row})
    return rows


WIN = {"random": 0.5, "centre": 0.6, "edges": 0.7}


@pytest.mark.parametrize(
    ("cell", "best", "expected"),
    [
        (raw_cell(WIN), "Random map", FAITHFUL),
        (raw_cell(WIN | {"random": 0.0}), "Random map", UNFAITHFUL),
        (raw_cell(WIN | {"centre": -0.1}), "Centre prior", UNFAITHFUL),  # beats the random map and the edges only
        (raw_cell(WIN | {"edges": 0.0}), "Edge map", UNFAITHFUL),
        (raw_cell(WIN, shuffled=0.2), "Shuffled weights", UNFAITHFUL),
        (raw_cell(WIN, similarity=0.9), "Random map", UNFAITHFUL),
    ],
)
def test_a_method_must_beat_every_control_and_depend_on_the_weights(cell, best, expected):
    rows = {row["method"]: row for row in cell_rows(cell, "a", "b", 0)}
    assert rows["gradcam"]["verdict"] == expected and rows["gradcam"]["best_control"] == best
    assert rows["random"]["verdict"] == "control" and "p_value" not in rows["random"]
    assert rows["gradcam"]["road_ci"][0] <= rows["gradcam"]["road"] <= rows["gradcam"]["road_ci"][1]


def test_raw_numbers_give_the_same_table_from_the_file(tmp_path):
    rows = raw_cell(WIN)
    write_raw(tmp_path / "cell.csv", rows)
    read = read_raw(tmp_path / "cell.csv")
    assert [row["road"] for row in read] == pytest.approx([row["road"] for row in rows], rel=1e-5)
    assert all(np.isnan(row["pointing"]) for row in read)


def test_the_published_tables_follow_from_the_published_raw_numbers(tmp_path, monkeypatch):
    folder = ROOT / "results" / "explanations"
    monkeypatch.setattr("utils.explanations.faithfulness.report.save_figure", lambda figure, stem: None)
    write_report(sorted(folder.glob("raw/*.csv")), tmp_path)
    for file in tmp_path.iterdir():
        assert file.read_bytes() == (folder / file.name).read_bytes(), file.name


def test_statistics():
    assert better(np.array([])) == 1 == better(np.zeros(5))
    assert better(np.arange(1, 12.0)) < 0.01 < 0.9 < better(-np.arange(1, 12.0))
    assert mean_interval(np.array([np.nan]), 10, 0) == (None, None)
