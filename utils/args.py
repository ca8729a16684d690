"""Command-line pieces that the scripts share: a strict parser, value types, titled groups of flags.

Nothing here imports torch, so ``--help`` and usage errors answer at once.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from utils.errors import UserError

EXIT_DONE, EXIT_PARTIAL, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130


class _OneLineParser(argparse.ArgumentParser):
    """An argument parser whose complaint is one line and whose flags cannot be abbreviated."""

    def error(self, message: str):
        self.exit(EXIT_USAGE, f"{self.prog}: {message} (see --help)\n")


def make_parser(doc: str, prog: str) -> argparse.ArgumentParser:
    """Build the parser of a script; ``doc`` is the script's docstring and becomes the help text."""
    return _OneLineParser(
        prog=prog, description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )


def run_script(main: Callable[[Sequence[str] | None], dict]) -> None:
    """Run a script's ``main`` and leave the process with the exit code of its result.

    A ``UserError`` becomes one line on stderr and exit code 2. ``main`` returns a dict whose optional key
    ``exit_code`` is 1 when some inputs failed.
    """
    try:
        result = main(None)
        sys.stdout.flush()  # here, where a closed pipe is no error yet
    except UserError as error:
        message = " ".join(line.strip() for line in str(error).splitlines())
        print(f"{Path(sys.argv[0]).name}: {message}", file=sys.stderr)
        sys.exit(EXIT_USAGE)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:  # `predict.py ... | head` closes our stdout early
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_DONE)
    sys.exit(result.get("exit_code", EXIT_DONE))


def command_line(script: str, argv: Sequence[str] | None) -> str:
    """Return the command of a script as text that a shell reads back: ``python evaluate.py --data 'my photos'``.

    ``argv`` is that of ``main``: None stands for the arguments of this process.
    """
    return shlex.join(["python", *script.split(), *(sys.argv[1:] if argv is None else argv)])


def exit_code(failed: int | bool) -> int:
    """Return EXIT_PARTIAL if some inputs failed, EXIT_DONE otherwise."""
    return EXIT_PARTIAL if failed else EXIT_DONE


# ---------------------------------------------------------------------------------------------- value types


def int_in(low: int, high: int | None = None) -> Callable[[str], int]:
    """Return an argparse type: an integer of at least ``low`` and, if given, at most ``high``."""

    def parse(text: str) -> int:
        expected = f"an integer of at least {low}" if high is None else f"an integer in {low}..{high}"
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}") from None
        if value < low or (high is not None and value > high):
            raise argparse.ArgumentTypeError(f"expected {expected}, got {value}")
        return value

    return parse


def float_in(low: float, high: float, unit: str = "") -> Callable[[str], float]:
    """Return an argparse type: a number in [low, high]; the message names the ``unit``."""

    def parse(text: str) -> float:
        expected = f"a number in [{low:g}, {high:g}]{' ' + unit if unit else ''}"
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}") from None
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"expected {expected}, got {value:g}")
        return value

    return parse


def key_value(text: str) -> tuple[str, int | float | bool | str]:
    """Parse ``key=value`` of --model-args; numbers and true/false get their own type."""
    key, found, value = text.partition("=")
    if not found or not key.isidentifier():
        raise argparse.ArgumentTypeError(f"expected key=value, got {text!r}")
    if value.lower() in ("true", "false"):
        return key, value.lower() == "true"
    for number in (int, float):
        try:
            return key, number(value)
        except ValueError:
            continue
    return key, value


# ------------------------------------------------------------------------------------------- groups of flags


def add_device_group(parser: argparse.ArgumentParser, workers: bool = True) -> None:
    """Add where and how fast to compute: --device, --precision, --workers for scripts with loaders, --threads."""
    group = parser.add_argument_group("device")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    group.add_argument(
        "--precision",
        default="auto",
        choices=("auto", "fp32", "bf16", "fp16"),
        help="arithmetic of the model; auto is bf16 where the processor is fast at it when training, fp32 when scoring",
    )
    if workers:
        group.add_argument("--workers", type=int_in(0, 256), help="loader processes (default: 0 on a CPU, else 2 to 8)")
    group.add_argument("--threads", type=int_in(1, 1024), help="CPU threads of the model (default: all cores)")


def add_face_group(parser: argparse.ArgumentParser) -> None:
    """Add --faces and --face-detector; ``finder_name`` says what they ask for."""
    group = parser.add_argument_group("faces")
    group.add_argument(
        "--faces",
        action="store_true",
        help="score each face, found by a bundled cascade, instead of "
        "the whole picture; the score of a picture is the highest of its faces",
    )
    group.add_argument("--face-detector", metavar="FILE", help="the same with YuNet, from its ONNX file")


def finder_name(args: argparse.Namespace) -> str | None:
    """The argument of ``datasets.faces.FaceFinder``, None for whole pictures."""
    return args.face_detector or ("cascade" if args.faces else None)


def add_seed(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add --seed."""
    parser.add_argument("--seed", type=int_in(0, 2**31 - 1), default=0, help="seed of every random choice (default: 0)")


# ------------------------------------------------------------------------------------------ early, cheap checks


def check_output_dir(path: str | Path) -> Path:
    """Create the output folder if need be and prove that it can be written to.

    Raises:
        UserError: it is a file, or the process may not write there.
    """
    folder = Path(path)
    probe = folder / f".write-test-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"expected --output-dir to be a folder that can be written to, got {str(folder)!r} "
            f"({error.strerror}); choose another one"
        ) from None
    return folder


def check_checkpoint_file(path: str | Path, flag: str = "--checkpoint", needs_weights: bool = False) -> Path:
    """Check cheaply, without torch, that a checkpoint (or its ONNX export) exists and has the outer form of one.

    Raises:
        UserError: it is missing, a folder without best.pt, empty, or not a checkpoint archive; an export where the
            script ``needs_weights``.
    """
    import zipfile

    file = Path(path)
    if file.is_dir() and (file / "best.pt").is_file():
        file = file / "best.pt"  # a run folder stands for its best checkpoint
    if not file.is_file():
        raise UserError(f"expected {flag} to be a file, found none at {str(path)!r}; train one with train.py")
    if file.suffix.lower() == ".onnx" and file.stat().st_size:
        if needs_weights:
            raise UserError(f"expected {flag} of train.py, got an export: {path}; name what it was made from")
        return file  # an export of benchmark.py; its form is checked when it is opened
    if not zipfile.is_zipfile(file):
        raise UserError(
            f"expected {flag} {str(path)!r} to be a checkpoint written by train.py, "
            f"found {'an empty file' if file.stat().st_size == 0 else 'a truncated or foreign file'}; train it again"
        )
    return file


def check_weights_source(source: str | None) -> None:
    """Check cheaply that --weights is absent, ``imagenet`` or an existing file.

    Raises:
        UserError: it is something else.
    """
    if source not in (None, "imagenet") and not Path(source).is_file():
        raise UserError(f"expected --weights imagenet or a .safetensors, .pth or .pt file, found no file {source!r}")


def check_passed_on(flags: Sequence[str], parser: argparse.ArgumentParser, reserved: Sequence[str]) -> None:
    """Check flags that a script passes on to another one, whose ``parser`` complains about what it does not know.

    Raises:
        UserError: a flag is among the ``reserved`` ones, which the script sets itself.
    """
    taken = [flag for flag in flags if flag.partition("=")[0] in reserved]
    if taken:
        raise UserError(f"expected flags for {parser.prog} other than {taken[0]}, which is set by this script itself")
    parser.parse_args(list(flags))
