"""Routes of the server: the API, the page, and a plain form for browsers without JavaScript."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flask import Blueprint, Flask, Response, g, jsonify, render_template, request, send_from_directory
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge, SecurityError

from utils.serving import guard, telemetry
from utils.serving.offers import Offer
from utils.serving.preparation import Choice
from utils.serving.service import Service
from utils.serving.settings import REASONS, Limits, Refused
from utils.serving.uploads import ACCEPTED, Upload, read_uploads

log = logging.getLogger("serve")
OPENAPI = Path(__file__).with_name("openapi.json")

OPEN_ENDPOINTS = {"api.health", "api.openapi", "page.index", "page.asset", "page.plain", "static"}  # need no token
SHOWN_LIMITS = ("max_mb", "max_pixels", "max_files", "max_video_mb", "max_video_frames")


def make_api(service: Service, token_needed: bool) -> Blueprint:
    """Build the blueprint of /api and /metrics."""
    api, limits = Blueprint("api", __name__), service.limits
    document = make_document([offer.name for offer in service.offers], limits, token_needed)

    @api.before_request
    def only_known_fields() -> None:
        """Refuse misspelt fields and those in the address: if ignored, another detector or threshold might answer."""
        known = form_fields(document, request.path) if request.method == "POST" else []
        for name in (*request.args, *request.form, *request.files) if known else ():
            if name not in known or name in request.args:
                raise Refused(400, "bad_request", f"Expected the form fields {', '.join(known)}, got {name[:40]!r}.")

    def upload(field: str = "image") -> Upload:
        return read_uploads(request, field, 1)[0]

    def chosen() -> tuple[Offer, Choice]:
        return service.offer(request.form.get("model")), read_choice()

    @api.post("/api/predict")
    def predict() -> Response:
        return jsonify(service.predict(read_uploads(request, "images", limits.max_files), *chosen()))

    @api.post("/api/explain")
    def explain() -> Response:
        return jsonify(service.explain(upload(), *chosen()))

    @api.post("/api/stress")
    def stress() -> Response:
        return jsonify(service.stress(upload(), *chosen()))

    @api.post("/api/preview")
    def preview() -> Response:
        return Response(service.preview(upload()), content_type="image/jpeg")

    @api.post("/api/video")
    def video() -> Response:
        return jsonify(service.video(upload("video"), *chosen()))

    @api.post("/api/frame")
    def frame() -> Response:
        return Response(service.frame(upload("video"), read_time()), content_type="image/png")

    @api.post("/api/cases")
    def cases() -> Response:
        return jsonify(service.save_case(upload(), request.form.get("label", "")))

    @api.get("/api/models")
    def models() -> Response:
        return jsonify(
            models=[offer.card for offer in service.offers],
            faces=service.looks_for_faces,
            cases=service.cases is not None,
            token_needed=token_needed,
            limits={name: getattr(limits, name) for name in SHOWN_LIMITS},
        )

    @api.get("/api/health")
    def health() -> Response:
        return jsonify(status="ok", waiting=service.batcher.waiting)

    @api.get("/api/openapi.json")
    def openapi() -> Response:
        return jsonify(document)

    @api.get("/metrics")
    def metrics() -> Response:
        batcher = service.batcher
        values = {"queue_images": batcher.waiting, "batches_total": batcher.batches, "scored_total": batcher.scored}
        return Response(service.telemetry.text(values), content_type=telemetry.MEDIA_TYPE)

    return api


def read_choice() -> Choice:
    """The fields faces, whole and face of a request. Raises Refused (400): one of them has no such value."""

    def is_true(name: str, default: str) -> bool:
        value = request.form.get(name, default)
        if value not in ("true", "false"):
            raise Refused(400, "bad_request", f"Expected true or false in the field '{name}'.")
        return value == "true"

    number = request.form.get("face")
    if number is not None and not re.fullmatch("[0-9]{1,4}", number):
        raise Refused(400, "bad_request", "Expected the number of a face, from 0, in the field 'face'.")
    return Choice(is_true("faces", "true"), is_true("whole", "false"), None if number is None else int(number))


def read_time() -> float:
    """The field time of a request, in s. Raises Refused (400)."""
    text = request.form.get("time", "")
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,9})?", text):
        raise Refused(400, "bad_request", "Expected a time in seconds in the field 'time'.")
    return float(text)


def make_document(models: Sequence[str], limits: Limits, token_needed: bool) -> dict[str, Any]:
    """Fill the limits and detectors of the server into its OpenAPI document."""
    document = json.loads(OPENAPI.read_text(encoding="utf-8"))
    document["components"]["schemas"]["Model"]["enum"] = list(models)
    form = document["paths"]["/api/predict"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    form["properties"]["images"]["maxItems"] = limits.max_files
    if token_needed:
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"token": []}]
    return document


def form_fields(document: dict[str, Any], path: str) -> list[str]:
    """Return the names of the fields that a path takes; none if it takes no form."""
    body = document["paths"].get(path, {}).get("post", {}).get("requestBody", {})
    if "$ref" in body:
        body = document["components"]["requestBodies"][body["$ref"].rpartition("/")[2]]
    return list(body["content"]["multipart/form-data"]["schema"]["properties"]) if body else []


def make_page(service: Service, dist: Path, token: str | None) -> Blueprint:
    """Build the blueprint of the page; without a build in ``dist`` the plain form is served instead."""
    page = Blueprint("page", __name__)
    built = (dist / "index.html").is_file()

    @page.get("/")
    def index() -> Response | str:
        if not built:
            return form()
        response = send_from_directory(dist, "index.html")
        response.headers["Cache-Control"] = "no-cache"
        return response

    @page.get("/assets/<path:name>")
    def asset(name: str) -> Response:
        # The names contain a digest of the content, so browsers may cache them for a year.
        return send_from_directory(dist / "assets", name, max_age=31_536_000)

    @page.route("/plain", methods=["GET", "POST"])
    def plain() -> tuple[str, int] | str:
        if request.method == "GET":
            return form()
        try:
            guard.check_token(request.form.get("token", ""), token)
            uploads = read_uploads(request, "images", service.limits.max_files)
            answer = service.predict(uploads, service.offer(request.form.get("model")), read_choice())
        except Refused as refusal:
            return form(error=refusal.message), refusal.status
        return form(images=answer["images"])

    def form(**content: Any) -> str:
        names = [offer.name for offer in service.offers]
        return render_template(
            "plain.html",
            models=names,
            accepted=ACCEPTED,
            limits=service.limits,
            token_needed=bool(token),
            faces=service.looks_for_faces,
            chosen=request.form,
            **content,
        )

    return page


def add_guards(app: Flask, service: Service, token: str | None) -> None:
    """Check every request, and add headers, counts and a log line to every answer."""
    rate = guard.RateLimit(service.limits.per_minute)

    @app.before_request
    def check() -> None:
        g.started = time.perf_counter()
        guard.check_same_site(request)
        if request.endpoint in ("api.video", "api.frame"):
            request.max_content_length = service.limits.max_video_bytes
        guarded = request.endpoint not in OPEN_ENDPOINTS
        if guarded or request.method == "POST":
            rate.check(request.remote_addr or "")
        if guarded:
            guard.check_token(request.headers.get("Authorization", "").removeprefix("Bearer "), token)

    @app.after_request
    def finish(response: Response) -> Response:
        seconds = time.perf_counter() - g.get("started", time.perf_counter())
        endpoint = (request.endpoint or "none").rpartition(".")[2]
        service.telemetry.request(endpoint, response.status_code, seconds)
        log.info("%s %s %d %.0f ms", request.method, endpoint, response.status_code, 1000 * seconds)
        return guard.protect(response, api=endpoint not in ("asset", "index"))

    @app.errorhandler(Refused)
    def refused(refusal: Refused) -> tuple[Response, int]:
        response = jsonify(error=refusal.to_dict())
        if refusal.retry_after:
            response.headers["Retry-After"] = str(refusal.retry_after)
        if refusal.status == 401:
            response.headers["WWW-Authenticate"] = "Bearer"
        return response, refusal.status

    @app.errorhandler(HTTPException)
    def http_error(error: HTTPException) -> tuple[Response, int]:
        status, message = error.code or 500, f"{error.name}."
        if isinstance(error, RequestEntityTooLarge):
            limit = request.max_content_length or 0
            message = "The form has too many parts, or a text that is too long."
            if (request.content_length or 0) > limit:
                message = f"The request is larger than {limit / 1e6:g} MB."
        if isinstance(error, SecurityError):
            message = "This server does not accept the host name; start it with --public-name."
        response = jsonify(error={"code": REASONS.get(status, "error"), "message": message})
        if "Allow" in dict(error.get_headers()):
            response.headers["Allow"] = dict(error.get_headers())["Allow"]
        return response, status

    @app.errorhandler(Exception)
    def crash(error: Exception) -> tuple[Response, int]:
        log.error("%s in %s", type(error).__name__, request.endpoint, exc_info=error)
        return jsonify(error={"code": "internal", "message": "Something went wrong on the server."}), 500
