"""Notebook 04: the decision of the switch, its gradient, and the losses that keep it from collapsing."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ipywidgets as widgets
import numpy as np
import plotly.graph_objects as go
import torch
import torch.nn.functional as F
from torch import Tensor

from dynamask.data.shapes import ShapesDataset
from dynamask.engine.frozen_features import FeatureCache, build_cache
from dynamask.engine.frozen_switch import SCHEDULE, SwitchTraining, predict_logits
from dynamask.evaluation.bootstrap import PictureBootstrap
from dynamask.evaluation.choices import shares
from dynamask.models.masks.switch import MaskSwitchModule, sample_gumbel
from dynamask.ops.masks import crop_mask_pyramid, mask_edges
from dynamask.predict import Predictor
from dynamask.structures import MASK_SIZES
from dynamask.training_config import LossConfig
from dynamask.viz import charts, style
from dynamask.viz.widgets import PageSetup, live_figure
from lessons.table import MarkdownTable

NAMES = list(style.SIZE_NAMES.values())
LOSS_CONFIG = LossConfig(
    switch_signal="boundary", boundary_weight=6.0, overlap_share=0.9, budget_target=0.35, switch_weight=0.4
)
"""Losses of the notebook's switches: the error of each size's mask on one grid, Gumbel sampling, and Eq. 5 and 6."""
LOSSES_LEFT_OUT: dict[str, tuple[str, ...]] = {
    "quality alone": ("loss_budget", "loss_entropy"),
    "quality + budget": ("loss_entropy",),
    "quality + budget + entropy": (),
}
"""Losses that each of the compared settings leaves out."""


def regions(predictor: Predictor, scenes: int, seed: int) -> FeatureCache:
    """Cache the features and mask qualities of frozen weights for the objects of generated scenes, in true boxes.

    Args:
        predictor: of the weights.
        scenes: number of scenes.
        seed: of the scenes.
    """
    return build_cache(predictor, ShapesDataset(scenes, seed), range(scenes), 0, seed, {"seed": seed})


def probabilities_figure(probs: Tensor, names: Sequence[str]) -> go.Figure:
    """Draw the switch's probabilities (R, 4), one stacked bar per instance; the largest one is the choice."""
    rows = {f"{name} → {MASK_SIZES[k]}": p for name, k, p in zip(names, probs.argmax(dim=1).tolist(), probs)}
    return charts.size_share_bars(rows, "Switch probabilities and chosen sizes", "probability")


class TemperaturePanel(widgets.VBox):
    """Sliders for four logits, the temperature and the noise, with the resulting probabilities and samples.

    Attributes:
        logits: four sliders.
        temperature: τ of Eq. 2.
        draw: number of the Gumbel noise; 0 for none.
        figure: p, soft y and the one-hot y.
    """

    def __init__(self, logits: Sequence[float] = (0.0, 1.0, 1.6, 0.4), temperature: float = 0.5, draw: int = 1) -> None:
        look = {"style": {"description_width": "110px"}, "layout": {"width": "330px"}}
        self.logits = [
            widgets.FloatSlider(value=value, min=-4, max=4, step=0.1, description=f"logit of {name}", **look)
            for name, value in zip(NAMES, logits)
        ]
        self.temperature = widgets.FloatLogSlider(
            value=temperature, min=-1.3, max=1.0, step=0.05, description="temperature τ", readout_format=".3f", **look
        )
        self.draw = widgets.IntSlider(
            value=draw, min=0, max=200, description="noise no.", tooltip="0: no noise", **look
        )
        self.message = widgets.HTML()
        titles = ["p = softmax(logits)", "soft y = softmax((log p + g) / τ)", "y: one-hot, used forward"]
        self.figure = live_figure(_share_panels(titles, height=270, top=40))
        controls = widgets.VBox([self.temperature, self.draw, self.message])
        wrap = {"flex_flow": "row wrap", "overflow": "hidden"}
        sliders = widgets.HBox([widgets.VBox(self.logits), controls], layout=wrap)
        super().__init__([sliders, widgets.VBox([self.figure], layout={"overflow": "hidden"}), PageSetup()])
        for slider in (*self.logits, self.temperature, self.draw):
            slider.observe(lambda _: self._update(), "value")
        self._update()

    def values(self) -> tuple[Tensor, Tensor, Tensor]:
        """p, the soft y and the one-hot y, each (4,)."""
        logits = torch.tensor([slider.value for slider in self.logits])
        noise = gumbel_noise(1, self.draw.value)[0]
        soft = F.softmax((F.log_softmax(logits, dim=0) + noise) / self.temperature.value, dim=0)
        return F.softmax(logits, dim=0), soft, F.one_hot(soft.argmax(), len(MASK_SIZES)).float()

    def _update(self) -> None:
        three = self.values()
        with self.figure.batch_update():
            for trace, values in zip(self.figure.data, three):
                trace.y, trace.text = values.tolist(), [f"{value:.2f}" for value in values.tolist()]
        best, drawn = int(three[0].argmax()), int(three[2].argmax())
        same = "the same" if best == drawn else "another"
        self.message.value = (
            f'<div role="status">argmax of p: <b>{NAMES[best]}</b>; this draw is {same}: <b>{NAMES[drawn]}</b></div>'
        )


