"""Compare a network that reads the frames of a face in order with one that reads each frame alone.

  python -m studies.track_sequences --data clips:data/ff --model-args backbone=efficientnet_b0 --frames 8 --seeds 3

The set needs training, validation and test videos. Of each video, the longest face track is framed as --geometry face
does, and --frames views of it are taken, evenly spaced. Three networks are trained on the same views:

  sequence   cnn_lstm on whole sequences
  mean       cnn_lstm with reader=mean on whole sequences, which ignores their order
  frames     cnn_lstm on single frames; the logit of a video is their mean, as in predict.py

For each, the epoch with the best validation AUC is scored on the test videos, once. Videos without a face are left out
and counted. Writes sequences.csv, .md, .tex and .json, and prints a line for each network and seed:

  sequence seed 0: test AUC 0.871 [0.802, 0.930]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from datasets.listing.records import SPLITS, Listing
from datasets.listing.spec import open_records, parse_spec
from datasets.listing.splits import check_two_classes
from utils.args import (
    add_face_detector,
    check_output_dir,
    command_line,
    exit_code,
    float_in,
    int_in,
    key_value,
    make_parser,
    run_script,
)
from utils.errors import UserError
from utils.files import write_json
from utils.tables import columns, write_table

if TYPE_CHECKING:
    import numpy as np

    from datasets.faces.finder import Finder
    from datasets.transforms import Geometry
    from models.detector import Detector

READERS = {"sequence": "lstm", "mean": "mean", "frames": "lstm"}  # the reader of cnn_lstm by network
COLUMNS = columns(network="Network", seed="Seed", n_real="Real", n_fake="Fake", auc="AUC")


class Tracks(NamedTuple):
    """Views ``(N, T, size, size, 3)`` uint8 of N videos, their labels ``(N,)``; path and reason of the others."""

    views: np.ndarray
    labels: np.ndarray
    missing: list[tuple[str, str]]


def get_args_parser() -> argparse.ArgumentParser:
    """Declare the flags of track_sequences.py."""
    parser = make_parser(__doc__, "python -m studies.track_sequences")
    parser.add_argument("--data", required=True, metavar="SPEC", help="clips:DIR with train, valid and test")
    parser.add_argument("--model-args", nargs="+", type=key_value, default=[], metavar="K=V", help="for cnn_lstm")
    parser.add_argument("--image-size", type=int_in(16, 512), default=128, help="side of a view in px (default: 128)")
    parser.add_argument("--frames", type=int_in(2, 64), default=8, metavar="T", help="views per video (default: 8)")
    parser.add_argument("--epochs", type=int_in(1), default=10, help="default: 10")
    parser.add_argument("--lr", type=float_in(1e-6, 1), default=1e-3, help="peak learning rate (default: 1e-3)")
    parser.add_argument("--batch-size", type=int_in(2), default=16, help="videos per step (default: 16)")
    parser.add_argument("--seeds", type=int_in(1, 100), default=1, help="runs of each network (default: 1)")
    parser.add_argument("--output-dir", default="results/track_sequences", metavar="DIR")
    add_face_detector(parser.add_argument_group("faces"))
    return parser


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Train and test; returns ``{"rows": one per network and seed, "exit_code": 0, or 1 with videos left out}``."""
    args = get_args_parser().parse_args(argv)
    model_args = dict(args.model_args)
    if parse_spec(args.data).kind != "clips":
        raise UserError(f"expected --data clips:DIR, got {args.data}; pictures have no tracks")
    listings = [open_records(args.data, split, videos=True) for split in SPLITS]
    for listing in listings:
        check_two_classes(listing.records, listing.split)
    folder = check_output_dir(args.output_dir)

    from datasets.faces.finder import open_finder
    from datasets.transforms import Geometry
    from utils.metrics.binary import metrics_row
    from utils.runtime import run_facts

    finder, geometry = open_finder(args.face_detector), Geometry("face", args.image_size)
    parts = [read_tracks(listing, finder, geometry, args.frames) for listing in listings] if finder else []
    rows = []
    for name, reader in READERS.items():
        for seed in range(args.seeds):
            detector = fit(name, parts, {**model_args, "reader": reader}, args.epochs, args.lr, args.batch_size, seed)
            p_fake = detector.operating_point.p_fake(score(detector, parts[2].views, name, args.batch_size))
            rows.append({"network": name, "seed": seed, **metrics_row(parts[2].labels, p_fake, 0.5)})
            low, high = rows[-1]["auc_ci"]
            print(f"{name} seed {seed}: test AUC {rows[-1]['auc']:.3f} [{low:.3f}, {high:.3f}]")
    write_table(rows, COLUMNS, folder / "sequences", "Face tracks read as sequences and frame by frame.")
    missing = [item for part in parts for item in part.missing]
    facts = run_facts(command_line("-m studies.track_sequences", argv))
    write_json(folder / "sequences.json", {**facts, "left_out": missing, "rows": rows})
    return {"rows": rows, "exit_code": exit_code(bool(missing))}


