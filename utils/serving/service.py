"""The answers of the server: scores, explanations and stress tests of uploads, as plain dicts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from datasets.decoding.images import UnreadableImage
from datasets.faces.finder import Face, FaceFinder
from datasets.listing.records import LABEL_NAMES, Sampling
from utils.cases import save_case
from utils.errors import UserError
from utils.explanations.overlay import normalise
from utils.serving.batching import MicroBatcher
from utils.serving.offers import Offer
from utils.serving.pictures import draw_map, encoded, face_dict
from utils.serving.preparation import (
    STRESS_PIXELS,
    Choice,
    Prepared,
    prepare,
    prepare_frame,
    prepare_preview,
    prepare_stress,
    prepare_video,
    stress_steps,
)
from utils.serving.settings import Limits, Refused, refusal_of
from utils.serving.telemetry import Telemetry
from utils.serving.uploads import Upload
from utils.serving.videos import NOTHING, judge_video
from utils.serving.workers import WorkerPool

log = logging.getLogger("serve")


@dataclass
class Service:
    """The detectors of a server and everything that its requests share.

    ``finder`` searches faces in videos and for detectors that frame them, and, with ``every_face``, for all others.
    ``cases`` is the folder of cases, None for a server that keeps none.
    """

    offers: Sequence[Offer]
    limits: Limits
    finder: FaceFinder
    every_face: bool = False
    cases: Path | None = None
    telemetry: Telemetry = field(default_factory=Telemetry)

    def __post_init__(self) -> None:
        self.batcher = MicroBatcher(self.limits.queue, self.limits.max_batch)
        seconds = self.limits.max_seconds
        self.workers = WorkerPool(seconds, seconds / 3, "utils.serving.preparation")
        self.video_worker = WorkerPool(seconds, 2 * seconds, "utils.serving.preparation", size=1, what="video")

    @property
    def looks_for_faces(self) -> bool:
        """Whether faces are searched in pictures, by one detector at least."""
        return self.every_face or any(offer.geometry.needs_face for offer in self.offers)

    def close(self) -> None:
        """Stop the threads and processes behind the server."""
        self.workers.close()
        self.video_worker.close()
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
            target = "fake" if offer.operating_point.leans_to_fake(answer["p_fake"]) else "real"
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
            "face": face_dict(face, found.size, offer.geometry),
            "view": part._asdict(),
            "target": target,
            "method": method,
            "all_zero": not bool(heat.any()),
            "overlay": encoded(draw_map(picture, part, found.size, face, offer.geometry, heat), ".jpg"),
            "map": {**encoded((normalise(heat) * 255).round().astype(np.uint8), ".png"), "max": float(heat.max())},
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
        views = self._decode(upload, limit, prepare_stress, offer.geometry, face)
        answers = offer.answers(self._score(offer, views))
        rows = [
            {"kind": kind, "level": level, "label": label, **answer}
            for (kind, level, label, _), answer in zip(stress_steps(), answers, strict=True)
        ]
        held = sum(row["verdict"] == rows[0]["verdict"] for row in rows[1:])
        return {**offer.decision, "name": upload.name, "original": rows[0], "steps": rows[1:], "held": held}

    def preview(self, upload: Upload) -> bytes:
        """An upload as a JPEG file for the screen. Raises Refused."""
        upload.check()
        return self._decode(upload, self.limits.max_pixels, prepare_preview).data

    def save_case(self, upload: Upload, label: str) -> dict[str, str]:
        """Keep an upload with its right answer. Raises Refused: it is no image, or cannot be kept (404 or 507)."""
        if self.cases is None:
            raise Refused(404, "no_cases", "This server keeps no cases; start it with --cases DIR.")
        if label not in LABEL_NAMES:
            raise Refused(400, "bad_request", "Expected real or fake in the field 'label'.")
        self.preview(upload)  # what cannot be decoded is not kept
        try:
            return {"saved": save_case(self.cases, upload.data, label)}
        except UserError as error:
            log.error("a case was not kept: %s", error)
            words = "The picture was not kept: the case folder of this server is full, not writable or damaged."
            raise Refused(507, "not_kept", words) from None

    def video(self, upload: Upload, offer: Offer, choice: Choice) -> dict[str, Any]:
        """Score the faces in a video. Raises Refused: it is unreadable or takes too long, or the server is busy."""
        upload.check_video()
        limits, whole = self.limits, choice.whole or not self._is_searched(offer, choice)
        sampling = Sampling(max_frames=limits.max_video_frames)
        arguments = upload.data, limits.max_pixels, offer.geometry, self.finder.file, sampling, whole
        with closing(self.video_worker.stream(prepare_video, *arguments)) as chunks:
            try:
                found = judge_video(chunks, offer, lambda views: self._score(offer, views))
            except (UnreadableImage, MemoryError) as error:
                raise refusal_of(error, limits.max_pixels, "video") from None
        self.telemetry.verdict(found["verdict"])
        return {**offer.decision, "name": upload.name, **found, "finder": self.finder.name}

    def frame(self, upload: Upload, time: float) -> bytes:
        """The frame of a video at a time in s, as a PNG file for the other requests. Raises Refused."""
        upload.check_video()
        return self._decode(upload, self.limits.max_pixels, prepare_frame, time, what="video")

    def _is_searched(self, offer: Offer, choice: Choice) -> bool:
        """Whether faces are searched: a detector that judges whole pictures needs --faces and the client's wish."""
        return offer.geometry.needs_face or (self.every_face and choice.faces)

    def _prepare(self, upload: Upload, offer: Offer, choice: Choice, show: bool = False) -> Prepared:
        upload.check()
        searched = self._is_searched(offer, choice)
        finder = self.finder.file if searched else None
        faces = searched and choice.faces, searched and not choice.whole  # whether each is judged, and one is needed
        return self._decode(upload, self.limits.max_pixels, prepare, offer.geometry, finder, *faces, show)

    def _decode(self, upload: Upload, limit: int, function: Callable[..., Any], *more: Any, what: str = "image") -> Any:
        """Run a function in a worker. Raises Refused: no worker is free, or the file is unreadable or too large."""
        try:
            workers = self.video_worker if what == "video" else self.workers
            return workers.run(function, upload.data, limit, *more)
        except (UnreadableImage, MemoryError) as error:
            raise refusal_of(error, limit, what) from None

    def _score(self, offer: Offer, views: np.ndarray) -> np.ndarray:
        return np.array(self.batcher.score(offer.score, views, self.limits.max_seconds)) if len(views) else np.empty(0)

    def _chosen(self, found: Prepared, offer: Offer, choice: Choice) -> int:
        """Index of the view that the client chose, or of the one with the highest score."""
        if not found.faces:
            raise Refused(422, "no_face", "No face was found. With whole=true, the whole picture is judged.")
        if choice.face is not None and choice.face >= len(found.faces):
            raise Refused(400, "no_such_face", f"The picture has faces 0 to {len(found.faces) - 1}, got {choice.face}.")
        if choice.face is not None or len(found.faces) == 1:
            return choice.face or 0
        return int(self._score(offer, found.views).argmax())

    def _scored(
        self, found: Prepared, offer: Offer, choice: Choice, answers: Iterator[dict[str, Any]]
    ) -> dict[str, Any]:
        """The scores of the most suspicious view, and of all faces."""
        rows = [(face, next(answers)) for face in found.faces]
        highest = max((answer for _, answer in rows), key=lambda answer: answer["logit"], default=NOTHING)
        self.telemetry.verdict(highest["verdict"])
        faces = [{**(face_dict(face, found.size, offer.geometry) or {}), **answer} for face, answer in rows if face]
        framing = self._framing(found.faces, offer, choice)
        size = {"width": found.size[1], "height": found.size[0]}
        return {**size, **highest, **framing, "faces": faces, "metadata": found.metadata}

    def _framing(self, faces: Sequence[Face | None], offer: Offer, choice: Choice) -> dict[str, str]:
        """Whether a face or the whole picture was scored and what searched it; nothing if no face was searched."""
        if not self._is_searched(offer, choice):
            return {}
        return {**({"framed": "face" if faces[0] else "whole"} if faces else {}), "finder": self.finder.name}
