"""The steps of studies/reproduce.py: read from one file, run in order, and skipped while nothing has changed."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.args import EXIT_DONE, EXIT_PARTIAL
from utils.errors import UserError
from utils.files import read_json, read_text, write_json
from utils.source import code_digest

DONE, TODO, SKIPPED, FAILED = "done", "todo", "skipped", "failed"
OUTPUTS = {  # what a finished script has written to --output-dir; {stem} is that of --output FILE.pt
    **dict.fromkeys(("train", "ensemble", "calibrate"), "best.pt"),
    **dict.fromkeys(("evaluate", "studies.leave_one_out", "studies.model_table"), "metrics.json"),
    "attack": "attacks.json",
    "explain": "faithfulness.md",
    "benchmark": "benchmark.md",
    "audit": "audit.json",
    "tune": "confirmation.md",
    "studies.few_shot": "adaptation.json",
    "studies.summarize": "summary.md",
    "studies.candidates_table": "candidates.md",
    "studies.leave_source_out": "sources.json",
    "studies.track_sequences": "sequences.json",
    "studies.demo_clips": ".",  # folders named after the splits
    "studies.reconstruct": ".",  # folders named after the sources
    "studies.composite": ".",
    "studies.release": "{stem}.json",
    "studies.model_card": "card.md",
    "studies.releases_table": "overview.md",
}
FOUND_AT_RUN_TIME = ("models/**/*.py", "utils/attacks/methods/*.py", "utils/explanations/methods/*.py")
RESUMABLE = {"evaluate", "attack", "explain", "benchmark", "tune"} | {
    f"studies.{name}"
    for name in ("leave_one_out", "leave_source_out", "model_table", "few_shot", "reconstruct", "composite")
}
LINE = re.compile(r"([\w-]+) +python +((?:\w+\.py|-m studies\.\w+) .+)")


@dataclass(frozen=True)
class Step:
    """One command; its text says what it reads and writes."""

    name: str
    command: str

    @property
    def module(self) -> str:
        """The module that runs, such as ``train`` or ``studies.few_shot``."""
        words = self.command.split()
        return words[1] if words[0] == "-m" else words[0].removesuffix(".py")

    @property
    def folders(self) -> list[str]:
        """The folders below {out} that it writes, its --output-dir (or the folder of its --output) first."""
        found = re.findall(r"--(output|runs)-dir \{out\}/(\S+)", self.command)
        found += re.findall(r"--(output) \{out\}/(\S+)/\S+", self.command)
        return [path for _, path in sorted(found)]

    @property
    def writes_tables(self) -> bool:
        """Whether its output folder holds tables, not a checkpoint."""
        return self.folders[0].startswith(("results/", "tables/"))

    @property
    def output(self) -> str:
        """The file or folder below {out} that exists once it has finished."""
        file = re.search(r"--output \S+/(\S+)\.pt", self.command)
        return f"{self.folders[0]}/{OUTPUTS[self.module].format(stem=file and file[1])}"

    @property
    def inputs(self) -> list[str]:
        """What it reads below {out}."""
        found = re.findall(r"(?<!--output )\{out\}/([^\s@]+)", self.command)
        return [path for path in found if path not in self.folders]

    @property
    def places(self) -> list[tuple[str, str]]:
        """Its external inputs: ("data" or "weights", path below that folder)."""
        return list(dict.fromkeys(re.findall(r"\{(data|weights)\}/?([^\s@]*)", self.command)))

    def needs(self, steps: Sequence[Step]) -> list[Step]:
        """Return the steps whose folders it reads."""
        inputs = [f"{path}/" for path in self.inputs]
        return [
            step
            for step in steps
            if step is not self and any(path.startswith(f"{own}/") for path in inputs for own in step.folders)
        ]


def read_steps(file: Path) -> list[Step]:
    """Read the table of steps: ``NAME python SCRIPT.py ...`` or ``NAME python -m studies.MODULE ...`` in each line.

    Empty lines and lines that start with # are skipped.

    Raises:
        UserError: a line is not a step, a name occurs twice, or its module is not in OUTPUTS.
    """
    steps: dict[str, Step] = {}
    for number, line in enumerate(read_text(file, "a table of steps").splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        match = LINE.fullmatch(line.strip())
        step = Step(*match.groups()) if match else None
        if step is None or step.name in steps or not step.folders or step.module not in OUTPUTS:
            raise UserError(
                f"expected NAME python SCRIPT.py (or -m studies.NAME) ... --output-dir {{out}}/..., each name once, "
                f"with a module of {', '.join(OUTPUTS)}, in line {number} of {file}, got {line[:80]!r}"
            )
        steps[step.name] = step
    return list(steps.values())


class Workshop:
    """The folder that steps write to, with a record of finished steps (``state.json``).

    ``places`` holds the folders for {data} and {weights}.
    """

    def __init__(self, out: Path, steps: Sequence[Step], places: dict[str, Path], scripts: Path) -> None:
        self.out, self.steps, self.places, self.scripts = out, steps, places, scripts
        self.state_file = out / "state.json"
        self.state: dict[str, dict[str, Any]] = read_json(self.state_file) if self.state_file.exists() else {}

    def arguments(self, step: Step) -> list[str]:
        """Return the words of its command with the folders filled in; a script becomes a path."""
        folders = {name: str(path) for name, path in self.places.items()} | {"out": str(self.out)}
        filled = [re.sub(r"\{(data|weights|out)\}", lambda m: folders[m[1]], w) for w in shlex.split(step.command)]
        return filled if filled[0] == "-m" else [str(self.scripts / filled[0]), *filled[1:]]

    def digest(self, step: Step) -> str:
        """Identify its command, folders included, and all code that it runs."""
        code = code_digest(f"{step.module.replace('.', '/')}.py", *FOUND_AT_RUN_TIME)
        return hashlib.sha256("\0".join([step.module, *self.arguments(step)[1:], code]).encode()).hexdigest()[:16]

    def is_done(self, step: Step) -> bool:
        """Whether it has finished with this command and code, its output exists, and no input is newer."""
        entry, output = self.state.get(step.name, {}), self.out / step.output
        if entry.get("digest") != self.digest(step) or not entry.get("finished") or not output.exists():
            return False
        sources = [self.state.get(other.name, {}).get("finished") or 0.0 for other in step.needs(self.steps)]
        return output.stat().st_mtime >= entry["started"] and max(sources, default=0.0) <= entry["started"]

    def absent(self, step: Step) -> str | None:
        """Name the data or weights that are missing; None if there are all."""
        for kind, path in step.places:
            if not (self.places[kind] / path).exists():
                return f"no {kind} at {self.places[kind] / path}"
        return None

    def obstacle(self, step: Step) -> str | None:
        """Say why it cannot run now: missing data or weights, or a step that is not done; None if it can."""
        unmade = [other.name for other in step.needs(self.steps) if not self.is_done(other)]
        return self.absent(step) or (f"needs {', '.join(unmade)}" if unmade else None)

    def run(self, step: Step) -> str:
        """Run a step, its stdout going to ``logs/NAME.txt``; returns DONE or FAILED.

        An interrupted step is resumed where its script can; any other starts with empty folders.
        """
        entry, arguments = self.state.get(step.name, {}), self.arguments(step)
        interrupted = entry.get("digest") == self.digest(step) and not entry.get("finished")
        folder = self.out / step.folders[0]
        if interrupted and step.module == "train" and (folder / "last.pt").is_file():
            arguments = [arguments[0], "--resume", "--output-dir", str(folder)]
        elif not (interrupted and step.module in RESUMABLE):
            shared = {path for other in self.steps if other is not step for path in other.folders}
            for path in set(step.folders) - shared:
                shutil.rmtree(self.out / path, ignore_errors=True)
        started = time.time()
        self._note(step, digest=self.digest(step), started=started, finished=None)
        log = self.out / "logs" / f"{step.name}.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w", encoding="utf-8") as stream:
            environment = os.environ | {"PYTHONPATH": str(self.scripts)}  # where `python -m` finds studies/
            code = subprocess.run([sys.executable, *arguments], stdout=stream, env=environment).returncode
        if code not in (EXIT_DONE, EXIT_PARTIAL) or not (self.out / step.output).exists():
            return FAILED
        self._note(step, finished=time.time(), exit_code=code, seconds=time.time() - started)
        return DONE

    def _note(self, step: Step, **facts: Any) -> None:
        self.state[step.name] = self.state.get(step.name, {}) | facts
        write_json(self.state_file, self.state)
