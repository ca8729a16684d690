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
from utils.serving.preparation import STRESS_PIXELS, Choice, Part, Prepared, prepare, prepare_stress, stress_steps
from utils.serving.settings import Limits, Refused
from utils.serving.telemetry import Telemetry
from utils.serving.uploads import Upload
from utils.serving.workers import WorkerPool

NO_FACE: dict[str, Any] = {"p_fake": None, "verdict": "no face", "logit": None}


@dataclass
class Service:
    """The detectors of a server and everything that its requests share.

    ``finder`` searches faces for detectors that frame them, and, with ``every_face``, for all others.
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

    def predict(self, uploads: Sequence[Upload], offer: Offer, choice: Choice) -> dict[str, Any]:
        """Score uploads; an unreadable one has an ``error`` instead of scores.

        Raises:
            Refused: all are unreadable, or the server is busy.
        """
        found: list[Prepared | Refused] = []
        for upload in uploads:
            try:
                found.append(self._prepare(upload, offer, choice))
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
                {"error": item.to_dict()} if isinstance(item, Refused) else self._scored(item, offer, choice, answers)
            )
            images.append({"name": upload.name, **answer})
        return {**offer.decision, "images": images}

    def explain(self, upload: Upload, offer: Offer, choice: Choice) -> dict[str, Any]:
        """Score an upload, or the chosen face, and show the evidence for the verdict.

        Raises:
            Refused: as :meth:`predict`; or no face was found, or none with this number.
        """
        found = self._prepare(upload, offer, choice, show=True)
        index = self._chosen(found, offer, choice)

        def work(views: np.ndarray) -> list[tuple[dict[str, Any], str, np.ndarray, str]]:
            answer = offer.answers(offer.score(views))[0]
            target = "fake" if answer["p_fake"] >= offer.decision["threshold"] else "real"
            return [(answer, target, *offer.explain(views[0], target))]

        view, seconds = found.views[index : index + 1], self.limits.max_seconds
        answer, target, heat, method = self.batcher.score(work, view, seconds, offer.explain_cost)[0]
        self.telemetry.verdict(answer["verdict"])
        face, (part, picture) = found.faces[index], found.shown[index]
        return {
            **offer.decision,
            "name": upload.name,
            **answer,
            **self._framing([face], offer, choice),
            "face": _face_dict(face, found.size, offer),
            "view": part._asdict(),
            "target": target,
            "method": method,
            "all_zero": not bool(heat.any()),
            "overlay": _encoded(_draw(picture, part, found.size, face, offer, heat), ".jpg"),
            "map": {**_encoded((normalise(heat) * 255).round().astype(np.uint8), ".png"), "max": float(heat.max())},
        }

    def stress(self, upload: Upload, offer: Offer, choice: Choice) -> dict[str, Any]:
        """Score an upload, or the chosen face, unchanged and after each stress step.

        Raises:
            Refused: as :meth:`explain`.
        """
        upload.check()
        face = None
        if self._is_searched(offer, choice):
            found = self._prepare(upload, offer, choice)
            face = found.faces[self._chosen(found, offer, choice)]
        limit = min(self.limits.max_pixels, STRESS_PIXELS)
        views = self._decode(limit, prepare_stress, upload.data, limit, offer.geometry, face)
        answers = offer.answers(self._score(offer, views))
        rows = [
            {"kind": kind, "level": level, "label": label, **answer}
            for (kind, level, label, _), answer in zip(stress_steps(), answers, strict=True)
        ]
        held = sum(row["verdict"] == rows[0]["verdict"] for row in rows[1:])
        return {**offer.decision, "name": upload.name, "original": rows[0], "steps": rows[1:], "held": held}

    def _is_searched(self, offer: Offer, choice: Choice) -> bool:
        """Whether faces are searched: a detector that judges whole pictures needs --faces and the client's wish."""
        return offer.geometry.needs_face or (self.every_face and choice.faces)

    def _prepare(self, upload: Upload, offer: Offer, choice: Choice, show: bool = False) -> Prepared:
        upload.check()
        limit, searched = self.limits.max_pixels, self._is_searched(offer, choice)
        finder = self.finder.file if self.finder and searched else None
        faces = searched and choice.faces, searched and not choice.whole  # whether each is judged, and one is needed
        return self._decode(limit, prepare, upload.data, limit, offer.geometry, finder, *faces, show)

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
        return np.array(self.batcher.score(offer.score, views, self.limits.max_seconds)) if len(views) else np.empty(0)

    def _chosen(self, found: Prepared, offer: Offer, choice: Choice) -> int:
        """Index of the view that the client chose, or of the one with the highest score."""
        if not found.faces:
            raise Refused(422, "no_face", "No face was found. With whole=true, the whole picture is judged.")
        if choice.face is not None and choice.face >= len(found.faces):
            raise Refused(400, "no_such_face", f"Expected a face below {len(found.faces)}, got {choice.face}.")
        if choice.face is not None or len(found.faces) == 1:
            return choice.face or 0
        return int(self._score(offer, found.views).argmax())

    def _scored(
        self, found: Prepared, offer: Offer, choice: Choice, answers: Iterator[dict[str, Any]]
    ) -> dict[str, Any]:
        """The scores of the most suspicious view, and of all faces."""
        rows = [(face, next(answers)) for face in found.faces]
        highest = max((answer for _, answer in rows), key=lambda answer: answer["logit"], default=NO_FACE)
        self.telemetry.verdict(highest["verdict"])
        faces = [{**(_face_dict(face, found.size, offer) or {}), **answer} for face, answer in rows if face]
        framing = self._framing(found.faces, offer, choice)
        size = {"width": found.size[1], "height": found.size[0]}
        return {**size, **highest, **framing, "faces": faces, "metadata": found.metadata}

    def _framing(self, faces: Sequence[Face | None], offer: Offer, choice: Choice) -> dict[str, str]:
        """Whether a face or the whole picture was scored and what searched it; nothing if no face was searched."""
        if not self.finder or not self._is_searched(offer, choice):
            return {}
        return {**({"framed": "face" if faces[0] else "whole"} if faces else {}), "finder": self.finder.name}


def _face_dict(face: Face | None, size: tuple[int, int], offer: Offer) -> dict[str, Any] | None:
    """The square of a face that is judged in a picture of this height and width, in px."""
    if face is None:
        return None
    top, left, side = offer.geometry.square(size, face.box)
    return {"left": left, "top": top, "side": side, "confidence": face.confidence}


def _draw(
    picture: np.ndarray, part: Part, size: tuple[int, int], face: Face | None, offer: Offer, heat: np.ndarray
) -> np.ndarray:
    """Draw the map of a face, or of the whole picture, over a part of the picture, which may be reduced."""
    edges = np.reshape(view_box(offer.geometry, *size, face.box if face else None), (2, 2))  # top, left; bottom, right
    edges -= (part.top, part.left)
    height, width = picture.shape[:2]
    factor = max(height, width) / max(part.width, part.height)
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
