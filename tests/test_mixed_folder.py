"""predict.py on a folder as people have it: every picture format, videos, broken files and files that are neither."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.decoding.images import readable_formats
from datasets.faces.finder import FaceFinder
from tests.clips import CODECS, find, portrait, walk, write_clip
from tests.conftest import write_images
from tests.datasets.heif_files import encode_heic
from tests.predicting import run
from tests.utils.metadata import manifests

KINDS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "JPEG2000", "PPM", "HEIF")


VARIANTS = {
    "progressive.jpg": ("JPEG", "RGB", {"progressive": True}),
    "grey.jpg": ("JPEG", "L", {}),
    "print.jpg": ("JPEG", "CMYK", {}),
    "transparent.png": ("PNG", "RGBA", {}),
    "palette.png": ("PNG", "P", {}),
    "bits.png": ("PNG", "1", {}),
    "deep.png": ("PNG", "I;16", {}),
    "lossless.webp": ("WEBP", "RGB", {"lossless": True}),
    "transparent.webp": ("WEBP", "RGBA", {}),
    "packed.tif": ("TIFF", "RGB", {"compression": "tiff_lzw"}),
    "transparent.gif": ("GIF", "RGBA", {}),
}


def picture(kind: str, mode: str = "RGB", **options) -> bytes:
    image, buffer = Image.fromarray(portrait(0)).convert("L" if mode == "I;16" else mode).convert(mode), io.BytesIO()
    if kind == "HEIF":
        return encode_heic(image, **options)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def ten_thousand_frames() -> bytes:
    shades = [Image.new("L", (32, 32), shade) for shade in (200, 90)]
    buffer = io.BytesIO()
    shades[0].save(buffer, "GIF", save_all=True, append_images=shades[1:])
    data = buffer.getvalue()
    at = data.index(b"\x21\xf9", data.index(b"\x2c"))  # the second frame
    return data[:at] + data[at:-1] * 9_999 + b";"


def fill(folder: Path) -> tuple[set[str], dict[str, str]]:
    """Write files; returns the names of those that can be scored, and the reasons why others cannot, by their names."""
    good, bad = {}, {}
    kinds = [kind for kind in KINDS if kind in readable_formats()]
    for number, kind in enumerate(kinds):
        data = picture(kind)
        good[f"{kind}.jpg"] = data  # whatever the format
        bad[f"{kind}-cut{('.png', '.HEIC', '.webp')[number % 3]}"] = data[: len(data) // 3], ("trunc", "corrupt")
        if kind in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF"):
            good[f"{kind}-profile.jpg"] = picture(kind, icc_profile=b"no profile" * 30)
    good |= {name: picture(kind, mode, **options) for name, (kind, mode, options) in VARIANTS.items()}
    heic = bytearray(picture("HEIF")) if "HEIF" in kinds else b""
    for box in (b"meta", b"iloc", b"ispe") if heic else ():
        at = heic.index(box) - 4
        bad[f"{box.decode()}.heic"] = heic[:at] + b"\0\0\0\7" + heic[at + 4 :], ("corrupt",)
    good["motion.jpg"] = picture("JPEG") + b"\0\0\0\x18ftypmp42" + bytes(900)
    good["noise-credentials.jpg"] = manifests.in_jpeg(picture("JPEG"), manifests.firefly_store()[:-40])
    good["credentials.png"] = manifests.in_png(picture("PNG"), np.random.default_rng(0).bytes(900))
    good["frames.gif"] = ten_thousand_frames()
    bad["program.jpg"] = Path("/bin/sh").read_bytes(), ("not an image",)
    bad["logo.png"] = b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>", ("not an image",)
    bad["empty.webp"] = b"", ("empty file",)
    bad["page.jpeg"] = b"<html>404 not found</html>", ("not an image",)
    bad["cut.heic"] = b"\0\0\0\x18ftypheic", ("corrupt", "HEIC needs")
    for suffix in CODECS:
        name = f"clip{suffix}"
        data = write_clip(folder / name, walk(1, 0)).read_bytes()
        good[name] = data
        bad[f"cut{suffix}"] = data[: len(data) // 2], ("truncated",)
    good["one-frame.mp4"] = write_clip(folder / "one-frame.mp4", walk(0.25, 0)).read_bytes()
    bad["sound.mp4"] = good["clip.mp4"].replace(b"vide", b"soun"), ("no video stream",)
    for name, data in [*good.items(), *((name, data) for name, (data, _) in bad.items())]:
        (folder / name).write_bytes(data)
    return set(good), {name: reasons for name, (_, reasons) in bad.items()}


@pytest.mark.usefixtures("in_empty_folder")
def test_every_file_is_scored_or_named_with_the_reason(tiny_checkpoint, monkeypatch, capsys):
    monkeypatch.setattr(FaceFinder, "__call__", lambda _, image: find(image))
    folder = Path("mixed")
    folder.mkdir()
    good, bad = fill(folder)
    neither = ("drawing.svg", "program")
    shutil.copy("/bin/sh", folder / "program")
    (folder / "drawing.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    (folder / "Thumbs.db").write_bytes(b"not worth a word")
    assert len(good) + len(bad) + 2 == 60 or "HEIF" not in readable_formats()
    result = run(str(tiny_checkpoint), str(folder), "--format", "json", "--metadata", "--batch-size", "7")
    printed = capsys.readouterr()
    rows = {Path(row["path"]).name: row for row in json.loads(printed.out)}
    assert {name for name, row in rows.items() if "error" not in row} == good
    assert {name for name, row in rows.items() if "error" in row} == {*bad, *neither}
    for name, reasons in bad.items():
        assert any(reason in rows[name]["error"] for reason in reasons), rows[name]
        assert f"unreadable: mixed/{name}: {rows[name]['error']}\n" in printed.err
    for name in neither:
        assert rows[name]["error"] == "no image or video of a supported format"
        assert f"left out: mixed/{name}: no image or video of a supported format\n" in printed.err
    assert (result["exit_code"], result["n_unreadable"], result["n_left_out"]) == (1, len(bad), 2)
    assert printed.err.splitlines()[-1].endswith(f"; {len(bad)} unreadable; 2 other files left out")
    assert (rows["one-frame.mp4"]["frames"], rows["one-frame.mp4"]["end_s"]) == (1, 0.0)
    for name in ("noise-credentials.jpg", "credentials.png"):
        assert "C2PA block, damaged" in rows[name]["metadata"][0]["value"]
    same = {rows[name]["logit"] for name in ("PNG.jpg", "BMP.jpg", "PPM.jpg", "TIFF.jpg", "PNG-profile.jpg")}
    assert max(same) - min(same) < 1e-4


@pytest.mark.usefixtures("in_empty_folder")
def test_files_of_other_kinds_alone_make_the_exit_code_1(tiny_checkpoint, capsys):
    write_images("photos/a.png")
    for number in range(5_000):
        Path(f"photos/{number:04d}.xmp").touch()
    result = run(str(tiny_checkpoint), "photos", "--output", "out.json", "--format", "json")
    assert result["exit_code"] == 1 and result["n_unreadable"] == 0 and result["n_images"] == 1
    first, *rest = json.loads(Path("out.json").read_text())
    assert "p_fake" in first and [row["path"] for row in rest] == [f"photos/{n:04d}.xmp" for n in range(5_000)]
    lines = capsys.readouterr().err.splitlines()
    assert "left out: 5,000 files (5,000 .xmp): no image or video of a supported format" in lines and len(lines) < 5
    assert run(str(tiny_checkpoint), "photos/a.png")["exit_code"] == 0
