"""Pack a dataset into tar shards that `wds:` reads, and any WebDataset loader too.

  python -m datasets.pack data/140k --output-dir shards/140k
  python -m datasets.pack data/140k --output-dir shards/140k --images-per-shard 2000 --overwrite

  shards/140k: 140,000 images in 140 shards; use it as wds:shards/140k

Files keep their bytes. Each image is two or three members: KEY.jpg, KEY.json (label, generator, group, original path)
and KEY.mask.png for its mask. A shard holds one split with the classes mixed, and has an index next to it. Run the
command again to resume after an interruption: shards of the same plan (images, sizes, modification times, images per
shard) are kept. A folder with shards of another plan is refused unless you pass --overwrite, which removes them.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from datasets.listing.records import LABEL_NAMES, SPLITS, Listing, Record, relative_path
from datasets.listing.spec import open_records, parse_spec, read_source
from datasets.listing.storage import (
    IMAGE_SUFFIXES,
    MASK_SUFFIX,
    PLAN_FILE,
    UnreadableImage,
    file_state,
    index_of,
    parse_index,
    read_bytes,
)
from utils.args import check_output_dir, exit_code, int_in, make_parser, run_script
from utils.errors import UserError
from utils.files import atomic_write_text, read_json, write_json

FORMAT_VERSION = 2


def get_args_parser() -> argparse.ArgumentParser:
    """Declare the flags."""
    parser = make_parser(__doc__, "python -m datasets.pack")
    parser.add_argument("data", metavar="SPEC", help="the dataset")
    parser.add_argument("--output-dir", required=True, metavar="DIR", help="folder of the shards")
    parser.add_argument("--images-per-shard", type=int_in(1), default=1000, metavar="N", help="default: 1000")
    parser.add_argument("--overwrite", action="store_true", help="replace shards of another plan")
    return parser


def main(argv: Sequence[str] | None = None) -> dict:
    """Pack; returns ``{"shards", "n_images", "unreadable", "exit_code": 0, or 1 if files could not be read}``."""
    args = get_args_parser().parse_args(argv)
    listings = open_splits(args.data)
    folder = check_output_dir(args.output_dir)
    shards: dict[str, tuple[list[Record], str]] = {}
    for prefix, listing in listings.items():
        for number, part in enumerate(mixed_parts(listing.records, args.images_per_shard)):
            shards[f"{prefix}-{number:05d}.tar"] = part, listing.root
    plan = plan_digest(listings, args.images_per_shard)
    prepare_folder(folder, plan, list(shards), args.overwrite)
    unreadable: list[str] = []
    n_images = sum(write_shard(folder / name, part, root, plan, unreadable) for name, (part, root) in shards.items())
    for path in unreadable:
        print(f"unreadable: {path}")
    print(f"{folder}: {n_images:,} images in {len(shards)} shards; use it as wds:{folder}")
    code = exit_code(len(unreadable))
    return {"shards": len(shards), "n_images": n_images, "unreadable": unreadable, "exit_code": code}


def open_splits(text: str) -> dict[str, Listing]:
    """The listings to pack by the prefix of their shards: one per split, or one called data.

    Raises:
        UserError: the spec is wrong, or some of its images have a split and others have none.
    """
    spec = parse_spec(text).replace(repeat=None)
    if "split" in spec.options:
        listing = open_records(spec)
        return {listing.split if listing.split in SPLITS else "data": listing}
    by_split = read_source(spec).by_split
    splits = [split for split in SPLITS if by_split.get(split)]
    if splits and by_split.get(""):
        raise UserError(
            f"expected a split for every image of {text!r}, got {len(by_split[''])} without; "
            "name one with @split=, or pack all together with @split=all"
        )
    return {split: open_records(spec, split) for split in splits} or {"data": open_records(spec, "all")}


def mixed_parts(records: Sequence[Record], size: int) -> Iterator[list[Record]]:
    """Divide records into parts, each a random sample: a reader of one shard after another sees both classes."""
    order = np.random.default_rng(0).permutation(len(records)).tolist()
    for start in range(0, len(records), size):
        yield [records[i] for i in sorted(order[start : start + size])]


def plan_digest(listings: dict[str, Listing], images_per_shard: int) -> str:
    """32 hex digits over everything that decides the contents of the shards."""
    digest = hashlib.sha256(f"{FORMAT_VERSION} {images_per_shard}".encode())
    for prefix, listing in listings.items():
        for record in listing.records:
            name = relative_path(record.path, listing.root)
            states = [file_state(record.path), file_state(record.mask or "")]
            facts = [prefix, name, record.label, record.generator, record.group, record.meta, states]
            digest.update(json.dumps(facts, sort_keys=True).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:32]


def prepare_folder(folder: Path, plan: str, names: Sequence[str], overwrite: bool) -> None:
    """Write the plan of a folder; shards of another plan are removed with ``overwrite``.

    Raises:
        UserError: there are shards of another plan, or of unknown origin.
    """
    plan_file = folder / PLAN_FILE
    known = read_json(plan_file, "the plan of a pack").get("plan") if plan_file.exists() else None
    own = [name for name in names if known == plan and packed_images(folder / name, plan) >= 0]
    foreign = [file for file in sorted(folder.glob("*.tar")) if file.name not in own]
    if foreign and not overwrite:
        raise UserError(
            f"expected {folder} without shards, or with those of the same images and --images-per-shard, got "
            f"{foreign[0].name} of others; choose another --output-dir, or replace them with --overwrite"
        )
    for file in foreign:
        file.unlink()
        index_of(file).unlink(missing_ok=True)
    write_json(plan_file, {"plan": plan, "shards": list(names)})


def packed_images(file: Path, plan: str) -> int:
    """The number of images in a finished shard of a plan, 0 for an unfinished one, -1 for that of another plan."""
    try:
        shard = parse_index(json.loads(index_of(file).read_text(encoding="utf-8")))
    except FileNotFoundError:  # interrupted between a shard and its index
        return 0
    except (OSError, ValueError, TypeError, KeyError):
        return -1
    return len(shard.images) if shard.plan == plan else -1


def write_shard(file: Path, records: Sequence[Record], root: str, plan: str, unreadable: list[str]) -> int:
    """Write one shard and its index unless both exist; returns the number of images in it.

    Raises:
        UserError: the disk is full or the folder is not writable.
    """
    if file.exists() and (done := packed_images(file, plan)) > 0:
        return done
    temporary = file.with_name(f".{file.name}.tmp")
    images: dict[str, dict] = {}
    places: dict[str, tuple[int, int]] = {}
    try:
        with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as shard:
            for number, record in enumerate(tqdm(records, desc=file.name, unit="img", disable=None, leave=False)):
                try:
                    suffix = Path(record.path).suffix.lower()
                    name = f"{number:06d}{suffix if suffix in IMAGE_SUFFIXES else '.img'}"
                    files = {name: read_bytes(record.path)}
                    if record.mask:
                        files[f"{number:06d}{MASK_SUFFIX}"] = read_bytes(record.mask)
                except UnreadableImage:
                    unreadable.append(record.path)
                    continue
                mask = f"{number:06d}{MASK_SUFFIX}" if record.mask else ""
                facts = {"generator": record.generator, "group": record.group, "meta": record.meta}
                label = None if record.label is None else LABEL_NAMES[record.label]
                described = {"label": label, "path": relative_path(record.path, root), **facts}
                text = json.dumps({key: value for key, value in described.items() if value}).encode()
                for member, data in (*files.items(), (f"{number:06d}.json", text)):
                    places[member] = add_member(shard, member, data), len(data)
                images[name] = {"label": record.label, "mask": mask, **facts}
        os.replace(temporary, file)
    except OSError as error:
        raise UserError(f"expected to write {file}, got: {error.strerror or error}; free some space") from None
    finally:
        temporary.unlink(missing_ok=True)
    atomic_write_text(index_of(file), json.dumps({"plan": plan, "images": images, "places": places}))
    return len(images)


def add_member(shard: tarfile.TarFile, name: str, data: bytes) -> int:
    """Append a member; returns the offset of its bytes."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    offset = shard.offset + tarfile.BLOCKSIZE  # one block of header comes first in this format
    shard.addfile(member, io.BytesIO(data))
    return offset


if __name__ == "__main__":
    run_script(main)
