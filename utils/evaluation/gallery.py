"""The worst errors of a detector as one HTML page to look at."""

import base64
import hashlib
import html
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from datasets.images import UnreadableImage, read_image
from datasets.spec import LABEL_NAMES
from utils.evaluation.failures import DataSource, Failure, failures_csv, find_failures
from utils.files import atomic_write_text
from utils.scoring.table import ScoreTable

THUMBNAIL_SIDE = 180  # px, the longer side
JPEG_QUALITY = 82
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


def write_gallery(
    sets: Iterable[tuple[ScoreTable, Mapping[str, Any]]], folder: str | os.PathLike[str], per_source: int = 24
) -> list[Path]:
    """Write ``gallery.html`` and ``failures.csv`` to a folder and return their paths.

    ``sets`` holds (scores, what their JSON file says) per tier: of the latter, checkpoint, split and threshold are
    used. A data source is a checkpoint on a data set; the ``per_source`` most confident wrong verdicts of each are
    shown, those farthest from the threshold in steps of evidence (logit of p_fake). Errors are taken from the clean
    tier; each card says what became of the verdict in the other tiers.

    The page is one file without scripts and loads nothing: images are JPEG thumbnails inside of it. An image that
    cannot be read is shown as a placeholder with the reason. ``failures.csv`` lists the same images once each, with
    paths relative to its own folder, and is a data set for evaluate.py: ``csv:failures.csv``.

    Raises:
        UserError: a file cannot be written.
    """
    target = Path(folder)
    sources = find_failures(sets, per_source)
    page, listed = target / "gallery.html", target / "failures.csv"
    atomic_write_text(page, gallery_html(sources))
    atomic_write_text(listed, failures_csv(sources, target))
    return [page, listed]


def gallery_html(sources: Sequence[DataSource]) -> str:
    """The page; all text in it is escaped, and its content security policy allows its own style and images only."""
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
The pictures are the files as they are on the disk, also where the verdict is about a degraded copy.</p>
<nav><ul>
{links}</ul></nav>
{sections}</body>
</html>
"""


def _section(index: int, source: DataSource) -> str:
    """One data source: its error counts per tier and its cards."""
    counts = []
    for tier, table in source.tiers.items():
        wrong = int(np.sum((table.p_fake >= source.threshold) != (table.label == 1)))
        counts.append(f"{html.escape(tier)}: {wrong:,} of {len(table):,} wrong")
    cards = "".join(_card(item, source) for item in source.failures)
    shown = (
        f"The {len(source.failures):,} worst in tier {source.tier}:" if cards else f"No error in tier {source.tier}."
    )
    return f"""<section>
<h2 id="source-{index}">{html.escape(source.title)}</h2>
<p>Threshold {source.threshold:.3f}. {"; ".join(counts)}. {html.escape(shown)}</p>
<ul class="cards">
{cards}</ul>
</section>
"""


def _card(item: Failure, source: DataSource) -> str:
    """One wrong verdict: thumbnail, truth and call, scores, tiers, path."""
    truth, call = LABEL_NAMES[item.label], LABEL_NAMES[item.p_fake >= source.threshold]
    tiers = ""
    for tier, p_fake in item.others.items():
        verdict = LABEL_NAMES[p_fake >= source.threshold]
        change = "the verdict flips" if verdict != call else "same verdict"
        tiers += f'<li>{html.escape(tier)}: {p_fake:.3f}, <span class="{verdict}">{verdict}</span>, {change}</li>'
    generator = f'<p class="faint">{html.escape(item.generator)}</p>\n' if item.generator not in ("", "real") else ""
    return f"""<li>{_thumbnail(item.path)}
<p class="verdict"><span class="{truth}">{truth}</span> called <span class="{call}">{call}</span></p>
<p class="faint">p_fake {item.p_fake:.4f}, threshold {source.threshold:.3f}</p>
{generator}<p class="path">{html.escape(item.path)}</p>
{f'<ul class="tiers">{tiers}</ul>' if tiers else ""}</li>
"""


def _thumbnail(path: str) -> str:
    """The image as a data URI, or a placeholder with the reason why there is none."""
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
