"""What the command lines of the scripts share: a strict parser, value types, groups of flags, early checks.

Nothing here imports torch, so ``--help`` and usage errors are immediate.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import errno
import math
import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from utils.errors import UserError, closest

BASE_WEIGHTS_VARIABLE = "DEEPFAKE_BASE_WEIGHTS"
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
EXIT_DONE, EXIT_PARTIAL, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130
EXIT_NO_READER, EXIT_TERMINATED = 141, 143  # as the shell reports SIGPIPE and SIGTERM


class Terminated(KeyboardInterrupt):
    """SIGTERM ends a script as Ctrl-C does."""


class _OneLineParser(argparse.ArgumentParser):
    """An argument parser that reports errors in one line and accepts no abbreviated flags."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            # Stricter than for other names, because all flags have their dashes in common.
            hint = closest(unknown[0].partition("=")[0], self._option_string_actions, similarity=0.8)
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return parsed

    def error(self, message: str):
        self.exit(EXIT_USAGE, f"{self.prog}: {message} (see --help)\n")


def make_parser(doc: str, prog: str) -> argparse.ArgumentParser:
    """Build the parser of a script; the script's docstring ``doc`` becomes the help text."""
    return _OneLineParser(
        prog=prog, description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )


def run_script(main: Callable[[Sequence[str] | None], dict]) -> None:
    """Run a script's ``main`` and exit with the ``exit_code`` of the dict it returns, 0 by default.

    A ``UserError`` becomes one line on stderr and exit code 2; so does a full disk under stdout or stderr. A script
    whose output nobody reads any more ends with exit code 141.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # the shell closed it: `predict.py photo.jpg >&-`
            setattr(sys, name, open(os.devnull, mode, errors="backslashreplace"))  # noqa: SIM115
    code: int | None = None
    if "TORCHELASTIC_RUN_ID" in os.environ:
        # Registered first, so it runs after all other exit handlers. While the interpreter is torn down, gloo's threads
        # may abort the process: pytorch/pytorch#190489.
        atexit.register(lambda: None if code is None else _end_process(code))
    else:  # torchrun ends a team whose processes may be waiting for each other
        signal.signal(signal.SIGTERM, _terminate_as(os.getpid()))
    script = Path(sys.argv[0]).name
    try:
        try:
            code = main(None).get("exit_code", EXIT_DONE)
        except UserError as error:
            code = EXIT_USAGE
            print(f"{script}: {' '.join(line.strip() for line in str(error).splitlines())}", file=sys.stderr)
        except KeyboardInterrupt as reason:
            code = EXIT_TERMINATED if isinstance(reason, Terminated) else EXIT_INTERRUPTED
            print("terminated" if code == EXIT_TERMINATED else "interrupted", file=sys.stderr)
        sys.stdout.flush()  # here, where a closed pipe and a full disk are still handled
    except BrokenPipeError:  # `predict.py ... | head` closes our stdout early
        code = code or EXIT_NO_READER
        _drop_output()
    except OSError as error:
        if error.filename or error.errno not in NO_SPACE:  # with a file name, or for another reason: a bug
            raise
        code = EXIT_USAGE
        with contextlib.suppress(OSError):  # stderr may be on the same disk
            print(f"{script}: expected room for the output, got: {error.strerror}; free some space", file=sys.stderr)
        _drop_output()
    sys.exit(code)


def _terminate_as(main_process: int) -> Callable[..., None]:
    """Return a handler of SIGTERM; forked processes inherit it, and end at once."""

    def handle(number: int, _: object) -> None:
        if os.getpid() != main_process:
            os._exit(EXIT_TERMINATED)
        signal.signal(number, signal.SIG_DFL)  # a second one does not wait
        raise Terminated

    return handle


def _drop_output() -> None:
    """Drop what cannot be written, which the interpreter would try once more."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
        os.dup2(nowhere, stream.fileno())


