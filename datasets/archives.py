"""Unpacking of archives from elsewhere: nothing lands outside of the folder, and never half of it."""

from __future__ import annotations

import shutil
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from utils.errors import UserError


def unzip(archive: Path, folder: Path) -> None:
    """Unpack a ZIP archive into a new folder, which appears when all of it is on the disk.

    Every member's checksum is compared. Members with absolute paths, ``..`` or links are refused, since they could
    overwrite files elsewhere.

    Raises:
        UserError: the archive is damaged or unsafe, or the disk is too small; no folder is made.
    """
    from tqdm import tqdm

    temporary = folder.with_name(f".{folder.name}.unpacking")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with zipfile.ZipFile(archive) as packed:
            members = packed.infolist()
            for member in members:
                _check_member(archive, member)
            _check_space(archive, folder.parent, sum(member.file_size for member in members))
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


def _check_space(archive: Path, folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"expected {needed / 1e9:.1f} GB of free space in {folder} to unpack {archive.name}, got {free / 1e9:.1f}"
        )
