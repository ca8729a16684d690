"""The production server: waitress, with bounds on memory and on the duration of an upload."""

from __future__ import annotations

import time
from typing import Any

from waitress.channel import HTTPChannel
from waitress.server import create_server

from utils.errors import UserError
from utils.serving.settings import Limits

REQUEST_THREADS = 16  # they wait for workers that decode and for the thread of the detector
MAX_HEADER_BYTES = 16_384
MAX_CONNECTIONS = 100
BACKLOG = 256


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
            # Slightly above the limit of the app, so that the app refuses larger requests, in JSON.
            max_request_body_size=limits.max_bytes + 1_000_000,
            # Above this size waitress would write the body to a file; uploads stay in memory.
            inbuf_overflow=limits.max_bytes + 2_000_000,
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
    for part in parts:
        part.channel_class = type("TimedChannel", (_TimedChannel,), {"max_seconds": limits.max_seconds})
    return server, int(parts[0].effective_port)


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
