"""Notebook 04: how the switch decides, how a decision can have a gradient, and what keeps it from collapsing."""

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
from plotly.subplots import make_subplots
from torch import Tensor

from dynamask.config import LossConfig
from dynamask.data.shapes import ShapesDataset
from dynamask.engine.frozen_features import FeatureCache, build_cache
from dynamask.engine.frozen_switch import SCHEDULE, SwitchTraining, predict_logits
from dynamask.evaluation.bootstrap import PictureBootstrap
from dynamask.evaluation.choices import shares
from dynamask.models.masks.switch import MaskSwitchModule, sample_gumbel
from dynamask.ops.masks import crop_mask_pyramid, mask_edges
from dynamask.predict import Predictor
from dynamask.structures import MASK_SIZES
from dynamask.viz import charts, style
from dynamask.viz.widgets import PageSetup, live_figure
from lessons.show import Table

NAMES = [f"{size}×{size}" for size in MASK_SIZES]
SIGNAL = LossConfig(
    switch_signal="boundary", boundary_weight=6.0, overlap_share=0.9, budget_target=0.35, switch_weight=0.4
)
"""The losses of the lesson's switches: the error of each size's mask at one grid, Gumbel draws, and Eq. 5 and 6."""
LEFT_OUT: dict[str, tuple[str, ...]] = {
    "quality alone": ("loss_budget", "loss_entropy"),
    "quality + budget": ("loss_entropy",),
    "quality + budget + entropy": (),
}
"""Settings that are compared, and the losses that each leaves out."""


def regions(predictor: Predictor, scenes: int, seed: int) -> FeatureCache:
    """What frozen weights say of every object of some scenes of the shapes world, in its true box.

    Args:
        predictor: of the weights.
        scenes: how many.
        seed: of their world.
    """
    return build_cache(predictor, ShapesDataset(scenes, seed), range(scenes), 0, seed, {"seed": seed})


def probabilities_figure(probs: Tensor, names: Sequence[str]) -> go.Figure:
    """Stacked bars of the switch's probabilities (R, 4), one an instance; the largest is the choice."""
    drawn = charts.figure("What the switch believes, and what it chooses", height=110 + 30 * max(3, len(names)))
    labels = [f"{name} → {MASK_SIZES[k]}" for name, k in zip(names, probs.argmax(dim=1).tolist())]
    drawn.update_layout(barmode="stack")
    for k, size in enumerate(MASK_SIZES):
        drawn.add_bar(
            x=probs[:, k].tolist(), y=labels, orientation="h", name=NAMES[k], marker=style.size_bar(size),
            hovertemplate=f"%{{y}}: {NAMES[k]} %{{x:.0%}}<extra></extra>",
        )  # fmt: skip
    drawn.update_xaxes(tickformat=".0%", range=[0, 1])
    drawn.update_yaxes(autorange="reversed")
    return drawn


class TemperaturePanel(widgets.VBox):
    """Sliders for four logits, the temperature and the noise, and what becomes of them.

    Attributes:
        logits: four sliders.
        temperature: τ of Eq. 2.
        draw: which Gumbel noise is drawn; 0 is none.
        figure: p, soft y and the one-hot y.
    """

    def __init__(self, logits: Sequence[float] = (0.0, 1.0, 1.6, 0.4), temperature: float = 0.5, draw: int = 1) -> None:
        wide = {"description_width": "110px"}
        self.logits = [
            widgets.FloatSlider(value=value, min=-4, max=4, step=0.1, description=f"logit of {name}", style=wide,
                                layout={"width": "330px"})
            for name, value in zip(NAMES, logits)
        ]  # fmt: skip
        self.temperature = widgets.FloatLogSlider(
            value=temperature, min=-1.3, max=1.0, step=0.05, description="temperature τ", style=wide,
            readout_format=".3f", layout={"width": "330px"},
        )  # fmt: skip
        self.draw = widgets.IntSlider(value=draw, min=0, max=200, description="noise no.", style=wide,
                                      tooltip="0: no noise", layout={"width": "330px"})  # fmt: skip
        self.said = widgets.HTML()
        self.figure = live_figure(_panels())
        wrap, controls = {"flex_flow": "row wrap", "overflow": "hidden"}, [self.temperature, self.draw, self.said]
        super().__init__([
            widgets.HBox([widgets.VBox(self.logits), widgets.VBox(controls)], layout=wrap),
            widgets.VBox([self.figure], layout={"overflow": "hidden"}),
            PageSetup(),
        ])  # fmt: skip
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
        liked, drawn = int(three[0].argmax()), int(three[2].argmax())
        same = "the same" if liked == drawn else "another"
        self.said.value = (
            f'<div role="status">argmax of p is <b>{NAMES[liked]}</b>, this draw is {same}: <b>{NAMES[drawn]}</b></div>'
        )


