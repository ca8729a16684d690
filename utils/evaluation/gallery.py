"""The most confident wrong verdicts of each detector on each data set, as an HTML page and as a CSV list."""

from __future__ import annotations

import base64
import csv
import hashlib
import html
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from datasets.decoding.images import UnreadableImage, read_image
from datasets.listing.spec import LABEL_NAMES
from datasets.perturbations import CLEAN
from utils.evaluation.report import source_name
from utils.evaluation.scored_sets import ScoredSet
from utils.files import atomic_write_text
from utils.metrics.ranked import logit

THUMBNAIL_SIDE = 180  # px, the longer side
JPEG_QUALITY = 82
FAILURE_KEYS = ("path", "label", "generator", "p_fake", "dataset", "tier", "checkpoint")
STYLE = """
:root { color-scheme: light dark; --back: #fff; --text: #1a1a1a; --faint: #595959; --card: #f3f3f3; --edge: #c8c8c8;
  --real: #005a92; --fake: #a84300; }
@media (prefers-color-scheme: dark) { :root { --back: #161616; --text: #ececec; --faint: #adadad; --card: #242424;
  --edge: #4a4a4a; --real: #6cbdf0; --fake: #ff9a5c; } }
body { margin: 0 auto; max-width: 84rem; padding: 1rem; background: var(--back); color: var(--text);
  font: 15px/1.45 system-ui, sans-serif; }
a { color: var(--real); }
p, li { max-width: 62rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(196px, 1fr)); gap: 12px; padding: 0;
  list-style: none; }
.cards li { background: var(--card); border: 1px solid var(--edge); border-radius: 6px; padding: 8px;
  font-size: 13px; overflow-wrap: anywhere; }
.frame { display: flex; align-items: center; justify-content: center; height: 180px; text-align: center;
  color: var(--faint); }
.frame.broken { border: 1px dashed var(--edge); }
.verdict { font-size: 15px; margin: 6px 0 2px; }
.real { color: var(--real); font-weight: 600; }
.fake { color: var(--fake); font-weight: 600; }
.faint, .path { color: var(--faint); margin: 2px 0; }
.tiers { margin: 4px 0 0; padding: 0 0 0 1.1em; list-style: disc; }
.tiers li { background: none; border: 0; padding: 0; font-size: 12px; }
"""


@dataclass
class Failure:
    """One wrong verdict; ``others`` maps further tiers to p_fake of the same image."""

    path: str
    label: int
    generator: str
    p_fake: float
    others: dict[str, float]


@dataclass
class Source:
    """The tiers of one checkpoint on one data set, and the worst errors in the clean tier, or else in the first."""

    title: str
    tiers: dict[str, ScoredSet]
    failures: list[Failure] = field(default_factory=list)

    @property
    def shown(self) -> ScoredSet:
        """The tier whose errors are listed."""
        return self.tiers.get(CLEAN) or next(iter(self.tiers.values()))


def write_gallery(sets: Sequence[ScoredSet], folder: Path, per_source: int = 24) -> list[Path]:
    """Write ``gallery.html`` and ``failures.csv`` to a folder and return their paths.

    The ``per_source`` most confident wrong verdicts of each checkpoint on each data set are shown: those farthest from
    the threshold in logit(p_fake). Each card also gives the verdicts in the other tiers.

    The page is one file without scripts and loads nothing: images are embedded JPEG thumbnails. An unreadable image
    becomes a placeholder with the reason. ``failures.csv`` lists the same images once each, with paths relative to its
    own folder, and is a data set for evaluate.py: ``csv:failures.csv``.

    Raises:
        UserError: a file cannot be written.
    """
    sources = find_failures(sets, per_source)
    page, listed = folder / "gallery.html", folder / "failures.csv"
    atomic_write_text(page, gallery_html(sources))
    atomic_write_text(listed, failures_csv(sources, folder))
    return [page, listed]


def find_failures(sets: Sequence[ScoredSet], per_source: int) -> list[Source]:
    """Group scores by checkpoint and data set and pick the worst errors of each, the most confident first."""
    sources: list[Source] = []
    for scored in sets:
        title = source_name(scored.info)
        for source in sources:
            if (source.title, source.shown.threshold) == (title, scored.threshold) and scored.tier not in source.tiers:
                source.tiers[scored.tier] = scored
                break
        else:
            sources.append(Source(title, {scored.tier: scored}))
    for source in sources:
        source.failures = _worst(source, per_source)
    return sources