def read_tracks(listing: Listing, finder: Finder, geometry: Geometry, frames: int) -> Tracks:
    """Read the longest track of each video; what has none is named on stderr.

    Raises:
        UserError: a class has no track.
    """
    import numpy as np
    from tqdm import tqdm

    from datasets.listing.records import Sampling
    from datasets.listing.storage import UnreadableImage
    from utils.scoring.tracks import score_video

    sampling = listing.sampling or Sampling()
    views, labels, missing = [], [], []
    for record in tqdm(listing.records, f"tracks {listing.split}", unit="video", disable=None, leave=False):
        try:  # the views themselves take the place of logits, which have the frames on their last axis
            tracks = score_video(record.path, sampling, finder, geometry, lambda batch: np.moveaxis(batch, 0, -1))
            longest = max(tracks, key=lambda track: len(track.times))
            if not longest.is_face:
                raise UnreadableImage("no face")
        except UnreadableImage as error:
            missing.append((record.path, str(error)))
            print(f"left out: {record.path}: {error}", file=sys.stderr)
            continue
        taken = np.linspace(0, len(longest.times) - 1, frames).round().astype(int)  # a short track repeats frames
        views.append(np.moveaxis(longest.logits, -1, 0)[taken])
        labels.append(record.label)
    if set(labels) != {0, 1}:
        raise UserError(
            f"expected faces in videos of both classes of {listing.split}, got labels {sorted(set(labels))}"
        )
    return Tracks(np.stack(views), np.array(labels), missing)


def fit(
    name: str, parts: Sequence[Tracks], model_args: dict, epochs: int, lr: float, batch_size: int, seed: int
) -> Detector:
    """Train a network on the first part; returns it with the weights of the epoch that is best on the second."""
    import numpy as np
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits

    from models.registry import create_model
    from utils.metrics.binary import auc

    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    detector, (train, valid, _) = create_model("cnn_lstm", **model_args), parts
    optimizer = torch.optim.AdamW(detector.parameters(), lr, weight_decay=0.05)
    steps = epochs * -(-len(train.labels) // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    best, weights = -1.0, {}
    for _ in range(epochs):
        detector.train()
        for taken in np.array_split(rng.permutation(len(train.labels)), steps // epochs):
            views = train.views[taken]
            views = views[:, :, :, ::-1] if rng.random() < 0.5 else views  # mirrored, all frames alike
            logits = read(detector, torch.tensor(np.ascontiguousarray(views)), name)
            labels = torch.tensor(train.labels[taken]).repeat_interleave(len(logits) // len(taken))
            loss = binary_cross_entropy_with_logits(logits, labels.float())
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(detector.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        value = auc(valid.labels, detector.operating_point.p_fake(score(detector, valid.views, name, batch_size)))
        if value is not None and value > best:
            best, weights = value, {key: tensor.clone() for key, tensor in detector.state_dict().items()}
    detector.load_state_dict(weights)
    return detector


def read(detector: Detector, views: Any, name: str) -> Any:
    """Logits of views ``(N, T, size, size, 3)``: one per video, or ``(N * T,)`` for the network on single frames."""
    images = views.permute(0, 1, 4, 2, 3).float() / 255
    return detector(images.flatten(0, 1) if name == "frames" else images)


def score(detector: Detector, views: np.ndarray, name: str, batch_size: int) -> np.ndarray:
    """Logits of videos ``(N,)``."""
    import torch

    with torch.inference_mode():
        blocks = torch.from_numpy(views).split(batch_size)
        logits = [read(detector.eval(), block, name).reshape(len(block), -1).mean(1) for block in blocks]
    return torch.cat(logits).double().numpy()


if __name__ == "__main__":
    run_script(main)
