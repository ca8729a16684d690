"""Turn the checkpoint of a run into the released file: smaller, without local paths, with the same logits."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils.checkpoints.base import without_bases
from utils.checkpoints.file import DESCRIPTION_KEYS, load_checkpoint, load_detector, save_checkpoint
from utils.errors import UserError
from utils.files import file_digest, write_json

MAX_BYTES = 10_000_000
MAX_DIFFERENCE = 0.05  # in logits, between the released file and its source
SMALL = 8_192  # numbers; smaller tensors keep their precision
CLEANED = ("metrics", "train_args", "data")
GOLDEN_COUNT, PARITY_COUNT = 3, 12  # generated images whose logits are published, and that the parity is taken over
GOLDEN_SIDE, GOLDEN_SEED, GOLDEN_QUALITY = 256, 1, 90
# A path that starts at the root, in a home folder or above the project; only its last part is kept, or RUN/best.pt.
OUTSIDE = re.compile(r"(?<![\w./\\-])(?:[A-Za-z]:[\\/]|~?/|(?:\.\.[\\/])+)[^\s'\",@]*")


def write_release(source: Path, output: Path, precision: str, command: str) -> dict[str, Any]:
    """Write the slim file and its JSON description next to it; returns the content of the JSON file.

    The file is checked before it takes its name: a release that is too large or differs from its source leaves
    nothing behind.

    Raises:
        UserError: the source is unfinished, or its release would be larger than MAX_BYTES or differ by more than
            MAX_DIFFERENCE.
    """
    checkpoint = load_checkpoint(source)
    if not checkpoint["thresholds"]:
        raise UserError(f"expected a finished run at {source}, found no thresholds; end it with train.py --resume")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as folder:
        draft = Path(folder) / output.name
        save_checkpoint(draft, slim(checkpoint, precision))
        size = draft.stat().st_size
        if size > MAX_BYTES:
            raise UserError(
                f"expected at most {MAX_BYTES / 1e6:g} MB, got {size / 1e6:.1f} MB in {precision} from {source}; "
                "use --precision int8, a smaller model, or one distilled by train.py --teacher"
            )
        images = sample_images(PARITY_COUNT)
        before, after = (logits_of(file, images) for file in (source, draft))
        difference = float(np.abs(before - after).max())
        if not difference <= MAX_DIFFERENCE:
            raise UserError(
                f"expected logits within {MAX_DIFFERENCE:g} of those of {source}, got a difference of "
                f"{difference:.3g}; use a finer --precision"
            )
        os.replace(draft, output)
    description = {
        "file": output.name,
        "sha256": file_digest(output),
        "bytes": size,
        "precision": precision,
        "model": checkpoint["model"],
        "members": [member["model"] for member in checkpoint["model_args"].get("members", [])],
        "base": [{key: entry[key] for key in ("source", "sha256")} for entry in checkpoint.get("base", [])],
        "geometry": checkpoint["geometry"],
        "thresholds": checkpoint["thresholds"],
        "fitted_on": checkpoint.get("fitted_on", []),
        "parity": {"max_logit_difference": difference, "images": len(images)},
        "golden": [{"index": index, "logit": float(after[index])} for index in range(GOLDEN_COUNT)],
        "command": without_paths(command),
    }
    write_json(description_file(output), description)
    return description


def description_file(checkpoint: str | Path) -> Path:
    """Return the JSON file of a released checkpoint: its sha256, size, parity and golden logits."""
    return Path(checkpoint).with_suffix(".json")


def slim(checkpoint: Mapping[str, Any], precision: str) -> dict[str, Any]:
    """Return the parts of a checkpoint that users need, without the paths of the machine that trained it.

    Large float32 tensors are rounded: with ``fp16`` to half precision, with ``int8`` to integers times a scale for each
    output channel. Large means two or more dimensions and more than SMALL numbers, but not a last layer with one
    output. Vectors are kept because the variances among them can exceed the range of half precision. The small kernels
    of the first layers are kept because they save little: rounding them alone moved a logit of EfficientNet-B0 by 0.1.
    ``load_checkpoint`` returns float32.
    """
    kept = {key: checkpoint[key] for key in (*DESCRIPTION_KEYS, "base", "state_dict") if key in checkpoint}
    if kept.get("base"):
        kept = without_bases(kept)  # first: what is rounded no longer equals the base
        kept["base"] = [{**entry, "file": None} for entry in kept["base"]]
    kept |= {key: without_paths(kept[key]) for key in CLEANED if key in kept}
    if rounding := ROUNDINGS[precision]:
        kept["state_dict"] = {
            key: rounding(value) if _is_large(value) else value for key, value in kept["state_dict"].items()
        }
    return kept


def _is_large(value: Any) -> bool:
    is_matrix = isinstance(value, Tensor) and value.dtype == torch.float32 and value.ndim > 1 and len(value) > 1
    return is_matrix and value.numel() > SMALL


def as_int8(weights: Tensor) -> dict[str, Tensor]:
    """Round ``(C, ...)`` float32 to int8 with a scale ``(C, 1, ...)`` per channel; the product is near the input."""
    largest = weights.abs().flatten(1).amax(1).clamp(min=torch.finfo(torch.float32).tiny)
    scale = (largest / 127).view(-1, *[1] * (weights.ndim - 1))
    return {"int8": (weights / scale).round().to(torch.int8), "scale": scale}


ROUNDINGS: dict[str, Callable[[Tensor], Any] | None] = {"fp32": None, "fp16": Tensor.half, "int8": as_int8}


def without_paths(value: Any) -> Any:
    """Shorten paths in plain values that lead out of the project to their last part, or to ``RUN/best.pt``."""
    if isinstance(value, str):
        return OUTSIDE.sub(_last_part, value)
    if isinstance(value, dict):
        return {key: without_paths(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(item) for item in value]
    return value


def _last_part(match: re.Match[str]) -> str:
    parts = [part for part in re.split(r"[\\/]", match[0]) if part not in ("", "~", "..")]
    return "/".join(parts[-2:] if parts and parts[-1] in ("best.pt", "last.pt") else parts[-1:])


# --------------------------------------------------------------------------------------------------- golden scores


def sample_images(count: int) -> list[np.ndarray]:
    """Generate images ``(256, 256, 3)`` uint8 RGB as the demo set does: a real one, then one of each forger, ...

    Each depends on its place in the list only, so the same file is scored on the same images everywhere.
    """
    from datasets.demo_set.camera import decode_jpeg, encode_jpeg
    from datasets.demo_set.fakes import GENERATORS, forge, photograph

    kinds = [None, *GENERATORS]
    images = []
    for index in range(count):
        rng, kind = np.random.default_rng([GOLDEN_SEED, index]), kinds[index % len(kinds)]
        if kind is None:
            data = encode_jpeg(photograph(rng, GOLDEN_SIDE).image, GOLDEN_QUALITY)
        else:
            data = forge(kind, rng, GOLDEN_SIDE, GOLDEN_QUALITY)[0]
        images.append(decode_jpeg(data))
    return images


@torch.inference_mode()
def logits_of(checkpoint_file: Path, images: Sequence[np.ndarray]) -> np.ndarray:
    """Return the logits ``(N,)`` of images ``(H, W, 3)`` uint8 RGB, in float32 on the CPU, one image at a time."""
    from datasets.transforms import to_tensor

    detector, _ = load_detector(checkpoint_file)
    return np.array([detector(to_tensor(detector.geometry(image))[None]).item() for image in images])
