"""Pack a data set into tar shards that `wds:` reads, and any WebDataset loader too.

  python -m datasets.pack data/140k --output-dir shards/140k
  python -m datasets.pack data/140k --output-dir shards/140k --images-per-shard 2000

  shards/140k: 140,000 images in 140 shards; use it as wds:shards/140k

Files keep their bytes. Each image is two members, KEY.jpg and KEY.json (label, generator, its path before); a shard
holds one split, mixed over the classes, and has an index beside it. A shard that is there already is not written again,
so an interrupted run goes on.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from datasets.records import LABEL_NAMES, SPLITS, Record
from datasets.spec import open_records, parse_spec
from datasets.storage import INDEX_SUFFIX
from utils.args import EXIT_DONE, EXIT_PARTIAL, check_output_dir, int_in, make_parser, run_script
from utils.errors import UserError
from utils.files import atomic_write_text


def get_args_parser():
    """Declare the flags of the module."""
    parser = make_parser(__doc__, "python -m datasets.pack")
    parser.add_argument("data", metavar="SPEC", help="the data set")
    parser.add_argument("--output-dir", required=True, metavar="DIR", help="where the shards go")
    parser.add_argument("--images-per-shard", type=int_in(1), default=1000, metavar="N", help="default: 1000")
    return parser


def main(argv: Sequence[str] | None = None) -> dict:
    """Pack; returns ``{"shards", "n_images", "unreadable", "exit_code": 0, or 1 if files could not be read}``."""
    args = get_args_parser().parse_args(argv)
    spec = parse_spec(args.data)
    folder = check_output_dir(args.output_dir)
    first = open_records(spec)
    wanted = [first.split] if "split" in spec.options else list(first.splits) or ["all"]
    unreadable: list[str] = []
    shards = n_images = 0
    for split in wanted:
        listing = open_records(spec, split)
        for number, part in enumerate(mixed_parts(listing.records, args.images_per_shard)):
            prefix = split if split in SPLITS else "data"
            n_images += write_shard(folder / f"{prefix}-{number:05d}.tar", part, listing.root, unreadable)
            shards += 1
    for path in unreadable:
        print(f"unreadable: {path}")
    print(f"{folder}: {n_images:,} images in {shards} shards; use it as wds:{folder}")
    exit_code = EXIT_PARTIAL if unreadable else EXIT_DONE
    return {"shards": shards, "n_images": n_images, "unreadable": unreadable, "exit_code": exit_code}


def mixed_parts(records: Sequence[Record], size: int) -> Iterator[list[Record]]:
    """Divide records into parts, each a random sample: whoever reads one shard after another sees both classes."""
    order = np.random.default_rng(0).permutation(len(records)).tolist()
    for start in range(0, len(records), size):
        yield [records[i] for i in sorted(order[start : start + size])]


def write_shard(file: Path, records: Sequence[Record], root: str, unreadable: list[str]) -> int:
    """Write one shard and its index unless both are there; returns the number of images in it.

    Raises:
        UserError: the disk is full or the folder cannot be written to.
    """
    from tqdm import tqdm

    index_file = Path(str(file).removesuffix(".tar") + INDEX_SUFFIX)
    if file.exists() and index_file.exists():
        return len(json.loads(index_file.read_text(encoding="utf-8")))
    temporary = file.with_name(f".{file.name}.tmp")
    rows: list[list] = []
    try:
        with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as shard:
            for number, record in enumerate(tqdm(records, desc=file.name, unit="img", disable=None, leave=False)):
                try:
                    data = Path(record.path).read_bytes()
                except OSError:
                    unreadable.append(record.path)
                    continue
                name = f"{number:06d}{Path(record.path).suffix.lower()}"
                label = None if record.label is None else LABEL_NAMES[record.label]
                before = record.path.removeprefix(root).lstrip("/")
                facts = json.dumps({"label": label, "generator": record.generator, "path": before})
                offset = add_member(shard, name, data)
                add_member(shard, f"{number:06d}.json", facts.encode())
                rows.append([name, offset, len(data), record.label, record.generator])
        os.replace(temporary, file)
    except OSError as error:
        raise UserError(f"expected to write {file}, got: {error.strerror or error}; free some space") from None
    finally:
        temporary.unlink(missing_ok=True)
    atomic_write_text(index_file, json.dumps(rows))
    return len(rows)


def add_member(shard: tarfile.TarFile, name: str, data: bytes) -> int:
    """Append a member; returns the offset of its bytes."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    offset = shard.offset + tarfile.BLOCKSIZE  # its header comes first, one block in this format
    shard.addfile(member, io.BytesIO(data))
    return offset


if __name__ == "__main__":
    run_script(main)
