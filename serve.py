"""Serve detectors to a browser and to programs: a page and an HTTP API.

  python serve.py                                               with the released detector
  python serve.py --checkpoint checkpoints/cnn-demo
  python serve.py --checkpoint a/best.pt exported.onnx --faces --port 8000
  curl -F images=@photo.jpg http://127.0.0.1:5000/api/predict

prints the address once it can be used:

  serving cnn-demo at http://127.0.0.1:5000

The first checkpoint is the default; exports of benchmark.py are the fastest. The page is web/, built by `make web`;
without a build there is a plain form. The API, described at /api/openapi.json: POST /api/predict (field images, one
or many), /api/explain and /api/stress (field image); GET /api/models, /api/health and /metrics (Prometheus). Requests
are scored in batches; when too many wait the answer is 503 with Retry-After.

Only this machine can reach the server unless --host says otherwise. Before others can, put a proxy with TLS in front
and read docs/deployment.md. Uploads are kept in memory only, until they are answered; the log names no file. A token
is read from the file --token-file, and then needed as `Authorization: Bearer TOKEN`.
"""

from __future__ import annotations

import argparse
import ipaddress
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from utils.args import EXIT_DONE, add_face_group, finder_name, float_in, int_in, make_parser, run_script
from utils.checkpoints.released import DEFAULT_HELP, checkpoint_or_release
from utils.errors import UserError
from utils.files import read_text
from utils.serving.settings import Limits

if TYPE_CHECKING:
    from flask import Flask

WEB = Path(__file__).resolve().parent / "web"
LEAST_TOKEN = 16  # characters


def get_args_parser() -> argparse.ArgumentParser:
    """Declare the flags of serve.py."""
    usual = Limits()
    parser = make_parser(__doc__, "serve.py")
    parser.add_argument(
        "--checkpoint", nargs="+", default=[], metavar="PT", help=f"run folders, files, exports {DEFAULT_HELP}"
    )
    add_face_group(parser)
    net = parser.add_argument_group("network")
    net.add_argument("--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1)")
    net.add_argument("--port", type=int_in(0, 65535), default=5000, help="default: 5000; 0 for any free one")
    net.add_argument("--public-name", nargs="+", default=[], metavar="NAME", help="host names that browsers may use")
    net.add_argument("--trusted-proxy", metavar="ADDRESS", help="proxy whose X-Forwarded headers are believed")
    net.add_argument("--token-file", metavar="FILE", help="file with the token that clients must send")
    bounds = parser.add_argument_group("limits")
    bounds.add_argument(
        "--max-mb",
        type=float_in(0.1, 1000, "MB"),
        default=usual.max_mb,
        help=f"of one request (default: {usual.max_mb:g})",
    )
    bounds.add_argument(
        "--max-pixels",
        type=int_in(1000, 1_000_000_000),
        default=usual.max_pixels,
        help=f"of one image (default: {usual.max_pixels:,})",
    )
    bounds.add_argument(
        "--max-files",
        type=int_in(1, 1000),
        default=usual.max_files,
        help=f"of one request (default: {usual.max_files})",
    )
    bounds.add_argument(
        "--max-seconds",
        type=float_in(1, 3600, "s"),
        default=usual.max_seconds,
        help=f"for an upload, and to wait for its scores (default: {usual.max_seconds:g})",
    )
    bounds.add_argument(
        "--queue", type=int_in(1, 100_000), default=usual.queue, help=f"images that may wait (default: {usual.queue})"
    )
    bounds.add_argument(
        "--per-minute", type=int_in(0), default=usual.per_minute, help="uploads of one address (default: 0, any number)"
    )
    group = parser.add_argument_group("device")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    group.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16", "fp16"), help="default: fp32")
    group.add_argument("--threads", type=int_in(1, 1024), help="CPU threads of the model (default: all cores)")
    return parser


