"""What the server answers: scores, explanations and stress tests of uploads, as plain dicts."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from datasets.faces import Face, Finder
from datasets.perturbations import SEVERITIES, apply_tier, screenshot, severity_name
from utils.explanations.overlay import normalise, overlay, view_box
from utils.serving.batching import MicroBatcher
from utils.serving.offers import Offer
from utils.serving.settings import Limits, Refused
from utils.serving.telemetry import Telemetry
from utils.serving.uploads import Upload, with_pixels

SHOWN_SIDE = 1024  # px, the longer side of an overlay
STRESS_PIXELS = 16_000_000  # of a picture that is to be degraded a dozen times
SCREENSHOTS = {0.75: 85, 1.25: 85}  # display scale to JPEG quality of the post
SHARED = {"web": "one upload to a web site", "hard": "shared several times"}

Step = tuple[str, float | None, str, Callable[[np.ndarray], np.ndarray]]  # kind, level, label, what it does


def stress_steps() -> list[Step]:
    """What a picture meets on its way: ladders of ``datasets.perturbations``, screenshots and whole journeys."""

    def tier(name: str) -> Callable[[np.ndarray], np.ndarray]:
        return lambda image: apply_tier(image, name)

    def capture(scale: float, quality: int) -> Callable[[np.ndarray], np.ndarray]:
        return lambda image: screenshot(image, scale, quality)

    steps: list[Step] = [("original", None, "as it is", tier("clean"))]
    steps += [("jpeg", q, f"JPEG quality {q:g}", tier(severity_name("jpeg", q))) for q in SEVERITIES["jpeg"]]
    smaller = sorted((scale for scale in SEVERITIES["resize"] if scale < 1), reverse=True)
    steps += [("resize", s, f"scaled to {s:.0%}", tier(severity_name("resize", s))) for s in smaller]
    steps += [("screenshot", s, f"screenshot at {s:.0%}", capture(s, q)) for s, q in SCREENSHOTS.items()]
    return steps + [("shared", None, label, tier(name)) for name, label in SHARED.items()]


@dataclass
class Region:
    """A part of a picture that is judged: the detector's view of it, and the face, or None for the whole picture."""

    view: np.ndarray
    face: Face | None


@dataclass
class Shown:
    """A picture reduced for the screen, with the region to explain and where its view lies in the reduced picture."""

    picture: np.ndarray
    region: Region
    box: tuple[int, int, int, int]  # top, left, bottom, right


