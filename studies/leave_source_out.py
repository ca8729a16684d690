"""Leave one source out: how well does a recipe tell real from fake on a source that it has never seen?

  python -m studies.leave_source_out --data data/140k data/sdxl data/stock --train --model cnn --balance
  python -m studies.leave_source_out --data data/* --groups sdxl flux 140k,swaps:real --limit 300 --train --model cnn
  python -m studies.leave_source_out --from-scores results/leave_source_out/scores/*.csv.gz --output-dir results/again

Trains once without each group of sources; flags after --train are passed to train.py. A group is a comma-separated list
of data sets, with NAME:real or NAME:fake for one class of a set. Group what was collected in the same way, such as the
same photographs in two sets. By default each data set is a group. A set with use=train in its spec only helps in
training: it is left out with its group but not scored. Each detector scores the training and validation images that
were left out of its training, and the validation images of the other sources. No run looks at a test split, so a recipe
may be chosen by this table. In the flags, {run} is the folder name of the run: with `--teacher
runs/towers/{run}/best.pt`, no student learns from a teacher that has seen the sources.

To measure the mean of the weights of several runs, such as three seeds, train each in its own --runs-dir and name these
folders:

  python -m studies.leave_source_out --data data/* --groups sdxl flux --soup runs/seed0 runs/seed1 --runs-dir runs/soup

You can interrupt and repeat the command: finished runs and scores are kept and interrupted ones resumed while data and
code are unchanged. Writes sources.csv, .md, .tex and .json, and the scores: `*__left-out.csv.gz` is what calibrate.py
--from-scores takes. Columns: the fakes of the source against the reals of all others, its reals against the fakes of
all others, and its fakes against its own reals, each AUC with a 95 % bootstrap interval; then the verdicts of one
operating point fitted on all sources left out, as that of a release is. The last line on stdout has the mean of each
AUC over the sources, and the figure to choose by: as in validation, half of it is the mean over pairs within one source
(utils/metrics/source_pairs.py):

  common: fakes 0.871 [0.860, 0.883], reals 0.882 [0.870, 0.893], own 0.913 [0.890, 0.934]: 0.895 [0.882, 0.908]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from datasets.listing.records import LABEL_NAMES, Listing
from datasets.listing.spec import DatasetSpec, open_records, parse_spec, parts_in_use, read_source
from datasets.listing.splits import TrainingData, open_training_data
from datasets.perturbations import pick_tiers
from studies.left_out_scores import Scoring, score_once
from studies.left_out_table import write_left_out
from utils.args import check_output_dir, check_passed_on, exit_code, int_in, make_parser, run_script
from utils.errors import UserError, closest
from utils.files import read_json, write_json

RESERVED = ("--data", "--output-dir", "--resume", "--overwrite")


def get_args_parser() -> argparse.ArgumentParser:
    """Declare the flags of leave_source_out.py."""
    parser = make_parser(__doc__, "python -m studies.leave_source_out")
    parser.add_argument("--data", nargs="+", default=[], metavar="SPEC", help="data sets to mix")
    parser.add_argument("--groups", nargs="+", default=[], metavar="NAME,...", help="what to leave out in turn")
    parser.add_argument(
        "--soup", nargs="+", default=[], metavar="DIR", help="average runs in two or more --runs-dir; no training"
    )
    parser.add_argument("--from-scores", nargs="+", default=[], metavar="CSV", help="report on these scores only")
    parser.add_argument("--tiers", nargs="+", default=["common"], metavar="TIER", help="default: common, one format")
    parser.add_argument("--limit", type=int_in(2), metavar="N", help="images to score per data set and split")
    parser.add_argument("--n-boot", type=int_in(0, 100_000), default=1000, help="bootstrap resamples (default: 1000)")
    place = "leave_source_out"
    parser.add_argument("--runs-dir", default=f"runs/{place}", metavar="DIR", help=f"default: runs/{place}")
    parser.add_argument("--output-dir", default=f"results/{place}", metavar="DIR", help=f"default: results/{place}")
    parser.add_argument(
        "--train", nargs=argparse.REMAINDER, default=[], metavar="FLAG", help="flags for train.py; must come last"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> dict:
    """Make the table; returns ``{"rows": one per source left out, "means": by tier, "exit_code": 0 or 1}``."""
    import train
    from studies.runs import initial_files

    parser = get_args_parser()
    args = parser.parse_args(argv)
    if bool(args.data) == bool(args.from_scores):
        parser.error("expected either --data SPEC... or --from-scores CSV...")
    if len(args.data) == 1:
        parser.error("expected two or more --data SPEC, of which to leave one out, got one")
    if args.soup and (args.from_scores or args.train or len(args.soup) < 2):
        parser.error("expected --soup with two or more folders of runs, and no --train or --from-scores")
    files, folder = [Path(file) for file in args.from_scores], check_output_dir(args.output_dir)
    if args.data:
        check_passed_on(args.train, train.get_args_parser(), RESERVED)
        recipe = train.get_args_parser().parse_args(args.train)
        scoring = Scoring(pick_tiers(args.tiers), args.limit, recipe.cache)
        specs = named_specs(args.data)
        groups = [parse_group(text, specs) for text in args.groups or specs]
        remaining = {group: open_training_data(kept_specs(group, specs)) for group in groups}  # checks before training
        runs = check_output_dir(args.runs_dir)
        members = {group: soup_members(group, args.soup) for group in groups}
        for group in groups:
            for flag, file in initial_files(vars(recipe), group.name).items():
                check_unseen(group, flag, file)
        for group, data in remaining.items():
            print(f"leaving out {group.text}", file=sys.stderr)
            if args.soup:
                average_without(runs / group.name, members[group], kept_specs(group, specs), data)
            else:
                flags = [flag.replace("{run}", group.name) for flag in args.train]
                train_without(runs / group.name, kept_specs(group, specs), data, flags)
            parts = {"left-out": left_out_listings(group, specs), "valid": data.valid}
            names = {name for name, _ in group.classes}
            files += score_once(runs / group.name / "best.pt", group.text, names, parts, scoring, folder / "scores")
    rows, means, unreadable = write_left_out(files, folder, args.n_boot)
    return {"rows": rows, "means": means, "exit_code": exit_code(unreadable)}


@dataclass(frozen=True)
class Group:
    """What a run leaves out: the ``classes``, pairs of data set and label. ``text`` is how the user wrote it."""

    text: str
    classes: frozenset[tuple[str, int]]

    @property
    def name(self) -> str:
        """Name of the run and of its files."""
        return self.text.replace(",", "+").replace(":", "-").replace("/", "_")

    def labels(self, source: str) -> set[int]:
        """Return the labels of a data set that are left out."""
        return {label for name, label in self.classes if name == source}


def named_specs(texts: Sequence[str]) -> dict[str, DatasetSpec]:
    """Return the specs by the name of their data set.

    Raises:
        UserError: two have the same name.
    """
    specs: dict[str, DatasetSpec] = {}
    for text in texts:
        spec = parse_spec(text)
        name = read_source(spec).name
        if name in specs:
            raise UserError(f"expected data sets of different names, got {name} twice; rename a folder")
        specs[name] = spec
    return specs


def parse_group(text: str, specs: Mapping[str, DatasetSpec]) -> Group:
    """Parse ``NAME[:real|:fake],...``. Raises UserError for unknown names."""
    classes = set()
    for part in text.split(","):
        name, _, label = part.partition(":") if part not in specs else (part, "", "")
        if name not in specs or label not in ("", *LABEL_NAMES):
            raise UserError(
                f"expected --groups NAME[:real|:fake],... with names of the data ({', '.join(specs)}), got {part!r}"
                + closest(name, specs)
            )
        classes |= {(name, number) for number, word in enumerate(LABEL_NAMES) if label in ("", word)}
    return Group(text, frozenset(classes))


def own_parts(spec: DatasetSpec) -> list[Listing]:
    """Open the training and validation images of a data set, or all of one without splits."""
    source = read_source(spec)
    splits = open_records(spec, "all", source).splits
    parts = [split for split in splits if split != "test"] or ["all"]
    return [open_records(spec.replace(repeat=None), split, source) for split in parts]


def kept_specs(group: Group, specs: Mapping[str, DatasetSpec]) -> list[str]:
    """Return the specs of what a group leaves for training and validation."""
    kept = []
    for name, spec in specs.items():
        out = group.labels(name)
        records = [record for listing in own_parts(spec) for record in listing.records] if out else []
        present = {record.label for record in records if record.label is not None}
        remaining = sorted(present - out)
        use = "train" if parts_in_use(spec) == {"train"} else "train+valid"  # no run looks at a test split
        if not out & present:
            kept.append(str(spec.replace(use=use)))
        elif remaining:
            kept.append(str(spec.replace(use=use, classes=LABEL_NAMES[remaining[0]])))
    return kept


def left_out_listings(group: Group, specs: Mapping[str, DatasetSpec]) -> list[Listing]:
    """Open the training and validation images of what a group leaves out, except those of sets with use=train."""
    found = []
    for name, spec in specs.items():
        labels = group.labels(name) if parts_in_use(spec) != {"train"} else set()
        for listing in own_parts(spec) if labels else []:
            records = [record for record in listing.records if record.label in labels]
            found += [replace(listing, records=records)] if records else []
    if not found:
        raise UserError(f"expected --groups that leave images out, got {group.text!r}, which has none")
    return found


def check_unseen(group: Group, flag: str, file: str) -> None:
    """Raise UserError if a checkpoint was trained on what the group leaves out."""
    from studies.runs import seen_sources
    from utils.evaluation.scored_sets import is_among

    seen = seen_sources(file)
    if known := sorted({name for name, label in group.classes if is_among(name, seen[label])}):
        raise UserError(
            f"expected {flag} without what is left out in its training, got {file}, which was trained on "
            f"{', '.join(known)}; choose another, or other --groups"
        )


def train_without(run: Path, specs: Sequence[str], data: TrainingData, flags: Sequence[str]) -> None:
    """Train a detector in the folder ``run``, unless it is finished."""
    from studies.runs import digests, train_once

    train_once(run, ["--data", *specs, *flags], digests([], [*data.train, *data.valid]))


def soup_members(group: Group, folders: Sequence[str]) -> list[Path]:
    """Return the checkpoints of the runs without a group. Raises UserError if one is missing or has seen it."""
    members = [Path(folder) / group.name / "best.pt" for folder in folders]
    for member in members:
        if not member.exists():
            raise UserError(f"expected --soup DIR with the run {group.name}, found no {member}; train it first")
        check_unseen(group, "--soup", str(member))
    return members


def average_without(run: Path, members: Sequence[Path], specs: Sequence[str], data: TrainingData) -> None:
    """Average the weights of runs into the folder ``run``, unless it is done."""
    import ensemble
    from studies.left_out_scores import recipe_behind
    from studies.runs import PLAN, digests
    from utils.checkpoints.file import load_checkpoint

    plan, wanted = run / PLAN, {"inputs": digests(members, data.valid)}
    if plan.exists() and read_json(plan) == wanted and (run / "best.pt").exists():
        return
    detector = recipe_behind(load_checkpoint(members[0])).get("face_detector")
    flags = ["--face-detector", detector] if detector else []
    ensemble.main(
        ["--method", "soup", "--checkpoint", *map(str, members), "--data", *specs, *flags, "--output-dir", str(run)]
    )
    write_json(plan, wanted)


if __name__ == "__main__":
    run_script(main)
