"""Download a public dataset into data/, or a public network into your cache, and verify what arrived.

  python -m datasets.download yunet
  python -m datasets.download clip
  python -m datasets.download 140k
  python -m datasets.download 140k --output-dir /data/140k

  data/140k: 140,000 images: train 50,000 real 50,000 fake, valid 10,000 real 10,000 fake, test 10,000 real 10,000 fake

140k is "140k Real and Fake Faces" (kaggle.com/datasets/xhlulu/140k-real-and-fake-faces, 4 GB): 70,000 photographs of
FFHQ and 70,000 StyleGAN faces at 256 px. Kaggle requires an account: create a token at kaggle.com/settings (API, Create
New Token) and save the file as ~/.kaggle/kaggle.json, or set KAGGLE_USERNAME and KAGGLE_KEY. Run the command again to
resume an interrupted download.

yunet is the face detector of OpenCV's model zoo (github.com/opencv/opencv_zoo, MIT, 0.2 MB). All scripts use it from
then on to find faces; without it they use a bundled cascade, which finds fewer. It is kept in ~/.cache/deepfake-engine,
or in the folder named by the variable DEEPFAKE_CACHE.

clip is the image tower of CLIP ViT-B/16 (OpenAI, MIT, 172 MB), the base weights of adapted detectors. pip fetches it,
and all scripts find it in the same folder.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets.clip_weights import fetch_clip
from datasets.faces.finder import YUNET_FILE
from datasets.listing.readers.folder import read_folder
from datasets.listing.records import LABEL_NAMES, SPLITS
from datasets.transfer import basic_auth, download, unzip
from utils.args import EXIT_DONE, check_output_dir, make_parser, run_script
from utils.errors import UserError
from utils.files import BASE_WEIGHTS, file_digest, user_cache

SERVER = "https://www.kaggle.com/api/v1"
ZOO = "https://media.githubusercontent.com/media/opencv/opencv_zoo/main/models/face_detection_yunet"
YUNET_SHA256 = "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4"


@dataclass(frozen=True)
class Download:
    """A dataset on Kaggle: its owner/name, and the images of each class that each split must hold."""

    path: str
    images: Mapping[str, int]


DOWNLOADS = {"140k": Download("xhlulu/140k-real-and-fake-faces", {"train": 50_000, "valid": 10_000, "test": 10_000})}


def get_args_parser() -> argparse.ArgumentParser:
    """Declare the flags."""
    parser = make_parser(__doc__, "python -m datasets.download")
    parser.add_argument("name", choices=[*sorted(DOWNLOADS), "clip", "yunet"], help="the dataset or network")
    parser.add_argument("--output-dir", metavar="DIR", help="default: data/NAME; your cache for networks")
    parser.add_argument("--server", metavar="URL", help=f"default: {SERVER}; GitHub for yunet")
    return parser


def main(argv: Sequence[str] | None = None) -> dict:
    """Download what is missing; returns ``{"folder", "counts": {split: {class: images}}, "exit_code": 0}``.

    For a network the result is ``{"file", "exit_code": 0}``.
    """
    args = get_args_parser().parse_args(argv)
    if args.name == "clip":
        file = fetch_clip(Path(args.output_dir) if args.output_dir else user_cache() / BASE_WEIGHTS)
        print(f"{file}: CLIP, {file.stat().st_size:,} bytes")
        return {"file": str(file), "exit_code": EXIT_DONE}
    if args.name == "yunet":
        file = fetch_yunet(args.server or ZOO, Path(args.output_dir) if args.output_dir else user_cache())
        print(f"{file}: YuNet, {file.stat().st_size:,} bytes")
        return {"file": str(file), "exit_code": EXIT_DONE}
    wanted = DOWNLOADS[args.name]
    folder = Path(args.output_dir or f"data/{args.name}")
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        archive = folder.with_name(f"{folder.name}.zip")
        if not archive.exists():
            download(f"{args.server or SERVER}/datasets/download/{wanted.path}", archive, basic_auth(*credentials()))
        unzip(archive, folder)
        archive.unlink()
    counts = check_counts(folder, wanted.images)
    parts = ", ".join(f"{split} " + " ".join(f"{n:,} {name}" for name, n in counts[split].items()) for split in counts)
    print(f"{folder}: {sum(sum(part.values()) for part in counts.values()):,} images: {parts}")
    return {"folder": str(folder), "counts": counts, "exit_code": EXIT_DONE}


def fetch_yunet(server: str, folder: Path) -> Path:
    """Fetch YuNet unless the folder has it; returns its file.

    Raises:
        UserError: it cannot be fetched, or the server has another file under this name.
    """
    target = folder / YUNET_FILE
    if target.is_file() and file_digest(target) == YUNET_SHA256:
        return target
    check_output_dir(folder)
    arrived = download(f"{server}/{YUNET_FILE}", target.with_suffix(".unchecked"), {})
    if (digest := file_digest(arrived)) != YUNET_SHA256:
        arrived.unlink()
        raise UserError(
            f"expected YuNet with sha256 {YUNET_SHA256} from {server}, got a file with {digest}; "
            "try again, or pass a YuNet file of your own with --face-detector"
        )
    os.replace(arrived, target)
    return target


def credentials() -> tuple[str, str]:
    """User name and key for Kaggle's API, from the environment or from kaggle.json.

    Raises:
        UserError: there are none, or the file holds something else.
    """
    user, key = os.environ.get("KAGGLE_USERNAME"), os.environ.get("KAGGLE_KEY")
    if user and key:
        return user, key
    file = Path(os.environ.get("KAGGLE_CONFIG_DIR") or Path.home() / ".kaggle") / "kaggle.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return found["username"], found["key"]
    except FileNotFoundError:
        raise UserError(
            "expected Kaggle credentials, found none: create a token at https://www.kaggle.com/settings (API, Create "
            f"New Token) and save it as {file}, or set KAGGLE_USERNAME and KAGGLE_KEY; or download the ZIP file by "
            "hand and save it as data/140k.zip"
        ) from None
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"expected username and key in {file}, found something else; create a new token") from None


def check_counts(folder: Path, images: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """Count the images of each split and class.

    Raises:
        UserError: the counts differ from those of the dataset.
    """
    source = read_folder(folder)
    counts = {
        split: {
            name: sum(record.label == label for record in source.by_split.get(split, ()))
            for label, name in enumerate(LABEL_NAMES)
        }
        for split in SPLITS
    }
    for split, found in counts.items():
        for name, number in found.items():
            if number != images[split]:
                raise UserError(
                    f"expected {images[split]:,} {name} {split} images in {folder}, got {number:,}; "
                    "delete the folder and run this again"
                )
    return counts


if __name__ == "__main__":
    run_script(main)
