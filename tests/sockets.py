"""A server on a socket, for the tests that need one."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from utils.serving.settings import Limits
from utils.serving.wsgi import make_server


@contextlib.contextmanager
def listening(app: Any, limits: Limits) -> Iterator[int]:
    """Serve an app on a free port of the loopback address; yields the port."""
    server, port = make_server(app, "127.0.0.1", 0, limits)

    def run() -> None:
        with contextlib.suppress(OSError, ValueError):  # its socket is closed while it waits
            server.run()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield port
    finally:
        server.close()
        server.task_dispatcher.shutdown(timeout=1)
        thread.join(timeout=5)
