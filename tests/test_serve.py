"""serve.py: the answers of the API, that its scores are those of predict.py, and pictures that take too long."""

from __future__ import annotations

import base64
import io
import json
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

pytest.importorskip("flask")
pytest.importorskip("waitress")

import predict
import serve
from datasets.decoding.images import UnreadableImage
from models.operating_point import OperatingPoint
from tests.conftest import write_image
from tests.datasets.heif_files import encode_heic
from tests.uploads import jpeg, upload
from tests.utils.metadata.manifests import firefly_store, in_png
from utils.errors import UserError
from utils.serving.offers import open_offers
from utils.serving.settings import Limits

LIMITS = Limits(max_seconds=300, max_mb=2, max_pixels=1_000_000, max_files=4)


@pytest.fixture(scope="module")
def app(_tiny_checkpoint_file: Path, tmp_path_factory: pytest.TempPathFactory):
    page = tmp_path_factory.mktemp("no-build")
    app = serve.create_app([_tiny_checkpoint_file], LIMITS, threads=1, page=page)
    yield app
    app.extensions["service"].close()


@pytest.fixture
def client(app):
    return app.test_client()


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{index}.png" for index in range(3)]
    for index, path in enumerate(paths):
        write_image(path, index, fake=index % 2 == 1, height=48 + 8 * index, width=64)
    return paths


# ---------------------------------------------------------------------------------------------------- answers


def test_scores_are_those_of_predict(client, photos, tiny_checkpoint, tmp_path):
    output = tmp_path / "out.json"
    predict.main(
        [
            "--checkpoint",
            str(tiny_checkpoint),
            "--format",
            "json",
            "--output",
            str(output),
            "--threads",
            "1",
            *map(str, photos),
        ]
    )
    expected = json.loads(output.read_text())
    answer = upload(client, "/api/predict", [(path.read_bytes(), path.name) for path in photos]).get_json()
    assert [image["name"] for image in answer["images"]] == [path.name for path in photos]
    for image, row in zip(answer["images"], expected, strict=True):
        assert image["verdict"] == row["verdict"]
        assert image["logit"] == pytest.approx(row["logit"], abs=1e-5)
        assert image["p_fake"] == pytest.approx(row["p_fake"], abs=1e-6)
    assert answer["unsure"] == [0.4, 0.6] and answer["threshold"] == 0.5


def test_an_image_that_cannot_be_read_has_no_score(client, photos):
    answer = upload(client, "/api/predict", [(photos[0].read_bytes(), "a.png"), (b"\xff\xd8\xff", "b.jpg")])
    good, bad = answer.get_json()["images"]
    assert answer.status_code == 200 and 0 <= good["p_fake"] <= 1
    assert bad == {"name": "b.jpg", "error": {"code": "unreadable", "message": "The image is damaged or incomplete."}}


def test_what_a_file_says_stands_beside_its_score(client, photos):
    plain = photos[0].read_bytes()
    credentials = in_png(plain, firefly_store())
    answer = upload(client, "/api/predict", [(plain, "a.png"), (credentials, "b.png")]).get_json()
    first, second = answer["images"]
    assert first["logit"] == second["logit"] and [one["what"] for one in first["metadata"]] == ["camera"]
    assert second["metadata"][0] == {
        "what": "content credentials",
        "value": "claim by Adobe_Firefly 2.0; not verified",
        "where": "PNG caBX",
    }


def test_heic_is_scored_or_refused_in_plain_words(client, monkeypatch):
    pytest.importorskip("pillow_heif", reason="pillow-heif is not installed")
    data = encode_heic(Image.linear_gradient("L").resize((64, 48)).convert("RGB"))
    image = upload(client, "/api/predict", [(data, "IMG_1.HEIC")]).get_json()["images"][0]
    assert (image["width"], image["height"]) == (64, 48) and 0 <= image["p_fake"] <= 1
    assert upload(client, "/api/explain", [(data, "a")]).get_json()["overlay"]["media_type"] == "image/jpeg"
    assert upload(client, "/api/predict", [(data[:200], "a")]).get_json()["error"]["code"] == "unreadable"

    def no_decoder(*_):
        raise UnreadableImage("HEIC needs the package pillow-heif; install it, or convert the file to JPEG or PNG")

    monkeypatch.setattr(client.application.extensions["service"].workers, "run", no_decoder)
    refused = upload(client, "/api/predict", [(data, "a")])
    assert refused.status_code == 415 and "cannot read HEIC" in refused.get_json()["error"]["message"]


def test_explanation_has_an_overlay_of_the_picture_and_the_raw_map(client, photos):
    answer = upload(client, "/api/explain", [(photos[2].read_bytes(), "c.png")]).get_json()
    drawn, heat = (
        cv2.imdecode(np.frombuffer(base64.b64decode(answer[key]["base64"]), np.uint8), cv2.IMREAD_UNCHANGED)
        for key in ("overlay", "map")
    )
    assert drawn.shape == (64, 64, 3) and heat.shape == (32, 32)
    assert answer["all_zero"] == (not heat.any()) and answer["method"] == "gradcam"
    assert answer["target"] == ("fake" if answer["p_fake"] >= 0.5 else "real")


def test_stress_scores_every_step_and_counts_kept_verdicts(client, photos):
    answer = upload(client, "/api/stress", [(photos[0].read_bytes(), "a.png")]).get_json()
    whole = upload(client, "/api/predict", [(photos[0].read_bytes(), "a.png")]).get_json()["images"][0]
    assert answer["original"]["p_fake"] == pytest.approx(whole["p_fake"], abs=1e-6)
    assert {step["kind"] for step in answer["steps"]} == {"jpeg", "resize", "screenshot", "shared"}
    assert answer["held"] == sum(step["verdict"] == whole["verdict"] for step in answer["steps"])


