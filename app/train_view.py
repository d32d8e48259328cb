"""One frame of the Train tab as HTML: the fixed scene with the switch's choices, losses, size shares and figures.

Everything in it is a number or a word of ours; nothing that a visitor wrote enters it.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from app.live_training import MAX_SECONDS, MAX_STEPS, LiveTraining, Point
from dynamask.structures import MASK_SIZES
from dynamask.viz.overlay import draw_overlay
from dynamask.viz.style import SIZE_COLOURS, contrast_colour

LOSSES = {
    "loss_boundary": ("boundary error of the drawn sizes", "var(--accent)", ""),
    "loss_budget": ("budget (Eq. 5)", "#D9541E", "7 4"),
    "loss_entropy": ("entropy (Eq. 6)", "var(--soft)", "2 4"),
}
"""Title, colour and dash of every loss that moves the switch; the edge loss is shown as a figure only."""

WIDTH, HEIGHT = 420, 215
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, WIDTH - 10, 12, HEIGHT - 30


def scene_url(image: np.ndarray, masks: np.ndarray, sizes: np.ndarray) -> str:
    """The scene with masks and printed sizes, as a `data:` URL."""
    buffer = io.BytesIO()
    Image.fromarray(draw_overlay(image, masks, sizes)).save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _axes(low: float, high: float, last: int, digits: int) -> str:
    """Lines and figures around a chart."""
    parts = []
    for value in np.linspace(low, high, 5).tolist():
        y = _y(value, low, high)
        parts.append(f'<line x1="{_LEFT}" x2="{_RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="dt-grid"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end" font-size="12" class="dt-soft">'
                     f"{value:.{digits}f}</text>")  # fmt: skip
    for value in (0, last // 2, last):
        x = _x(value, last)
        anchor = "end" if value == last else "middle"
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 10}" text-anchor="{anchor}" font-size="12" class="dt-soft">'
                     f"{value}</text>")  # fmt: skip
    return "".join(parts)


def _x(step: float, last: int) -> float:
    return _LEFT + step / max(last, 1) * (_RIGHT - _LEFT)


def _y(value: float, low: float, high: float) -> float:
    return _BOTTOM - (value - low) / (high - low) * (_BOTTOM - _TOP)


def _svg(label: str, inside: str) -> str:
    return f'<svg class="dt-chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{inside}</svg>'


def losses_chart(history: Sequence[Point]) -> str:
    """The losses against the step, unweighted, as SVG; a moving mean makes the trend visible."""
    last = max(history[-1].step, 1) if history else 1
    history = [point for point in history if point.losses]
    rows = {name: _smoothed([p.losses.get(name, 0.0) for p in history]) for name in LOSSES}
    values = [value for row in rows.values() for value in row] or [0.0]
    low, high = min(-0.4, *values), max(0.6, *values)
    lines = []
    for name, row in rows.items():
        _, colour, dash = LOSSES[name]
        points = " ".join(f"{_x(p.step, last):.1f},{_y(v, low, high):.1f}" for p, v in zip(history, row))
        lines.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2.5" '
                     f'stroke-dasharray="{dash}"/>')  # fmt: skip
    return _svg("Losses against the step", _axes(low, high, last, 2) + "".join(lines))


def _smoothed(values: Sequence[float], reach: int = 4) -> list[float]:
    """Mean of each value with up to `reach` before it."""
    return [sum(values[max(0, i - reach) : i + 1]) / (i + 1 - max(0, i - reach)) for i in range(len(values))]


def shares_chart(history: Sequence[Point]) -> str:
    """Shares of the sizes against the step as stacked areas, the coarsest at the bottom, as SVG."""
    last = max(history[-1].step, 1) if history else 1
    areas, below = [], np.zeros(len(history))
    for k, size in enumerate(MASK_SIZES):
        above = below + np.array([p.shares[k] for p in history])
        xs = [_x(p.step, last) for p in history]
        edge = [f"{x:.1f},{_y(v, 0, 1):.1f}" for x, v in zip(xs, above)]
        edge += [f"{x:.1f},{_y(v, 0, 1):.1f}" for x, v in zip(reversed(xs), below[::-1])]
        areas.append(f'<polygon points="{" ".join(edge)}" fill="{SIZE_COLOURS[size]}"/>')
        if history and above[-1] - below[-1] > 0.08:
            red, green, blue = contrast_colour(SIZE_COLOURS[size])
            y = _y((above[-1] + below[-1]) / 2, 0, 1) + 4
            areas.append(f'<text x="{_RIGHT - 6}" y="{y:.1f}" text-anchor="end" font-size="13" font-weight="700" '
                         f'style="fill:rgb({red},{green},{blue})">{size}</text>')  # fmt: skip
        below = above
    return _svg("Shares of the four sizes against the step", _axes(0, 1, last, 2) + "".join(areas))


def _keys() -> str:
    items = []
    for title, colour, dash in LOSSES.values():
        line = f'<line x1="0" x2="30" y1="7" y2="7" stroke="{colour}" stroke-width="3" stroke-dasharray="{dash}"/>'
        items.append(f'<li><svg viewBox="0 0 30 14" aria-hidden="true">{line}</svg>{title}</li>')
    return f'<ul class="dt-keys">{"".join(items)}</ul>'


def _figures(training: LiveTraining, point: Point, full: int) -> str:
    """The numbers under the charts."""
    share = point.macs / full
    target = training.budget_target
    entries = [
        ("steps", f"{point.step} of {MAX_STEPS}"),
        ("mean MACs", f"{share:.0%} of the full branch (target {target:.0%})"),
        ("boundary IoU at the chosen sizes", f"{point.quality:.3f}"),
        ("same sizes dealt out at random", f"{point.permuted:.3f}"),
        ("edge loss of the drawn sizes (Eq. 4)", f"{point.losses.get('loss_edge', 0.0):.3f}"),
        ("time", f"{training.spent:.0f} s of {MAX_SECONDS:.0f}"),
    ]
    return "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in entries)


def frame(training: LiveTraining, words: str, kept: dict[bytes, str]) -> str:
    """What the tab shows of a run.

    Args:
        training: with at least one measured point, or none yet.
        words: what is being done.
        kept: the last drawn scene by its sizes, so that an unchanged one is not drawn again; changed in place.
    """
    study, scenes = training.scenes.study, training.scenes
    choice = training.choose(study.features)
    key, sizes = choice.tobytes(), np.array(MASK_SIZES)[choice]
    if key not in kept:
        kept.clear()
        kept[key] = scene_url(study.image, study.masks[range(len(choice)), choice], sizes)
    printed = ", ".join(map(str, sizes.tolist()))
    history = training.history
    figures = _figures(training, history[-1], scenes.macs.macs_per_instance[-1]) if history else ""
    return (
        f'<section class="dt dt-train" aria-label="Training"><p class="dt-words" role="status">{words}</p>'
        f'<div class="dt-columns"><div><figure class="dt-card"><h3>The fixed scene, in the sizes chosen now</h3>'
        f'<img src="{kept[key]}" alt="A scene of shapes; chosen mask sizes: {printed}">'
        f"<figcaption>Masks by the frozen weights; only the switch learns, from the scenes known so far "
        f"({scenes.known} of {len(scenes)}).</figcaption></figure>"
        f'<div class="dt-card"><h3>On the scenes kept back</h3><dl>{figures}</dl></div></div>'
        f'<div><figure class="dt-card"><h3>Losses by step</h3>{losses_chart(history)}{_keys()}</figure>'
        f'<figure class="dt-card"><h3>Size shares by step, on scenes kept back</h3>{shares_chart(history)}</figure>'
        "</div></div></section>"
    )


def invitation() -> str:
    """What the tab shows before the first run."""
    return (
        '<section class="dt dt-train" aria-label="Training"><div class="dt-card dt-invite"><p>Press Start: a fresh '
        "switch, which knows nothing, learns on scenes of shapes which objects are worth a fine mask. Pull the budget "
        "target down while it learns, and watch who loses resolution first.</p></div></section>"
    )
