"""serve.py and faces: which are judged, pictures without any, and explanations of a chosen one."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("flask")
pytest.importorskip("waitress")

import serve
from tests.clips import scene
from utils.checkpoints.file import load_checkpoint, save_checkpoint
from utils.serving.settings import Limits

FACES = (0, 2)  # people that the cascade finds


@pytest.fixture(scope="module")
def app(_tiny_checkpoint_file: Path, tmp_path_factory: pytest.TempPathFactory):
    """Two detectors: one that frames faces and is the default, and one that judges whole pictures."""
    folder = tmp_path_factory.mktemp("detectors")
    checkpoint = load_checkpoint(_tiny_checkpoint_file)
    geometry = {"mode": "face", "size": 32, "resize_to": None, "margin": 1.4}
    save_checkpoint(folder / "faces.pt", {**checkpoint, "geometry": geometry})
    app = serve.create_app(
        [folder / "faces.pt", _tiny_checkpoint_file], Limits(max_seconds=300), threads=1, page=folder
    )
    yield app
    app.extensions["service"].close()


def png(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", image[:, :, ::-1])[1].tobytes()


COUPLE = png(scene((FACES[0], 10), (FACES[1], 170)))
NOBODY = png(np.random.default_rng(1).integers(0, 255, (90, 120, 3), np.uint8))


def ask(app, what: str, data: bytes, **fields: str) -> Any:
    field = "images" if what == "predict" else "image"
    return app.test_client().post(f"/api/{what}", data={field: (io.BytesIO(data), "a.png"), **fields})


def judged(app, data: bytes, **fields: str) -> dict[str, Any]:
    return ask(app, "predict", data, **fields).get_json()["images"][0]


def whole_model(app) -> str:
    return app.extensions["service"].offers[1].name


def test_a_picture_has_the_verdict_of_its_most_suspicious_face(app):
    both, largest = judged(app, COUPLE), judged(app, COUPLE, faces="false")
    assert len(both["faces"]) == 2 and len(largest["faces"]) == 1 and both["framed"] == "face"
    assert both["logit"] == max(face["logit"] for face in both["faces"])
    assert largest["logit"] == both["faces"][0]["logit"]
    for face in both["faces"]:
        assert 0 <= face["left"] <= 320 - face["side"] and 0 <= face["top"] <= 180 - face["side"]


def test_a_picture_without_a_face_has_no_verdict_unless_it_is_judged_as_a_whole(app):
    nothing = judged(app, NOBODY)
    assert (nothing["verdict"], nothing["p_fake"], nothing["logit"]) == ("no face", None, None)
    assert nothing["faces"] == [] and nothing["finder"] == "cascade" and "framed" not in nothing
    assert nothing["metadata"] and nothing["width"] == 120
    whole = judged(app, NOBODY, whole="true")
    assert whole["framed"] == "whole" and whole["faces"] == [] and 0 <= whole["p_fake"] <= 1
    for what in ("explain", "stress"):
        refused = ask(app, what, NOBODY)
        assert refused.status_code == 422 and refused.get_json()["error"]["code"] == "no_face"
        assert ask(app, what, NOBODY, whole="true").status_code == 200
    assert 'verdict="no face"' in app.test_client().get("/metrics").text


def test_one_picture_without_a_face_among_others(app):
    files = [(io.BytesIO(data), "a.png") for data in (NOBODY, COUPLE, NOBODY)]
    images = app.test_client().post("/api/predict", data={"images": files}).get_json()["images"]
    assert [image["verdict"] == "no face" for image in images] == [True, False, True]
    assert images[1]["logit"] == pytest.approx(judged(app, COUPLE)["logit"], abs=1e-5)


def test_a_detector_of_whole_pictures_does_not_look_for_faces(app):
    for data in (NOBODY, COUPLE):
        whole = judged(app, data, model=whole_model(app))
        assert whole["verdict"] != "no face" and whole["faces"] == [] and not {"framed", "finder"} & set(whole)


def test_the_chosen_face_is_explained_with_its_surroundings(app):
    scored = judged(app, COUPLE)["faces"]
    answers = [ask(app, "explain", COUPLE, face=str(index)).get_json() for index in range(2)]
    for face, answer in zip(scored, answers, strict=True):
        assert answer["logit"] == pytest.approx(face["logit"], abs=1e-5)
        assert answer["face"] == {key: face[key] for key in ("left", "top", "side", "confidence")}
        view, around = answer["view"], face["side"] // 2
        left, right = max(0, face["left"] - around), min(320, face["left"] + face["side"] + around)
        assert (view["left"], view["left"] + view["width"]) == (left, right)
        drawn = cv2.imdecode(np.frombuffer(base64.b64decode(answer["overlay"]["base64"]), np.uint8), cv2.IMREAD_COLOR)
        assert drawn.shape[:2] == (view["height"], view["width"])
        inside = drawn[face["top"] - view["top"] :][: face["side"], face["left"] - left :][:, : face["side"]]
        assert inside.mean() > 1.2 * drawn[:, [0, -1]].mean()  # what the detector does not see is darker
    worst = max(range(2), key=lambda index: scored[index]["logit"])
    assert ask(app, "explain", COUPLE).get_json()["face"] == answers[worst]["face"]
    assert ask(app, "stress", COUPLE, face=str(1 - worst)).get_json()["original"]["logit"] == pytest.approx(
        scored[1 - worst]["logit"], abs=1e-5
    )


@pytest.mark.parametrize("face", ["2", "-1", "first", "", "10000", "²"])
def test_a_face_that_is_none_is_refused(app, face):
    assert ask(app, "explain", COUPLE, face=face).status_code == 400


def test_a_whole_picture_is_explained_as_a_whole(app):
    answer = ask(app, "explain", NOBODY, whole="true").get_json()
    assert answer["view"] == {"left": 0, "top": 0, "width": 120, "height": 90} and answer["face"] is None


def test_the_plain_form_says_that_no_face_was_found(app):
    def send(**fields: str) -> str:
        return app.test_client().post("/plain", data={"images": (io.BytesIO(NOBODY), "a.png"), **fields}).text

    assert "no face found: not judged" in send()
    judged_whole = send(whole="true")
    assert "(no face found: whole picture)" in judged_whole and 'value="true" checked' in judged_whole
