"""The answers of the server: scores, explanations and stress tests of uploads, as plain dicts."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from datasets.faces import Face, FaceFinder
from datasets.images import UnreadableImage
from utils.explanations.overlay import normalise, overlay, view_box
from utils.serving.batching import MicroBatcher
from utils.serving.offers import Offer
from utils.serving.preparation import STRESS_PIXELS, Prepared, prepare, prepare_stress, stress_steps
from utils.serving.settings import Limits, Refused
from utils.serving.telemetry import Telemetry
from utils.serving.uploads import Upload
from utils.serving.workers import WorkerPool


@dataclass
class Service:
    """The detectors of a server and everything that its requests share.

    ``finder`` searches faces for detectors that frame them, and, with ``every_face``, for clients that want each face
    judged.
    """

    offers: Sequence[Offer]
    limits: Limits
    finder: FaceFinder | None = None
    every_face: bool = False
    telemetry: Telemetry = field(default_factory=Telemetry)

    def __post_init__(self) -> None:
        self.batcher = MicroBatcher(self.limits.queue, self.limits.max_batch)
        seconds = self.limits.max_seconds
        self.workers = WorkerPool(seconds, seconds / 3, "utils.serving.preparation")

    def close(self) -> None:
        """Stop the threads and processes behind the server."""
        self.workers.close()
        self.batcher.close()

    def offer(self, name: str | None) -> Offer:
        """Look up a detector; the first one by default. Raises Refused (400): the name is unknown."""
        for offer in self.offers:
            if name in (None, "", offer.name):
                return offer
        raise Refused(400, "unknown_model", "There is no detector with this name; /api/models lists them.")

    def predict(self, uploads: Sequence[Upload], offer: Offer, faces: bool) -> dict[str, Any]:
        """Score uploads; an unreadable one has an ``error`` instead of scores.

        Raises:
            Refused: all are unreadable, or the server is busy.
        """
        found: list[Prepared | Refused] = []
        for upload in uploads:
            try:
                found.append(self._prepare(upload, offer, faces))
            except Refused as refusal:
                if refusal.status == 503 or len(uploads) == 1:
                    raise
                found.append(refusal)
        readable = [item for item in found if isinstance(item, Prepared)]
        if not readable:
            raise next(item for item in found if isinstance(item, Refused))
        answers = iter(offer.answers(self._score(offer, np.concatenate([item.views for item in readable]))))
        images = []
        for upload, item in zip(uploads, found, strict=True):
            answer = (
                {"error": item.to_dict()} if isinstance(item, Refused) else self._scored(item, offer, faces, answers)
            )
            images.append({"name": upload.name, **answer})
        return {**offer.decision, "images": images}

    def explain(self, upload: Upload, offer: Offer, faces: bool) -> dict[str, Any]:
        """Score an upload, or its most suspicious face, and show the evidence for the verdict."""
        found = self._prepare(upload, offer, faces, show=True)
        index = self._worst(found, offer)

        def work(views: np.ndarray) -> list[tuple[dict[str, Any], str, np.ndarray, str]]:
            answer = offer.answers(offer.score(views))[0]
            target = "fake" if answer["p_fake"] >= offer.decision["threshold"] else "real"
            return [(answer, target, *offer.explain(views[0], target))]

        view, seconds = found.views[index : index + 1], self.limits.max_seconds
        answer, target, heat, method = self.batcher.score(work, view, seconds, offer.explain_cost)[0]
        self.telemetry.verdict(answer["verdict"])
        assert found.shown is not None
        return {
            **offer.decision,
            "name": upload.name,
            **answer,
            **self._framing(found.faces[index], offer, faces),
            "face": _face_dict(found.faces[index], found.size, offer),
            "target": target,
            "method": method,
            "all_zero": not bool(heat.any()),
            "overlay": _encoded(_draw(found.shown, found.size, found.faces[index], offer, heat), ".jpg"),
            "map": {**_encoded((normalise(heat) * 255).round().astype(np.uint8), ".png"), "max": float(heat.max())},
        }

    def stress(self, upload: Upload, offer: Offer, faces: bool) -> dict[str, Any]:
        """Score an upload, or its most suspicious face, unchanged and after each stress step."""
        upload.check()
        face = None
        if offer.geometry.needs_face or (faces and self.every_face):
            found = self._prepare(upload, offer, faces)
            face = found.faces[self._worst(found, offer)]
        limit = min(self.limits.max_pixels, STRESS_PIXELS)
        views = self._decode(limit, prepare_stress, upload.data, limit, offer.geometry, face)
        answers = offer.answers(self._score(offer, views))
        rows = [
            {"kind": kind, "level": level, "label": label, **answer}
            for (kind, level, label, _), answer in zip(stress_steps(), answers, strict=True)
        ]
        held = sum(row["verdict"] == rows[0]["verdict"] for row in rows[1:])
        return {**offer.decision, "name": upload.name, "original": rows[0], "steps": rows[1:], "held": held}

    def _prepare(self, upload: Upload, offer: Offer, faces: bool, show: bool = False) -> Prepared:
        upload.check()
        limit, finder = self.limits.max_pixels, self.finder.file if self.finder else None
        every_face = faces and self.every_face
        return self._decode(limit, prepare, upload.data, limit, offer.geometry, finder, every_face, show)

    def _decode(self, max_pixels: int, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run a function in a worker. Raises Refused: no worker is free, or the image is unreadable or too large."""
        try:
            return self.workers.run(function, *arguments)
        except (UnreadableImage, MemoryError) as error:
            if str(error).startswith("too large"):
                limit = f"{max_pixels / 1e6:g} megapixels"
                raise Refused(413, "too_many_pixels", f"The picture has more than {limit}.") from None
            if str(error).startswith("HEIC needs"):
                raise Refused(415, "not_an_image", "This server cannot read HEIC; convert it to JPEG.") from None
            if str(error).startswith("too costly"):
                raise Refused(422, "too_complex", "The image takes too long to decode.") from None
            raise Refused(422, "unreadable", "The image is damaged or incomplete.") from None

    def _score(self, offer: Offer, views: np.ndarray) -> np.ndarray:
        return np.array(self.batcher.score(offer.score, views, self.limits.max_seconds))

    def _worst(self, found: Prepared, offer: Offer) -> int:
        """Index of the view with the highest score."""
        return int(self._score(offer, found.views).argmax()) if len(found.views) > 1 else 0

    def _scored(
        self, found: Prepared, offer: Offer, every_face: bool, answers: Iterator[dict[str, Any]]
    ) -> dict[str, Any]:
        """The scores of the most suspicious view, and of all faces."""
        rows = [(face, next(answers)) for face in found.faces]
        highest = max((answer for _, answer in rows), key=lambda answer: answer["logit"])
        self.telemetry.verdict(highest["verdict"])
        faces = [{**(_face_dict(face, found.size, offer) or {}), **answer} for face, answer in rows if face]
        framing = self._framing(found.faces[0], offer, every_face)
        size = {"width": found.size[1], "height": found.size[0]}
        return {**size, **highest, **framing, "faces": faces, "metadata": found.metadata}

    def _framing(self, face: Face | None, offer: Offer, every_face: bool) -> dict[str, str]:
        """Whether a face or the whole picture was scored and what searched it; nothing if no face was searched."""
        if not self.finder or not (offer.geometry.needs_face or (every_face and self.every_face)):
            return {}
        return {"framed": "face" if face else "whole", "finder": self.finder.name}


