"""utils/cases.py: a picture is one case under its last label, whoever saves and whatever the user edits."""

import csv
import io
import multiprocessing
from pathlib import Path

import pytest
from PIL import Image

from utils.cases import LIST_NAME, open_case_folder, save_case
from utils.errors import UserError


def picture(shade: int, form: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (24, 24), (shade, 9, 9)).save(stream, form)
    return stream.getvalue()


def listed(folder: Path) -> list[tuple[str, ...]]:
    with open(folder / LIST_NAME, encoding="utf-8", newline="") as file:
        return [tuple(row.values()) for row in csv.DictReader(file)]


def test_bytes_are_kept_under_their_hash_with_the_suffix_of_their_format(tmp_path):
    folder = open_case_folder(tmp_path / "new" / "cases", "--cases")
    suffixes = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "GIF": ".gif", "TIFF": ".tif", "BMP": ".bmp"}
    suffixes |= {"AVIF": ".avif", "JPEG2000": ".jp2", "PPM": ".ppm"}
    for shade, (form, suffix) in enumerate(suffixes.items()):
        name = save_case(folder, picture(shade, form), "fake")
        assert Path(name).suffix == suffix and (folder / name).read_bytes() == picture(shade, form)
    assert save_case(folder, b"\0\0\0\x18ftypheic\0\0\0\0", "real").endswith(".heic")
    assert listed(folder)[-2:] == [(name, "fake", ""), (listed(folder)[-1][0], "real", "real")]
    assert {path.name for path in folder.iterdir()} == {LIST_NAME, *(row[0] for row in listed(folder))}


def test_a_picture_is_one_case_and_its_last_label_counts(tmp_path, caplog):
    first, second = save_case(tmp_path, picture(1), "fake"), save_case(tmp_path, picture(2), "fake")
    assert save_case(tmp_path, picture(1), "fake") == first and not caplog.messages
    assert save_case(tmp_path, picture(1), "real") == first
    assert caplog.messages == [f"{first} was saved as fake, and is now real"]
    assert listed(tmp_path) == [(second, "fake", ""), (first, "real", "real")]
    (tmp_path / first).unlink()  # a row without its picture is mended
    save_case(tmp_path, picture(1), "real")
    assert (tmp_path / first).read_bytes() == picture(1) and len(listed(tmp_path)) == 2


def test_what_the_user_added_to_the_list_stays(tmp_path):
    (tmp_path / LIST_NAME).write_text('\ufeffpath,label,group,note\nmine.jpg,fake,clip 7,"from a chat, cropped"\n')
    name = save_case(tmp_path, picture(1), "real")
    assert listed(tmp_path) == [("mine.jpg", "fake", "clip 7", "from a chat, cropped"), (name, "real", "", "")]


@pytest.mark.parametrize(
    "text",
    ["", "\0\0", "name,answer\na.png,real\n", "path,label\na.png\n", "path,label\na.png,real,,\n", '"path,label'],
)
def test_a_damaged_list_is_left_alone(tmp_path, text):
    (tmp_path / LIST_NAME).write_text(text)
    for call in (lambda: open_case_folder(tmp_path, "--cases"), lambda: save_case(tmp_path, picture(1), "real")):
        with pytest.raises(UserError, match=LIST_NAME) as error:
            call()
        assert "\n" not in str(error.value)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(LIST_NAME, text)]


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below", "/proc/cases"):
        with pytest.raises(UserError, match="expected --cases to be a writable folder"):
            open_case_folder(place, "--cases")
    with pytest.raises(ValueError, match="real or fake"):
        save_case(tmp_path, picture(1), "0")


def _save_many(folder: Path, first: int) -> None:
    for shade in range(first, first + 8):
        save_case(folder, picture(shade), "fake")


def test_two_processes_lose_no_case(tmp_path):
    processes = [multiprocessing.get_context("fork").Process(target=_save_many, args=(tmp_path, at)) for at in (0, 4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(800)
    assert [process.exitcode for process in processes] == [0, 0]
    assert sorted(row[0] for row in listed(tmp_path)) == sorted(file.name for file in tmp_path.glob("*.png"))
    assert len(listed(tmp_path)) == 12
