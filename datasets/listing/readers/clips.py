"""Folders of videos, with the layouts of folders of images (datasets/listing/readers/folder.py)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from datasets.decoding.containers import VIDEO_SUFFIXES, is_video_file
from datasets.listing.readers.folder import Files, read_folder
from datasets.listing.records import Sampling, Source
from utils.errors import UserError

VIDEOS = Files("videos", VIDEO_SUFFIXES[:5], is_video_file)


def read_clips(location: str, options: Mapping[str, str]) -> Source:
    """Read a folder of real and fake videos; ``every`` (s) and ``max_frames`` choose their frames. Raises UserError."""
    numbers = {}
    for key, default in Sampling()._asdict().items():
        text, kind = options.get(key, str(default)), type(default)
        try:
            numbers[key] = kind(text)
        except ValueError:
            numbers[key] = kind(0)
        if not 0.01 <= numbers[key] <= 100_000:
            what = "seconds, 0.01 or more" if kind is float else "a whole number, 1 or more"
            raise UserError(f"expected {key}= with {what}, got {key}={text}")
    return replace(read_folder(location, wanted=VIDEOS), sampling=Sampling(**numbers))
