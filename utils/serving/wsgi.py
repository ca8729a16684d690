"""The production server: waitress, with bounds on memory and on the duration of an upload."""

from __future__ import annotations

import copy
import json
import time
import weakref
from http import HTTPStatus
from typing import Any

from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser
from waitress.server import create_server
from waitress.utilities import Error

from utils.errors import UserError
from utils.serving.settings import REASONS, Limits, Refused

REQUEST_THREADS = 16  # they wait for workers that decode and for the thread of the detector
MAX_HEADER_BYTES = 16_384
MAX_CONNECTIONS = 100
BACKLOG = 256
SLACK = 1_000_000  # bytes above the limits of the app that are read: some clients see no answer until all is sent
VIDEO_PATHS = ("/api/video", "/api/frame")
VIDEO_UPLOADS = 4  # requests with a video that may be in memory at a time
BUSY = Refused(503, "busy", "Too many videos at a time. Please try again in a few seconds.", retry_after=2)


def make_server(app: Any, host: str, port: int, limits: Limits, trusted_proxy: str | None = None) -> tuple[Any, int]:
    """Bind a waitress server; returns it and its port. ``.run()`` starts it.

    Raises:
        UserError: the address is taken or does not belong to this machine.
    """
    headers = "x-forwarded-for x-forwarded-proto"
    proxy: Any = {"trusted_proxy_headers": headers, "trusted_proxy_count": 1} if trusted_proxy else {}
    try:
        server = create_server(
            app,
            host=host,
            port=port,
            threads=REQUEST_THREADS,
            connection_limit=MAX_CONNECTIONS,
            backlog=BACKLOG,
            channel_timeout=int(limits.max_seconds),
            cleanup_interval=5,
            max_request_header_size=MAX_HEADER_BYTES,
            max_request_body_size=max(limits.max_bytes, limits.max_video_bytes) + SLACK,
            # Above this size waitress would write the body to a file; uploads stay in memory.
            inbuf_overflow=max(limits.max_bytes, limits.max_video_bytes) + 2 * SLACK,
            outbuf_overflow=64_000_000,
            ident="",
            clear_untrusted_proxy_headers=True,
            trusted_proxy=trusted_proxy,
            **proxy,
        )
    except (OSError, ValueError) as error:  # ValueError: no such host
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"expected a free address of this machine to serve at, got --host {host} --port {port} ({reason}); "
            "choose another address"
        ) from None
    # A name such as localhost has several addresses, with one server for each behind this one.
    parts = [server, *getattr(server, "map", {}).values()]
    parts = [part for part in parts if hasattr(part, "channel_class")]
    of_pictures = copy.copy(parts[0].adj)
    of_pictures.max_request_body_size = limits.max_bytes + SLACK
    parser = type("Request", (_Request,), {"of_pictures": of_pictures, "videos": weakref.WeakSet()})
    known = {"max_seconds": limits.max_seconds, "parser_class": parser}
    for part in parts:
        part.channel_class = type("TimedChannel", (_TimedChannel,), known)
    return server, int(parts[0].effective_port)


class _Request(HTTPRequestParser):
    """A request whose size is limited by its address: few requests at a time may be as large as videos."""

    of_pictures: Any  # settings of waitress with the limit of all other requests
    videos: weakref.WeakSet  # requests in memory that may be large
    error: Any

    def parse_header(self, header_plus: bytes) -> None:
        super().parse_header(header_plus)
        if not self.chunked and self.content_length < self.of_pictures.max_request_body_size:
            return
        if self.path in VIDEO_PATHS and len(self.videos) < VIDEO_UPLOADS:
            self.videos.add(self)
        else:
            self.adj = self.of_pictures

    def received(self, data: bytes) -> int:
        consumed = super().received(data)
        if self.error and not isinstance(self.error, _ApiError):
            status = self.error.code
            is_busy = status == 413 and self.path in VIDEO_PATHS and self not in self.videos
            larger = f"The request is larger than {(self.adj.max_request_body_size - SLACK) / 1e6:g} MB."
            other = Refused(status, REASONS.get(status, "error"), larger if status == 413 else f"{self.error.reason}.")
            self.error = _ApiError(BUSY if is_busy else other)
        return consumed


class _ApiError(Error):
    """The answer to a request that never reaches the app, in JSON as from the app; waitress would send plain text."""

    def __init__(self, refusal: Refused) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal

    def to_response(self, ident: str | None = None) -> tuple[str, list[tuple[str, str]], bytes]:
        status, wait = self.refusal.status, self.refusal.retry_after
        headers = [("Content-Type", "application/json")] + ([("Retry-After", str(wait))] if wait else [])
        return f"{status} {HTTPStatus(status).phrase}", headers, json.dumps({"error": self.refusal.to_dict()}).encode()


class _TimedChannel(HTTPChannel):
    """A connection that is closed when a request takes longer than ``max_seconds`` to arrive.

    Waitress itself closes only idle connections; a client that sends a byte now and then could stay for ever.
    """

    max_seconds: float
    started: float | None = None  # when the first byte of the unfinished request came

    def received(self, data: bytes) -> bool:
        if self.started is None:
            self.started = time.monotonic()
        done = super().received(data)
        if self.request is None:
            self.started = None
        return done

    def readable(self) -> bool:
        """Called about once a second for every connection."""
        if self.started is not None and time.monotonic() - self.started > self.max_seconds:
            self.will_close = True
        return super().readable()
