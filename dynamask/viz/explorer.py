"""Notebook widget of a prediction: its picture, a slider for the budget, and why each instance has its mask size."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from html import escape
from typing import Any

import cv2
import ipywidgets as widgets
import numpy as np
import plotly.graph_objects as go
import torch
import traitlets
from tqdm import tqdm

from dynamask.data.pictures import PictureSource, read_picture
from dynamask.evaluation.mask_quality import mask_iou
from dynamask.models.masks.policies import LEARNED, QUALITY, Policy, budget_in_macs, default_policy
from dynamask.ops.masks import paste_mask
from dynamask.predict import Prediction
from dynamask.structures import MASK_SIZES, DynaMaskError
from dynamask.viz.charts import add_size_bars, panel_figure
from dynamask.viz.overlay import CachedOverlay, UInt8Array, encode_jpeg
from dynamask.viz.style import ACCENT, EDGE, INK, SIZE_COLOURS, SIZE_NAMES, hex_to_rgb
from dynamask.viz.widgets import ClickableImage, PageSetup, live_figure

SHOWN_SIDES = (640, 960)
"""Longer side of the picture on the page in pixels: smaller ones are enlarged (at most twice), larger ones shrunk."""
CROP_HEIGHT = 112
"""Height of the crops on the page in pixels: one pixel per cell of the finest mask."""
POLICIES: dict[str, str] = {
    "learned": "switch, without a budget",
    "quality": "predicted quality, without a budget",
    "budget": "within the budget",
    "size": "box area (Eq. 8)",
    **{f"fixed:{size}": f"all {name}" for size, name in SIZE_NAMES.items()},
}
"""Labels of the resolution policies; "quality" needs a quality head."""


def explore(
    prediction: Prediction,
    image: PictureSource | None = None,
    policy: str | None = None,
    budget: float | None = None,
) -> Explorer:
    """Explore a prediction in a notebook; as the last line of a cell it shows the widget.

    Args:
        prediction: of a DynaMask model; masks at all sizes are computed now unless they are known (``all_sizes=True``).
        image: the picture to draw on, of the same size as the predicted one; by default that picture itself.
        policy: the first policy, "learned" (the default), "quality", "size" or "fixed:S".
        budget: mean GMACs per instance, to start with a budget. Budgets follow the predicted quality; with the policy
            "learned", or without a quality head, they follow the switch.

    Raises:
        DynaMaskError: the weights of the prediction have no switch, it has no picture and none is given, the given one
            has another size, or the policy or the budget cannot be used.
    """
    return Explorer(prediction, image, policy, budget)


class Explorer(widgets.VBox):
    """Picture, slider, list of instances and charts of one prediction; for the arguments see :func:`explore`.

    Attributes:
        slider: the budget, mean GMACs per instance; moving it selects the policy "budget".
        policy: the resolution policy, a key of ``POLICIES``.
        instances: list that selects an instance, as a click or an arrow key on the picture does.
        picture: the overlay.
        selection_chart: switch probabilities of the selected instance and the cost of each size.
        totals_chart: number of instances by size, and their mean cost.
        selected: index of the selected instance, or None; can be set and observed.
    """

    selected = traitlets.Int(None, allow_none=True)

    def __init__(
        self,
        prediction: Prediction,
        image: PictureSource | None = None,
        policy: str | None = None,
        budget: float | None = None,
    ) -> None:
        if prediction.switch_logits is None:
            raise DynaMaskError(
                "explore shows the sizes that a switch chooses, and the weights of this prediction have none; draw it "
                "with dynamask.viz.overlay.draw_prediction"
            )
        self._given, self._macs = prediction, prediction.regions.branch.costs.macs_per_instance
        self._gmacs = [value / 1e9 for value in self._macs]
        with_quality = prediction.quality is not None
        first = Policy.parse(policy or default_policy(budget is not None, with_quality))
        first.check_budget(budget)
        if first == QUALITY and not with_quality:
            raise DynaMaskError("the policy 'quality' needs a quality head, and these weights have none; use 'learned'")
        if budget is not None:
            budget_in_macs(budget, self._macs)
        self._followed = first if budget is not None else default_policy(True, with_quality)
        shown, factors = _shown(prediction, image)
        self._boxes, self._mask_boxes = prediction.boxes * factors, prediction.mask_boxes * factors
        self._overlay = CachedOverlay(shown, self._mask)
        self._learned = self._chosen(LEARNED).tolist()
        self._choice = list(self._learned)
        self._crops: dict[int, list[bytes]] = {}
        self._drawn: tuple[list[int], int | None] | None = None
        self._explained: tuple[int, int] | None = None
        self._updating_list = False
        self._compute_masks()
        self._make_controls("budget" if budget is not None else str(first), budget)
        self.summary, self.explanation, self.crops = widgets.HTML(), widgets.HTML(), widgets.HTML()
        self.picture = ClickableImage(on_click=self._click, on_step=self._step)
        self.picture.layout.flex = "3 1 380px"
        self.totals_chart = live_figure(totals_figure(self._gmacs, len(prediction)))
        self.selection_chart = live_figure(selection_figure(self._gmacs))
        super().__init__(self._rows())
        self._observe_controls()
        self.selected = 0 if len(prediction) else None
        self._update()

    @property
    def prediction(self) -> Prediction:
        """The prediction as shown: sizes, costs and masks under the current policy."""
        return self._given.resized(torch.tensor(self._choice, dtype=torch.int64), self._macs)

    def _chosen(self, policy: Policy, budget: float | None = None) -> torch.Tensor:
        """(R,) indices into ``MASK_SIZES`` under a policy and a budget in mean GMACs."""
        given, limit = self._given, None if budget is None else budget_in_macs(budget, self._macs)
        return policy.choose(given.boxes, given.image_size, given.switch_logits, self._macs, limit, given.quality)

    @property
    def _labels(self) -> dict[str, str]:
        """Labels of the policies that these weights can follow; that of "budget" names what it maximises."""
        followed = "predicted quality" if self._followed == QUALITY else "switch"
        labels = {**POLICIES, "budget": f"{followed}, {POLICIES['budget']}"}
        return {name: label for name, label in labels.items() if name != "quality" or self._given.quality is not None}

    @property
    def mask_size(self) -> list[int]:
        """Mask size of every instance as shown."""
        return [MASK_SIZES[k] for k in self._choice]

    def _mask(self, index: int, size: int) -> np.ndarray:
        """(h, w) bool mask of an instance in pixels of the picture on the page."""
        probs = self._given.mask_probs_at(index, size)
        return paste_mask(probs, self._mask_boxes[index], self._overlay.image.shape[:2]).numpy()

    def _compute_masks(self) -> None:
        """Compute every mask at every size and its appearance, with a progress bar if it takes long."""
        self._given.regions.ensure_all()
        pairs = [(i, size) for i in range(len(self._given)) for size in MASK_SIZES]
        for i, size in tqdm(pairs, desc="masks at every size", delay=1.0, leave=False):
            self._overlay.prepare(i, size)

    def _make_controls(self, policy: str, budget: float | None) -> None:
        """Create the controls, without their observers."""
        span = self._gmacs[-1] - self._gmacs[0]
        step = 5 * 10.0 ** math.floor(math.log10(span / 200))
        low, high = (round(math.ceil(value / step - 1e-9) * step, 9) for value in (self._gmacs[0], self._gmacs[-1]))
        start = budget if budget is not None else round(self._mean() / step) * step or high
        wide = {"description_width": "auto"}
        self.policy = widgets.Dropdown(
            options=[(label, name) for name, label in self._labels.items()],
            value=policy,
            description="policy",
            tooltip="resolution policy: how mask sizes are chosen",
            style=wide,
            layout={"width": "320px"},
        )
        self.slider = widgets.FloatSlider(
            value=min(max(start, low), high),
            min=low,
            max=high,
            step=step,
            readout_format=".4f" if high < 1 else ".3f",
            description="budget, mean GMACs per instance",
            tooltip="highest mean cost of the masks",
            style=wide,
            layout={"flex": "1 1 320px"},
        )
        names = self._names()
        self.instances = widgets.Select(
            options=[(name, i) for i, name in enumerate(names)],
            index=None,
            rows=min(14, max(3, len(names))),
            tooltip="select an instance to see why it has its mask size",
            layout={"width": "auto"},
        )
        for control in (self.slider, self.policy, self.instances):
            control.disabled = not len(self._given)

    def _rows(self) -> list[widgets.Widget]:
        """Rows of the widget; parts that do not fit side by side wrap."""
        wrap = {"flex_flow": "row wrap", "grid_gap": "4px 12px", "width": "100%", "overflow": "hidden"}
        heading = widgets.HTML("<b>instances</b> by score")
        side = widgets.VBox([heading, self.instances, self.explanation], layout={"flex": "2 1 300px", "min_width": "0"})
        charts = [
            widgets.VBox([chart], layout={"flex": "1 1 420px", "min_width": "0"})
            for chart in (self.selection_chart, self.totals_chart)
        ]
        return [
            widgets.HBox([self.policy, self.slider], layout={**wrap, "align_items": "center"}),
            self.summary,
            widgets.HBox([self.picture, side], layout=wrap),
            self.crops,
            widgets.HBox(charts, layout=wrap),
            PageSetup(),
        ]

    def _observe_controls(self) -> None:
        self.slider.observe(self._slider_moved, "value")
        self.policy.observe(lambda _: self._update(), "value")
        self.instances.observe(self._list_changed, "value")
        self.observe(self._selection_changed, "selected")

    def _slider_moved(self, change: Any) -> None:
        """Apply the budget. A change of less than a step is rounding by the page and does not select the policy."""
        if self.policy.value == "budget":
            self._update()
        elif abs(change["new"] - change["old"]) > 0.9 * self.slider.step:
            self.policy.value = "budget"

    def _list_changed(self, change: Any) -> None:
        if not self._updating_list:
            self.selected = change["new"]

    def _selection_changed(self, change: Any) -> None:
        if change["new"] is not None and not 0 <= change["new"] < len(self._given):
            self.selected = change["old"]
            raise DynaMaskError(f"there is no instance {change['new']}; choose one from 0 to {len(self._given) - 1}")
        self._update()

    def _click(self, x: float, y: float) -> None:
        """Select the uppermost instance at (x, y) in 0–1 of the picture, else the smallest whose box contains it."""
        height, width = self._overlay.image.shape[:2]
        column, row = x * width, y * height
        hit = [i for i, size in enumerate(self.mask_size) if self._overlay.contains(i, size, int(column), int(row))]
        if hit:
            self.selected = hit[0]
            return
        areas = {
            i: (x1 - x0) * (y1 - y0)
            for i, (x0, y0, x1, y1) in enumerate(self._boxes.tolist())
            if x0 <= column <= x1 and y0 <= row <= y1
        }
        if areas:
            self.selected = min(areas, key=areas.__getitem__)

    def _step(self, step: int) -> None:
        """Select the next (1) or previous (−1) instance."""
        if len(self._given):
            self.selected = ((self.selected or 0) + step) % len(self._given)

    def _mean(self) -> float:
        """Mean GMACs per instance; 0 without an instance."""
        return sum(self._gmacs[k] for k in self._choice) / len(self._choice) if self._choice else 0.0

    def _budget(self) -> float | None:
        """The budget in use or None; at least the cheapest size, which the slider may round down."""
        return max(self.slider.value, self._gmacs[0]) if self.policy.value == "budget" else None

    def _update(self) -> None:
        """Choose the sizes and redraw what has changed."""
        policy = self._followed if self.policy.value == "budget" else Policy.parse(self.policy.value)
        self._choice = self._chosen(policy, self._budget()).tolist()
        state = (list(self._choice), self.selected)
        if state != self._drawn:
            marked = None if self.selected is None else self._boxes[self.selected].tolist()
            labels = [f"#{i + 1}" for i in range(len(self._choice))]
            self.picture.jpeg = encode_jpeg(self._overlay.draw(self.mask_size, labels, marked))
            self._update_list()
            self._drawn = state
        self._update_totals()
        self._update_selection()

    def _names(self) -> list[str]:
        """One line per instance: number, class, score, size, and the switch's size if it differs."""
        lines = []
        for i, (chosen, learned) in enumerate(zip(self._choice, self._learned)):
            name = self._given.class_names[int(self._given.labels[i])]
            other = f" (switch: {MASK_SIZES[learned]})" if chosen != learned else ""
            lines.append(f"#{i + 1} {name} {float(self._given.scores[i]):.0%} · {MASK_SIZES[chosen]}{other}")
        return lines

    def _update_list(self) -> None:
        """Update the lines of the list and the selected one in a single message to the page."""
        self._updating_list = True
        try:
            with self.instances.hold_sync():
                self.instances.options = [(name, i) for i, name in enumerate(self._names())]
                self.instances.index = self.selected
        finally:
            self._updating_list = False
        listed = "; ".join(self._names())
        self.picture.alt = f"picture with {len(self._choice)} instances: {listed}" if listed else "no instance"

    def _update_totals(self) -> None:
        """Update the chart and the summary of all instances."""
        counts, mean, budget = [self._choice.count(k) for k in range(len(MASK_SIZES))], self._mean(), self._budget()
        with self.totals_chart.batch_update():
            by_size, mean_bar = self.totals_chart.data
            by_size.y, by_size.text = counts, [str(count) for count in counts]
            mean_bar.y, mean_bar.text = [mean], [f"{mean:.4g}"]
            line = self.totals_chart.layout.shapes[0]
            line.visible = budget is not None
            if budget is not None:
                line.y0 = line.y1 = budget
        self.summary.value = f'<div role="status" aria-live="polite">{self._summary(mean, budget)}</div>'

    def _summary(self, mean: float, budget: float | None) -> str:
        """Mean cost, and how many sizes differ from the switch's."""
        if not self._choice:
            return "No instance was found. Try a lower score threshold: <code>predictor(image, score=0.2)</code>."
        coarser = sum(k < own for k, own in zip(self._choice, self._learned))
        finer = sum(k > own for k, own in zip(self._choice, self._learned))
        count = len(self._choice)
        cost = f"<b>{count} instance{'' if count == 1 else 's'}, mean {mean:.4g} GMACs</b>"
        if budget is not None:
            cost += f" of {budget:.4g} (dashed)"
        changed = f"{coarser} coarser and {finer} finer than the switch's choice" if coarser + finer else ""
        return f"{cost}. {changed or 'Every instance has the size that the switch chose'}."

    def _update_selection(self) -> None:
        """Update the chart, the crops and the explanation of the selected instance."""
        i = self.selected
        if i is None:
            self.explanation.value = self.crops.value = ""
            return
        probs, chosen, learned = self._given.switch_probs[i].tolist(), self._choice[i], self._learned[i]
        if self._explained is None or self._explained[0] != i:  # probabilities do not depend on the policy
            with self.selection_chart.batch_update():
                bars = self.selection_chart.data[0]
                bars.y, bars.text = probs, [f"{value:.0%}" for value in probs]
        if (i, chosen) != self._explained:
            if i not in self._crops:
                masks = [self._given.mask_probs_at(i, size).numpy() for size in MASK_SIZES]
                self._crops[i] = crop_jpegs(self._overlay.image, self._mask_boxes[i].tolist(), masks)
            self.crops.value = crops_html(self._crops[i], self._gmacs, chosen, learned)
            self._explained = (i, chosen)
        title = f"#{i + 1} {self._given.class_names[int(self._given.labels[i])]}"
        self.explanation.value = f'<div style="line-height: 1.4">{self._explanation(i, title, probs)}</div>'

    def _explanation(self, index: int, title: str, probs: Sequence[float]) -> str:
        """HTML sentence on the size of an instance, its cost, and how its mask differs from the switch's."""
        chosen, learned, budget = self._choice[index], self._learned[index], self._budget()
        names, gmacs = list(SIZE_NAMES.values()), self._gmacs
        policy = self._labels[self.policy.value]
        if budget is not None:
            policy = f"{policy} of {budget:.4g} mean GMACs"
        text = f"<b>{escape(title)}</b>: the switch prefers {names[learned]} ({probs[learned]:.0%})"
        estimate = self._estimate(index)
        if chosen == learned:
            also = f"which is also the chosen size (policy: {policy}); it costs {gmacs[chosen]:.3g} GMACs."
            return f"{text}, {also}{estimate}"
        difference = gmacs[chosen] - gmacs[learned]
        masks = [self._mask(index, MASK_SIZES[k]) for k in (chosen, learned)]
        overlap = mask_iou(*masks) if any(mask.any() for mask in masks) else 1.0
        return (
            f"{text}; the chosen size is {names[chosen]} ({probs[chosen]:.0%}; policy: {policy}), which costs "
            f"{abs(difference):.3g} GMACs {'more' if difference > 0 else 'less'}. The two masks have an IoU of "
            f"{overlap:.2f}.{estimate}"
        )

    def _estimate(self, index: int) -> str:
        """Sentence on the predicted quality of an instance; empty without a quality head."""
        if self._given.quality is None:
            return ""
        outline = self._given.quality[index, :, 1].tolist()
        return (
            f" At {MASK_SIZES[0]} this keeps an estimated {outline[0]:.0%} of its outline, at {MASK_SIZES[-1]} "
            f"{outline[-1]:.0%}; at the chosen size {outline[self._choice[index]]:.0%} (predicted boundary IoU)."
        )