def _panels() -> go.Figure:
    """Three panels of four bars, to be filled."""
    titles = ["p = softmax(logits)", "soft y = softmax((log p + g) / τ)", "y: one-hot, what is computed"]
    return _empty_bars(make_subplots(rows=1, cols=3, subplot_titles=titles, horizontal_spacing=0.05), 3, 270, 40)


def _empty_bars(drawn: go.Figure, columns: int, height: int, top: int) -> go.Figure:
    """Four bars of the sizes in every panel, at 0, on an axis of shares."""
    pattern = {"shape": [style.SIZE_PATTERNS[size] for size in MASK_SIZES]}
    colours = [style.SIZE_COLOURS[size] for size in MASK_SIZES]
    marker = {"color": colours, "pattern": pattern, "line": {"color": style.INK, "width": 1}}
    for column in range(1, columns + 1):
        drawn.add_bar(x=[str(size) for size in MASK_SIZES], y=[0.0] * 4, text=[""] * 4, marker=marker,
                      textposition="outside", cliponaxis=False, row=1, col=column)  # fmt: skip
    drawn.update_layout(template=style.TEMPLATE, showlegend=False, height=height, margin={"t": top})
    drawn.update_annotations(font={"size": 13, "color": style.INK})
    drawn.update_xaxes(type="category", autotypenumbers="strict")
    drawn.update_yaxes(range=[0, 1.15], tickformat=".0%", tickvals=[0, 0.5, 1])
    return drawn


def gumbel_noise(count: int, seed: int) -> Tensor:
    """(count, 4) Gumbel noise of a seed; zeros for the seed 0."""
    like = torch.zeros(count, len(MASK_SIZES))
    return sample_gumbel(like, torch.Generator().manual_seed(seed)) if seed else like


def frequencies_figure(probs: Tensor, frequencies: dict[str, Tensor]) -> go.Figure:
    """The probabilities (4,) beside how often each size was drawn (4,), by the name of the series."""
    drawn = charts.figure("How often each size is drawn", height=320, barmode="group")
    for k, size in enumerate(MASK_SIZES):
        x, values = ["p", *frequencies], [float(probs[k]), *(float(values[k]) for values in frequencies.values())]
        drawn.add_bar(x=x, y=values, text=[f"{v:.3f}" for v in values], textposition="outside", cliponaxis=False,
                      name=NAMES[k], marker=style.size_bar(size))  # fmt: skip
    drawn.update_yaxes(tickformat=".0%")
    return drawn


@dataclass(frozen=True)
class GradientQuality:
    """How well the straight-through gradient tells the true one, by temperature; all relative to its length.

    Attributes:
        temperatures: (T,).
        bias: (T,) distance of the mean over the draws from the true gradient.
        noise: (T,) root mean square distance of a draw from that mean.
    """

    temperatures: np.ndarray
    bias: np.ndarray
    noise: np.ndarray


def true_gradient(logits: Tensor, errors: Tensor) -> Tensor:
    """(4,) of the expected error Σ p e by the logits: p (e − Σ p e); no draw is needed."""
    probs = F.softmax(logits, dim=0)
    return probs * (errors - (probs * errors).sum())


