"""Large files over HTTP: downloads that go on where they stopped and are checked before they count."""

from __future__ import annotations

import base64
import hashlib
import http.client
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from email.message import Message
from pathlib import Path
from urllib.parse import urlsplit

from utils.errors import UserError

CHUNK = 1 << 20
ATTEMPTS = 5  # of a connection that breaks off; each goes on from the last byte
TIMEOUT = 60  # seconds without a byte


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but shows the password to nobody but the host that it is for."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None and urlsplit(newurl).netloc != urlsplit(req.full_url).netloc:
            request.remove_header("Authorization")
        return request


def basic_auth(user: str, password: str) -> dict[str, str]:
    """The header of HTTP basic authentication."""
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


def download(url: str, target: Path, headers: Mapping[str, str], pause: float = 2.0) -> Path:
    """Fetch a file; what was fetched of it before is kept in ``<target>.part`` and not fetched again.

    The length must be what the server announced, and the MD5 sum too where it announces one (``x-goog-hash``).

    Args:
        pause: seconds before the next attempt after a broken connection.

    Raises:
        UserError: the server refuses or cannot be reached, the disk is full, or the content is not what was announced.
    """
    part = target.with_name(target.name + ".part")
    problem = "it broke off"
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(pause)
        try:
            announced = _fetch(url, part, headers)
        except urllib.error.HTTPError as error:
            hint = "; check your user name and key" if error.code in (401, 403) else ""
            raise UserError(f"expected to download {url}, got HTTP {error.code} {error.reason}{hint}") from None
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            problem = str(getattr(error, "reason", None) or error) or type(error).__name__
            continue
        except OSError as error:
            raise UserError(f"expected to write {part}, got: {error.strerror or error}; free some space") from None
        if announced["size"] is None or part.stat().st_size == announced["size"]:
            _check_md5(part, announced["md5"])
            os.replace(part, target)
            _note_of(part).unlink(missing_ok=True)
            return target
    have = f"{part.stat().st_size / 1e6:,.0f} MB are kept" if part.exists() else "nothing has come"
    raise UserError(f"expected to download {url}, but {problem} ({have}); run the command again to go on")


def _fetch(url: str, part: Path, headers: Mapping[str, str]) -> dict:
    """Append what is missing; returns the announced size of the whole file and its MD5 sum (None if unknown)."""
    from tqdm import tqdm

    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers=dict(headers))
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        response = urllib.request.build_opener(_Redirects).open(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # nothing after what we have: it is complete, or of another file
            raise
        size = int(error.headers.get("Content-Range", "").rpartition("/")[2] or -1)
        if size != have:
            part.unlink()
        return {"size": size if size == have else -1, "md5": None}
    with response:
        facts = _announced(response.headers, response.status)
        tag = f"{facts['size']} {response.headers.get('ETag', '')}"
        if response.status == 206 and _note_of(part).exists() and _note_of(part).read_text() != tag:
            part.unlink()  # the file has changed on the server: its two halves would not fit
            raise ConnectionError("the file has changed on the server")
        _note_of(part).write_text(tag)
        with (
            open(part, "ab" if response.status == 206 else "wb") as file,
            tqdm(total=facts["size"], initial=file.tell(), unit="B", unit_scale=True, disable=None) as bar,
        ):
            while chunk := response.read(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
    return facts


def _announced(headers: Message, status: int) -> dict:
    """Size of the whole file and MD5 sum as hex digits, from the headers of an answer."""
    length = headers.get("Content-Length")
    if status == 206:
        length = headers.get("Content-Range", "").rpartition("/")[2]
    hashes = ",".join(headers.get_all("x-goog-hash", []))
    sums = [part.strip()[4:] for part in hashes.split(",") if part.strip().startswith("md5=")]
    return {
        "size": int(length) if length and length.isdigit() else None,
        "md5": base64.b64decode(sums[0]).hex() if sums else None,
    }


def _check_md5(file: Path, expected: str | None) -> None:
    if expected is None:
        return
    with open(file, "rb") as stream:
        found = hashlib.file_digest(stream, "md5").hexdigest()
    if found != expected:
        file.unlink()
        raise UserError(f"expected a file with the MD5 sum {expected}, got {found}; it is deleted, download it again")


def _note_of(part: Path) -> Path:
    """Where size and tag of the file are noted whose beginning ``part`` holds."""
    return part.with_name(part.name + ".tag")