# --- figures and crops ----------------------------------------------------------------------------------------------


def selection_figure(gmacs: Sequence[float]) -> go.Figure:
    """Two panels by mask size: switch probabilities (at 0, to be updated) and the cost of an instance, (4,) GMACs."""
    drawn = _two_panels(["switch probability", "cost of a mask, GMACs"])
    add_size_bars(drawn, [0.0] * len(gmacs), col=1)
    add_size_bars(drawn, gmacs, [f"{value:.3g}" for value in gmacs], col=2)
    drawn.update_yaxes(range=[0, 1.28], tickformat=".0%", tickvals=[0, 0.5, 1], row=1, col=1)
    return drawn.update_yaxes(range=[0, max(gmacs) * 1.25], nticks=4, row=1, col=2)


def totals_figure(gmacs: Sequence[float], instances: int) -> go.Figure:
    """Two panels: number of instances by size, and their mean cost beside the cost of each size, (4,) GMACs.

    Counts and mean are at 0, to be updated; the first shape is the line of the budget, not visible at first.
    """
    drawn = _two_panels(["instances by mask size", "mean GMACs per instance"])
    add_size_bars(drawn, [0] * len(gmacs), col=1)
    marker = {"color": ACCENT, "line": EDGE}
    shown = {"textposition": "outside", "cliponaxis": False, "hoverinfo": "x+text"}
    drawn.add_bar(x=["mean"], y=[0.0], text=[""], width=[0.5], marker=marker, **shown, row=1, col=2)
    across = {"type": "line", "x0": 0, "x1": 1, "xref": "x2 domain", "yref": "y2"}
    budget_line = {"color": INK, "width": 3, "dash": "dash"}
    drawn.add_shape(**across, y0=gmacs[0], y1=gmacs[0], visible=False, line=budget_line)
    for size, value in zip(MASK_SIZES, gmacs):
        drawn.add_hline(y=value, line={"color": SIZE_COLOURS[size], "width": 3}, layer="below", row=1, col=2)
    drawn.update_yaxes(range=[0, max(1, instances) * 1.25], nticks=4, row=1, col=1)
    names = [f"all {size}" for size in MASK_SIZES]
    return drawn.update_yaxes(range=[0, max(gmacs) * 1.2], tickvals=list(gmacs), ticktext=names, row=1, col=2)