def gradient_quality(
    logits: Tensor, errors: Tensor, temperatures: Sequence[float], draws: int, seed: int = 1
) -> GradientQuality:
    """The straight-through gradient of the drawn error Σ y e, over many draws.

    Args:
        logits: (4,) of one instance.
        errors: (4,) of its masks.
        temperatures: τ of Eq. 2.
        draws: for each temperature, with the same noise.
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
    """Bias and noise of the straight-through gradient over the temperature."""
    drawn = charts.figure("The straight-through gradient, as shares of the true one", height=330)
    looks = {"bias": ("solid", "circle"), "noise of one draw": ("dash", "diamond")}
    for (name, (dash, symbol)), values in zip(looks.items(), (quality.bias, quality.noise)):
        drawn.add_scatter(x=quality.temperatures, y=values, mode="lines+markers", name=name,
                          line={"color": style.ACCENT, "dash": dash}, marker={"symbol": symbol, "size": 8})  # fmt: skip
    ticks = [float(t) for t in quality.temperatures]
    drawn.update_xaxes(type="log", title="temperature τ", tickvals=ticks, ticktext=[f"{t:g}" for t in ticks])
    drawn.update_yaxes(title="÷ length of the true gradient", rangemode="tozero")
    return drawn


def losses_figure(cache: FeatureCache) -> go.Figure:
    """Mean mask and edge loss of every size (each on its own grid) with 95 % intervals over pictures."""
    boot, panels = PictureBootstrap(cache.image_id.unique().tolist(), samples=400), ("mask_loss", "edge_loss")
    rows = boot.rows(cache.image_id.numpy())
    drawn = make_subplots(rows=1, cols=2, subplot_titles=["mask loss", "edge loss"], horizontal_spacing=0.08)
    for column, name in enumerate(panels, start=1):
        for k, size in enumerate(MASK_SIZES):
            found = boot.interval(getattr(cache, name)[:, k].double().numpy(), rows)
            spread = {"array": [found.high - found.mean], "arrayminus": [found.mean - found.low]}
            drawn.add_bar(
                x=[f"{NAMES[k]}<br>{found.mean:.3f}"], y=[found.mean], marker=style.size_bar(size),
                error_y={"type": "data", "symmetric": False, "color": style.INK, **spread}, row=1, col=column,
            )  # fmt: skip
    drawn.update_layout(template=style.TEMPLATE, title="Cross-entropy of each size, mean over the objects", height=330)
    drawn.update_layout(showlegend=False, margin={"t": 76})
    drawn.update_annotations(font={"size": 13, "color": style.INK})
    drawn.update_yaxes(rangemode="tozero")
    return drawn


def rank_table(cache: FeatureCache, samples: int = 200) -> Table:
    """Which signal goes with what a finer mask gains: Spearman's ρ of gains, 112 over 14, with 95 % intervals."""
    boot = PictureBootstrap(cache.image_id.unique().tolist(), samples=samples)
    rows = boot.rows(cache.image_id.numpy())
    gains = {name: getattr(cache, name)[:, -1] - getattr(cache, name)[:, 0] for name in ("boundary_iou", "mask_iou")}
    table = []
    names = {"mask_loss": "mask loss", "edge_loss": "edge loss", "overlap_error": "1 − mask IoU at one grid",
             "boundary_error": "1 − boundary IoU at one grid"}  # fmt: skip
    for column, name in names.items():
        signal = (getattr(cache, column)[:, 0] - getattr(cache, column)[:, -1]).double().numpy()
        found = [boot.spearman(signal, gain.double().numpy(), rows) for gain in gains.values()]
        table.append([name, *(f"{f.mean:+.2f} [{f.low:+.2f}, {f.high:+.2f}]" for f in found)])
    return Table(["what falls from 14 to 112", "ρ with the gain in boundary IoU", "ρ with the gain in mask IoU"], table)


