"""The notebook's widget: a picture, its budget on a slider, and for every instance why it has its mask size."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import cv2
import ipywidgets as widgets
import numpy as np
import torch
import traitlets
from tqdm import tqdm

from dynamask.data.pictures import read_picture
from dynamask.ops.masks import paste_mask
from dynamask.predict import Picture, Prediction, check_choice, choose
from dynamask.structures import MASK_SIZES, DynaMaskError
from dynamask.viz import why
from dynamask.viz.clickable import ClickablePicture
from dynamask.viz.living import PageManners, living
from dynamask.viz.overlay import RepeatedOverlay

SHOWN_SIDES = (640, 960)
"""Longer side of the picture as it is shown, in pixels: smaller ones are enlarged (at most twice), larger shrunk."""
POLICIES: dict[str, str] = {
    "learned": "the switch's own choice",
    "budget": "best within the budget",
    "size": "by the box's area (Eq. 8)",
    **{f"fixed:{size}": f"all {size}×{size}" for size in MASK_SIZES},
}
"""What can be chosen, in words."""


def explore(
    prediction: Prediction, image: Picture | None = None, policy: str = "learned", budget: float | None = None
) -> Explorer:
    """Look at a prediction in a notebook; the last line of a cell shows it.

    Args:
        prediction: of :class:`dynamask.predict.Predictor`; masks of other sizes are computed now if they are not
            known (``all_sizes=True`` has them).
        image: the picture, where it is to be drawn on another than the one that was predicted on (of the same size).
        policy: what is shown first: "learned", "size" or "fixed:S".
        budget: mean GMACs per instance, to begin with a budget.

    Raises:
        DynaMaskError: the prediction has no picture and none is given, the given one has another size, or the policy
            or the budget cannot be used.
    """
    return Explorer(prediction, image, policy, budget)


class Explorer(widgets.VBox):
    """Picture, slider, list and figures of one prediction; arguments as of :func:`explore`.

    Attributes:
        slider: the budget, mean GMACs per instance; moving it chooses the policy "budget".
        policy: the policy, a key of ``POLICIES``.
        instances: the list of instances; so does a click on the picture, or an arrow key on it, pick one.
        picture: the overlay.
        bars, reasons: the figures of all instances and of the picked one.
        selected: index of the picked instance, or None; can be set and observed.
    """

    selected = traitlets.Int(None, allow_none=True)

    def __init__(
        self, prediction: Prediction, image: Picture | None = None, policy: str = "learned", budget: float | None = None
    ) -> None:
        self._given, self._macs = prediction, prediction.regions.branch.costs.macs_per_instance
        self._gmacs = [value / 1e9 for value in self._macs]
        check_choice(policy, budget, self._macs)
        shown, self._boxes = _shown(prediction, image)
        self._overlay = RepeatedOverlay(shown, self._mask)
        self._learned = choose(prediction, "learned", None, self._macs).tolist()
        self._choice = list(self._learned)
        self._crops: dict[int, list[bytes]] = {}
        self._drawn: tuple[list[int], int | None] | None = None
        self._explained: tuple[int, int] | None = None
        self._busy = False
        self._compute_masks()
        self._make_parts("budget" if budget is not None else policy, budget)
        super().__init__(self._rows())
        self._watch()
        self.selected = 0 if len(prediction) else None
        self._update()

    @property
    def prediction(self) -> Prediction:
        """The prediction as the widget shows it now: its sizes, costs and masks under the chosen policy."""
        choice = torch.tensor(self._choice, dtype=torch.int64)
        sizes, macs = torch.tensor(MASK_SIZES)[choice], torch.tensor(self._macs)[choice]
        return dataclasses.replace(self._given, mask_size=sizes, macs=macs)

    @property
    def mask_size(self) -> list[int]:
        """Every instance's mask size as it is shown."""
        return [MASK_SIZES[k] for k in self._choice]

    def _mask(self, index: int, size: int) -> np.ndarray:
        """(h, w) bool in pixels of the picture as it is shown."""
        probs = self._given.mask_probs_at(index, size)
        return paste_mask(probs, self._boxes[index], self._overlay.image.shape[:2]).numpy()

    def _compute_masks(self) -> None:
        """Every mask at every size, and how it is drawn; a bar tells of the progress where it takes long."""
        count = len(self._given)
        for k in range(len(MASK_SIZES)):
            self._given.regions.ensure(torch.full((count,), k))
        pairs = [(i, size) for i in range(count) for size in MASK_SIZES]
        for i, size in tqdm(pairs, desc="drawing every size", delay=1.0, leave=False):
            self._overlay.prepare(i, size)

    def _make_parts(self, policy: str, budget: float | None) -> None:
        """The controls and the figures, not connected yet."""
        span = self._gmacs[-1] - self._gmacs[0]
        step = 5 * 10.0 ** math.floor(math.log10(span / 200))
        low, high = (round(math.ceil(value / step - 1e-9) * step, 9) for value in (self._gmacs[0], self._gmacs[-1]))
        start = budget if budget is not None else round(self._mean() / step) * step or high
        wide = {"description_width": "auto"}
        self.policy = widgets.Dropdown(
            options=[(words, name) for name, words in POLICIES.items()],
            value=policy,
            description="policy",
            tooltip="who decides the mask sizes",
            style=wide,
            layout={"width": "260px"},
        )
        self.slider = widgets.FloatSlider(
            value=min(max(start, low), high), min=low, max=high, step=step, readout_format=".4f" if high < 1 else ".3f",
            description="budget, mean GMACs per instance", tooltip="the mean cost that the masks may have",
            style=wide, layout={"flex": "1 1 320px"},
        )  # fmt: skip
        self.summary = widgets.HTML()
        self.picture = ClickablePicture(on_click=self._click, on_step=self._step)
        self.picture.layout.flex = "3 1 380px"
        names = self._names()
        self.instances = widgets.Select(
            options=[(name, i) for i, name in enumerate(names)], index=None, rows=min(14, max(3, len(names))),
            tooltip="the instances: pick one to see why it has its size", layout={"width": "auto"},
        )  # fmt: skip
        self.reason = widgets.HTML()
        self.crops = widgets.HTML()
        self.bars = living(why.totals_figure(self._gmacs, len(self._given)))
        self.reasons = living(why.choice_figure(self._gmacs))
        for control in (self.slider, self.policy, self.instances):
            control.disabled = not len(self._given)

    def _rows(self) -> list[widgets.Widget]:
        """The parts in their places; what does not fit beside each other wraps."""
        wrap = {"flex_flow": "row wrap", "grid_gap": "4px 12px", "width": "100%", "overflow": "hidden"}
        heading = widgets.HTML("<b>instances</b>, surest first")
        side = widgets.VBox([heading, self.instances, self.reason], layout={"flex": "2 1 300px", "min_width": "0"})
        panels = [widgets.VBox([figure], layout={"flex": "1 1 420px", "min_width": "0"})
                  for figure in (self.reasons, self.bars)]  # fmt: skip
        return [
            widgets.HBox([self.policy, self.slider], layout={**wrap, "align_items": "center"}),
            self.summary,
            widgets.HBox([self.picture, side], layout=wrap),
            self.crops,
            widgets.HBox(panels, layout=wrap),
            PageManners(),
        ]

    def _watch(self) -> None:
        """Connect the controls."""
        self.slider.observe(self._moved, "value")
        self.policy.observe(lambda _: self._update(), "value")
        self.instances.observe(self._picked, "value")
        self.observe(self._reselected, "selected")

    def _moved(self, change: Any) -> None:
        """The slider moved: its budget counts from now on. Less than a step is the page's rounding and no move."""
        if self.policy.value == "budget":
            self._update()
        elif abs(change["new"] - change["old"]) > 0.9 * self.slider.step:
            self.policy.value = "budget"

    def _picked(self, change: Any) -> None:
        if not self._busy:
            self.selected = change["new"]

    def _reselected(self, change: Any) -> None:
        if change["new"] is not None and not 0 <= change["new"] < len(self._given):
            self.selected = change["old"]
            raise DynaMaskError(f"there is no instance {change['new']}; choose one from 0 to {len(self._given) - 1}")
        self._update()

    def _click(self, x: float, y: float) -> None:
        """Pick the uppermost instance at a place (each 0-1 of the picture), else the smallest whose box holds it."""
        height, width = self._overlay.image.shape[:2]
        column, row = x * width, y * height
        hit = [i for i, size in enumerate(self.mask_size) if self._overlay.contains(i, size, int(column), int(row))]
        if not hit:
            held = [(float((b[2] - b[0]) * (b[3] - b[1])), i) for i, b in enumerate(self._boxes.tolist())
                    if b[0] <= column <= b[2] and b[1] <= row <= b[3]]  # fmt: skip
            hit = [min(held)[1]] if held else []
        if hit:
            self.selected = hit[0]

    def _step(self, step: int) -> None:
        """Pick the next instance, or the one before."""
        if len(self._given):
            self.selected = ((self.selected or 0) + step) % len(self._given)

    def _mean(self) -> float:
        """Mean GMACs per instance now; 0 without an instance."""
        return sum(self._gmacs[k] for k in self._choice) / len(self._choice) if self._choice else 0.0

    def _budget(self) -> float | None:
        """The budget if it counts; what the slider rounds off below the cheapest size is given back."""
        return max(self.slider.value, self._gmacs[0]) if self.policy.value == "budget" else None

    def _update(self) -> None:
        """Choose, and draw what has changed."""
        policy = "learned" if self.policy.value == "budget" else self.policy.value
        self._choice = choose(self._given, policy, self._budget(), self._macs).tolist()
        state = (list(self._choice), self.selected)
        if state != self._drawn:
            marked = None if self.selected is None else self._boxes[self.selected].tolist()
            labels = [f"#{i + 1}" for i in range(len(self._choice))]
            self.picture.jpeg = why.jpeg(self._overlay.draw(self.mask_size, labels, marked))
            self._list()
            self._drawn = state
        self._totals()
        self._reasons()

    def _names(self) -> list[str]:
        """One line an instance: number, class, score and size, and the switch's size where it is another."""
        lines = []
        for i, (chosen, learned) in enumerate(zip(self._choice, self._learned)):
            name = self._given.class_names[int(self._given.labels[i])]
            other = f" (switch: {MASK_SIZES[learned]})" if chosen != learned else ""
            lines.append(f"#{i + 1} {name} {float(self._given.scores[i]):.0%} · {MASK_SIZES[chosen]}{other}")
        return lines

    def _list(self) -> None:
        """The list with its sizes and the picked line; the page gets both in one message."""
        self._busy = True
        try:
            with self.instances.hold_sync():
                self.instances.options = [(name, i) for i, name in enumerate(self._names())]
                self.instances.index = self.selected
        finally:
            self._busy = False
        listed = "; ".join(self._names())
        self.picture.alt = f"{len(self._choice)} instances on the picture. {listed}" if listed else "no instance"

    def _totals(self) -> None:
        """The figures over all instances, and their sentence."""
        counts, mean, budget = [self._choice.count(k) for k in range(len(MASK_SIZES))], self._mean(), self._budget()
        with self.bars.batch_update():
            self.bars.data[0].y, self.bars.data[0].text = counts, [str(count) for count in counts]
            self.bars.data[1].y, self.bars.data[1].text = [mean], [f"{mean:.4g}"]
            line = self.bars.layout.shapes[0]
            line.visible = budget is not None
            if budget is not None:
                line.y0 = line.y1 = budget
        self.summary.value = f'<div role="status" aria-live="polite">{self._summary(mean, budget)}</div>'

    def _summary(self, mean: float, budget: float | None) -> str:
        """What is spent, and what the policy changed."""
        if not self._choice:
            return (
                "Nothing was found here; a lower score threshold finds more: <code>predictor(image, score=0.2)</code>."
            )
        coarser = sum(k < own for k, own in zip(self._choice, self._learned))
        finer = sum(k > own for k, own in zip(self._choice, self._learned))
        count = len(self._choice)
        spent = f"<b>{count} instance{'' if count == 1 else 's'}, mean {mean:.4g} GMACs</b>"
        if budget is not None:
            spent += f" of {budget:.4g} (dashed)"
        changed = f"{coarser} coarser and {finer} finer than the switch's own choice" if coarser + finer else ""
        return f"{spent}. {changed or 'Every instance has the size that the switch chose'}."

    def _reasons(self) -> None:
        """The figures of the picked instance, and their sentence."""
        i = self.selected
        if i is None:
            self.reason.value = self.crops.value = ""
            return
        probs, chosen, learned = self._given.switch_probs[i].tolist(), self._choice[i], self._learned[i]
        if self._explained is None or self._explained[0] != i:  # a budget changes no belief: the figure stays as it is
            with self.reasons.batch_update():
                self.reasons.data[0].y, self.reasons.data[0].text = probs, [f"{value:.0%}" for value in probs]
        if (i, chosen) != self._explained:
            if i not in self._crops:
                masks = [self._given.mask_probs_at(i, size).numpy() for size in MASK_SIZES]
                self._crops[i] = why.crop_jpegs(self._overlay.image, self._boxes[i].tolist(), masks)
            self.crops.value = why.crops_html(self._crops[i], self._gmacs, chosen, learned)
            self._explained = (i, chosen)
        budget = self._budget()
        words = POLICIES[self.policy.value] if budget is None else f"under a mean of {budget:.4g} GMACs"
        kept = 1.0 if chosen == learned else _iou(*(self._mask(i, MASK_SIZES[k]) for k in (chosen, learned)))
        title = f"#{i + 1} {self._given.class_names[int(self._given.labels[i])]}"
        text = why.choice_sentence(title, probs, self._gmacs, chosen, learned, kept, words)
        self.reason.value = f'<div style="line-height: 1.4">{text}</div>'


def _shown(prediction: Prediction, image: Picture | None) -> tuple[np.ndarray, torch.Tensor]:
    """The picture as it is shown, (h, w, 3) uint8 RGB, and the boxes (R, 4) in its pixels."""
    picture = prediction.picture if image is None else read_picture(image)
    if picture is None:
        raise DynaMaskError("the prediction remembers no picture; give it: explore(prediction, image)")
    height, width = prediction.image_size
    if picture.shape[:2] != (height, width):
        raise DynaMaskError(
            f"the picture has {picture.shape[1]} x {picture.shape[0]} pixels and the prediction was made on "
            f"{width} x {height}; give the same picture"
        )
    scale = float(np.clip(1.0, *(side / max(height, width) for side in SHOWN_SIDES)))
    scale, shown = min(scale, 2.0), picture
    if scale != 1:
        side = (max(1, round(width * scale)), max(1, round(height * scale)))
        shown = cv2.resize(picture, side, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    factors = torch.tensor([shown.shape[1] / width, shown.shape[0] / height] * 2)
    return shown, prediction.boxes * factors


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    """IoU of two masks (h, w) bool; 1 where both are empty."""
    either = np.logical_or(a, b).sum()
    return float(np.logical_and(a, b).sum() / either) if either else 1.0
