"""Figures for papers and result pages: their common style, training curves, values with intervals.

Every function returns a ``matplotlib.figure.Figure`` created without pyplot, so there is no global state and nothing
to close. Curves differ in colour, dash and marker, which also works in grey and for colour-blind readers. Palette:
Okabe and Ito, "Color Universal Design", 2008. matplotlib is imported on the first call, not with the module.
"""

import functools
import io
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np

from utils.files import atomic_write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

P = ParamSpec("P")
T = TypeVar("T")

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C7A00")
REAL_COLOUR, FAKE_COLOUR, GREY = "#0072B2", "#D55E00", "#777777"
DASHES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
STYLE: Any = {  # matplotlib types its own keys one by one
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.labelsize": 10,
    "legend.fontsize": 9,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "legend.frameon": True,
    "legend.framealpha": 0.9,
    "legend.edgecolor": "#CCCCCC",
    "pdf.fonttype": 42,
    "savefig.facecolor": "white",
}


LETTERS_PER_INCH = 12  # in a legend


def styled(function: Callable[P, T]) -> Callable[P, T]:
    """Run a function under STYLE without changing the caller's matplotlib settings."""

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        import matplotlib

        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(STYLE)
            return function(*args, **kwargs)

    return wrapper


@styled
def new_figure(width: float, height: float, n_columns: int = 1, **subplots: Any) -> "tuple[Figure, np.ndarray]":
    """An empty figure of width x height inches and its axes as an array, in one row unless ``nrows`` is given."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(ncols=n_columns, squeeze=False, **subplots)
    return figure, axes.reshape(-1)


@styled
def save_figure(figure: "Figure", stem: str | os.PathLike[str]) -> list[Path]:
    """Write ``stem``.pdf (embedded TrueType fonts) and ``stem``.png (200 dpi), atomically; return their paths.

    The files contain no date and no version, so equal figures give equal bytes.

    Raises:
        UserError: a file cannot be written.
    """
    paths = []
    metadata = {"pdf": {"CreationDate": None, "Producer": None, "Creator": None}, "png": {"Software": None}}
    for kind in ("pdf", "png"):
        data = io.BytesIO()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # file names in other scripts
            figure.savefig(data, format=kind, dpi=200, metadata=metadata[kind])
        path = Path(f"{os.fspath(stem)}.{kind}")
        atomic_write_bytes(path, data.getvalue())
        paths.append(path)
    return paths


def name_text(name: str) -> str:
    """A file name that matplotlib can draw: ``$`` starts no formula, and bytes that are not UTF-8 read ``\\xff``."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace").replace("$", r"\$")


def line_style(index: int) -> dict[str, Any]:
    """Colour, dash and marker of the curve with this index, different for at least eight curves."""
    return {
        "color": PALETTE[index % len(PALETTE)],
        "linestyle": DASHES[index % len(DASHES)],
        "marker": MARKERS[index % len(MARKERS)],
        "markeredgecolor": "white",
        "markeredgewidth": 0.6,
    }


