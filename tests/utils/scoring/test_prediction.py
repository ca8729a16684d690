"""utils/scoring/prediction.py and tracks.py: nobody waits for the threads of a prediction that is given up."""

import threading

import pytest

import utils.scoring.tracks
from datasets.listing.records import Record, Sampling
from datasets.transforms import Geometry
from models.operating_point import OperatingPoint
from tests.clips import walk, write_clip
from tests.conftest import write_images
from utils.scoring.prediction import Predictor, predict_records


@pytest.mark.parametrize("kind", ["images", "video"])
def test_an_unfinished_prediction_is_closed_without_waiting_for_its_threads(in_empty_folder, monkeypatch, kind):
    geometry, is_released, calls = Geometry("face", 32), threading.Event(), iter(range(100))

    def stuck_after_the_first(image):
        if next(calls):
            is_released.wait(60)
        return []

    if kind == "images":
        predictor = Predictor(geometry, OperatingPoint(), lambda views: views.mean((1, 2, 3)))
        records = [Record(path, None, "") for path in write_images("a.png", "b.png", "c.png", "d.png")]
        work = predict_records(predictor, records, 1, 1, stuck_after_the_first, whole=True)
    else:
        monkeypatch.setattr(utils.scoring.tracks, "CHUNK", 1)
        clip = write_clip("a.avi", walk(1, 0))
        work = utils.scoring.tracks._prepared(str(clip), Sampling(0.01, 100), stuck_after_the_first, geometry)
    next(work)
    closing = threading.Thread(target=work.close, daemon=True)
    closing.start()
    closing.join(10)
    is_stuck = closing.is_alive()
    is_released.set()
    assert not is_stuck