def _face_dict(face: Face | None, size: tuple[int, int], offer: Offer) -> dict[str, Any] | None:
    """The square of a face that is judged in a picture of this height and width, in px."""
    if face is None:
        return None
    top, left, side = offer.geometry.square(size, face.box)
    return {"left": left, "top": top, "side": side, "confidence": face.confidence}


def _draw(picture: np.ndarray, size: tuple[int, int], face: Face | None, offer: Offer, heat: np.ndarray) -> np.ndarray:
    """Draw the map of a face, or of the whole picture, over the picture reduced from ``size``."""
    edges = np.reshape(view_box(offer.geometry, *size, face.box if face else None), (2, 2))  # top, left; bottom, right
    height, width = picture.shape[:2]
    factor = max(height, width) / max(size)
    top, left = np.minimum((edges[0] * factor).astype(int), (height - 1, width - 1))
    bottom, right = np.clip((edges[1] * factor).round().astype(int), (top + 1, left + 1), (height, width))
    placed, seen = np.zeros((height, width), np.float32), np.zeros((height, width), bool)
    placed[top:bottom, left:right] = cv2.resize(heat, (right - left, bottom - top), interpolation=cv2.INTER_LINEAR)
    seen[top:bottom, left:right] = True
    return overlay(picture, placed, seen)


def _encoded(image: np.ndarray, suffix: str) -> dict[str, Any]:
    """An RGB or grey image as base64 text."""
    colours = cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.ndim == 3 else image
    return {
        "media_type": "image/png" if suffix == ".png" else "image/jpeg",
        "width": image.shape[1],
        "height": image.shape[0],
        "base64": base64.b64encode(cv2.imencode(suffix, colours)[1].tobytes()).decode(),
    }
