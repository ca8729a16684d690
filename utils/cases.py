"""Cases: pictures whose right answer is known, saved in a folder that evaluate.py reads as ``csv:DIR/cases.csv``."""

from __future__ import annotations

import csv
import hashlib
import io
import logging
import os
import re
from pathlib import Path

from utils.args import check_output_dir
from utils.errors import UserError
from utils.files import atomic_write_bytes, atomic_write_text, locked, read_text

LIST_NAME = "cases.csv"
COLUMNS = ("path", "label", "generator")
LABELS = ("real", "fake")
_SUFFIXES = {  # by the first bytes of a file
    rb"\xff\xd8\xff": ".jpg",
    rb"\x89PNG\r\n": ".png",
    rb"RIFF....WEBP": ".webp",
    rb"....ftypavi[fs]": ".avif",
    rb"....ftyp(hei[cfmsx]|hev[cmsx]|mif[12]|msf1)": ".heic",
    rb"GIF8": ".gif",
    rb"II[*+]\0|MM\0[*+]": ".tif",
    rb"BM": ".bmp",
    rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51": ".jp2",
    rb"P[1-6]\s": ".ppm",
}

log = logging.getLogger(__name__)

Rows = list[dict[str, str]]


def open_case_folder(path: str | Path, flag: str) -> Path:
    """Create the folder if it is missing; ``flag`` names it in errors.

    Raises:
        UserError: it is not writable, or its list is damaged.
    """
    folder = check_output_dir(path, flag)
    _read_list(folder / LIST_NAME)
    return folder


def save_case(folder: Path, data: bytes, label: str) -> str:
    """Save the bytes of a picture unchanged, with its label, real or fake; returns its name in the folder.

    The name is the hash of the bytes, so a picture is one case, however often it is saved. Its last label counts; a
    warning says when it differs from the one before. Several processes may save at once.

    Raises:
        UserError: the folder is not writable, or its list is damaged.
        ValueError: another label.
    """
    if label not in LABELS:
        raise ValueError(f"expected the label real or fake, got {label!r}")
    suffix = next((suffix for start, suffix in _SUFFIXES.items() if re.match(start, data, re.DOTALL)), ".bin")
    name, file = hashlib.sha256(data).hexdigest()[:32] + suffix, folder / LIST_NAME
    with locked(folder, f"waiting for another process that saves cases in {folder}"):
        header, rows = _read_list(file)
        case = next((row for row in rows if row["path"] == name), None)
        if not os.path.exists(folder / name):
            atomic_write_bytes(folder / name, data)
        if case and case["label"] == label:
            return name
        if case:
            log.warning("%s was saved as %s, and is now %s", name, case["label"], label)
            rows.remove(case)
        rows.append({"path": name, "label": label, "generator": "real" if label == "real" else ""})
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, header, restval="", extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        atomic_write_text(file, text.getvalue())
    return name


def _read_list(file: Path) -> tuple[list[str], Rows]:
    """The header and the rows of a list, which a user may have edited. Raises UserError."""
    if not os.path.exists(file):
        return list(COLUMNS), []
    reader = csv.DictReader(io.StringIO(read_text(file, "a list of cases"), newline=""), restval="")
    try:
        header, rows = list(reader.fieldnames or ()), list(reader)
    except csv.Error as error:
        raise UserError(f"expected a list of cases at {file}, got a damaged one ({error}); move it away") from None
    if not {"path", "label"} <= set(header):
        raise UserError(f"expected the columns {','.join(COLUMNS)} in {file}, got {','.join(header)!r}; move it away")
    bad = next((number for number, row in enumerate(rows, 2) if not row["path"] or not row["label"] or None in row), 0)
    if bad:
        raise UserError(f"expected a path and a label in each row of {file}, got none in row {bad}; mend or delete it")
    return header, rows
