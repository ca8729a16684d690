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
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from datasets.decoding.images import read_size
from datasets.transforms import as_floats
from studies.pairs import (
    LONGER_SIDE,
    QUALITY,
    Pair,
    is_done,
    list_pairs,
    open_sources,
    prepare_folder,
    read_reduced,
    report_lines,
    report_pairs,
    write_pair,
)
from utils.args import add_device_group, check_output_dir, exit_code, int_in, make_parser, run_script
from utils.errors import UserError
from utils.files import file_digest, locked

BATCH_SIZE = 8
PLAN_FILE = ".reconstruct.json"  # hidden, so that readers of the folder skip it

Network = Callable[[np.ndarray], np.ndarray]  # images (N, H, W, 3) uint8 RGB to their reconstructions


def get_args_parser() -> argparse.ArgumentParser:
    """Declare the flags."""
    parser = make_parser(__doc__, "python -m studies.reconstruct")
    parser.add_argument("--data", nargs="+", required=True, metavar="SPEC", help="sources of real images")
    parser.add_argument("--autoencoder", required=True, metavar="FILE", help="the encoder: .pth or .safetensors")
    parser.add_argument(
        "--longer-side", type=int_in(64, 4096), default=LONGER_SIDE, metavar="PX", help="at most (default: 320)"
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
        prepare_folder(folders[source], PLAN_FILE, facts | {split: part.fingerprint for split, part in parts.items()})

    network = load_network(files, args.device, args.precision, args.threads)
    sets, unreadable = {}, []
    for source, parts in sources.items():
        folder = folders[source]
        pairs = {split: list_pairs(folder / split, part) for split, part in parts.items()}
        with locked(folder):
            unreadable += make_pairs([p for part in pairs.values() for p in part], network, args.longer_side, source)
        sets[str(folder)] = report_pairs(folder, pairs)
    report_lines("unreadable", unreadable)
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


def rebuild_padded(network: Network, images: np.ndarray) -> np.ndarray:
    """Reconstruct images of any size: padded by reflection, not resampled, so that their own traces stay."""
    from models.tiny_autoencoder import STRIDE

    height, width = images.shape[1:3]
    padding = ((0, 0), (0, -height % STRIDE), (0, -width % STRIDE), (0, 0))
    return network(np.pad(images, padding, mode="reflect"))[:, :height, :width]


if __name__ == "__main__":
    run_script(main)