def test_models_say_what_a_reader_should_know_and_no_path(client):
    answer = client.get("/api/models").get_json()
    card = answer["models"][0]
    assert card["model"] == "cnn" and card["threshold"] == 0.5 and card["calibrated"]
    assert card["seconds"] > 0 and card["sources"] == []
    bounds = {"max_mb": 2, "max_pixels": 1_000_000, "max_files": 4, "max_video_mb": 100, "max_video_frames": 64}
    assert answer["limits"] == bounds and not answer["faces"] and not answer["cases"]
    assert "/" not in json.dumps(card)


def test_the_card_shows_the_test_results_beside_a_checkpoint(tiny_checkpoint):
    rows = [{"source": "faces", "seen": False, "n_real": 3, "real_called_fake": 0.1, "n_fake": 0, "fake_found": None}]
    file = tiny_checkpoint.with_suffix(".sources.json")
    file.write_text(json.dumps(rows))
    assert open_offers([tiny_checkpoint])[0].card["sources"] == rows
    file.write_text("[")
    with pytest.raises(UserError, match=r"best\.sources\.json"):
        open_offers([tiny_checkpoint])


def test_metrics_count_requests_verdicts_and_the_queue(client, photos):
    upload(client, "/api/predict", [(photos[0].read_bytes(), "a.png")])
    text = client.get("/metrics").text
    assert 'requests_total{endpoint="predict",status="200"}' in text
    assert "verdicts_total{verdict=" in text and "deepfake_engine_queue_images 0" in text
    assert 'request_seconds_bucket{endpoint="predict",le="+Inf"}' in text


def test_openapi_names_every_address_and_every_status_that_is_given(client):
    document = client.get("/api/openapi.json").get_json()
    rules = {rule.rule for rule in client.application.url_map.iter_rules()}
    assert set(document["paths"]) == {rule for rule in rules if rule.startswith("/api") or rule == "/metrics"}
    assert upload(client, "/api/predict", [(b"no image", "a.txt")]).status_code == 415
    assert {"200", "415", "503"} <= set(document["paths"]["/api/predict"]["post"]["responses"])


def test_openapi_says_that_the_verdict_comes_from_the_band_and_not_from_the_threshold(client):
    schemas = client.get("/api/openapi.json").get_json()["components"]["schemas"]
    given = [schema["properties"] for schema in schemas.values() if "threshold" in schema.get("properties", {})]
    assert len(given) == 5
    assert all(one["threshold"] == {"$ref": "#/components/schemas/Threshold"} and "unsure" in one for one in given)
    assert "makes the verdict only if unsure is null" in schemas["Threshold"]["description"]
    assert "fake if p_fake >= high, real if p_fake < low" in schemas["Unsure"]["description"]
    point = OperatingPoint(thresholds={"balanced": 0.44, "unsure_low": 0.48, "unsure_high": 0.73})
    assert point.verdicts(np.array([0.47, 0.48, 0.72, 0.73])) == ["real", "unsure", "unsure", "fake"]


def test_plain_form_works_without_a_build(client, photos):
    assert b"<form" in client.get("/").data
    answer = upload(client, "/plain", [(photos[0].read_bytes(), "<b>.png")], field="images")
    assert answer.status_code == 200 and "&lt;b&gt;.png" in answer.text
    assert upload(client, "/plain", [(b"x", "a.txt")], field="images").status_code == 415


# ------------------------------------------------------------------------------------------ slow pictures


def many_scans(side: int, count: int) -> bytes:
    """A progressive JPEG whose last scan is repeated: 170 bytes more for each time that the image is decoded again."""
    buffer = io.BytesIO()
    Image.new("L", (side, side), 128).save(buffer, "JPEG", progressive=True, quality=50)
    data = buffer.getvalue()[:-2]
    return data + data[data.rindex(b"\xff\xda") :] * count + b"\xff\xd9"


@pytest.fixture
def slow(app, monkeypatch) -> bytes:
    """A picture whose decoder does not come to an end in the time that it has."""
    workers, picture = app.extensions["service"].workers, jpeg(40)
    run, seconds = workers.run, workers._seconds

    def wrapped(function, data, *rest):
        monkeypatch.setattr(workers, "_seconds", 0.1 if data == picture else seconds)
        return run(time.sleep, 600) if data == picture else run(function, data, *rest)

    monkeypatch.setattr(workers, "run", wrapped)
    return picture


@pytest.mark.parametrize("url", ["/api/predict", "/api/explain", "/api/stress"])
def test_an_image_that_takes_too_long_to_decode_is_refused_and_harms_nobody(client, photos, url, slow):
    photo = [(photos[0].read_bytes(), "a.png")]
    assert upload(client, url, photo).status_code == 200
    for data in (slow, many_scans(900, 1000)):  # by the clock, and by its headers
        answer = upload(client, url, [(data, "a.jpg")])
        assert answer.status_code == 422 and answer.get_json()["error"]["code"] == "too_complex"
        assert upload(client, url, photo).status_code == 200


def test_one_slow_image_of_many_does_not_fail_the_others(client, photos, slow):
    files = [(photos[0].read_bytes(), "a.png"), (slow, "b.jpg"), (photos[1].read_bytes(), "c.png")]
    first, slow_one, last = upload(client, "/api/predict", files).get_json()["images"]
    assert "error" in slow_one and "p_fake" in first and "p_fake" in last
