"""A server on a socket, for the tests that need one."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from waitress import wasyncore

from utils.serving.settings import Limits
from utils.serving.wsgi import make_server


@contextlib.contextmanager
def listening(app: Any, limits: Limits) -> Iterator[int]:
    """Serve an app on a free port of the loopback address; yields the port.

    Only the server's own thread closes its sockets, and only after the threads that answer have ended: the number of a
    closed socket soon belongs to another file, which a late answer would hit.
    """
    server, port = make_server(app, "127.0.0.1", 0, limits)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        yield port
    finally:
        server.task_dispatcher.shutdown(timeout=60)
        server.trigger.pull_trigger(lambda: wasyncore.close_all(server._map, ignore_all=True))
        thread.join()  # its loop ends without a socket
