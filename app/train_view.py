"""The run of the Train tab as HTML: a fixed scene in the chosen sizes, measurements, losses and size shares.

All text is the page's own; nothing entered by a visitor is part of it.
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
from dynamask.viz.training_curves import smoothed

LOSSES = {
    "loss_boundary": ("boundary error of the sampled sizes", "var(--accent)", ""),
    "loss_budget": ("budget (Eq. 5)", "#D9541E", "7 4"),
    "loss_entropy": ("entropy (Eq. 6)", "var(--soft)", "2 4"),
}
"""Title, colour and dash pattern of the losses that train the switch."""
HALF_LIFE = 2.0
"""Smoothing of the losses, in points."""
WIDTH, HEIGHT = 420, 215
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, WIDTH - 10, 12, HEIGHT - 30


def run_view(training: LiveTraining, status: str, drawn: dict[bytes, str]) -> str:
    """A run as HTML.

    Args:
        training: the run.
        status: its state in a word.
        drawn: the last drawn scene by its sizes, so that it is drawn again only when they change; changed in place.
    """
    study, scenes, history = training.scenes.study, training.scenes, training.history
    choice = training.choose(study.features)
    key, sizes = choice.tobytes(), np.array(MASK_SIZES)[choice]
    if key not in drawn:
        drawn.clear()
        drawn[key] = _scene_url(study.image, study.masks[range(len(choice)), choice], sizes)
    listed = ", ".join(map(str, sizes.tolist()))
    return (
        f'<section class="dt dt-train" aria-label="Training"><p class="dt-words" role="status">{status}</p>'
        f'<div class="dt-columns"><div><figure class="dt-card"><h3>A scene in the sizes that the switch chooses</h3>'
        f'<img src="{drawn[key]}" alt="A scene of shapes; chosen mask sizes: {listed}">'
        f"<figcaption>The masks are those of the frozen weights; only the switch is trained. Features computed for "
        f"{scenes.known} of {len(scenes)} scenes.</figcaption></figure>"
        f'<div class="dt-card"><h3>On held-out scenes</h3><dl>{_measurements(training)}</dl></div></div>'
        f'<div><figure class="dt-card"><h3>Losses by step</h3>{losses_chart(history)}{_legend()}</figure>'
        f'<figure class="dt-card"><h3>Size shares by step, on held-out scenes</h3>{shares_chart(history)}</figure>'
        "</div></div></section>"
    )


def introduction() -> str:
    """The content of the tab before a run."""
    return (
        '<section class="dt dt-train" aria-label="Training"><div class="dt-card dt-invite"><p>Press Start to train a '
        "new switch on generated scenes: it learns which objects need a fine mask. Lower the budget target during the "
        "training, and see which objects lose resolution first.</p></div></section>"
    )


def _scene_url(image: np.ndarray, masks: np.ndarray, sizes: np.ndarray) -> str:
    """The scene with masks and printed sizes, as a `data:` URL."""
    buffer = io.BytesIO()
    Image.fromarray(draw_overlay(image, masks, sizes)).save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _measurements(training: LiveTraining) -> str:
    """The last measured values, as entries of a list; empty before the first measurement."""
    if not training.history:
        return ""
    point, full = training.history[-1], training.scenes.macs.macs_per_instance[-1]
    entries = {
        "steps": f"{point.step} of {MAX_STEPS}",
        "mean MACs": f"{point.macs / full:.0%} of the full branch (target {training.budget_target:.0%})",
        "boundary IoU at the chosen sizes": f"{point.quality:.3f}",
        "boundary IoU at the same sizes, assigned at random": f"{point.permuted:.3f}",
        "edge loss of the sampled sizes (Eq. 4)": f"{point.losses.get('loss_edge', 0.0):.3f}",
        "time": f"{training.spent:.0f} s of {MAX_SECONDS:.0f}",
    }
    return "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in entries.items())


# Charts as SVG


def losses_chart(history: Sequence[Point]) -> str:
    """Unweighted, smoothed losses against the step."""
    last = max(1, history[-1].step) if history else 1
    history = [point for point in history if point.losses]
    curves = {name: smoothed([point.losses.get(name, 0.0) for point in history], HALF_LIFE) for name in LOSSES}
    values = [value for curve in curves.values() for value in curve]
    low, high = min([-0.4, *values]), max([0.6, *values])
    lines = []
    for name, curve in curves.items():
        _, colour, dash = LOSSES[name]
        points = _points([point.step for point in history], curve, last, low, high)
        style = f'fill="none" stroke="{colour}" stroke-width="2.5" stroke-dasharray="{dash}"'
        lines.append(f'<polyline points="{points}" {style}/>')
    return _svg("Losses against the step", _axes(low, high, last) + "".join(lines))


def shares_chart(history: Sequence[Point]) -> str:
    """Size shares against the step as stacked areas, the coarsest size at the bottom."""
    last = max(1, history[-1].step) if history else 1
    steps = [point.step for point in history]
    tops = np.cumsum(np.reshape([point.shares for point in history], (-1, len(MASK_SIZES))), axis=1)
    below, areas = np.zeros(len(history)), []
    for size, above in zip(MASK_SIZES, tops.T):
        outline = _points([*steps, *reversed(steps)], [*above, *reversed(below)], last, 0, 1)
        areas.append(f'<polygon points="{outline}" fill="{SIZE_COLOURS[size]}"/>')
        if history and above[-1] - below[-1] > 0.08:
            red, green, blue = contrast_colour(SIZE_COLOURS[size])
            position = f'x="{_RIGHT - 6}" y="{_y((above[-1] + below[-1]) / 2, 0, 1) + 4:.1f}" text-anchor="end"'
            style = f'font-size="13" font-weight="700" style="fill:rgb({red},{green},{blue})"'
            areas.append(f"<text {position} {style}>{size}</text>")
        below = above
    return _svg("Shares of the four sizes against the step", _axes(0, 1, last) + "".join(areas))


def _legend() -> str:
    """The losses with their line styles, as a list."""
    items = []
    for title, colour, dash in LOSSES.values():
        line = f'<line x1="0" x2="30" y1="7" y2="7" stroke="{colour}" stroke-width="3" stroke-dasharray="{dash}"/>'
        items.append(f'<li><svg viewBox="0 0 30 14" aria-hidden="true">{line}</svg>{title}</li>')
    return f'<ul class="dt-keys">{"".join(items)}</ul>'


def _axes(low: float, high: float, last: int) -> str:
    """Grid lines and tick labels of a chart."""
    parts = []
    for value in np.linspace(low, high, 5).tolist():
        y = _y(value, low, high)
        parts.append(f'<line x1="{_LEFT}" x2="{_RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="dt-grid"/>')
        parts.append(_tick_label(_LEFT - 6, y + 4, "end", f"{value:.2f}"))
    for step in (0, last // 2, last):
        parts.append(_tick_label(_x(step, last), HEIGHT - 10, "end" if step == last else "middle", str(step)))
    return "".join(parts)


def _tick_label(x: float, y: float, anchor: str, text: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="12" class="dt-soft">{text}</text>'


def _points(steps: Sequence[int], values: Sequence[float], last: int, low: float, high: float) -> str:
    """The `points` attribute of a line or polygon."""
    return " ".join(f"{_x(step, last):.1f},{_y(value, low, high):.1f}" for step, value in zip(steps, values))


def _x(step: float, last: int) -> float:
    return _LEFT + step / max(last, 1) * (_RIGHT - _LEFT)


def _y(value: float, low: float, high: float) -> float:
    return _BOTTOM - (value - low) / (high - low) * (_BOTTOM - _TOP)


def _svg(label: str, inside: str) -> str:
    return f'<svg class="dt-chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{inside}</svg>'
