"""Reading and writing of files; writes are atomic, so that a file is either the old one or the new one."""

import contextlib
import gzip
import hashlib
import io
import json
import math
import os
import sys
import uuid
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from utils.errors import UserError

GZIP_MAGIC = b"\x1f\x8b"
BASE_WEIGHTS = "base-weights"  # the folder of public weights in the user's cache
STREAMS = ("/dev/std", "/dev/fd/", "/proc/")
ROOT = Path(__file__).resolve().parent.parent  # the folder of the project


def user_cache() -> Path:
    """The user's folder for what can be fetched or computed again; DEEPFAKE_CACHE names another one."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(os.environ.get("DEEPFAKE_CACHE") or os.path.join(home, "deepfake-engine"))


def is_first() -> bool:
    """Whether this process writes files and prints results: with torchrun, only the first of several does."""
    return "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("RANK", "0") == "0"


def atomic_write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file so that a crash, a full disk or Ctrl-C leaves the previous content intact.

    The data go to a temporary file in the same folder (a rename is atomic only within one file system), are flushed to
    the disk, and then take the target's name. Missing parent folders are created. Links are followed. A device or pipe
    is written to directly, because replacing it would destroy it: ``/dev/stdout`` in a pipeline. Of several processes,
    only the first writes.

    Raises:
        UserError: the file cannot be written, or is a redirected stream; the temporary file is gone and the old file is
            untouched.
    """
    with _writing(path, "b", {}) as stream:
        stream.write(data)


def atomic_write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write text as UTF-8 with the guarantees of :func:`atomic_write_bytes`, gzip-compressed if the name ends in .gz.

    The same text gives the same bytes: the gzip header carries no time and no file name. File names that are not valid
    UTF-8 reach Python as surrogate escapes; they are written back byte for byte. Raises UserError.
    """
    data = text.encode("utf-8", errors="surrogateescape")
    atomic_write_bytes(path, gzip.compress(data, mtime=0) if os.fspath(path).endswith(".gz") else data)


@contextlib.contextmanager
def open_output(path: str | os.PathLike[str] | None) -> Iterator[TextIO]:
    """Open a file, or stdout for None, for a result that is written piece by piece, as UTF-8.

    A file takes its name only if the block ends without an error, as in :func:`atomic_write_bytes`; stdout shows each
    piece as soon as it is flushed.

    Raises:
        UserError: the file cannot be written; an old file is untouched. The BrokenPipeError of a reader of stdout that
            stops early is passed on.
    """
    form: dict[str, Any] = {"encoding": "utf-8", "errors": "surrogateescape", "newline": "\n"}
    if path is None and is_first():
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(**form)
        yield sys.stdout
    else:
        with _writing(path or os.devnull, "", form) as stream:
            yield stream


def shortened(name: str, size: int = 180) -> str:
    """Cut a file name, of 255 bytes at most, to ``size`` bytes, so that something can be added to it."""
    return os.fsdecode(os.fsencode(name)[:size])


@contextlib.contextmanager
def _writing(path: str | os.PathLike[str], mode: str, form: dict[str, Any]) -> Iterator[Any]:
    """Open ``path`` for writing, replacing an old file at the end; ``mode`` is "b" for bytes. Raises UserError."""
    path = path if is_first() else os.devnull
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{shortened(target.name, 100)}.{uuid.uuid4().hex}.tmp")
    try:
        if target.is_dir():  # reported now, not when everything has been computed
            raise IsADirectoryError("it is a folder")
        if os.path.exists(path) and not os.path.isfile(path):  # a device or pipe
            with open(path, "w" + mode, **form) as stream:
                yield stream
            return
        if os.path.exists(path) and os.fspath(path).startswith(STREAMS):  # others write to this file too
            raise UserError(
                f"expected to write a file, got the stream {path}, which is redirected to a file; name that file, "
                "or leave out the flag to write to stdout"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "x" + mode, **form) as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except BrokenPipeError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"expected to write {path}, got: {reason}; choose a writable place with free space") from error


def file_digest(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of the bytes of a file, as hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def locked(path: Path, waiting: str = "") -> Iterator[None]:
    """Lock an existing folder or file until the block ends, however it ends.

    With the line ``waiting``, which is printed on stderr if another process holds the lock, wait for that process.
    Otherwise refuse; under torchrun, the first process then holds the lock for all of them.

    Raises:
        UserError: another run is in progress in the folder, or the path is gone.
    """
    try:
        import fcntl
    except ImportError:  # Windows has no such locks
        yield
        return
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"expected to lock {path}, got: {error.strerror}; check the path") from None
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            try:
                if waiting or is_first():
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not waiting:
                    raise UserError(
                        f"expected no other run in {path}, found one in progress; wait, or pass another --output-dir"
                    ) from None
                print(waiting, file=sys.stderr)
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_UN)  # loader processes may still hold a copy of the handle
        os.close(handle)


def read_text(path: str | os.PathLike[str], what: str) -> str:
    """Read a UTF-8 file, plain or gzip-compressed, without its byte-order mark; ``what`` names it in the error.

    Raises:
        UserError: there is no such file, or it cannot be read.
    """
    try:
        data = Path(path).read_bytes()
        data = gzip.decompress(data) if data.startswith(GZIP_MAGIC) else data
        return data.decode("utf-8-sig", errors="surrogateescape")
    except FileNotFoundError as error:
        raise UserError(f"expected {what} at {path}, got no such file; check the path") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"expected {what} at {path}, got a damaged gzip file ({error}); write it again") from error
    except OSError as error:
        raise UserError(f"expected {what} at {path}, got: {error.strerror or error}; check the path") from error


def plain_values(value: Any) -> Any:
    """Convert numpy scalars and arrays, paths and tuples to what JSON and a safe checkpoint can hold.

    NaN and the infinities become None: JSON lacks them, and here they mean "not available". Raises TypeError for other
    types.
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, dict):
        return {str(key): plain_values(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_values(item) for item in value]
    if hasattr(value, "tolist"):  # numpy arrays and scalars
        return plain_values(value.tolist())
    raise TypeError(f"expected a plain value, got {type(value).__name__}")


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write a value as indented JSON, atomically; floats read back bit-equal. Raises UserError."""
    atomic_write_text(path, json.dumps(plain_values(value), indent=2, allow_nan=False) + "\n")


def read_json(path: str | os.PathLike[str], what: str = "a JSON file") -> Any:
    """Read a JSON file; ``what`` names the kind of file in the error. Raises UserError."""
    text = read_text(path, what)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # also for endless numbers and depths
        place = f"line {error.lineno}: {error.msg}" if isinstance(error, json.JSONDecodeError) else error
        raise UserError(f"expected {what} at {path}, got text that is not JSON ({place}); write it again") from error