@dataclass
class Service:
    """The offers of a server and all that its requests share."""

    offers: Sequence[Offer]
    limits: Limits
    batcher: MicroBatcher
    telemetry: Telemetry
    finder: Finder | None = None

    def offer(self, name: str | None) -> Offer:
        """Look a detector up; the first one by default. Raises Refused (400): there is none of that name."""
        for offer in self.offers:
            if name in (None, "", offer.name):
                return offer
        raise Refused(400, "unknown_model", "There is no detector of this name; /api/models lists them.")

    def predict(self, uploads: Sequence[Upload], offer: Offer, faces: bool) -> dict[str, Any]:
        """Score uploads; an unreadable one has an ``error`` in the place of its scores.

        Raises:
            Refused: all are unreadable, or the server is too busy.
        """
        prepared: list[tuple[list[Region], tuple[int, int]] | Refused] = []
        for upload in uploads:
            try:
                prepared.append(with_pixels(upload, self.limits, lambda pixels: self._regions(pixels, offer, faces)))
            except Refused as refusal:
                if refusal.status == 503 or len(uploads) == 1:
                    raise
                prepared.append(refusal)
        views = [region.view for item in prepared if not isinstance(item, Refused) for region in item[0]]
        if not views:
            raise next(item for item in prepared if isinstance(item, Refused))
        logits = self.batcher.score(offer.score, np.stack(views), self.limits.max_seconds)
        answers = iter(offer.answers(logits))
        images = []
        for upload, item in zip(uploads, prepared, strict=True):
            if isinstance(item, Refused):
                images.append({"name": upload.name, "error": item.to_dict()})
            else:
                images.append(self._scored(upload.name, *item, [next(answers) for _ in item[0]]))
        return {**self._decision(offer), "images": images}

    def explain(self, upload: Upload, offer: Offer, faces: bool) -> dict[str, Any]:
        """Score an upload, or its most suspicious face, and show where the evidence for that verdict lies."""

        def prepare(pixels: np.ndarray) -> Shown:
            region, _ = self._worst(pixels, offer, faces)
            return _reduce(pixels, region, offer)

        shown = with_pixels(upload, self.limits, prepare)

        def work() -> tuple[np.ndarray, np.ndarray, str]:
            logits = offer.score(shown.region.view[None])
            target = "fake" if offer.answers(logits)[0]["p_fake"] >= offer.operating_point.threshold() else "real"
            return logits, *offer.explain(shown.region.view, target)

        logits, heat, method = self.batcher.run(work, self.limits.max_seconds)
        answer = self._count(offer.answers(logits)[0])
        return {
            **self._decision(offer),
            "name": upload.name,
            **answer,
            "face": _face_dict(shown.region.face),
            "target": "fake" if answer["p_fake"] >= offer.operating_point.threshold() else "real",
            "method": method,
            "all_zero": not bool(heat.any()),
            "overlay": _encoded(_draw(shown, heat), ".jpg"),
            "map": {**_encoded((normalise(heat) * 255).round().astype(np.uint8), ".png"), "max": float(heat.max())},
        }

    def stress(self, upload: Upload, offer: Offer, faces: bool) -> dict[str, Any]:
        """Score an upload, or its most suspicious face, as it is and after everything it may meet on its way."""
        steps = stress_steps()

        def prepare(pixels: np.ndarray) -> np.ndarray:
            if pixels.shape[0] * pixels.shape[1] > STRESS_PIXELS:
                limit = f"{STRESS_PIXELS / 1e6:g} megapixels"
                raise Refused(413, "too_many_pixels", f"The stress test takes pictures of at most {limit}.")
            _, part = self._worst(pixels, offer, faces)
            return np.stack([offer.geometry(degrade(part)) for *_, degrade in steps])

        views = with_pixels(upload, self.limits, prepare)
        answers = offer.answers(self.batcher.score(offer.score, views, self.limits.max_seconds))
        rows = [
            {"kind": kind, "level": level, "label": label, **answer}
            for (kind, level, label, _), answer in zip(steps, answers, strict=True)
        ]
        held = sum(row["verdict"] == rows[0]["verdict"] for row in rows[1:])
        return {**self._decision(offer), "name": upload.name, "original": rows[0], "steps": rows[1:], "held": held}

    def _decision(self, offer: Offer) -> dict[str, Any]:
        band = offer.operating_point.band
        return {
            "model": offer.name,
            "threshold": offer.operating_point.threshold(),
            "unsure": list(band) if band else None,
        }

    def _regions(self, pixels: np.ndarray, offer: Offer, faces: bool) -> tuple[list[Region], tuple[int, int]]:
        found = self.finder(pixels) if faces and self.finder else []
        if not found:
            return [Region(offer.geometry(pixels).copy(), None)], pixels.shape[:2]
        return [Region(offer.geometry(face.crop(pixels)).copy(), face) for face in found], pixels.shape[:2]

    def _worst(self, pixels: np.ndarray, offer: Offer, faces: bool) -> tuple[Region, np.ndarray]:
        """The region with the highest score, and its pixels."""
        regions, _ = self._regions(pixels, offer, faces)
        worst = regions[0]
        if len(regions) > 1:
            views = np.stack([region.view for region in regions])
            worst = regions[int(self.batcher.score(offer.score, views, self.limits.max_seconds).argmax())]
        return worst, worst.face.crop(pixels) if worst.face else pixels

    def _scored(
        self, name: str, regions: Sequence[Region], size: tuple[int, int], answers: Sequence[dict[str, Any]]
    ) -> dict[str, Any]:
        """An image of the answer: the scores of its most suspicious region, and those of all its faces."""
        highest = max(answers, key=lambda answer: answer["logit"])
        faces = [
            {**(_face_dict(region.face) or {}), **answer}
            for region, answer in zip(regions, answers, strict=True)
            if region.face
        ]
        return {"name": name, "width": size[1], "height": size[0], **self._count(highest), "faces": faces}

    def _count(self, answer: dict[str, Any]) -> dict[str, Any]:
        self.telemetry.verdict(answer["verdict"])
        return answer


def _face_dict(face: Face | None) -> dict[str, Any] | None:
    if face is None:
        return None
    return {"left": face.left, "top": face.top, "side": face.side, "confidence": face.confidence}


def _reduce(pixels: np.ndarray, region: Region, offer: Offer) -> Shown:
    """Shrink a picture for the screen, so that the full one need not be kept while the map is made."""
    height, width = pixels.shape[:2]
    factor = min(1.0, SHOWN_SIDE / max(height, width))
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    picture = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA) if factor < 1 else pixels.copy()
    part = region.face.crop(pixels).shape[:2] if region.face else (height, width)
    top, left = (region.face.top, region.face.left) if region.face else (0, 0)
    edges = view_box(offer.geometry, *part)
    box = [edge + (left if place % 2 else top) for place, edge in enumerate(edges)]
    first = int(box[0] * factor), int(box[1] * factor)
    last = (
        min(picture.shape[0], max(first[0] + 1, round(box[2] * factor))),
        min(picture.shape[1], max(first[1] + 1, round(box[3] * factor))),
    )
    return Shown(picture, region, (min(first[0], last[0] - 1), min(first[1], last[1] - 1), *last))


def _draw(shown: Shown, heat: np.ndarray) -> np.ndarray:
    """Lay the map over the reduced picture."""
    top, left, bottom, right = shown.box
    placed = np.zeros(shown.picture.shape[:2], np.float32)
    placed[top:bottom, left:right] = cv2.resize(heat, (right - left, bottom - top), interpolation=cv2.INTER_LINEAR)
    seen = np.zeros(placed.shape, bool)
    seen[top:bottom, left:right] = True
    return overlay(shown.picture, placed, seen)


def _encoded(image: np.ndarray, suffix: str) -> dict[str, Any]:
    """An image of the answer, RGB or grey, as base64 text."""
    colours = cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.ndim == 3 else image
    data = cv2.imencode(suffix, colours)[1].tobytes()
    media_type = "image/png" if suffix == ".png" else "image/jpeg"
    return {
        "media_type": media_type,
        "width": image.shape[1],
        "height": image.shape[0],
        "base64": base64.b64encode(data).decode(),
    }