def legend_below(figure: "Figure", axes: "Axes", n_columns: int = 2) -> None:
    """A legend below the axes, where it hides no curve; reference lines come last."""
    handles, names = axes.get_legend_handles_labels()
    order = sorted(range(len(names)), key=lambda index: names[index] in ("chance", "perfect calibration"))
    if names:
        widest = max(map(len, names))
        fitting = max(1, int(figure.get_figwidth() * LETTERS_PER_INCH) // (widest + 8))  # 8 for handle and spacing
        figure.legend(
            [handles[i] for i in order],
            [names[i] for i in order],
            loc="outside lower center",
            ncols=min(n_columns, len(names), fitting),
            handlelength=3,
        )


@styled
def training_curve_figure(history: Sequence[Mapping[str, Any]], title: str = "") -> "Figure":
    """Training history, one row per epoch: epoch, train_loss, valid_loss, valid_auc, lr.

    Values may be text, as in log.csv; missing, empty and None values are not drawn. The best epoch by valid_auc,
    whose checkpoint is kept, is marked.
    """
    from matplotlib.ticker import MaxNLocator

    series = {key: _series(history, key) for key in ("epoch", "train_loss", "valid_loss", "valid_auc", "lr")}
    with_lr = bool(np.any(np.isfinite(series["lr"])))
    figure, axes = new_figure(9.6 if with_lr else 6.6, 3.1, 3 if with_lr else 2)
    for index, (key, name) in enumerate((("train_loss", "train"), ("valid_loss", "valid"))):
        axes[0].plot(series["epoch"], series[key], label=name, **line_style(index))
    axes[0].set(ylabel="Loss (binary cross-entropy)")
    axes[0].legend(handlelength=3)
    axes[1].plot(series["epoch"], series["valid_auc"], **(line_style(2) | {"linestyle": "-"}))
    axes[1].set(ylabel="Validation AUC")
    if np.any(np.isfinite(series["valid_auc"])):
        best = int(np.nanargmax(series["valid_auc"]))
        axes[1].axvline(
            series["epoch"][best],
            color=GREY,
            linewidth=1,
            linestyle=":",
            zorder=1,
            label=f"best: {series['valid_auc'][best]:.3f} (epoch {series['epoch'][best]:g})",
        )
        axes[1].legend(loc="lower right")
    if with_lr:
        axes[2].plot(series["epoch"], series["lr"], **(line_style(3) | {"linestyle": "-"}))
        axes[2].set(ylabel="Learning rate")
        axes[2].ticklabel_format(axis="y", style="sci", scilimits=(0, 0), useMathText=True)
    for panel in axes:
        panel.set(xlabel="Epoch")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, min_n_ticks=1))
    if title:
        figure.suptitle(title, fontsize=STYLE["axes.titlesize"])
    return figure


def _series(history: Sequence[Mapping[str, Any]], key: str) -> np.ndarray:
    """One column of the history as floats, NaN for missing values; missing epochs count from 1."""
    values = [row.get(key, index + 1 if key == "epoch" else None) for index, row in enumerate(history)]
    return np.array([float(value) if value not in (None, "") else np.nan for value in values])


@styled
def interval_bar_figure(
    labels: Sequence[str],
    values: Sequence[float | None],
    intervals: Sequence[Sequence[float] | None] | None = None,
    x_label: str = "AUC",
    title: str = "",
    chance: float | None = None,
    groups: Sequence[str] | None = None,
) -> "Figure":
    """A point per value with its interval as a line, top to bottom in the given order, the numbers on the right.

    Points instead of bars, because bars should start at 0. ``groups`` (one name per value) sets colour and marker; a
    value None gives an empty row with an en dash; ``chance`` is a dotted line.
    """
    from matplotlib.ticker import MaxNLocator

    intervals = list(intervals) if intervals is not None else [None] * len(values)
    names = list(dict.fromkeys(groups)) if groups is not None else ["_value"]
    figure, (axes,) = new_figure(6.0, 1.1 + 0.34 * max(1, len(values)))
    if chance is not None:
        axes.axvline(chance, color=GREY, linewidth=1, linestyle=(0, (1, 2)), label="chance")
    seen = set()
    for row, (value, interval) in enumerate(zip(values, intervals, strict=True)):
        group = names.index(groups[row]) if groups is not None else 0
        text = "\N{EN DASH}" if value is None else f"{value:.3f}"
        if value is not None:
            colour = PALETTE[group % len(PALETTE)]
            if interval is not None:
                axes.plot(interval, [row, row], color=colour, linewidth=2.2, solid_capstyle="butt")
                text += f" [{interval[0]:.3f}, {interval[1]:.3f}]"
            axes.plot(
                [value],
                [row],
                linestyle="none",
                marker=MARKERS[group % len(MARKERS)],
                markersize=6.5,
                color=colour,
                markeredgecolor="white",
                label=names[group] if group not in seen else "_again",
            )
            seen.add(group)
        axes.annotate(
            text,
            (1, row),
            xycoords=("axes fraction", "data"),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )
    axes.set(yticks=range(len(labels)), yticklabels=labels, ylim=(max(1, len(labels)) - 0.5, -0.5), xlabel=x_label)
    axes.set_title(title, pad=10)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.margins(x=0.08)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    if groups is not None or chance is not None:
        legend_below(figure, axes, n_columns=4)
    return figure