def _two_panels(titles: Sequence[str]) -> go.Figure:
    """An empty low figure with two panels."""
    drawn = panel_figure(titles, 230, horizontal_spacing=0.1)
    return drawn.update_layout(showlegend=False, margin={"l": 8, "r": 8, "t": 32, "b": 8})


def crop_jpegs(picture: UInt8Array, box: Sequence[float], masks: Sequence[np.ndarray]) -> list[bytes]:
    """Encode the picture inside a box as JPEG, once for each mask with the mask's cells drawn over it.

    Args:
        picture: (H, W, 3) uint8 RGB.
        box: xyxy in pixels of the picture; beyond the picture its border pixels are repeated.
        masks: one (S, S) in [0, 1] for each of ``MASK_SIZES``.
    """
    height, width = picture.shape[:2]
    x0, y0 = (math.floor(v) for v in box[:2])
    x1, y1 = (max(low + 1, math.ceil(v)) for v, low in zip(box[2:], (x0, y0)))
    rows, columns = np.arange(y0, y1).clip(0, height - 1), np.arange(x0, x1).clip(0, width - 1)
    size = int(np.clip(round(CROP_HEIGHT * (x1 - x0) / (y1 - y0)), 40, 2 * CROP_HEIGHT)), CROP_HEIGHT
    crop = cv2.resize(picture[rows][:, columns], size, interpolation=cv2.INTER_AREA)
    encoded = []
    for mask_size, probs in zip(MASK_SIZES, masks):
        cells = cv2.resize((np.asarray(probs) >= 0.5).astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
        colour = np.array(hex_to_rgb(SIZE_COLOURS[mask_size]))
        shown = np.where(cells[..., None] > 0, crop * 0.35 + colour * 0.65, crop * 0.8).astype(np.uint8)
        encoded.append(encode_jpeg(shown))
    return encoded


def crops_html(crops: Sequence[bytes], gmacs: Sequence[float], chosen: int, learned: int) -> str:
    """The crops side by side with size and cost; the chosen one and the switch's preference are framed and named."""
    cells = []
    for k, (name, data) in enumerate(zip(SIZE_NAMES.values(), crops)):
        notes = [note for note, index in (("chosen", chosen), ("preferred by the switch", learned)) if k == index]
        frame = f"3px {'solid' if k == chosen else 'dotted'} {INK if notes else 'transparent'}"
        caption = "<br>".join([f"<b>{name}</b>", f"{gmacs[k]:.3g} GMACs", *(f"<b>{note}</b>" for note in notes)])
        source = f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
        cells.append(
            f'<figure style="margin: 0; min-width: 130px; text-align: center; line-height: 1.3">'
            f'<img style="border: {frame}; padding: 2px" alt="{", ".join([f"mask at {name}", *notes])}" src="{source}">'
            f"<figcaption>{caption}</figcaption></figure>"
        )
    return f'<div style="display: flex; flex-wrap: wrap; gap: 8px">{"".join(cells)}</div>'


def _shown(prediction: Prediction, image: PictureSource | None) -> tuple[np.ndarray, torch.Tensor]:
    """The picture on the page, (h, w, 3) uint8 RGB, and the factors (4,) from boxes of the prediction to its pixels."""
    picture = prediction.picture if image is None else read_picture(image)
    if picture is None:
        raise DynaMaskError("the prediction holds no picture; pass it: explore(prediction, image)")
    height, width = prediction.image_size
    if picture.shape[:2] != (height, width):
        raise DynaMaskError(
            f"the picture has {picture.shape[1]} x {picture.shape[0]} pixels but the prediction was made on "
            f"{width} x {height}; pass the same picture"
        )
    scale = float(np.clip(1.0, *(side / max(height, width) for side in SHOWN_SIDES)))
    scale, shown = min(scale, 2.0), picture
    if scale != 1:
        side = (max(1, round(width * scale)), max(1, round(height * scale)))
        shown = cv2.resize(picture, side, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    return shown, torch.tensor([shown.shape[1] / width, shown.shape[0] / height] * 2)