def _share_panels(titles: Sequence[str], height: int, top: int) -> go.Figure:
    """Panels of one bar per mask size on an axis of shares, at 0, to be updated."""
    drawn = charts.panel_figure(titles, height, shared_yaxes=True, horizontal_spacing=0.04)
    for column in range(1, len(titles) + 1):
        charts.add_size_bars(drawn, [0.0] * len(MASK_SIZES), col=column)
    drawn.update_layout(showlegend=False, margin={"t": top})
    return drawn.update_yaxes(range=[0, 1.15], tickformat=".0%", tickvals=[0, 0.5, 1])


def gumbel_noise(count: int, seed: int) -> Tensor:
    """Return Gumbel noise (count, 4) for a seed; zeros for seed 0."""
    like = torch.zeros(count, len(MASK_SIZES))
    return sample_gumbel(like, torch.Generator().manual_seed(seed)) if seed else like


def frequencies_figure(probs: Tensor, frequencies: dict[str, Tensor]) -> go.Figure:
    """Draw the probabilities (4,) beside the frequencies (4,) of drawn sizes, by name of the series."""
    columns = {"p": probs, **frequencies}
    series = {size: {name: float(values[k]) for name, values in columns.items()} for k, size in enumerate(NAMES)}
    return charts.bar_chart(series, "Frequency of drawn sizes", number_format=".1%", height=340)


@dataclass(frozen=True)
class GradientQuality:
    """Error of the straight-through gradient by temperature, relative to the length of the true gradient.

    Attributes:
        temperatures: (T,).
        bias: (T,) distance of the mean over the draws from the true gradient.
        noise: (T,) root mean square distance of a draw from that mean.
    """

    temperatures: np.ndarray
    bias: np.ndarray
    noise: np.ndarray


def true_gradient(logits: Tensor, errors: Tensor) -> Tensor:
    """Return the gradient (4,) of the expected error Σ p e with respect to the logits: p (e − Σ p e)."""
    probs = F.softmax(logits, dim=0)
    return probs * (errors - (probs * errors).sum())


def gradient_quality(
    logits: Tensor, errors: Tensor, temperatures: Sequence[float], draws: int, seed: int = 1
) -> GradientQuality:
    """Measure the straight-through gradient of the sampled error Σ y e over many draws.

    Args:
        logits: (4,) of one instance.
        errors: (4,) of its masks.
        temperatures: τ of Eq. 2.
        draws: number of draws, with the same noise at every temperature.
        seed: of the noise, ≥ 1.
    """
    truth, noise = true_gradient(logits, errors), gumbel_noise(draws, seed)
    bias, spread = [], []
    for temperature in temperatures:
        soft = F.softmax((F.log_softmax(logits, dim=0) + noise) / temperature, dim=1)  # (D, 4)
        gradients = soft * (errors - (soft * errors).sum(1, keepdim=True)) / temperature
        mean = gradients.mean(0)
        bias.append(float((mean - truth).norm() / truth.norm()))
        spread.append(float((gradients - mean).pow(2).sum(1).mean().sqrt() / truth.norm()))
    return GradientQuality(np.asarray(temperatures), np.array(bias), np.array(spread))


def gradient_figure(quality: GradientQuality) -> go.Figure:
    """Draw bias and noise of the straight-through gradient over the temperature."""
    ticks = [float(t) for t in quality.temperatures]
    series = charts.numbered_series(ticks, {"bias": quality.bias, "noise of one draw": quality.noise})
    title, y_title = "Straight-through gradient", "÷ length of the true gradient"
    drawn = charts.curve_chart({"": series}, title, "temperature τ", y_title, height=360)
    drawn.update_xaxes(type="log", tickvals=ticks, ticktext=[f"{t:g}" for t in ticks])
    return drawn.update_yaxes(rangemode="tozero")


