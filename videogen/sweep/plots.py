"""Plot the sweep with matplotlib: quality against seconds with the Pareto front named, and the effect of each axis.

    settings, effects  ->  pareto.png, and SVG for the page in the page's own colours

Figures are plain objects: no window, and none of pyplot's global state.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from videogen.data.files import atomic_file
from videogen.sweep.findings import format_setting, measure_name
from videogen.sweep.summary import Effect, Mean, Setting, pareto_front

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# In the SVG each of these colours becomes a variable of the page's style sheet, which has a dark set too.
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
    """Raise a ValueError that says how to install matplotlib, if it is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ValueError("a sweep's page needs matplotlib: pip install 'videogen[sweep]'") from None


def new_figure(width: float, height: float, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """Create a figure without a window, with its axes in one row."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])


def axis_label(measure: str) -> str:
    """Label an axis with a measure and its unit."""
    unit = {"psnr_db": " to the reference, dB", "total_seconds": " a clip"}.get(measure, "")
    return f"{measure_name(measure)}{unit}"


def plot_pareto(settings: Sequence[Setting], quality: str, names: Sequence[str], *, legend: bool) -> Figure:
    """Plot every setting by seconds and quality, the Pareto front as a numbered line; the legend names its settings."""
    from matplotlib import rc_context

    rated = [setting for setting in settings if quality in setting.means]
    front = pareto_front(settings, quality)
    line = [(setting.seconds, setting.means[quality].value) for setting in front]
    with rc_context(STYLE):
        figure, (ax,) = new_figure(7.2, 4.2)
        for setting in rated:
            x, mean = setting.seconds, setting.means[quality]
            colour, size = (ACCENT, 8) if setting in front else (QUIET, 6)
            ax.errorbar(
                x, mean.value, yerr=mean.half_width, fmt="none", ecolor=colour, elinewidth=1, alpha=0.45, zorder=2
            )
            (dot,) = ax.plot(x, mean.value, "o", color=colour, markersize=size, markeredgecolor=PAPER, zorder=3)
            dot.set_gid(f"setting-{settings.index(setting)}")
        ax.step([x for x, _ in line], [y for _, y in line], where="post", color=ACCENT, linewidth=1.2, zorder=1)
        for i, point in enumerate(line, 1):
            ax.annotate(str(i), point, xytext=(0, 8), textcoords="offset points", ha="center", color=ACCENT, zorder=4)
        scale_seconds(ax, [setting.seconds for setting in rated])
        limit_to_means(ax, [setting.means[quality] for setting in rated])
        ax.set_xlabel("seconds a clip")
        ax.set_ylabel(axis_label(quality))
        if legend:
            text = "\n".join(f"{i}  {format_setting(setting.values, names)}" for i, setting in enumerate(front, 1))
            figure.supxlabel(text, fontsize=9, color=INK, x=0.06, ha="left")
    return figure


def limit_to_means(ax: Axes, means: Sequence[Mean]) -> None:
    """Limit the y axis to the means; an interval is cut, since that of two clips can be 100 times as wide."""
    values = [mean.value for mean in means]
    room = max(max(values) - min(values), 0.02 * abs(max(values)), 1e-6)
    lows = [max(mean.value - (mean.half_width or 0), min(values) - room) for mean in means]
    highs = [min(mean.value + (mean.half_width or 0), max(values) + room) for mean in means]
    ax.set_ylim(min(lows) - 0.15 * room, max(highs) + 0.25 * room)


def scale_seconds(ax: Axes, seconds: Sequence[float]) -> None:
    """Make the x axis logarithmic, with plain numbers, where the times differ by more than a factor of 6."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    if max(seconds) > 6 * min(seconds):
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        ax.xaxis.set_minor_formatter(NullFormatter())


def plot_marginals(marginals: Sequence[tuple[Effect, Effect]], quality: str) -> list[tuple[str, Figure]]:
    """Plot for each axis its effects on quality and seconds, over all other settings; each with the axis's name."""
    from matplotlib import rc_context

    figures = []
    for of_quality, of_seconds in marginals:
        with rc_context(STYLE):
            figure, (left, right) = new_figure(5.2, 2.5, columns=2)
            for ax, effect, colour in ((left, of_quality, ACCENT), (right, of_seconds, QUIET)):
                names, means = [name for name, _ in effect.places], [mean for _, mean in effect.places]
                x, halves = range(len(names)), [mean.half_width or 0.0 for mean in means]
                ax.errorbar(x, [m.value for m in means], yerr=halves, fmt="o-", color=colour, linewidth=1.2, capsize=2)
                is_crowded = sum(len(name) + 2 for name in names) > 26  # the labels would run into each other
                ax.set_xticks(list(x), names, rotation=30 if is_crowded else 0)
                ax.margins(x=0.15)
                ax.grid(visible=False, axis="x")
            left.set_title(axis_label(quality), fontsize=10, color=INK, loc="left")
            right.set_title("seconds a clip", fontsize=10, color=INK, loc="left")
            limit_to_means(left, [mean for _, mean in of_quality.places])
            right.set_ylim(bottom=0)
        figures.append((of_quality.axis.name, figure))
    return figures


def to_svg(figure: Figure, label: str) -> str:
    """Render a figure as inline SVG in the page's colours, with a label for screen readers."""
    from matplotlib import rc_context

    out = io.StringIO()
    with rc_context(STYLE):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' (?:width|height)="[\d.]+pt"', "", text, count=2)  # the page decides the size
    return text.replace("<svg", f'<svg role="img" aria-label="{html.escape(label)}"', 1)


def save_png(figure: Figure, path: Path) -> None:
    """Write a figure atomically."""
    from matplotlib import rc_context

    with atomic_file(path) as part, rc_context(STYLE):
        figure.savefig(part, format="png", dpi=160)
