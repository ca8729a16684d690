"""Checks before every request (token, origin, rate limit) and headers on every answer."""

from __future__ import annotations

import hmac
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from flask import Request, Response

from utils.serving.settings import Refused

MAX_CLIENTS = 10_000  # addresses in memory; the least recently seen is dropped
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": CSP,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",  # with no-referrer, browsers send `Origin: null` with the plain form
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=(), payment=(), usb=()",
}


class RateLimit:
    """A token bucket per address: bursts of up to ``per_minute`` requests, refilled continuously."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_minute = per_minute
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # address to (tokens, time)
        self._lock = threading.Lock()

    def check(self, address: str) -> None:
        """Count a request. Raises Refused (429): the address has reached its limit."""
        if not self.per_minute:
            return
        with self._lock:
            now = self._clock()
            tokens, then = self._buckets.pop(address, (float(self.per_minute), now))
            tokens = min(float(self.per_minute), tokens + (now - then) * self.per_minute / 60)
            allowed = tokens >= 1
            self._buckets[address] = (tokens - 1 if allowed else tokens, now)
            if len(self._buckets) > MAX_CLIENTS:
                self._buckets.popitem(last=False)
        if not allowed:
            wait = max(1, round((1 - tokens) * 60 / self.per_minute))
            raise Refused(429, "too_many_requests", "Too many requests. Please wait a moment.", retry_after=wait)


def check_token(given: str, token: str | None) -> None:
    """Compare tokens in constant time; a ``token`` of None needs none. Raises Refused (401): they differ."""
    if token and not hmac.compare_digest(given.encode("utf-8", "replace"), token.encode()):
        raise Refused(401, "token_needed", "This server needs an access token.")


def check_same_site(request: Request) -> None:
    """Refuse a POST that a page of another site, or port, makes a browser send; programs send neither header.

    Browsers send ``Sec-Fetch-Site`` to https and local addresses only, but ``Origin`` to all.
    """
    if request.method != "POST":
        return
    site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")
    if site:  # decides alone: a proxy may change the host, but a page cannot change this
        is_foreign = site in ("cross-site", "same-site")
    else:
        is_foreign = origin is not None and origin.partition("://")[2] != request.host  # also "null", of a sandbox
    if is_foreign:
        raise Refused(403, "cross_site", "Requests from other web sites are not accepted.")


def protect(response: Response, api: bool) -> Response:
    """Add the security headers; answers of the API must not be cached."""
    for name, value in HEADERS.items():
        response.headers[name] = value
    if api:
        response.headers["Cache-Control"] = "no-store"
    return response