def main(argv: Sequence[str] | None = None) -> dict:
    """Serve until interrupted; returns ``{"exit_code": 0}``."""
    args = get_args_parser().parse_args(argv)
    files = [checkpoint_or_release(path) for path in args.checkpoint or [None]]
    token = read_token(args.token_file)
    limits = Limits(
        max_mb=args.max_mb,
        max_pixels=args.max_pixels,
        max_files=args.max_files,
        max_seconds=args.max_seconds,
        queue=args.queue,
        per_minute=args.per_minute,
    )
    from utils.serving.wsgi import make_server

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    app = create_app(
        files,
        limits,
        token=token,
        face_detector=finder_name(args),
        host_names=host_names(args.host, args.public_name),
        device=args.device,
        precision=args.precision,
        threads=args.threads,
    )
    server, port = make_server(app, args.host, args.port, limits, args.trusted_proxy)
    names = ", ".join(offer.name for offer in app.extensions["service"].offers)
    shown = f"[{args.host}]" if ":" in args.host else args.host
    print(f"serving {names} at http://{shown}:{port}", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_DONE))  # waitress then ends as on Ctrl-C
    server.run()
    app.extensions["service"].batcher.close()
    return {"exit_code": EXIT_DONE}


def create_app(
    checkpoints: Sequence[str | Path],
    limits: Limits | None = None,
    *,
    token: str | None = None,
    face_detector: str | None = None,
    host_names: list[str] | None = None,
    device: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    page: Path = WEB / "dist",
) -> Flask:
    """Build the WSGI app that offers some checkpoints; ``app.extensions["service"]`` answers its requests.

    Args:
        token: what clients must send as bearer token; None for anybody.
        face_detector: a YuNet file, or ``cascade``; None judges whole pictures.
        host_names: values of the Host header that are served; None for any.
        page: the built page; without one a plain form is served.

    Raises:
        UserError: a checkpoint or a face detector cannot be loaded.
    """
    from flask import Flask

    from datasets.faces import open_finder
    from utils.serving.batching import MicroBatcher
    from utils.serving.offers import open_offers
    from utils.serving.routes import add_guards, make_api, make_page
    from utils.serving.service import Service
    from utils.serving.telemetry import Telemetry
    from utils.serving.uploads import MemoryRequest

    limits = limits or Limits()
    offers = open_offers(checkpoints, device, precision, threads)
    finder = open_finder(face_detector) if face_detector else None
    service = Service(offers, limits, MicroBatcher(limits.queue, limits.max_batch), Telemetry(), finder)
    app = Flask(
        "serve", static_folder=str(WEB / "plain"), static_url_path="/plain-files", template_folder=str(WEB / "plain")
    )
    app.request_class = MemoryRequest
    app.config.update(
        MAX_CONTENT_LENGTH=limits.max_bytes, MAX_FORM_PARTS=limits.max_files + 16, TRUSTED_HOSTS=host_names
    )
    app.extensions["service"] = service
    app.register_blueprint(make_api(service, token is not None))
    app.register_blueprint(make_page(service, page, token))
    add_guards(app, service, token)
    return app


def host_names(host: str, public: Sequence[str]) -> list[str] | None:
    """Which Host headers to serve: on a loopback address only its names, so that no web site can rebind its own.

    Any name where the server listens on the network and no ``public`` name was given.
    """
    from utils.serving.guard import LOCAL_HOSTS

    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost"
    return [*LOCAL_HOSTS, *public] if local or public else None


def read_token(file: str | None) -> str | None:
    """Read the token; surrounding white space does not count. Raises UserError: unreadable, or easy to guess."""
    if file is None:
        return None
    token = read_text(file, "a token").strip()
    if len(token) < LEAST_TOKEN:
        raise UserError(
            f"expected a token of at least {LEAST_TOKEN} characters in {file}, got {len(token)}; "
            "make one with: openssl rand -hex 32"
        )
    return token


if __name__ == "__main__":
    run_script(main)
