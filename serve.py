"""Serve detectors to a browser and to programs: a page and an HTTP API.

  python serve.py                                               with the released detector
  python serve.py --checkpoint checkpoints/cnn-demo
  python serve.py --checkpoint a/best.pt exported.onnx --faces --port 8000
  curl -F images=@photo.jpg http://127.0.0.1:5000/api/predict

The server prints its address when it is ready:

  serving cnn-demo at http://127.0.0.1:5000

The first checkpoint is the default; exports of benchmark.py are the fastest. The page is in web/ and is built with
`make web`; without a build there is a plain form. The API is described at /api/openapi.json: POST /api/predict (field
images, one or more), /api/explain, /api/stress and /api/preview (field image), /api/video (field video), /api/frame
(fields video and time), /api/cases (fields image and label, with --cases); GET /api/models, /api/health and /metrics
(Prometheus). Requests are scored in batches; when too many are waiting, the answer is 503 with Retry-After.

A detector that frames faces judges each face of a picture, and the most suspicious one decides; where it finds none,
the verdict is `no face` unless the request says whole=true. --faces does the same for detectors of whole pictures.

Only this machine can reach the server unless you pass --host. Before you open it to others, put a proxy with TLS in
front of it and read docs/deployment.md. Uploads are kept in memory and discarded after the response; with --cases DIR,
clients can save pictures with their right answer. The log contains no file names. With --token-file, clients must send
`Authorization: Bearer TOKEN`.
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

from utils.args import EXIT_DONE, add_device_group, add_face_group, float_in, int_in, make_parser, run_script
from utils.cases import open_case_folder
from utils.checkpoint_files import DEFAULT_CHECKPOINT, check_checkpoint_file
from utils.errors import UserError
from utils.files import read_text
from utils.serving.settings import Limits

if TYPE_CHECKING:
    from flask import Flask

WEB = Path(__file__).resolve().parent / "web"
MIN_TOKEN = 16  # characters
LOCAL_HOSTS = ["localhost", "127.0.0.1", "[::1]"]
LIMITS = {
    "max_mb": (float_in(0.1, 1000, "MB"), "megabytes of one request"),
    "max_video_mb": (float_in(0.1, 1000, "MB"), "megabytes of a request with a video"),
    "max_pixels": (int_in(1000, 1_000_000_000), "pixels of one image"),
    "max_files": (int_in(1, 1000), "images of one request"),
    "max_seconds": (
        float_in(1, 3600, "s"),
        "seconds for an upload, and again for its scores; decoding a picture may take a third of this",
    ),
    "queue": (int_in(1, 100_000), "images that may wait"),
    "per_minute": (int_in(0), "API requests per minute and client address; 0: no limit"),
}


def get_args_parser() -> argparse.ArgumentParser:
    """Declare the flags of serve.py."""
    parser = make_parser(__doc__, "serve.py")
    parser.add_argument(
        "--checkpoint", nargs="+", default=[], metavar="PT", help=f"run folders, files, exports {DEFAULT_CHECKPOINT}"
    )
    add_face_group(parser)
    cases = "folder in which clients keep pictures with their right answer (default: no such folder)"
    parser.add_argument("--cases", metavar="DIR", help=cases)
    network = parser.add_argument_group("network")
    network.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    network.add_argument("--port", type=int_in(0, 65535), default=5000, help="default: 5000; 0 for any free port")
    network.add_argument(
        "--public-name", nargs="+", default=[], metavar="NAME", help="host names that browsers may use"
    )
    proxy = "IP address of the proxy whose X-Forwarded headers are trusted"
    network.add_argument("--trusted-proxy", type=ip_address, metavar="ADDRESS", help=proxy)
    network.add_argument("--token-file", metavar="FILE", help="file with the token that clients must send")
    limits = parser.add_argument_group("limits")
    for name, (kind, meaning) in LIMITS.items():
        default = getattr(Limits, name)
        flag = f"--{name.replace('_', '-')}"
        limits.add_argument(flag, type=kind, default=default, help=f"{meaning} (default: {default:,})")
    add_device_group(parser, workers="")
    return parser


def ip_address(text: str) -> str:
    """Parse an IP address; returns its usual spelling, which waitress compares with that of each client.

    The ``*`` of waitress is no address: every client could then choose the address that the rate limit counts.
    """
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected an IP address, got {text!r}; pass the one from which the proxy connects, such as 127.0.0.1"
        ) from None


def main(argv: Sequence[str] | None = None) -> dict:
    """Serve until interrupted; returns ``{"exit_code": 0}``."""
    args = get_args_parser().parse_args(argv)
    files = [check_checkpoint_file(path) for path in args.checkpoint or [None]]
    token = read_token(args.token_file)
    cases = open_case_folder(args.cases, "--cases") if args.cases else None
    limits = Limits(**{name: getattr(args, name) for name in LIMITS})
    from utils.serving.wsgi import make_server

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    app = create_app(
        files,
        limits,
        cases=cases,
        token=token,
        every_face=args.faces,
        face_detector=args.face_detector,
        host_names=host_names(args.host, args.public_name),
        device=args.device,
        precision=args.precision,
        threads=args.threads,
    )
    server, port = make_server(app, args.host, args.port, limits, args.trusted_proxy)
    service = app.extensions["service"]
    names = ", ".join(offer.name for offer in service.offers)
    shown = f"[{args.host}]" if ":" in args.host else args.host
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_DONE))  # waitress then stops as on Ctrl-C
    print(f"serving {names} at http://{shown}:{port}", flush=True)
    try:
        server.run()
    finally:
        service.close()
    return {"exit_code": EXIT_DONE}


def create_app(
    checkpoints: Sequence[str | Path],
    limits: Limits | None = None,
    *,
    cases: Path | None = None,
    token: str | None = None,
    every_face: bool = False,
    face_detector: str | None = None,
    host_names: list[str] | None = None,
    device: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    page: Path = WEB / "dist",
) -> Flask:
    """Build the WSGI app for some checkpoints; ``app.extensions["service"]`` answers its requests.

    Args:
        cases: the folder of cases; None for none.
        token: the bearer token that clients must send; None for anybody.
        every_face: let detectors of whole pictures score each face, unless a client wants otherwise.
        face_detector: a YuNet file; None for the default of ``open_finder``.
        host_names: values of the Host header to serve; None for any.
        page: the built page; without one a plain form is served.

    Raises:
        UserError: a checkpoint or the face detector cannot be loaded.
    """
    from flask import Flask

    from datasets.faces.finder import open_finder
    from utils.serving.offers import open_offers
    from utils.serving.routes import add_guards, make_api, make_page
    from utils.serving.service import Service
    from utils.serving.uploads import MemoryRequest

    finder = open_finder(face_detector)  # reports an invalid file before a model is loaded
    limits = limits or Limits()
    offers = open_offers(checkpoints, device, precision, threads)
    assert finder is not None
    service = Service(offers, limits, finder, every_face, cases)
    plain = str(WEB / "plain")
    app = Flask("serve", static_folder=plain, static_url_path="/plain-files", template_folder=plain)
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
    """Return the Host headers to serve, None for any.

    On a loopback address only local names and ``public`` are served, so that no web site can rebind its name to this
    server.
    """
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost"
    return [*LOCAL_HOSTS, *public] if local or public else None


def read_token(file: str | None) -> str | None:
    """Read the token, without surrounding white space. Raises UserError: unreadable, or too short."""
    if file is None:
        return None
    token = read_text(file, "a token").strip()
    if len(token) < MIN_TOKEN:
        raise UserError(
            f"expected a token of at least {MIN_TOKEN} characters in {file}, got {len(token)}; "
            "create one with: openssl rand -hex 32"
        )
    return token


if __name__ == "__main__":
    run_script(main)
