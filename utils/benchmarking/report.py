"""Tables and the Pareto figure of a benchmark, drawn from its cell files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.engines.registry import BASELINE
from utils.figures import MARKERS, PALETTE, legend_below, new_figure, save_figure, styled
from utils.tables import columns, write_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = [
    *columns(checkpoint="Checkpoint", engine="Engine", latency_p50_ms="p50 (ms)", latency_p95_ms="p95 (ms)"),
    *columns(images_per_s="Images/s", batch_size="Batch", ratio="Speed-up", over_first="Over first eager", auc="AUC"),
    *columns(acc="Acc", ece="ECE", agreement="Same verdict", robust_acc="Acc under PGD-10", file_mb="File (MB)"),
    *columns(memory_mb="Memory (MB)", load_s="Load (s)", first_answer_s="First answer (s)", note="Note"),
]
SPEED_KEYS = ("checkpoint", "engine", "batch_size", "latency_p50_ms", "latency_p95_ms", "images_per_s", "ratio")
ONE_DECIMAL = ("latency_p50_ms", "latency_p95_ms", "images_per_s", "file_mb", "load_s", "first_answer_s")
FORMATS = dict.fromkeys(ONE_DECIMAL, ".1f") | {"ratio": ".2f", "over_first": ".2f", "memory_mb": ".0f"}
MEGABYTE = 1e6
MIN_SPAN = 0.02  # of the AUC axis of the figure, so that differences between roundings look like none


def summary_row(cell: dict[str, Any], first_rates: dict[int, float]) -> dict[str, Any]:
    """Summarise a cell: latency at the smallest batch, throughput and speed-up at the best one, quality, size.

    ``first_rates`` has the images/s of the first checkpoint's baseline by batch size. Relative to it, a row shows what
    a smaller model and a faster engine gain together.
    """
    if "batches" not in cell:
        return {key: cell[key] for key in ("checkpoint", "engine", "note")}
    single = min(cell["batches"], key=lambda batch: batch["batch_size"])
    best = max(cell["batches"], key=lambda batch: batch["images_per_s"])
    quality = ("auc", "auc_ci", "acc", "acc_ci", "ece", "ece_ci", "agreement", "load_s", "first_answer_s")
    return {
        "checkpoint": cell["checkpoint"],
        "engine": cell["engine"],
        "latency_p50_ms": single["latency_p50_ms"],
        "latency_p95_ms": single["latency_p95_ms"],
        **{key: best[key] for key in ("images_per_s", "batch_size", "ratio", "ratio_ci")},
        "over_first": best["images_per_s"] / first_rates[best["batch_size"]] if first_rates else None,
        **{key: cell[key] for key in quality},
        "robust_acc": cell.get("robust_acc"),
        "file_mb": cell["file_bytes"] / MEGABYTE,
        "memory_mb": cell["peak_memory_bytes"] / MEGABYTE,
        "note": "baseline" if cell["engine"] == BASELINE else "slower than the baseline" if best["ratio"] < 1 else "",
    }


def write_benchmark(cells: Sequence[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """Write benchmark.{csv,md,tex}, speed.{csv,md,tex} and pareto.{pdf,png}; returns the rows of the first table."""
    first: dict[str, Any] = next((cell for cell in cells if cell["engine"] == BASELINE), {"batches": []})
    first_rates = {batch["batch_size"]: batch["images_per_s"] for batch in first["batches"]}
    rows = [summary_row(cell, first_rates) for cell in cells]
    write_table(rows, COLUMNS, folder / "benchmark", fmt=FORMATS)
    by_batch = [{**cell, **batch} for cell in cells for batch in cell.get("batches", [])]
    write_table(by_batch, [(key, dict(COLUMNS)[key]) for key in SPEED_KEYS], folder / "speed", fmt=FORMATS)
    measured = [row for row in rows if row.get("auc") is not None]
    if measured:
        save_figure(pareto_figure(measured), folder / "pareto")
    return rows


def pareto_front(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows that no other row beats in both images/s and AUC, from slow to fast."""
    front: list[dict[str, Any]] = []
    for row in sorted(rows, key=lambda row: (-row["images_per_s"], -row["auc"])):
        if not front or row["auc"] > front[-1]["auc"]:
            front.append(row)
    return front[::-1]


@styled
def pareto_figure(rows: Sequence[dict[str, Any]]) -> Figure:
    """Draw AUC over images/s, a colour per checkpoint and a marker per engine; a line joins the Pareto front."""
    from matplotlib.ticker import LogLocator, NullLocator

    checkpoints = list(dict.fromkeys(row["checkpoint"] for row in rows))
    engines = list(dict.fromkeys(row["engine"] for row in rows))
    figure, (axes,) = new_figure(6.6, 5.6)
    front = pareto_front(rows)
    axes.plot(
        [row["images_per_s"] for row in front],
        [row["auc"] for row in front],
        color="#BBBBBB",
        linewidth=4,
        zorder=1,
        label="Pareto front",
    )
    markers: list[dict[str, Any]] = [
        {
            "linestyle": "none",
            "marker": MARKERS[number % len(MARKERS)],
            "fillstyle": "full" if number < len(MARKERS) else "none",
        }
        for number in range(len(engines))
    ]
    for row in rows:
        colour = PALETTE[checkpoints.index(row["checkpoint"]) % len(PALETTE)]
        marker = markers[engines.index(row["engine"])]
        axes.plot(row["images_per_s"], row["auc"], markersize=8, color=colour, **marker)
    for engine, marker in zip(engines, markers, strict=True):
        axes.plot([], [], color="#444444", label=engine, **marker)
    for number, checkpoint in enumerate(checkpoints):
        axes.plot([], [], linewidth=6, color=PALETTE[number % len(PALETTE)], label=checkpoint)
    axes.set(xlabel="Images/s at the best batch", ylabel="AUC", xscale="log")
    low, high = axes.get_ylim()
    gap = max(0.0, MIN_SPAN - (high - low)) / 2
    low, high = low - gap, high + gap
    axes.set_ylim(low, min(1 + 0.04 * (high - low), high))  # room for the marker of a perfect detector
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:g}")
    legend_below(figure, axes, n_columns=3)
    return figure
