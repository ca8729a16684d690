"""Generate clips of faces that move, real and forged: a data set of videos that needs no download.

  python -m studies.demo_clips --n 200 --output-dir data/demo-clips
  python -m studies.track_sequences --data clips:data/demo-clips --output-dir results/mine

Each clip shows one rendered person of the demo set who moves and turns for a few seconds. In a fake, one of the demo
generators forges each frame separately, with new random choices, as methods for images do, so its traces flicker.
Deviation from a real camera: noise and exposure are the same in all frames of a clip, so that nothing flickers in a
real one. Writes {train,valid,test}/{real,fake/GENERATOR}/NUMBER.avi, and prints the folder:

  clips data/demo-clips
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import astuple
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from datasets.demo_set.camera import decode_jpeg, encode_jpeg
from datasets.demo_set.faces import Pose, draw_identity, draw_pose
from datasets.demo_set.fakes import GENERATORS, match_size, photograph
from datasets.demo_set.generate import Job, plan
from datasets.demo_set.scene import draw_light
from utils.args import add_seed, check_output_dir, int_in, make_parser, run_script
from utils.errors import UserError

RATE = 2  # frames per second: each is sampled by default
QUALITY = 90  # of the JPEG file that a frame was before it became part of a clip


def get_args_parser() -> argparse.ArgumentParser:
    """Declare the flags of demo_clips.py."""
    parser = make_parser(__doc__, "python -m studies.demo_clips")
    parser.add_argument("--n", type=int_in(60, 100_000), default=200, help="clips, half of them fake (default: 200)")
    parser.add_argument("--frames", type=int_in(2, 1000), default=8, help="frames per clip, 2 per second (default: 8)")
    parser.add_argument("--size", type=int_in(64, 1024), default=128, help="side in px, even (default: 128)")
    add_seed(parser)
    parser.add_argument("--output-dir", required=True, metavar="DIR", help="an empty or new folder")
    return parser


def main(argv: Sequence[str] | None = None) -> dict:
    """Generate the clips; returns ``{"folder": path}``."""
    args = get_args_parser().parse_args(argv)
    folder = check_output_dir(args.output_dir)
    if args.size % 2:
        raise UserError(f"expected an even --size, got {args.size}")
    if any(folder.iterdir()):
        raise UserError(f"expected an empty or new --output-dir, got {folder}, which holds files; choose another one")
    for job in tqdm(plan(folder, args.n, args.size, args.seed), "clips", unit="clip", disable=None, leave=False):
        write_clip(job, args.frames)
    print(f"clips {folder}")
    return {"folder": str(folder)}


def write_clip(job: Job, n_frames: int) -> None:
    """Write one clip, which depends on (seed, index), the generator, the size and the number of frames only."""
    kind = f"fake/{job.generator}" if job.generator else "real"
    file = Path(job.folder, job.split, kind, f"{job.index:06d}.avi")
    file.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter.fourcc(*"MJPG"), RATE, (job.size, job.size))
    writer.set(cv2.VIDEOWRITER_PROP_QUALITY, 100)
    for frame in frames_of(job, n_frames):
        writer.write(np.ascontiguousarray(frame[:, :, ::-1]))
    writer.release()


def frames_of(job: Job, n_frames: int) -> Iterator[np.ndarray]:
    """The frames ``(size, size, 3)`` uint8 RGB of a clip."""
    rng = np.random.default_rng([job.seed, job.index])
    who, light, first, last = draw_identity(rng), draw_light(rng), draw_pose(rng), draw_pose(rng)
    for number, share in enumerate(np.linspace(0, 1, n_frames)):
        places = zip(astuple(first), astuple(last), strict=True)
        pose = Pose(*(float(start + share * (end - start)) for start, end in places))
        camera = np.random.default_rng([job.seed, job.index, 0])
        shot = photograph(camera, job.size, who, pose, light)
        data = encode_jpeg(shot.image, QUALITY)
        if job.generator:
            forgery = GENERATORS[job.generator](shot, np.random.default_rng([job.seed, job.index, 1 + number]))
            data = match_size(forgery, len(data), QUALITY)
        yield decode_jpeg(data)


if __name__ == "__main__":
    run_script(main)
