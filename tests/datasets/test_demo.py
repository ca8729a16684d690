"""The demo set: the same bytes every time, an honest layout, no label in the metadata, traces where they belong."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from datasets.demo_set import generate as demo
from datasets.demo_set.camera import decode_jpeg, encode_jpeg
from datasets.demo_set.fakes import GENERATORS, forge, photograph
from studies.demo_sheet import contact_sheet
from utils.errors import UserError

SIZE = 64


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    return demo.make_demo(tmp_path_factory.mktemp("one"), n=60, size=SIZE, workers=1, progress=False)


def test_one_and_two_workers_write_the_same_bytes(small, tmp_path):
    again = demo.make_demo(tmp_path, n=60, size=SIZE, workers=2, progress=False)
    assert files_of(again) == files_of(small)


def test_another_seed_writes_other_images():
    one, two = (encode_jpeg(photograph(np.random.default_rng([seed, 5]), SIZE).image, 90) for seed in (0, 1))
    assert one != two


def test_layout_counts_and_masks(small):
    card = {"version": demo.DEMO_VERSION, "seed": 0, "n": 60, "size": SIZE}
    assert json.loads((small / "demo.json").read_text()) == card
    expected = {"train": (21, 7), "valid": (3, 1), "test": (6, 2)}
    for split, (reals, fakes) in expected.items():
        assert len(list((small / split / "real").glob("*.jpg"))) == reals
        for name in GENERATORS:
            assert len(list((small / split / "fake" / name).glob("*.jpg"))) == fakes
        masks = {path.stem for path in (small / "masks" / split).glob("*.png")}
        assert masks == {path.stem for path in (small / split / "fake" / "blended").glob("*.jpg")}
    stems = [path.stem for path in small.rglob("*.jpg")]
    assert len(set(stems)) == 60
    assert all(cv2.imread(str(path)).shape == (SIZE, SIZE, 3) for path in small.rglob("*.jpg"))


def test_indices_do_not_tell_the_label():
    jobs = demo.plan(Path("x"), 2400, SIZE, 0)
    auc = roc_auc_score([job.generator is not None for job in jobs], [job.index for job in jobs])
    assert 0.46 < auc < 0.54


def test_blended_differs_from_its_original_inside_the_mask():
    inside, outside = [], []
    for index in range(8):
        data, mask, original = forge("blended", np.random.default_rng([3, index]), 96, 92)
        change = np.abs(decode_jpeg(data).astype(float) - decode_jpeg(original)).mean(-1)
        assert 0.08 < (mask >= 128).mean() < 0.5
        inside.append(change[mask >= 200].mean())
        outside.append(change[mask <= 20].mean())
    assert np.mean(inside) > 3 * np.mean(outside)


def replica_energy(data: bytes) -> float:
    """Return the log amplitude at half the sampling rate, where copies of the mean land, over that around it."""
    grey = decode_jpeg(data).astype(np.float32).mean(-1)
    spectrum = np.abs(np.fft.fft2(grey - cv2.GaussianBlur(grey, (0, 0), 1.5)))
    half = grey.shape[0] // 2
    scores = []
    for row, column in ((half, half), (half, 0), (0, half)):
        around = np.roll(spectrum, (4 - row, 4 - column), (0, 1))[:9, :9]
        scores.append(np.log(around[4, 4] / np.median(around)))
    return float(max(scores))


def test_upsampled_has_spectral_replicas():
    reals, fakes = [], []
    for index in range(40):
        data, _, original = forge("upsampled", np.random.default_rng([4, index]), 96, 92)
        fakes.append(replica_energy(data))
        reals.append(replica_energy(original))
    auc = roc_auc_score([0] * 40 + [1] * 40, reals + fakes)
    assert auc > 0.75


def metadata(data: bytes, quality: int) -> list[float]:
    image = decode_jpeg(data).astype(np.float32)
    return [*image.shape[:2], len(data), image.mean(), *image.mean((0, 1)), quality]


@pytest.fixture(scope="module")
def leak_table(tmp_path_factory) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Metadata features (600, 8), labels and groups; small images keep it fast and change no mechanism."""
    rows, groups = [], []
    for job in demo.plan(Path("x"), 600, SIZE, 11):
        rng = np.random.default_rng([11, job.index, demo.DEMO_VERSION])
        quality = int(rng.integers(demo.QUALITIES[0], demo.QUALITIES[1] + 1))
        if job.generator is None:
            data = encode_jpeg(photograph(rng, SIZE).image, quality)
        else:
            data = forge(job.generator, rng, SIZE, quality)[0]
        rows.append(metadata(data, quality))
        groups.append(job.generator or "real")
    groups = np.array(groups)
    return np.array(rows), groups != "real", groups


