"""Where the released detector lies; needs no torch, so that scripts find it, or miss it, in their first second."""

from __future__ import annotations

from pathlib import Path

from utils.args import check_checkpoint_file
from utils.errors import UserError
from utils.files import ROOT

RELEASE_FILE = ROOT / "checkpoints" / "deepfake-v2.pt"  # what scripts use when --checkpoint is not given
DEFAULT_HELP = f"(default: the released {RELEASE_FILE.relative_to(ROOT)})"


def checkpoint_or_release(given: str | Path | None) -> Path:
    """Return the file of ``--checkpoint``, or the released detector's where the flag was not given.

    The release is found from the place of this file, whatever the current folder.

    Raises:
        UserError: as :func:`check_checkpoint_file`; or neither was given nor released.
    """
    if given is not None:
        return check_checkpoint_file(given)
    if not RELEASE_FILE.is_file():
        raise UserError(
            f"expected --checkpoint PT, or the released detector at {RELEASE_FILE}, which is not there; "
            "pass a checkpoint, or train one with train.py"
        )
    return check_checkpoint_file(RELEASE_FILE)


def description_file(checkpoint: str | Path) -> Path:
    """The JSON file beside a released checkpoint: its sha256, size, parity and golden logits."""
    return Path(checkpoint).with_suffix(".json")
