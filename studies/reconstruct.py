"""Reconstruct real photographs with the autoencoder of an image generator: fakes that differ only by its traces.

  python -m studies.reconstruct --data data/140k data/wild --autoencoder weights/taef2_encoder.pth

Each spec becomes a data set in --output-dir, {train,valid}/{real,fake}, for use with every script. `fake` holds the
reconstructions of the real training and validation images; `real` holds the same images under the same names, scaled
and saved in the same way, so that size, framing and format reveal nothing. Fakes of the source are not used. A source
without a validation split is divided as train.py divides it, so that no validation image is trained on.

The autoencoder is tiny: TAESD (Stable Diffusion, SDXL), TAEF1 (FLUX.1) or TAEF2 (FLUX.2), from
github.com/madebyollin/taesd. Name the file of the encoder; the decoder lies next to it under the corresponding name
(taef2_decoder.pth).

Larger pictures are reduced to --longer-side; all are saved as JPEG of quality 92. Run the command again to resume after
an interruption. The result goes to stdout:

  data/reconstructions/140k-taef2: 50,000 train, 10,000 valid pairs

Exit code 0: all done; 1: some images could not be read and are listed; 2: bad usage.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from datasets.decoding.images import UnreadableImage, read_record, read_size
from datasets.listing.records import LABEL_NAMES, Listing, Record, relative_path
from datasets.listing.spec import open_records, parse_spec, read_source
from datasets.listing.splits import hold_out
from datasets.transforms import as_floats, resize_to
from utils.args import add_device_group, check_output_dir, exit_code, int_in, make_parser, run_script
from utils.errors import UserError
from utils.files import atomic_write_bytes, file_digest, locked, read_json, write_json

QUALITY = 92  # of JPEG: near that of photographs from cameras
BATCH_SIZE = 8
PLAN_FILE = ".reconstruct.json"  # hidden, so that readers of the folder skip it

Network = Callable[[np.ndarray], np.ndarray]  # images (N, H, W, 3) uint8 RGB to their reconstructions


@dataclass(frozen=True)
class Pair:
    """A real image and the files made from it."""

    record: Record
    real: Path
    fake: Path


def get_args_parser() -> argparse.ArgumentParser:
    """Declare the flags."""
    parser = make_parser(__doc__, "python -m studies.reconstruct")
    parser.add_argument("--data", nargs="+", required=True, metavar="SPEC", help="sources of real images")
    parser.add_argument("--autoencoder", required=True, metavar="FILE", help="the encoder: .pth or .safetensors")
    parser.add_argument(
        "--longer-side", type=int_in(64, 4096), default=320, metavar="PX", help="at most (default: 320)"
    )
    parser.add_argument("--output-dir", default="data/reconstructions", metavar="DIR", help="default: %(default)s")
    add_device_group(parser, workers="")
    return parser


def main(argv: Sequence[str] | None = None) -> dict:
    """Reconstruct; returns ``{"sets": {folder: {split: pairs}}, "unreadable": paths, "exit_code": 0 or 1}``."""
    args = get_args_parser().parse_args(argv)
    files = autoencoder_files(args.autoencoder)
    name = files[0].stem.replace("encoder", "").strip("_-. ") or "reconstructed"
    sources = open_sources(args.data)
    root = check_output_dir(args.output_dir)
    facts = {"autoencoder": [*map(file_digest, files)], "longer_side": args.longer_side, "quality": QUALITY}
    folders = {source: root / f"{source}-{name}" for source in sources}
    for source, parts in sources.items():
        prepare_folder(folders[source], facts | {split: part.fingerprint for split, part in parts.items()})

    network = load_network(files, args.device, args.precision, args.threads)
    sets, unreadable = {}, []
    for source, parts in sources.items():
        folder = folders[source]
        pairs = {split: list_pairs(folder / split, part) for split, part in parts.items()}
        with locked(folder):
            unreadable += make_pairs([p for part in pairs.values() for p in part], network, args.longer_side, source)
        sets[str(folder)] = {split: sum(map(is_done, part)) for split, part in pairs.items()}
        print(f"{folder}: {', '.join(f'{n:,} {split}' for split, n in sets[str(folder)].items())} pairs")
    for line in unreadable:
        print(f"unreadable: {line}")
    return {"sets": sets, "unreadable": unreadable, "exit_code": exit_code(len(unreadable))}


# --------------------------------------------------------------------------------------- checks before any weight


def autoencoder_files(path: str) -> tuple[Path, Path]:
    """The files of encoder and decoder. Raises UserError if one is missing."""
    encoder = Path(path)
    before, found, after = encoder.name.rpartition("encoder")
    if not encoder.is_file() or not found:
        what = f"{path!r}" if encoder.is_file() else f"{path!r}, which is no file"
        raise UserError(f"expected --autoencoder to be the file of an encoder, such as taef2_encoder.pth, got {what}")
    decoder = encoder.with_name(f"{before}decoder{after}")
    if not decoder.is_file():
        raise UserError(f"expected the decoder of {path!r} next to it, found no {decoder.name}; put it there")
    return encoder, decoder


def open_sources(specs: Sequence[str]) -> dict[str, dict[str, Listing]]:
    """The listings to reconstruct by name of the source and split, real images only.

    Raises:
        UserError: a spec is wrong, or has no real training images; two sources have one name.
    """
    sources: dict[str, dict[str, Listing]] = {}
    for text in specs:
        spec = parse_spec(text).replace(repeat=None)
        if "split" in spec.options:
            raise UserError(f"expected --data without split=, got {text!r}; train and valid are both reconstructed")
        source = read_source(spec)
        splits = open_records(spec, source=source).splits
        if splits and "train" not in splits:
            raise UserError(f"expected a train split in {text!r}, found {', '.join(splits)} only")
        train = open_records(spec, "train" if splits else "all", source)
        valid = open_records(spec, "valid", source) if "valid" in splits else None
        parts = (train, valid) if valid else hold_out(train)
        reals = {split: only_real(part) for split, part in zip(("train", "valid"), parts, strict=True)}
        if not reals["train"].records:
            raise UserError(f"expected real images to reconstruct in {text!r}, found none for training")
        if train.name in sources:
            raise UserError(f"expected sources of different names, got two named {train.name!r}; rename a folder")
        sources[train.name] = reals
    return sources


def only_real(listing: Listing) -> Listing:
    """The same listing without fakes."""
    return replace(listing, records=[record for record in listing.records if record.label == 0])


def prepare_folder(folder: Path, plan: dict) -> None:
    """Note what a folder will hold. Raises UserError if it holds something else."""
    file = folder / PLAN_FILE
    known = read_json(file, "the plan of reconstructions") if file.is_file() else None
    if known != plan and folder.is_dir() and any(folder.iterdir()):
        raise UserError(
            f"expected {folder} to be empty, or to hold reconstructions of the same images by the same autoencoder and "
            "flags, got others; delete the folder or choose another --output-dir"
        )
    write_json(file, plan)


def list_pairs(folder: Path, listing: Listing) -> list[Pair]:
    """The pairs of a split; their names depend only on where the image lies in its data set."""
    pairs = []
    for record in listing.records:
        path = relative_path(record.path, listing.root)
        digest = hashlib.sha256(path.encode("utf-8", "surrogateescape")).hexdigest()[:12]
        real, fake = (folder / label / f"{digest}-{Path(path).stem[:40]}.jpg" for label in LABEL_NAMES)
        pairs.append(Pair(record, real, fake))
    return pairs


def is_done(pair: Pair) -> bool:
    """Whether both files exist; each is written as a whole or not at all."""
    return pair.real.exists() and pair.fake.exists()


# ------------------------------------------------------------------------------------------------ reconstruction


def load_network(files: Sequence[Path], device: str, precision: str, threads: int | None) -> Network:
    """Load the autoencoder onto a device. Raises UserError if the files hold something else."""
    import torch

    from models.tiny_autoencoder import TinyAutoencoder
    from utils.checkpoints.weights import read_weights_file
    from utils.runtime import autocast, pick_device, pick_precision, set_threads

    set_threads(threads)
    place = pick_device(device)
    # As in training: bfloat16 doubles the speed, and its error is below one grey level.
    dtype = pick_precision(precision, place, training=True)
    network = TinyAutoencoder(*map(read_weights_file, files)).eval()
    network.to(place).to(memory_format=torch.channels_last)

    def rebuild(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode(), autocast(place, dtype):
            found = network(as_floats(torch.from_numpy(images).to(place)))
        return found.mul(255).round().byte().permute(0, 2, 3, 1).cpu().numpy()

    return rebuild


def make_pairs(pairs: Sequence[Pair], network: Network, longer_side: int, name: str) -> list[str]:
    """Write the pairs that are missing; returns a line for each image that cannot be read."""
    todo = [pair for pair in pairs if not is_done(pair)]
    unreadable = []
    bar = tqdm(total=len(pairs), initial=len(pairs) - len(todo), desc=name, unit="img", disable=None)
    with bar, ThreadPoolExecutor() as pool:
        sizes = list(pool.map(lambda pair: read_size(pair.record.path) or (0, 0), todo))
        order = sorted(range(len(todo)), key=sizes.__getitem__)  # so that most batches hold images of one size
        for start in range(0, len(todo), BATCH_SIZE):
            batch = [todo[index] for index in order[start : start + BATCH_SIZE]]
            images = list(pool.map(lambda pair: read_reduced(pair.record, longer_side), batch))
            by_shape: dict[tuple[int, ...], list[tuple[Pair, np.ndarray]]] = {}
            for pair, image in zip(batch, images, strict=True):
                if isinstance(image, str):
                    unreadable.append(f"{pair.record.path}: {image}")
                else:
                    by_shape.setdefault(image.shape, []).append((pair, image))
            for same in by_shape.values():
                rebuilt = rebuild_padded(network, np.stack([image for _, image in same]))
                list(pool.map(write_pair, *zip(*same, strict=True), rebuilt))
            bar.update(len(batch))
    return unreadable


def read_reduced(record: Record, longer_side: int) -> np.ndarray | str:
    """An image ``(H, W, 3)`` uint8 RGB with sides of at most ``longer_side`` px, or why it cannot be read."""
    try:
        image = read_record(record)
    except UnreadableImage as error:
        return str(error)
    scale = min(1.0, longer_side / max(image.shape[:2]))
    return resize_to(image, *(max(1, round(side * scale)) for side in image.shape[:2]))


def rebuild_padded(network: Network, images: np.ndarray) -> np.ndarray:
    """Reconstruct images of any size: padded by reflection, not resampled, so that their own traces stay."""
    from models.tiny_autoencoder import STRIDE

    height, width = images.shape[1:3]
    padding = ((0, 0), (0, -height % STRIDE), (0, -width % STRIDE), (0, 0))
    return network(np.pad(images, padding, mode="reflect"))[:, :height, :width]


def write_pair(pair: Pair, real: np.ndarray, fake: np.ndarray) -> None:
    """Save both versions with the same settings."""
    for file, image in ((pair.fake, fake), (pair.real, real)):
        bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        atomic_write_bytes(file, cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes())


if __name__ == "__main__":
    run_script(main)
