"""Weights on data: every picture is predicted once for each weights file, and judged as often as the tables ask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dynamask.data.sources import Data
from dynamask.engine.evaluate import Instances
from dynamask.evaluation.bootstrap import PictureBootstrap, PrecisionBootstrap
from dynamask.evaluation.choices import Draws, at
from dynamask.evaluation.coco_ap import evaluate_coco
from dynamask.evaluation.resampled_ap import ResampledAP
from dynamask.models.masks.policies import Policy
from dynamask.predict import Predictor
from dynamask.reports.cache import collected_once, data_digest
from dynamask.reports.collecting import MEASURES, Collected, collect_all
from dynamask.reports.facts import Source
from dynamask.reports.options import TableOptions, Wanted
from dynamask.reports.size_choices import at_budget, budget_limits, choice_of
from dynamask.structures import MASK_SIZES, DynaMaskError

REGION_FPN = "region_fpn"


class Evidence:
    """One weights file on the data.

    Args:
        name: bundled name or path, as given.
        predictor: of these weights.
        checkpoint: of :func:`dynamask.reports.facts.checkpoint_facts`.
        world: that it is part of.
    """

    def __init__(self, name: str, predictor: Predictor, checkpoint: dict[str, Any], world: World) -> None:
        self.name, self.predictor, self.checkpoint, self.world = name, predictor, checkpoint, world
        self.macs = tuple(predictor.costs.macs_per_instance)
        self.mask_sizes = predictor.mask_sizes
        trained = checkpoint["switch_trained"] and not checkpoint["baseline"]  # those of baselines are not compared
        self.has_switch = predictor.has_switch and bool(trained)
        self.mask_branch = predictor.model.config.mask_branch
        self._six: dict[bytes, dict[str, float | None]] = {}
        self._curves: dict[str, list[Draws]] = {}

    @property
    def label(self) -> str:
        """The name without folder and ending."""
        return Path(self.name).stem if self.name.endswith(".safetensors") else self.name

    @cached_property
    def kept(self) -> Collected:
        """Everything that was predicted."""
        return self.world.collect(self)

    @cached_property
    def found(self) -> Instances:
        """The detections; none at all raises :class:`DynaMaskError`."""
        if self.kept.found is None or not self.kept.found.results:
            raise DynaMaskError(f"{self.label} detects nothing in the pictures; give other data or weights")
        return self.kept.found

    @cached_property
    def drawn(self) -> PrecisionBootstrap:
        """AP of choices over all pictures and in every draw."""
        world = self.world
        ap = ResampledAP(world.dataset.coco, self.found.results, self.found.rles, world.image_ids)
        return PrecisionBootstrap(ap, world.bootstrap.weights[: world.options.ap_samples])

    def choice(self, policy: str, limit: float | None = None, given: bool = False) -> np.ndarray:
        """(N,) size indices on the detections, or in true boxes.

        Args:
            policy: "learned", "size" or "fixed:S".
            limit: mean MACs over the data set, kept by a price on MACs, in place of a policy.
        """
        instances = self.kept.given if given else self.found
        if limit is not None:
            return at_budget(instances.logits(), self.macs, limit)
        return choice_of(policy, instances, self.world.dataset)

    def average_precision(self, choice: np.ndarray) -> dict[str, float | None]:
        """Mask AP, AP50, AP75, APS, APM and APL of a choice on the detections."""
        key = choice.tobytes()
        if key not in self._six:
            pairs = zip(self.found.results, self.found.rles, choice.tolist(), strict=True)
            results = [{**result, "segmentation": rles[k]} for result, rles, k in pairs]
            self._six[key] = evaluate_coco(self.world.dataset.coco, results, ("segm",), self.world.image_ids)["segm"]
        return self._six[key]

    def draws(self, measure: str, policy: str, limit: float | None = None) -> Draws:
        """Quality and mean MACs (1 + B,): over all pictures, then in every draw.

        Args:
            measure: "segm_ap" or "boundary_ap" of the detections, "mask_iou" or "boundary_iou" in true boxes.
        """
        return self._values(measure, self.choice(policy, limit, measure in MEASURES))

    def curve(self, measure: str, points: int = 6) -> list[Draws]:
        """Costs and quality (L, 1 + B) of the switch under rising budgets."""
        if measure in self._curves:
            return self._curves[measure]
        given = measure in MEASURES
        logits = (self.kept.given if given else self.found).logits()
        limits = budget_limits(logits, self.macs, points)
        self._curves[measure] = [self._values(measure, at_budget(logits, self.macs, limit)) for limit in limits]
        return self._curves[measure]

    def _values(self, measure: str, choice: np.ndarray) -> Draws:
        spent = np.array(self.macs, dtype=np.float64)[choice]
        if measure not in MEASURES:
            return Draws(self.drawn.draws(choice, measure.removesuffix("_ap")), self.drawn.means(spent))
        bootstrap, rows = self.world.bootstrap, self.true_rows
        return Draws(bootstrap.draws(at(self.kept.given.quality(measure), choice), rows), bootstrap.draws(spent, rows))

    @cached_property
    def true_rows(self) -> np.ndarray:
        """(N,) pictures of the instances in true boxes; :class:`DynaMaskError` where there is none."""
        if not self.kept.given.results:
            raise DynaMaskError("the pictures hold no instance of the weights' classes; give other data")
        return self.world.bootstrap.rows(_image_ids(self.kept.given))


def _image_ids(instances: Instances) -> np.ndarray:
    return np.array([result["image_id"] for result in instances.results], dtype=np.int64)


class World:
    """Several weights on the same pictures.

    Args:
        dataset: as the weights see it.
        indices: of the pictures to judge.
        source: names data, split and command.
        options: how to judge.
        wanted: what is predicted.
    """

    def __init__(
        self, dataset: Data, indices: Sequence[int], source: Source, options: TableOptions, wanted: Wanted | None = None
    ) -> None:
        self.dataset, self.indices, self.source, self.options = dataset, list(indices), source, options
        self.wanted = wanted or Wanted()
        self.image_ids = [dataset.image_ids[i] for i in self.indices]
        self.bootstrap = PictureBootstrap(self.image_ids, max(options.samples, options.ap_samples), options.seed)
        self.evidences: list[Evidence] = []

    def add(self, name: str, predictor: Predictor, checkpoint: dict[str, Any]) -> Evidence:
        """Add weights; they must know the same classes as the others.

        Raises:
            DynaMaskError: they know others, so that their AP cannot stand in one table, or they are no mask branch's.
        """
        if predictor.family != "two-stage":
            raise DynaMaskError(
                f"{name} is a one-stage model, and this report judges mask branches; give DynaMask's weights, or use a "
                "report sodar-… for it"
            )
        if self.evidences and predictor.class_names != self.evidences[0].predictor.class_names:
            raise DynaMaskError(
                f"{name} and {self.evidences[0].name} know different classes; judge them in separate reports"
            )
        self.evidences.append(Evidence(name, predictor, checkpoint, self))
        return self.evidences[-1]

    @property
    def main(self) -> Evidence:
        """The first weights with a trained switch; :class:`DynaMaskError` where none has one."""
        if not self.switched:
            names = ", ".join(e.label for e in self.evidences)
            raise DynaMaskError(
                f"{names} have no trained switch; give weights with the mask branch {REGION_FPN} and a switch trained "
                "for it"
            )
        return self.switched[0]

    @property
    def switched(self) -> list[Evidence]:
        """The weights with a trained switch."""
        return [e for e in self.evidences if e.has_switch]

    @property
    def plain(self) -> Evidence:
        """The r-FPN to hold against other mask branches: one trained like them, its switch not, if it is there."""
        without = [e for e in self.evidences if e.mask_branch == REGION_FPN and not e.has_switch]
        return without[0] if without else self.main

    def branch(self, mask_branch: str) -> Evidence | None:
        """The first weights with a mask branch."""
        return next((e for e in self.evidences if e.mask_branch == mask_branch), None)

    @cached_property
    def digest(self) -> str:
        """Of the data, for the cache."""
        return data_digest(self.dataset, self.indices)

    def collect(self, evidence: Evidence) -> Collected:
        """Predict all pictures, or take what an earlier run kept of the same weights, data and settings."""
        wanted = self.wanted
        if not self.switched or evidence is not self.main or evidence.mask_branch != REGION_FPN:
            wanted = replace(wanted, views=0, signals=False)
        seed = self.options.seed if wanted.views else None
        key = {"weights": evidence.checkpoint["sha256"], "data": self.digest, **asdict(wanted), "seed": seed}
        return collected_once(
            self.options.cache,
            key,
            lambda: collect_all(
                evidence.predictor,
                self.dataset,
                self.indices,
                seed=self.options.seed,
                progress=self.options.progress,
                **asdict(wanted),
            ),
        )

    @cached_property
    def true_instances(self) -> int:
        """How many true instances the pictures hold, crowds aside."""
        judged = set(self.image_ids)
        annotations = self.dataset.coco["annotations"]
        return sum(a["image_id"] in judged and not a.get("iscrowd") for a in annotations)


def size_label(policy: str) -> str:
    """A policy in words."""
    names = {"learned": "sizes of the switch", "size": "size-based (Eq. 8)"}
    return names.get(policy) or f"all at {Policy.parse(policy).size}"


def finest(evidence: Evidence) -> str:
    """The policy "fixed:S" of the finest size that weights can make."""
    return str(Policy.fixed(max(evidence.mask_sizes)))


def coarsest_first(sizes: Sequence[int]) -> list[str]:
    """Policies "fixed:S" of sizes, coarse to fine."""
    return [str(Policy.fixed(size)) for size in MASK_SIZES if size in sizes]


def world_facts(world: World, used: Sequence[Evidence] | None = None, **more: object) -> list[tuple[str, str]]:
    """(name, value) pairs for the head of a report on the weights ``used``, all by default; ``more`` are others."""
    return [
        ("weights", ", ".join(e.label for e in (world.evidences if used is None else used))),
        ("data", world.source.data),
        ("split", world.source.split),
        ("pictures", f"{len(world.indices):,}"),
        ("true instances", f"{world.true_instances:,}"),
        ("seed", str(world.options.seed)),
        *((name.replace("_", " "), str(value)) for name, value in more.items()),
        ("command", world.source.command),
    ]