def _worst(source: Source, count: int) -> list[Failure]:
    shown, table = source.shown, source.shown.table
    wrong = np.flatnonzero((table.p_fake >= shown.threshold) != (table.label == 1))
    # Beyond +-30, p_fake near 1 has no digits left: both ends should tie.
    confidence = np.abs(logit(table.p_fake[wrong]).clip(-30, 30) - logit(np.array(shown.threshold)))
    # Certain verdicts tie at p_fake 0 or 1, where the raw logit still tells them apart; then the row order.
    worst = wrong[np.lexsort((-np.abs(table.logit[wrong]), -confidence))][:count]
    others = {
        tier: dict(zip(scored.images, scored.table.p_fake.tolist(), strict=True))
        for tier, scored in source.tiers.items()
        if scored is not shown
    }
    failures, images = [], shown.images
    for row in worst:
        there = {tier: scores[images[row]] for tier, scores in others.items() if images[row] in scores}
        label, p_fake = int(table.label[row]), float(table.p_fake[row])
        failures.append(Failure(images[row], label, table.generator[row], p_fake, there))
    return failures


def failures_csv(sources: Sequence[Source], folder: Path) -> str:
    """Return the failures as a CSV list: labels by name, paths from ``folder``, every image once."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(FAILURE_KEYS)
    seen = set()
    for source in sources:
        where = (source.shown.info["dataset"], source.shown.tier, source.shown.info["checkpoint"])
        for item in source.failures:
            path = _relative(item.path, folder)
            if path not in seen:
                seen.add(path)
                writer.writerow([path, LABEL_NAMES[item.label], item.generator, item.p_fake, *where])
    return text.getvalue()


def _relative(path: str, folder: Path) -> str:
    """The path of an image as seen from a folder; links on the way are followed, since ``..`` does not see them."""
    parent, name = os.path.split(path)
    image = os.path.join(os.path.realpath(parent), name)
    try:
        return os.path.relpath(image, os.path.realpath(folder)).replace(os.sep, "/")
    except ValueError:  # another drive
        return image


def gallery_html(sources: Sequence[Source]) -> str:
    """Return the page; all text is escaped, and the content security policy allows only its own style and images."""
    digest = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    links = "".join(
        f'<li><a href="#source-{i}">{html.escape(source.title)}</a></li>\n' for i, source in enumerate(sources)
    )
    sections = "".join(_section(i, source) for i, source in enumerate(sources))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Failure gallery</title>
<style>{STYLE}</style>
</head>
<body>
<h1>Failure gallery</h1>
<p>The most confident wrong verdicts of each detector on each data set. p_fake at or above the threshold means fake.
The pictures show the files as they are, also where the verdict is about a degraded copy.</p>
<nav><ul>
{links}</ul></nav>
{sections}</body>
</html>
"""


def _section(index: int, source: Source) -> str:
    """One data source: its error counts per tier and its cards."""
    counts = []
    for tier, scored in source.tiers.items():
        wrong = int(np.sum((scored.table.p_fake >= scored.threshold) != (scored.table.label == 1)))
        counts.append(f"{html.escape(tier)}: {wrong:,} of {len(scored.table):,} wrong")
    threshold, tier = source.shown.threshold, source.shown.tier
    cards = "".join(_card(item, threshold) for item in source.failures)
    shown = f"The {len(source.failures):,} worst in tier {tier}:" if cards else f"No error in tier {tier}."
    return f"""<section>
<h2 id="source-{index}">{html.escape(source.title)}</h2>
<p>Threshold {threshold:.3f}. {"; ".join(counts)}. {html.escape(shown)}</p>
<ul class="cards">
{cards}</ul>
</section>
"""


def _card(item: Failure, threshold: float) -> str:
    """One wrong verdict: thumbnail, truth and call, scores, tiers, path."""
    truth, call = LABEL_NAMES[item.label], LABEL_NAMES[item.p_fake >= threshold]
    tiers = ""
    for tier, p_fake in item.others.items():
        verdict = LABEL_NAMES[p_fake >= threshold]
        change = "the verdict flips" if verdict != call else "same verdict"
        tiers += f'<li>{html.escape(tier)}: {p_fake:.3f}, <span class="{verdict}">{verdict}</span>, {change}</li>'
    generator = f'<p class="faint">{html.escape(item.generator)}</p>\n' if item.generator not in ("", "real") else ""
    return f"""<li>{_thumbnail(item.path)}
<p class="verdict"><span class="{truth}">{truth}</span> called <span class="{call}">{call}</span></p>
<p class="faint">p_fake {item.p_fake:.4f}, threshold {threshold:.3f}</p>
{generator}<p class="path">{html.escape(item.path)}</p>
{f'<ul class="tiers">{tiers}</ul>' if tiers else ""}</li>
"""


def _thumbnail(path: str) -> str:
    """The image as a data URI, or a placeholder with the reason."""
    name = html.escape(os.path.basename(path))
    try:
        image = read_image(path)
    except UnreadableImage as error:
        return f'<div class="frame broken">unreadable:<br>{html.escape(str(error))}</div>'
    height, width = image.shape[:2]
    scale = min(1.0, THUMBNAIL_SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA) if scale < 1 else image
    jpeg = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
    data = base64.b64encode(jpeg.tobytes()).decode()
    sides = f'width="{size[0]}" height="{size[1]}"'
    return f'<div class="frame"><img src="data:image/jpeg;base64,{data}" {sides} alt="{name}"></div>'
