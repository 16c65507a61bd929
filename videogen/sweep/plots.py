"""The plots, by matplotlib: quality against seconds with the undominated named, and what each axis does.

    settings, effects  ->  pareto.png, and SVG for the page in the page's own colours

Figures are plain objects: no window, no global state of pyplot.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from videogen.sweep.findings import label, name_of
from videogen.sweep.summary import Effect, Mean, Setting, front

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Drawn in these colours; in the SVG each becomes a variable of the page's style sheet, which has a dark set too.
INK, QUIET, GRID, ACCENT, PAPER = "#22262b", "#7c848c", "#e3e5e8", "#2f6f62", "#fdfdfc"
VARIABLES = {INK: "--ink", QUIET: "--quiet", GRID: "--line", ACCENT: "--accent", PAPER: "--paper"}
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif", "font.size": 10, "svg.fonttype": "none", "svg.hashsalt": "videogen",
    "axes.edgecolor": QUIET, "axes.labelcolor": INK, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.color": GRID, "grid.linewidth": 0.8, "axes.axisbelow": True,
    "xtick.color": QUIET, "ytick.color": QUIET, "text.color": INK,
    "figure.facecolor": PAPER, "axes.facecolor": PAPER, "savefig.facecolor": PAPER,
}  # fmt: skip


def check_matplotlib() -> None:
    """A sentence where the plots could not be drawn."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ValueError("a sweep's page needs matplotlib: pip install 'videogen[sweep]'") from None


def new_figure(width: float, height: float, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure that no window system knows of, with its axes in one row."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])


def axis_label(measure: str) -> str:
    """A measure with its unit, for an axis."""
    unit = {"psnr_db": " to the reference, dB", "total_seconds": " a clip"}.get(measure, "")
    return f"{name_of(measure)}{unit}"


def pareto(settings: Sequence[Setting], quality: str, names: Sequence[str], *, named: bool) -> Figure:
    """Every setting by seconds and quality; the undominated numbered along their line, and named where asked."""
    from matplotlib import rc_context

    rated = [one for one in settings if quality in one.means]
    best = front(settings, quality)
    with rc_context(STYLE):
        figure, (ax,) = new_figure(7.2, 4.2)
        for one in rated:
            mean, seconds = one.means[quality], one.means["total_seconds"].value
            on_front = one in best
            colour = ACCENT if on_front else QUIET
            ax.errorbar(
                seconds, mean.value, yerr=mean.half, fmt="none", ecolor=colour, elinewidth=1, alpha=0.45, zorder=2
            )
            (dot,) = ax.plot(
                seconds, mean.value, "o", color=colour, markersize=8 if on_front else 6, markeredgecolor=PAPER, zorder=3
            )
            dot.set_gid(f"setting-{settings.index(one)}")
        ax.step(
            [one.means["total_seconds"].value for one in best], [one.means[quality].value for one in best],
            where="post", color=ACCENT, linewidth=1.2, zorder=1,
        )  # fmt: skip
        for i, one in enumerate(best, 1):
            place = (one.means["total_seconds"].value, one.means[quality].value)
            ax.annotate(str(i), place, xytext=(0, 8), textcoords="offset points", ha="center", color=ACCENT, zorder=4)
        stretch(ax, [one.means["total_seconds"].value for one in rated])
        look_at(ax, [one.means[quality] for one in rated])
        ax.set_xlabel("seconds a clip")
        ax.set_ylabel(axis_label(quality))
        if named:
            told = "\n".join(f"{i}  {label(one.values, names)}" for i, one in enumerate(best, 1))
            figure.supxlabel(told, fontsize=9, color=INK, x=0.06, ha="left")
    return figure


def look_at(ax: Axes, means: Sequence[Mean]) -> None:
    """Limits that show all means and what of their intervals fits: that of two clips can be a hundred times as wide."""
    values = [mean.value for mean in means]
    room = max(max(values) - min(values), 0.02 * abs(max(values)), 1e-6)
    lows = [max(mean.value - (mean.half or 0), min(values) - room) for mean in means]
    highs = [min(mean.value + (mean.half or 0), max(values) + room) for mean in means]
    ax.set_ylim(min(lows) - 0.15 * room, max(highs) + 0.25 * room)


def stretch(ax: Axes, seconds: Sequence[float]) -> None:
    """A logarithmic axis of plain numbers where the times span much."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    if max(seconds) > 6 * min(seconds):
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        ax.xaxis.set_minor_formatter(NullFormatter())


def marginals(moved: Sequence[tuple[Effect, Effect]], quality: str) -> list[tuple[str, Figure]]:
    """For each axis, the mean quality and seconds at each of its places, over everything else; by the axis's name."""
    from matplotlib import rc_context

    figures = []
    for in_quality, in_seconds in moved:
        with rc_context(STYLE):
            figure, (top, low) = new_figure(5.2, 2.5, columns=2)
            for ax, effect, colour in ((top, in_quality, ACCENT), (low, in_seconds, QUIET)):
                at = range(len(effect.places))
                means = [mean for _, mean in effect.places]
                halves = [mean.half or 0.0 for mean in means]
                ax.errorbar(at, [m.value for m in means], yerr=halves, fmt="o-", color=colour, linewidth=1.2, capsize=2)
                ax.set_xticks(list(at), [name for name, _ in effect.places], rotation=30 if crowded(effect) else 0)
                ax.margins(x=0.15)
                ax.grid(visible=False, axis="x")
            top.set_title(axis_label(quality), fontsize=10, color=INK, loc="left")
            low.set_title("seconds a clip", fontsize=10, color=INK, loc="left")
            look_at(top, [mean for _, mean in in_quality.places])
            low.set_ylim(bottom=0)
        figures.append((in_quality.axis.name, figure))
    return figures


def crowded(effect: Effect) -> bool:
    """Whether the names of the places would run into each other."""
    return sum(len(name) + 2 for name, _ in effect.places) > 26


def to_svg(figure: Figure, what: str) -> str:
    """A figure as inline SVG in the page's colours, with a name for those who do not see it."""
    from matplotlib import rc_context

    out = io.StringIO()
    with rc_context(STYLE):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' (?:width|height)="[\d.]+pt"', "", text, count=2)  # the page decides
    return text.replace("<svg", f'<svg role="img" aria-label="{html.escape(what)}"', 1)


def save_png(figure: Figure, path: Path) -> None:
    """Write beside and rename."""
    from matplotlib import rc_context

    part = path.with_name(f"{path.name}.part")
    try:
        with rc_context(STYLE):
            figure.savefig(part, format="png", dpi=160)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