def losses_figure(cache: FeatureCache) -> go.Figure:
    """Draw the mean mask and edge loss of every size (each on its own grid) with 95 % intervals over pictures."""
    bootstrap = PictureBootstrap(cache.image_id.unique().tolist(), samples=400)
    rows = bootstrap.rows(cache.image_id.numpy())
    drawn = charts.panel_figure(["mask loss", "edge loss"], 330)
    for column, losses in enumerate((cache.mask_loss, cache.edge_loss), start=1):
        intervals = [bootstrap.interval(losses[:, k].double().numpy(), rows) for k in range(len(MASK_SIZES))]
        means = [interval.mean for interval in intervals]
        bars = charts.error_bars(intervals, color=style.INK)
        charts.add_size_bars(drawn, means, [f"{mean:.3f}" for mean in means], col=column, error_y=bars)
    title = "Cross-entropy of each size, mean over the objects"
    return drawn.update_layout(title=title, showlegend=False, margin={"t": 76}).update_yaxes(rangemode="tozero")


def rank_table(cache: FeatureCache, samples: int = 200) -> MarkdownTable:
    """Correlate the fall of each signal from 14 to 112 with the gain in IoU: Spearman's ρ with 95 % intervals."""
    boot = PictureBootstrap(cache.image_id.unique().tolist(), samples=samples)
    rows = boot.rows(cache.image_id.numpy())
    gains = {name: getattr(cache, name)[:, -1] - getattr(cache, name)[:, 0] for name in ("boundary_iou", "mask_iou")}
    table = []
    names = {
        "mask_loss": "mask loss",
        "edge_loss": "edge loss",
        "overlap_error": "1 − mask IoU on one grid",
        "boundary_error": "1 − boundary IoU on one grid",
    }
    for column, name in names.items():
        signal = (getattr(cache, column)[:, 0] - getattr(cache, column)[:, -1]).double().numpy()
        found = [boot.spearman(signal, gain.double().numpy(), rows) for gain in gains.values()]
        table.append([name, *(f"{f.mean:+.2f} [{f.low:+.2f}, {f.high:+.2f}]" for f in found)])
    header = ["fall from 14 to 112 of", "ρ with the gain in boundary IoU", "ρ with the gain in mask IoU"]
    return MarkdownTable(header, table)


def baseline_table(cache: FeatureCache, scenes: int, seed: int) -> MarkdownTable:
    """Compare each predictor's loss with that of a constant guess, at every size.

    The constant guess is the share b of ones; its cross-entropy is −b log b − (1 − b) log(1 − b).

    Args:
        cache: with the losses.
        scenes, seed: of the scenes whose true masks give b.
    """
    found: dict[str, list[list[float]]] = {"mask": [[] for _ in MASK_SIZES], "edge": [[] for _ in MASK_SIZES]}
    dataset = ShapesDataset(scenes, seed)
    for index in range(scenes):
        _, target = dataset[index]
        for k, crop in enumerate(crop_mask_pyramid(target["masks"], target["boxes"], MASK_SIZES)):
            mask = (crop >= 0.5).float()
            found["mask"][k] += mask.flatten(1).mean(1).tolist()
            found["edge"][k] += mask_edges(mask).flatten(1).float().mean(1).tolist()
    rows: list[list[object]] = []
    for kind in ("mask", "edge"):
        ones = np.array([np.mean(values) for values in found[kind]])
        blind = -ones * np.log(ones) - (1 - ones) * np.log(1 - ones)
        loss = getattr(cache, f"{kind}_loss").double().mean(0).numpy()
        rows.append([f"{kind}: share of ones", *(f"{value:.0%}" for value in ones)])
        rows.append([f"{kind}: loss of a constant guess", *(f"{value:.3f}" for value in blind)])
        rows.append([f"{kind}: share of it that the network saves", *(f"{1 - a / b:.0%}" for a, b in zip(loss, blind))])
    return MarkdownTable(["", *NAMES], rows)


@dataclass(frozen=True)
class SwitchRun:
    """Choices of a switch during its training.

    Attributes:
        name: of the setting.
        steps: (T,) at which the choices were recorded.
        shares: (T, 4) of the sizes by argmax.
        cost: (T,) mean cost of these, a share of the full branch's.
        mean_probs: (T, 4) mean of p over the objects.
        spread: (T,) standard deviation of p over the objects, mean over the sizes: 0 if all get the same p.
        switch: trained.
    """

    name: str
    steps: np.ndarray
    shares: np.ndarray
    cost: np.ndarray
    mean_probs: np.ndarray
    spread: np.ndarray
    switch: MaskSwitchModule


