"""Which files hold a detector: the releases, checkpoints and exports, checked early and without torch."""

from __future__ import annotations

import zipfile
from pathlib import Path

from utils.errors import UserError
from utils.files import ROOT

# Files NAME.pt, NAME.json, NAME.md and NAME.sources.json in checkpoints/, results in results/NAME.
RELEASES = ("deepfake-v3-small", "deepfake-v3", "deepfake-v2")
SOURCES_SUFFIX = ".sources.json"  # of test results beside a checkpoint, one row per source, for readers
RELEASE_FILE = ROOT / "checkpoints" / f"{RELEASES[0]}.pt"  # what scripts use without --checkpoint
DEFAULT_CHECKPOINT = f"(default: the released {RELEASE_FILE.relative_to(ROOT)})"  # for the help of --checkpoint


def check_checkpoint_file(path: str | Path | None, flag: str = "--checkpoint", needs_weights: bool = False) -> Path:
    """Check cheaply, without torch, that a checkpoint (or its ONNX export) exists and has the outer form of one.

    None stands for the released detector, a run folder for its best.pt.

    Raises:
        UserError: it is missing, a folder without best.pt, empty, or not a checkpoint archive; an export where the
            script ``needs_weights``.
    """
    if path is None and not RELEASE_FILE.is_file():
        raise UserError(
            f"expected --checkpoint PT, or the released detector at {RELEASE_FILE}, which is missing; "
            "pass a checkpoint, or train one with train.py"
        )
    file = Path(path or RELEASE_FILE)
    if file.is_dir() and (file / "best.pt").is_file():
        file = file / "best.pt"
    if not file.is_file():
        raise UserError(
            f"expected {flag} to be a checkpoint or a run folder with best.pt, found none at {str(path)!r}; check the "
            "path, or train one with train.py"
        )
    if is_export(file) and file.stat().st_size:  # its form is checked when it is opened
        if needs_weights:
            raise UserError(
                f"expected {flag} to be a checkpoint, got the export {path}; pass the checkpoint it was made from"
            )
        return file
    if not zipfile.is_zipfile(file):
        found = "a truncated file or one of another kind" if file.stat().st_size else "an empty file"
        raise UserError(
            f"expected {flag} {str(path)!r} to be a checkpoint written by train.py, found {found}; train it again"
        )
    return file


def is_export(path: str | Path) -> bool:
    """Tell an exported detector (.onnx) from a checkpoint by its suffix."""
    return Path(path).suffix.lower() == ".onnx"


def check_weights_source(source: str | None) -> None:
    """Raise UserError unless --weights is absent, ``imagenet`` or an existing file."""
    if source not in (None, "imagenet") and not Path(source).is_file():
        raise UserError(f"expected --weights imagenet or a .safetensors, .pth or .pt file, found no file {source!r}")