def baseline_table(cache: FeatureCache, scenes: int, seed: int) -> Table:
    """How rare the edges are at each size, and how much of the loss of a blind guess each predictor saves.

    The blind guess knows only the share b of ones: its cross-entropy is −b log b − (1 − b) log(1 − b).

    Args:
        cache: whose losses are judged.
        scenes, seed: of the scenes whose true masks are counted.
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
        rows.append([f"{kind}: loss of a blind guess", *(f"{value:.3f}" for value in blind)])
        rows.append([f"{kind}: what the network saves of it", *(f"{1 - a / b:.0%}" for a, b in zip(loss, blind))])
    return Table(["", *NAMES], rows)


@dataclass(frozen=True)
class SwitchRun:
    """A switch's training, told by what it would choose.

    Attributes:
        name: of the setting.
        steps: (T,) at which it was looked at.
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
    config: LossConfig = SIGNAL,
    steps: int = 200,
    seed: int = 0,
    without: Sequence[str] | None = None,
) -> SwitchRun:
    """Train a new switch on cached regions and look at it about thirty times.

    Args:
        cache: that it learns from and is looked at on.
        name: a key of ``LEFT_OUT``, or any name if ``without`` is given.
        config: of its losses.
        steps: of 32 regions.
        seed: of first weights, order and noise.
        without: names of losses that are left out.
    """
    schedule = dataclasses.replace(SCHEDULE, iterations=steps, warmup=1, batch_size=32, ema_decay=0.0)
    fractions, every, seen = cache.macs / cache.macs[-1], max(1, steps // 30), []

    def look(training: SwitchTraining, _: dict[str, float]) -> None:
        if training.step % every == 0 or training.step in (1, steps):
            probs = F.softmax(predict_logits(training.switch, cache), dim=1)
            choice = probs.argmax(1).numpy()
            cost, spread = float(fractions[choice].mean()), float(probs.std(0).mean())
            seen.append((training.step, shares(choice), cost, probs.double().mean(0).numpy(), spread))

    training = SwitchTraining(cache, config, schedule, seed, LEFT_OUT[name] if without is None else without)
    training.train(look)
    columns: list[Any] = [np.array(column) for column in zip(*seen)]
    return SwitchRun(name, *columns, training.switch.eval())


class StepPlayer(widgets.VBox):
    """Runs beside each other and a slider through their steps.

    Attributes:
        slider: the step.
        figure: shares of the sizes of every run at that step, mean cost in the titles.
    """

    def __init__(self, runs: Sequence[SwitchRun]) -> None:
        self.runs = list(runs)
        steps = [int(step) for step in self.runs[0].steps]
        self.slider = widgets.SelectionSlider(
            options=steps, value=steps[-1], description="training step", style={"description_width": "110px"},
            layout={"width": "560px", "max_width": "100%"},
        )  # fmt: skip
        self.figure = live_figure(self._empty())
        super().__init__([self.slider, widgets.VBox([self.figure], layout={"overflow": "hidden"}), PageSetup()])
        self.slider.observe(lambda _: self._update(), "value")
        self._update()

    def _empty(self) -> go.Figure:
        drawn = make_subplots(rows=1, cols=len(self.runs), subplot_titles=[run.name for run in self.runs],
                              shared_yaxes=True, horizontal_spacing=0.03)  # fmt: skip
        return _empty_bars(drawn, len(self.runs), height=300, top=58)

    def _update(self) -> None:
        with self.figure.batch_update():
            for k, run in enumerate(self.runs):
                at = int(np.searchsorted(run.steps, self.slider.value))
                values, trace = run.shares[at], self.figure.data[k]
                trace.y, trace.text = values.tolist(), [f"{value:.0%}" for value in values]
                self.figure.layout.annotations[k].text = f"{run.name}<br>cost {run.cost[at]:.0%}"


def runs_figure(runs: Sequence[SwitchRun], target: float | None = None) -> go.Figure:
    """Shares of the sizes over the training steps, one panel a run; the mean cost as a line, its target dotted."""
    drawn = make_subplots(rows=1, cols=len(runs), subplot_titles=[run.name for run in runs], shared_yaxes=True,
                          horizontal_spacing=0.03)  # fmt: skip
    for column, run in enumerate(runs, start=1):
        for k, size in enumerate(MASK_SIZES):
            look = style.size_bar(size)
            fill = {**look["pattern"], "bgcolor": look["color"], "fgcolor": "#FFFFFF", "size": 7, "solidity": 0.2}
            drawn.add_scatter(
                x=run.steps, y=run.shares[:, k], stackgroup=f"sizes{column}", name=NAMES[k], mode="lines",
                line={"color": style.INK, "width": 1}, fillcolor=look["color"], fillpattern=fill,
                legendgroup=str(size), showlegend=column == 1, row=1, col=column,
            )  # fmt: skip
        lines = [("mean cost", run.cost, "solid")]
        lines += [("its target", np.full(len(run.steps), target), "dot")] if target else []
        for name, values, dash in lines:
            casing = {"color": "#FFFFFF", "width": 7}
            drawn.add_scatter(x=run.steps, y=values, mode="lines", legendgroup=name, showlegend=False, line=casing,
                              hoverinfo="skip", row=1, col=column)  # fmt: skip
            drawn.add_scatter(x=run.steps, y=values, mode="lines", name=name, legendgroup=name, showlegend=column == 1,
                              line={"color": "#111111", "width": 3, "dash": dash}, row=1, col=column)  # fmt: skip
    drawn.update_layout(template=style.TEMPLATE, height=340, margin={"t": 40}, legend={"orientation": "h", "y": -0.25})
    drawn.update_annotations(font={"size": 13, "color": style.INK})
    drawn.update_xaxes(title="step")
    drawn.update_yaxes(range=[0, 1], tickformat=".0%")
    return drawn