def run_switch(
    cache: FeatureCache,
    name: str = "quality + budget + entropy",
    config: LossConfig = LOSS_CONFIG,
    steps: int = 200,
    seed: int = 0,
    without: Sequence[str] | None = None,
) -> SwitchRun:
    """Train a new switch on cached regions and record its choices about thirty times.

    Args:
        cache: regions to train on and to record the choices for.
        name: a key of ``LOSSES_LEFT_OUT``, or any name if ``without`` is given.
        config: of its losses.
        steps: of 32 regions.
        seed: of first weights, order and noise.
        without: names of losses to leave out.
    """
    schedule = dataclasses.replace(SCHEDULE, iterations=steps, warmup=1, batch_size=32, ema_decay=0.0)
    fractions, every, seen = cache.macs / cache.macs[-1], max(1, steps // 30), []

    def record(training: SwitchTraining, _: dict[str, float]) -> None:
        if training.step % every == 0 or training.step in (1, steps):
            probs = F.softmax(predict_logits(training.switch, cache), dim=1)
            choice = probs.argmax(1).numpy()
            cost, spread = float(fractions[choice].mean()), float(probs.std(0).mean())
            seen.append((training.step, shares(choice), cost, probs.double().mean(0).numpy(), spread))

    training = SwitchTraining(cache, config, schedule, seed, LOSSES_LEFT_OUT[name] if without is None else without)
    training.train(record)
    columns: list[Any] = [np.array(column) for column in zip(*seen)]
    return SwitchRun(name, *columns, training.switch.eval())


class StepPlayer(widgets.VBox):
    """Size shares of several runs side by side, with a slider over their steps.

    Attributes:
        slider: the step.
        figure: shares of the sizes of every run at that step, with the mean cost in the titles.
    """

    def __init__(self, runs: Sequence[SwitchRun]) -> None:
        self.runs = list(runs)
        steps = [int(step) for step in self.runs[0].steps]
        self.slider = widgets.SelectionSlider(
            options=steps,
            value=steps[-1],
            description="training step",
            style={"description_width": "110px"},
            layout={"width": "560px", "max_width": "100%"},
        )
        self.figure = live_figure(_share_panels([run.name for run in self.runs], height=300, top=58))
        super().__init__([self.slider, widgets.VBox([self.figure], layout={"overflow": "hidden"}), PageSetup()])
        self.slider.observe(lambda _: self._update(), "value")
        self._update()

    def _update(self) -> None:
        with self.figure.batch_update():
            for k, run in enumerate(self.runs):
                at = int(np.searchsorted(run.steps, self.slider.value))
                values, trace = run.shares[at], self.figure.data[k]
                trace.y, trace.text = values.tolist(), [f"{value:.0%}" for value in values]
                self.figure.layout.annotations[k].text = f"{run.name}<br>cost {run.cost[at]:.0%}"


def runs_figure(runs: Sequence[SwitchRun], target: float | None = None) -> go.Figure:
    """Draw the shares of the sizes over the training steps, one panel per run, with the mean cost and its target."""
    drawn = charts.panel_figure([run.name for run in runs], 340, shared_yaxes=True, horizontal_spacing=0.03)
    for column, run in enumerate(runs, start=1):
        panel = {"row": 1, "col": column, "showlegend": column == 1}
        charts.add_size_areas(drawn, run.steps, run.shares, **panel)
        lines = {"mean cost": (run.cost, "solid")}
        if target is not None:
            lines["target of the mean cost"] = (np.full(len(run.steps), target), "dot")
        for name, (values, dash) in lines.items():
            line = {"x": run.steps, "y": values, "mode": "lines", "legendgroup": name}
            casing = {"line": {"color": "#FFFFFF", "width": 7}, "hoverinfo": "skip"}
            drawn.add_scatter(**line, **{**panel, "showlegend": False}, **casing)
            drawn.add_scatter(**line, **panel, name=name, line={"color": "#111111", "width": 3, "dash": dash})
    drawn.update_layout(margin={"t": 40}, legend={"orientation": "h", "y": -0.25})
    return drawn.update_xaxes(title="step").update_yaxes(range=[0, 1], tickformat=".0%")