def leak_auc(model, rows: np.ndarray, labels: np.ndarray) -> float:
    """Return the cross-validated AUC, averaged over two shuffles of the folds."""
    aucs = []
    for seed in range(2):
        folds = StratifiedKFold(5, shuffle=True, random_state=seed)
        chances = cross_val_predict(model, rows, labels, cv=folds, method="predict_proba")[:, 1]
        aucs.append(roc_auc_score(labels, chances))
    return float(np.mean(aucs))


@pytest.mark.slow
@pytest.mark.parametrize("columns", [7, 8], ids=["metadata", "metadata-and-quality"])
@pytest.mark.parametrize(
    "model",
    [
        make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced")),
        HistGradientBoostingClassifier(max_iter=25, learning_rate=0.1, max_leaf_nodes=8, early_stopping=False),
    ],
    ids=["logistic", "boosting"],
)
def test_metadata_does_not_tell_the_label(leak_table, model, columns):
    rows, labels, groups = leak_table
    assert 0.45 <= leak_auc(model, rows[:, :columns], labels) <= 0.55
    for name in GENERATORS:
        chosen = (groups == name) | (groups == "real")
        assert 0.42 <= leak_auc(model, rows[chosen, :columns], labels[chosen]) <= 0.58, name


def test_existing_folder_is_reused_and_a_foreign_one_refused(small, monkeypatch):
    monkeypatch.setattr(demo, "make_image", lambda job: pytest.fail("made an image again"))
    assert demo.make_demo(small.parent, n=60, size=SIZE, workers=1, progress=False) == small
    card = (small / "demo.json").read_text()
    (small / "demo.json").write_text("{}")
    with pytest.raises(UserError, match="move or remove"):
        demo.make_demo(small.parent, n=60, size=SIZE, workers=1, progress=False)
    (small / "demo.json").write_text(card)


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    def broken(job):
        if job.index == 5:
            raise RuntimeError("disk full")

    monkeypatch.setattr(demo, "make_image", broken)
    with pytest.raises(RuntimeError, match="disk full"):
        demo.make_demo(tmp_path, n=60, size=SIZE, workers=1, progress=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("bad", [{"n": 10}, {"size": 63}, {"seed": -1}])
def test_settings_out_of_range_are_refused(tmp_path, bad):
    with pytest.raises(UserError, match="expected"):
        demo.make_demo(tmp_path, progress=False, **bad)


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"can be written to, got .*file/data: Not a directory; set DEMO_DIR"):
        demo.make_demo(tmp_path / "file" / "data", n=60, size=SIZE, progress=False)


def test_contact_sheet_is_drawn(small, tmp_path):
    picture = cv2.imread(str(contact_sheet(small, tmp_path / "sheet.png", columns=2)))
    assert picture.shape[0] > 500 and picture.std() > 20


@pytest.mark.parametrize("broken", ["test/real/*.jpg", "masks/test/*.png"])
def test_contact_sheet_names_an_image_that_cannot_be_read(small, tmp_path, broken):
    folder = shutil.copytree(small, tmp_path / small.name)
    file = sorted(folder.glob(broken))[0]
    file.write_bytes(b"not an image")
    with pytest.raises(UserError, match=re.escape(file.name)):
        contact_sheet(folder, tmp_path / "sheet.png", columns=2)


def test_bytes_that_are_no_image_are_refused():
    with pytest.raises(ValueError, match="got 12 bytes that do not decode"):
        decode_jpeg(b"not an image")