def _end_process(code: int) -> None:
    """Exit without the teardown of the interpreter."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


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
    expected = f"an integer of at least {low}" if high is None else f"an integer in {low}..{high}"
    return lambda text: _number(text, int, low, math.inf if high is None else high, expected)


def float_in(low: float, high: float, unit: str = "") -> Callable[[str], float]:
    """Return an argparse type: a number in [low, high]; the message names the ``unit``."""
    expected = f"a number in [{low:g}, {high:g}]{' ' + unit if unit else ''}"
    return lambda text: _number(text, float, low, high, expected)


def _number(text: str, kind: Callable[[str], Any], low: float, high: float, expected: str) -> Any:
    try:
        value = kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}") from None
    if not low <= value <= high:
        raise argparse.ArgumentTypeError(f"expected {expected}, got {value:g}")
    return value


def given_flags(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> dict[str, Any]:
    """Return the flags that the command line names, even those given with their default value."""
    missing = object()
    unset = argparse.Namespace(**dict.fromkeys(vars(parser.parse_args(argv)), missing))
    return {key: value for key, value in vars(parser.parse_args(argv, unset)).items() if value is not missing}


def named_flags(parser: argparse.ArgumentParser, argv: Sequence[str] | None, names: Sequence[str]) -> list[str]:
    """Return which of some flags the command line names, such as ``--batch-size`` for ``batch_size``."""
    given = given_flags(parser, argv)
    return [f"--{name.replace('_', '-')}" for name in names if name in given]


def key_value(text: str) -> tuple[str, int | float | bool | str]:
    """Parse ``key=value`` of --model-args; numbers and true/false become int, float and bool."""
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


def add_device_group(
    parser: argparse.ArgumentParser, workers: str = "loader processes (default: 0 on a CPU, else 2 to 8)"
) -> None:
    """Add --device, --precision, --threads and --workers, whose help is ``workers``; an empty one omits the flag."""
    group = parser.add_argument_group("device")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    group.add_argument(
        "--precision",
        default="auto",
        choices=("auto", "fp32", "bf16", "fp16"),
        help="arithmetic of the model; auto is fp32 for scoring, and bf16 for training where that is fast",
    )
    if workers:
        group.add_argument("--workers", type=int_in(0, 256), help=workers)
    group.add_argument("--threads", type=int_in(1, 1024), help="CPU threads of the model (default: all cores)")
    add_base_weights(group)


def add_base_weights(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add --base-weights, which sets an environment variable, so that it holds for the processes of a script too."""
    parser.add_argument(
        "--base-weights",
        type=_base_weights,
        metavar="FILE|DIR",
        help="public weights that a checkpoint of an adapted model leaves out "
        f"(default: ${BASE_WEIGHTS_VARIABLE}, their path in training, your cache, timm's hub)",
    )


def _base_weights(text: str) -> str:
    if not Path(text).exists():
        raise argparse.ArgumentTypeError(f"expected a file or a folder, found none at {text!r}")
    os.environ[BASE_WEIGHTS_VARIABLE] = text
    return text


def add_face_group(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add --faces and --face-detector; returns their group."""
    group = parser.add_argument_group("faces")
    group.add_argument(
        "--faces",
        action="store_true",
        help="score each face instead of the whole picture or its largest face; "
        "a picture gets the highest score of its faces",
    )
    add_face_detector(group)
    return group


def add_face_detector(group: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add --face-detector, the file that ``datasets.faces.finder.open_finder`` takes."""
    group.add_argument(
        "--face-detector",
        metavar="FILE",
        help="ONNX file of YuNet, which finds faces (default: the file fetched by python -m datasets.download yunet, "
        "else `cascade`, a bundled detector that finds fewer)",
    )


def add_seed(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add --seed."""
    parser.add_argument("--seed", type=int_in(0, 2**31 - 1), default=0, help="seed of every random choice (default: 0)")


# ------------------------------------------------------------------------------------------ early, cheap checks


def check_output_dir(path: str | Path, flag: str = "--output-dir") -> Path:
    """Create the output folder if it is missing and prove that it is writable.

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
            f"expected {flag} to be a writable folder, got {str(folder)!r} ({error.strerror}); choose another one"
        ) from None
    return folder


def check_passed_on(flags: Sequence[str], parser: argparse.ArgumentParser, reserved: Sequence[str]) -> None:
    """Check flags that a script passes on to another script, whose ``parser`` reports unknown ones.

    Raises:
        UserError: a flag is ``reserved``: the script sets it itself.
    """
    taken = [flag for flag in flags if flag.partition("=")[0] in reserved]
    if taken:
        raise UserError(f"expected flags of {parser.prog} that this script does not set, got {taken[0]}; drop it")
    parser.parse_args(list(flags))
