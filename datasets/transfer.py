"""Large files from elsewhere: downloads that resume and are verified, and safe unpacking of ZIP archives."""

from __future__ import annotations

import base64
import hashlib
import http.client
import os
import shutil
import stat
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Mapping
from email.message import Message
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from tqdm import tqdm

from utils.errors import UserError

CHUNK = 1 << 20
ATTEMPTS = 5  # after a broken connection; each resumes at the last byte
TIMEOUT = 60  # seconds without a byte


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but sends the password only to the host that it is meant for."""

    def redirect_request(self, req: urllib.request.Request, *answer: Any) -> urllib.request.Request | None:
        request = super().redirect_request(req, *answer)
        if request is not None and urlsplit(request.full_url).netloc != urlsplit(req.full_url).netloc:
            request.remove_header("Authorization")
        return request


def basic_auth(user: str, password: str) -> dict[str, str]:
    """The header of HTTP basic authentication."""
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


def download(url: str, target: Path, headers: Mapping[str, str], pause: float = 2.0) -> Path:
    """Fetch a file; what arrives before an interruption stays in ``<target>.part`` and is not fetched again.

    The length must be as announced by the server, and so must the MD5 sum if there is one (``x-goog-hash``).

    Args:
        pause: seconds before the next attempt after a broken connection.

    Raises:
        UserError: the server refuses or cannot be reached, the disk is full, or the content is not as announced.
    """
    part = target.with_name(target.name + ".part")
    problem = "the connection was interrupted"
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
            _tag_file(part).unlink(missing_ok=True)
            return target
    have = f"{part.stat().st_size / 1e6:,.0f} MB are kept" if part.exists() else "no data arrived"
    raise UserError(f"expected to download {url}, but {problem} ({have}); run the command again to resume")


def _fetch(url: str, part: Path, headers: Mapping[str, str]) -> dict:
    """Append what is missing; returns the announced size of the whole file and its MD5 sum (None if unknown)."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers=dict(headers))
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        response = urllib.request.build_opener(_Redirects).open(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # nothing follows what we have: it is complete, or belongs to another file
            raise
        size = int(error.headers.get("Content-Range", "").rpartition("/")[2] or -1)
        if size != have:
            part.unlink()
        return {"size": size if size == have else -1, "md5": None}
    with response:
        facts = _announced(response.headers, response.status)
        tag = f"{facts['size']} {response.headers.get('ETag', '')}"
        is_rest = response.status == 206
        if is_rest and _tag_file(part).exists() and _tag_file(part).read_text() != tag:
            part.unlink()  # the two halves would not fit
            raise ConnectionError("the file has changed on the server")
        _tag_file(part).write_text(tag)
        with (
            open(part, "ab" if is_rest else "wb") as file,
            tqdm(total=facts["size"], initial=file.tell(), unit="B", unit_scale=True, disable=None) as bar,
        ):
            while chunk := response.read(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
    return facts


def _announced(headers: Message, status: int) -> dict:
    """Size of the whole file and MD5 sum as hex digits, from the headers of a response."""
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


def _tag_file(part: Path) -> Path:
    """The file with size and ETag of the download that ``part`` is the beginning of."""
    return part.with_name(part.name + ".tag")


def unzip(archive: Path, folder: Path) -> None:
    """Unpack a ZIP archive into a new folder, which appears only when it is complete.

    Checksums are verified. Members with absolute paths, ``..`` or links are refused, since they could overwrite
    files elsewhere.

    Raises:
        UserError: the archive is damaged or unsafe, or the disk is too small; no folder is made.
    """
    temporary = folder.with_name(f".{folder.name}.unpacking")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with zipfile.ZipFile(archive) as packed:
            members = packed.infolist()
            for member in members:
                _check_member(archive, member)
            needed, free = sum(member.file_size for member in members), shutil.disk_usage(folder.parent).free
            if needed > free:
                raise UserError(
                    f"expected {needed / 1e9:.1f} GB of free space in {folder.parent} to unpack {archive.name}, "
                    f"got {free / 1e9:.1f}"
                )
            for member in tqdm(members, desc="unpacking", unit="file", disable=None, leave=False):
                packed.extract(member, temporary)
        temporary.rename(folder)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise UserError(
            f"expected a whole ZIP archive at {archive}, but {error}; delete it and download again"
        ) from None
    except OSError as error:
        raise UserError(f"expected to unpack into {folder}, got: {error.strerror or error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _check_member(archive: Path, member: zipfile.ZipInfo) -> None:
    name = member.filename.replace("\\", "/")
    path = PurePosixPath(name)
    is_link = stat.S_ISLNK(member.external_attr >> 16)
    if path.is_absolute() or ".." in path.parts or ":" in name or is_link:
        raise UserError(
            f"expected an archive of plain files at {archive}, got the member {member.filename!r}, which "
            "could write elsewhere; nothing was unpacked"
        )
