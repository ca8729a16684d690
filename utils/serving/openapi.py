"""OpenAPI 3.0 document of the API, built from the server's limits and detectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from utils.serving.settings import Limits

Schema = dict[str, Any]

_NUMBER: Schema = {"type": "number"}
_WHOLE: Schema = {"type": "integer"}
_TEXT: Schema = {"type": "string"}
_P_FAKE: Schema = {"type": "number", "minimum": 0, "maximum": 1, "description": "calibrated probability of a fake"}
_VERDICT: Schema = {"type": "string", "enum": ["real", "fake", "unsure"]}
_BAND: Schema = {
    "type": "array",
    "items": _NUMBER,
    "minItems": 2,
    "maxItems": 2,
    "nullable": True,
    "description": "range of p_fake in which the verdict is unsure",
}
_SCORES: Schema = {"p_fake": _P_FAKE, "verdict": _VERDICT, "logit": _NUMBER}
_DECISION: Schema = {"model": _TEXT, "threshold": _NUMBER, "unsure": _BAND}
REFUSALS = {
    "400": "no image, or an unknown detector",
    "401": "the token is missing or wrong",
    "403": "request from a page of another site",
    "413": "too many bytes, files or pixels",
    "415": "not an image of an accepted type",
    "422": "a damaged image, or one that takes too long to decode",
    "429": "too many requests from this address; see Retry-After",
    "503": "busy; see Retry-After",
}


def _object(properties: Schema, optional: Sequence[str] = (), **more: Any) -> Schema:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, **({"required": required} if required else {}), **more}


def _reference(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _answer(description: str, schema: Schema) -> Schema:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _schemas() -> Schema:
    face = {"left": _WHOLE, "top": _WHOLE, "side": _WHOLE, "confidence": {"type": "number", "nullable": True}}
    picture = {"media_type": _TEXT, "width": _WHOLE, "height": _WHOLE, "base64": _TEXT}
    error = _object({"code": _TEXT, "message": _TEXT})
    image = {
        "name": _TEXT,
        "width": _WHOLE,
        "height": _WHOLE,
        **_SCORES,
        "faces": {"type": "array", "items": _object({**face, **_SCORES})},
        "error": error,
    }
    step = _object({"kind": _TEXT, "level": {"type": "number", "nullable": True}, "label": _TEXT, **_SCORES})
    return {
        "Error": _object({"error": error}),
        "Prediction": _object(
            {**_DECISION, "images": {"type": "array", "items": _object(image, [key for key in image if key != "name"])}}
        ),
        "Explanation": _object(
            {
                **_DECISION,
                "name": _TEXT,
                **_SCORES,
                "face": _object(face, nullable=True),
                "target": {"type": "string", "enum": ["real", "fake"]},
                "method": _TEXT,
                "all_zero": {"type": "boolean"},
                "overlay": _object(picture),
                "map": _object({**picture, "max": _NUMBER}),
            }
        ),
        "Stress": _object(
            {**_DECISION, "name": _TEXT, "original": step, "steps": {"type": "array", "items": step}, "held": _WHOLE}
        ),
        "Models": _object(
            {
                "models": {"type": "array", "items": {"type": "object"}},
                "faces": {"type": "boolean"},
                "token_needed": {"type": "boolean"},
                "limits": {"type": "object"},
            }
        ),
        "Health": _object({"status": {"type": "string", "enum": ["ok"]}, "waiting": _WHOLE}),
    }


def _upload(path: str, field: str, many: int, models: Sequence[str], summary: str, schema: str) -> Schema:
    file: Schema = {"type": "string", "format": "binary"}
    images = {"type": "array", "items": file, "minItems": 1, "maxItems": many} if many else file
    fields = {
        field: images,
        "model": {"type": "string", "enum": list(models), "description": "default: the first"},
        "faces": {
            "type": "string",
            "enum": ["true", "false"],
            "description": "score each face, if the server runs with --faces",
        },
    }
    content = {"multipart/form-data": {"schema": _object(fields, ["model", "faces"])}}
    refusals = {status: _answer(text, _reference("Error")) for status, text in REFUSALS.items()}
    return {
        "post": {
            "operationId": path.rpartition("/")[2],
            "summary": summary,
            "requestBody": {"required": True, "content": content},
            "responses": {"200": _answer("done", _reference(schema)), **refusals},
        }
    }


def _reading(operation: str, summary: str, answer: Schema, guarded: bool) -> Schema:
    refused = ("401", "429") if guarded else ()
    responses = {"200": answer, **{status: _answer(REFUSALS[status], _reference("Error")) for status in refused}}
    return {
        "get": {
            "operationId": operation,
            "summary": summary,
            "responses": responses,
            **({} if guarded else {"security": []}),
        }
    }


def make_document(models: Sequence[str], limits: Limits, token_needed: bool) -> Schema:
    """Build the document served at ``/api/openapi.json``."""
    document: Schema = {
        "openapi": "3.0.3",
        "info": {
            "title": "Deepfake Image Engine",
            "version": "1",
            "description": "Scores of a detector for AI-made or manipulated faces. A verdict is a hint, not proof.",
        },
        "paths": {
            "/api/predict": _upload(
                "/api/predict",
                "images",
                limits.max_files,
                models,
                "Score images: p_fake, verdict and logit for each",
                "Prediction",
            ),
            "/api/explain": _upload(
                "/api/explain",
                "image",
                0,
                models,
                "Evidence for the verdict: an overlay and the raw map",
                "Explanation",
            ),
            "/api/stress": _upload(
                "/api/stress",
                "image",
                0,
                models,
                "Scores after JPEG compression, resizing, screenshots and sharing",
                "Stress",
            ),
            "/api/models": _reading(
                "models",
                "The detectors, their cards and the limits of the server",
                _answer("done", _reference("Models")),
                guarded=True,
            ),
            "/api/health": _reading(
                "health", "Whether the server is up", _answer("done", _reference("Health")), guarded=False
            ),
            "/api/openapi.json": _reading(
                "openapi", "This document", _answer("done", {"type": "object"}), guarded=False
            ),
            "/metrics": _reading(
                "metrics",
                "Counts for Prometheus",
                {"description": "done", "content": {"text/plain": {"schema": _TEXT}}},
                guarded=True,
            ),
        },
        "components": {"schemas": _schemas()},
    }
    if token_needed:
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"token": []}]
    return document
