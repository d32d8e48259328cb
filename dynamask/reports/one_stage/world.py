"""One-stage weights, several seeds of each model, on the same pictures; two-stage ones beside them where asked for."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dynamask.config import SoloConfig
from dynamask.data.sources import Data
from dynamask.evaluation.coco_ap import evaluate_coco
from dynamask.evaluation.resampled_ap import ResampledAP
from dynamask.models.masks.policies import Policy
from dynamask.predict import OneStagePredictor, Predictor
from dynamask.reports.facts import Source
from dynamask.reports.one_stage.finding import Found, collect, found_once
from dynamask.reports.one_stage.kinds import differences, name_of, trained_like
from dynamask.reports.options import TableOptions
from dynamask.reports.size_choices import at_cost, mean_macs
from dynamask.reports.world import World
from dynamask.structures import MASK_SIZES, DynaMaskError

ROWS = {"segm_ap50": 0, "segm_ap60": 2, "segm_ap70": 4, "segm_ap75": 5, "segm_ap80": 6, "segm_ap90": 8}
"""Row of each measure among the ten IoU thresholds."""
MEASURES = ("segm_ap", *ROWS, "boundary_ap")
SCORE = 0.05
"""Detections below it are left out."""


class Evidence:
    """One weights file on the data.

    Args:
        name: bundled name or path, as given.
        predictor: of these weights, of either family.
        checkpoint: of :func:`dynamask.reports.facts.checkpoint_facts`.
        training: what the file keeps of its training.
        world: that it is part of.
    """

    def __init__(
        self,
        name: str,
        predictor: Predictor,
        checkpoint: dict[str, Any],
        training: dict[str, Any],
        world: OneStageWorld,
    ) -> None:
        self.name, self.predictor, self.checkpoint, self.training = name, predictor, checkpoint, training
        self.world, self.one_stage = world, predictor.family == "one-stage"
        self._drawn: dict[bytes, dict[str, np.ndarray]] = {}
        self._six: dict[bytes, dict[str, float | None]] = {}

    @property
    def label(self) -> str:
        """The name without ending, and with its folder where that alone tells it from others ("last")."""
        path = Path(self.name)
        if path.suffix != ".safetensors":
            return self.name
        return f"{path.parent.name}/{path.stem}" if path.stem in ("last", "model") else path.stem

    @property
    def config(self) -> Any:
        """Of the model."""
        return self.predictor.model.config

    @property
    def seed(self) -> int | None:
        """Of the training."""
        return self.checkpoint["seed"]

    @property
    def trained_on(self) -> str:
        """Data of the training, as its command named them."""
        return str(self.training.get("data") or "unknown")

    def voting(self, scheme: str, iou: float) -> Evidence:
        """The same weights with mask voting."""
        model = copy.copy(self.predictor.model)  # shares the weights
        model.config = dataclasses.replace(model.config, voting=scheme, voting_iou=iou)
        return Evidence(self.name, OneStagePredictor(model), self.checkpoint, self.training, self.world)

    @cached_property
    def found(self) -> Found:
        """What the weights find, or found in an earlier run on the same data."""
        world = self.world
        voting = [self.config.voting, self.config.voting_iou] if self.one_stage else None
        key = {"weights": self.checkpoint["sha256"], "data": world.digest, "score": SCORE, "voting": voting}
        shared = (self.predictor, world.dataset, world.indices, SCORE, world.options.progress)
        return found_once(world.options.cache, key, lambda: collect(*shared))

    @cached_property
    def judge(self) -> ResampledAP:
        """The detections compared with the truth."""
        return ResampledAP(self.world.dataset.coco, self.found.results, self.found.rles, self.world.image_ids)

    def drawn(self, choice: np.ndarray) -> dict[str, np.ndarray]:
        """By measure of ``MEASURES`` (1 + B,), over all pictures and in every draw; "segm" (10, 1 + B) by threshold."""
        key = choice.tobytes()
        if key not in self._drawn:
            weights = self.world.bootstrap.weights[: self.world.options.ap_samples]
            weights = np.concatenate([np.ones((1, weights.shape[1]), dtype=weights.dtype), weights])
            both = {t: self.judge.at_thresholds(self.judge.match(choice, t), weights) for t in ("segm", "boundary")}
            segm = both["segm"]
            values = {"segm": segm, "segm_ap": segm.mean(0), "boundary_ap": both["boundary"].mean(0)}
            self._drawn[key] = values | {measure: segm[row] for measure, row in ROWS.items()}
        return self._drawn[key]

    def six(self, choice: np.ndarray) -> dict[str, float | None]:
        """Mask AP, AP50, AP75, APS, APM and APL."""
        key = choice.tobytes()
        if key not in self._six:
            chosen = zip(self.found.results, self.found.rles, choice.tolist())
            results = [{**result, "segmentation": rles[k]} for result, rles, k in chosen]
            self._six[key] = evaluate_coco(self.world.dataset.coco, results, ("segm",), self.world.image_ids)["segm"]
        return self._six[key]


@dataclass(frozen=True)
class Member:
    """Weights with a choice of mask sizes, of which one-stage models have one alone.

    Attributes:
        evidence: the weights.
        policy: of two-stage weights "learned" or "fixed:S".
        limit: mean MACs of an instance's mask over the data set that their switch is held or driven to, in place of a
            policy; see :func:`dynamask.reports.size_choices.at_cost`.
    """

    evidence: Evidence
    policy: str = "learned"
    limit: float | None = None

    @property
    def choice(self) -> np.ndarray:
        """(N,) size indices on the detections."""
        found = self.evidence.found
        if self.limit is not None and found.results:
            return at_cost(torch.tensor(found.logits), self.evidence.predictor.costs.macs_per_instance, self.limit)
        size = Policy.parse(self.policy).size
        if size is not None:
            return np.full(len(found.results), MASK_SIZES.index(size), dtype=np.int64)
        return np.array(found.choice, dtype=np.int64)

    def draws(self, measure: str) -> np.ndarray:
        """(1 + B,) of a measure, see :meth:`Evidence.drawn`; "segm" is (10, 1 + B)."""
        return self.evidence.drawn(self.choice)[measure]

    def six(self) -> dict[str, float | None]:
        """Mask AP, AP50, AP75, APS, APM and APL."""
        return self.evidence.six(self.choice)

    def macs(self) -> dict[str, float]:
        """Mean MACs of a picture by part: "backbone" with the FPN, "head" (with RPN and box head), "masks", "total"."""
        pictures = self.evidence.found.pictures
        means = {key: sum(p[key] for p in pictures) / max(len(pictures), 1) for key in (pictures or [{}])[0]}
        if self.evidence.one_stage:
            parts = {"backbone": means["backbone"], "head": means["head"], "masks": means["decode"]}
        else:
            costs, choice = self.evidence.predictor.costs, self.choice
            spent = mean_macs(choice, costs.macs_per_instance) * len(choice) if len(choice) else 0.0
            switch = 0.0 if Policy.parse(self.policy).size is not None and self.limit is None else means["switch"]
            masks = spent / max(len(pictures), 1) + means["projections"] + switch
            parts = {"backbone": means["backbone"], "head": means["detector"], "masks": masks}
        return {**parts, "total": sum(parts.values()), "suppress": means.get("suppress", 0.0)}


@dataclass(frozen=True)
class Group:
    """Seeds of one model: weights whose configuration and length of training are the same.

    Attributes:
        config: of the first.
        evidences: by seed.
        label: in words, different from those of the other groups.
    """

    config: SoloConfig
    evidences: tuple[Evidence, ...]
    label: str

    @property
    def images_seen(self) -> int | None:
        """In training."""
        return self.evidences[0].checkpoint["images_seen"]

    @property
    def members(self) -> tuple[Member, ...]:
        """The weights as they are."""
        return tuple(Member(evidence) for evidence in self.evidences)


class OneStageWorld(World):
    """One-stage weights on the same pictures.

    Args:
        dataset, indices, source, options: see :class:`dynamask.reports.world.World`.
        both: two-stage weights are let in, too.
    """

    def __init__(
        self, dataset: Data, indices: Sequence[int], source: Source, options: TableOptions, both: bool = False
    ) -> None:
        super().__init__(dataset, indices, source, options)
        self.both = both

    def add(
        self,
        name: str,
        predictor: Predictor,
        checkpoint: dict[str, Any],
        training: dict[str, Any] | None = None,
    ) -> Evidence:
        """Add weights; they must know the same classes as the others, and no others be equal.

        Raises:
            DynaMaskError: other classes, the same weights twice, or two-stage weights where they are not let in.
        """
        if not self.both and predictor.family != "one-stage":
            raise DynaMaskError(
                f"{name} is a two-stage model, and this report judges one-stage ones; give weights of SOLO, SOLOv2 or "
                "SODAR, or use sodar-table8, which takes both"
            )
        for other in self.evidences:
            if predictor.class_names != other.predictor.class_names:
                raise DynaMaskError(f"{name} and {other.name} know different classes; judge them in separate reports")
            if checkpoint["sha256"] == other.checkpoint["sha256"]:
                raise DynaMaskError(f"{name} and {other.name} are the same weights; give them once")
        self.evidences.append(Evidence(name, predictor, checkpoint, training or {}, self))
        return self.evidences[-1]

    @property
    def two_stage(self) -> list[Evidence]:
        """The two-stage weights."""
        return [e for e in self.evidences if not e.one_stage]

    @property
    def groups(self) -> list[Group]:
        """The one-stage models in the order of their first weights, seeds of one together."""
        kinds: dict[str, list[Evidence]] = {}
        for evidence in self.evidences:
            if evidence.one_stage:
                key = repr((trained_like(evidence.config), evidence.checkpoint["images_seen"]))
                kinds.setdefault(key, []).append(evidence)
        ordered = [sorted(own, key=lambda e: (e.seed is None, e.seed or 0)) for own in kinds.values()]
        names = [name_of(own[0].config) for own in ordered]
        return [
            Group(own[0].config, tuple(own), name + _apart(number, ordered, names))
            for number, (own, name) in enumerate(zip(ordered, names))
        ]


def _apart(number: int, groups: Sequence[Sequence[Evidence]], names: Sequence[str]) -> str:
    """What tells a group from others that have the same name."""
    own, said = groups[number][0], []
    for other, name in zip(groups, names):
        if other[0] is own or name != names[number]:
            continue
        said += differences(own.config, other[0].config)
        if own.checkpoint["images_seen"] != other[0].checkpoint["images_seen"]:
            said.append(f"{own.checkpoint['images_seen'] or 'unknown'} images seen")
    return "".join(f", {word}" for word in dict.fromkeys(said))
