"""Several weights on the same pictures: the predictions of each, and their quality under any choice of mask sizes."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dynamask.data.sources import Data
from dynamask.engine.evaluate import Instances
from dynamask.evaluation.bootstrap import PictureBootstrap, PrecisionBootstrap
from dynamask.evaluation.choices import Draws, at
from dynamask.evaluation.coco_ap import evaluate_coco, threshold_rows
from dynamask.evaluation.resampled_ap import ResampledAP
from dynamask.models.build import build_model
from dynamask.models.masks.policies import LEARNED, Policy
from dynamask.predict import Predictor, predictor_of
from dynamask.reports.cache import collected_once, data_digest
from dynamask.reports.collect import Collected, collect
from dynamask.reports.options import CollectOptions, ReportOptions
from dynamask.reports.provenance import Checkpoint, Provenance
from dynamask.reports.size_choices import at_budget, at_cost, budget_limits, choice_of
from dynamask.structures import IOU_MEASURES, DynaMaskError

REGION_FPN = "region_fpn"
AP_AT_IOU = {f"segm_{name.lower()}": row for name, row in threshold_rows((0.5, 0.6, 0.7, 0.75, 0.8, 0.9)).items()}
"""The measures that are mask AP at one IoU threshold, "segm_ap50", …, with its row among ``THRESHOLDS``."""


class Evidence:
    """One weights file on the data.

    Args:
        name: bundled name or path, as given.
        predictor: predictor of these weights.
        checkpoint: description of the weights.
        comparison: the comparison that these weights are part of.

    Attributes:
        one_stage: True if the masks have no sizes to choose from.
        mask_sizes: the sizes that the weights can make, coarse to fine.
        macs: MACs of an instance at each mask size; empty for one-stage models.
        has_switch: True if a trained switch chooses the sizes; the switches of bundled baselines do not count.
        overrides: fields of the model's configuration with other values than the file's.
    """

    def __init__(self, name: str, predictor: Predictor, checkpoint: Checkpoint, comparison: Comparison) -> None:
        self.name, self.predictor, self.checkpoint, self.comparison = name, predictor, checkpoint, comparison
        self.one_stage = predictor.family == "one-stage"
        self.mask_sizes = predictor.mask_sizes
        self.macs = () if predictor.costs is None else tuple(predictor.costs.macs_per_instance)
        self.has_switch = predictor.has_switch and checkpoint.switch_trained and not checkpoint.baseline
        self.overrides: dict[str, Any] = {}
        self._ap: dict[bytes, dict[str, float | None]] = {}
        self._curves: dict[str, list[Draws]] = {}

    @property
    def label(self) -> str:
        """The name without ending, with its folder where the name alone says little ("last")."""
        path = Path(self.name)
        if path.suffix != ".safetensors":
            return self.name
        return f"{path.parent.name}/{path.stem}" if path.stem in ("last", "model") else path.stem

    @property
    def mask_branch(self) -> str | None:
        """The mask branch of a two-stage model, for example "region_fpn" or "fcn:28"."""
        return None if self.one_stage else self.predictor.model.config.mask_branch

    def provenance(self) -> dict[str, Any]:
        """Columns that say where the figures of a row come from."""
        checkpoint, comparison = self.checkpoint, self.comparison
        return {
            "weights": self.label,
            "mask_branch": self.mask_branch,
            "model": checkpoint.model,
            "checkpoint": checkpoint.sha256[:8],
            "images_seen": checkpoint.images_seen,
            "training_seed": checkpoint.seed,
            "data": comparison.source.data,
            "split": comparison.source.split,
            "pictures": len(comparison.indices),
        }

    @cached_property
    def collected(self) -> Collected:
        """All predictions."""
        return self.comparison.collect(self)

    @property
    def detections(self) -> Instances:
        """The detections, possibly none."""
        return self.collected.detections or Instances()

    def require_detections(self) -> None:
        """Raise :class:`DynaMaskError` if nothing was detected."""
        if not self.detections.results:
            raise DynaMaskError(f"{self.label} detects nothing in the pictures; give other data or weights")

    @cached_property
    def true_box_rows(self) -> np.ndarray:
        """(N,) positions of the pictures of the instances in true boxes; :class:`DynaMaskError` if there is none."""
        results = self.collected.true_boxes.results
        if not results:
            raise DynaMaskError("the pictures hold no instance of the weights' classes; give other data")
        return self.comparison.bootstrap.rows(np.array([r["image_id"] for r in results], dtype=np.int64))

    @cached_property
    def precision(self) -> PrecisionBootstrap:
        """AP of the detections under resampling."""
        comparison = self.comparison
        found = self.detections
        ap = ResampledAP(comparison.dataset.coco, found.results, found.rles, comparison.image_ids)
        return PrecisionBootstrap(ap, comparison.bootstrap.weights[: comparison.options.ap_samples])

    def choice(
        self, policy: Policy = LEARNED, limit: float | None = None, true_boxes: bool = False, reward: bool = False
    ) -> np.ndarray:
        """(N,) size indices of the detections, or of the instances in true boxes; zeros for one-stage models.

        Args:
            policy: chooses from each picture alone.
            limit: mean MACs over the data set that the switch is held to, instead of a policy.
            reward: reward MACs where the switch by itself spends less than the limit.
        """
        instances = self.collected.true_boxes if true_boxes else self.detections
        if limit is not None:
            return (at_cost if reward else at_budget)(instances.preferences(LEARNED), self.macs, limit)
        return choice_of(policy, instances, self.comparison.dataset)

    def ap(self, choice: np.ndarray) -> dict[str, float | None]:
        """Mask AP, AP50, AP75, APS, APM and APL of the detections under a choice of sizes."""
        key = choice.tobytes()
        if key not in self._ap:
            dataset, image_ids = self.comparison.dataset, self.comparison.image_ids
            self._ap[key] = evaluate_coco(dataset.coco, self.results(choice), ("segm",), image_ids)["segm"]
        return self._ap[key]

    def results(self, choice: np.ndarray) -> list[dict[str, Any]]:
        """COCO results of the detections under a choice of sizes."""
        chosen = zip(self.detections.results, self.detections.rles, choice.tolist(), strict=True)
        return [{**result, "segmentation": rles[k]} for result, rles, k in chosen]

    def draws(self, measure: str, choice: np.ndarray) -> np.ndarray:
        """Draws (1 + B,) of a measure under a choice of sizes.

        Args:
            measure: of the detections "segm_ap", "boundary_ap" or one of ``AP_AT_IOU``; in true boxes "mask_iou" or
                "boundary_iou"; "segm_by_iou" gives the draws (10, 1 + B) of mask AP at each IoU threshold.
        """
        if measure == "segm_by_iou":
            return self.precision.by_threshold(choice, "segm")
        if measure in IOU_MEASURES:
            quality = self.collected.true_boxes.quality(measure)
            return self.comparison.bootstrap.draws(at(quality, choice), self.true_box_rows)
        if measure in AP_AT_IOU:
            return self.precision.by_threshold(choice, "segm")[AP_AT_IOU[measure]]
        return self.precision.draws(choice, measure.removesuffix("_ap"))

    def macs_draws(self, measure: str, choice: np.ndarray) -> np.ndarray:
        """Draws (1 + B,) of the mean MACs of the instances that a measure is taken on."""
        spent = np.array(self.macs, dtype=np.float64)[choice]
        if measure in IOU_MEASURES:
            return self.comparison.bootstrap.draws(spent, self.true_box_rows)
        return self.precision.means(spent)

    def curve(self, measure: str, points: int = 6) -> list[Draws]:
        """A measure and the mean MACs of the switch under rising budgets."""
        if measure not in self._curves:
            true_boxes = measure in IOU_MEASURES
            instances = self.collected.true_boxes if true_boxes else self.detections
            limits = budget_limits(instances.preferences(LEARNED), self.macs, points)
            choices = [self.choice(limit=limit, true_boxes=true_boxes) for limit in limits]
            self._curves[measure] = [Draws(self.draws(measure, c), self.macs_draws(measure, c)) for c in choices]
        return self._curves[measure]

    def with_voting(self, scheme: str, iou: float) -> Evidence:
        """The same one-stage weights with mask voting at inference."""
        model = copy.copy(self.predictor.model)  # shares the weights
        model.config = dataclasses.replace(model.config, voting=scheme, voting_iou=iou)
        return Evidence(self.name, predictor_of(model), self.checkpoint, self.comparison)

    def with_refine(self, refine: tuple[float, ...] | None) -> Evidence:
        """The same two-stage weights with other boundary refinement; None for dense stages."""
        own = self.predictor.model
        model = build_model(dataclasses.replace(own.config, refine=refine))
        model.load_state_dict(own.state_dict())
        other = Evidence(self.name, predictor_of(model.to(self.predictor.device)), self.checkpoint, self.comparison)
        other.overrides = {"refine": refine}
        return other


class Comparison:
    """Several weights on the same pictures.

    Args:
        dataset: the data set, with the classes of the weights.
        indices: indices of the pictures.
        source: names of data, split and command.
        options: options of the comparison.
        collect_options: selects what is predicted.
        families: the model families that are accepted, "two-stage" and "one-stage".
    """

    def __init__(
        self,
        dataset: Data,
        indices: Sequence[int],
        source: Provenance,
        options: ReportOptions,
        collect_options: CollectOptions | None = None,
        families: Sequence[str] = ("two-stage",),
    ) -> None:
        self.dataset, self.indices, self.source, self.options = dataset, list(indices), source, options
        self.collect_options, self.families = collect_options or CollectOptions(), tuple(families)
        self.image_ids = [dataset.image_ids[i] for i in self.indices]
        self.bootstrap = PictureBootstrap(self.image_ids, max(options.samples, options.ap_samples), options.seed)
        self.evidences: list[Evidence] = []

    def add(self, name: str, predictor: Predictor, checkpoint: Checkpoint) -> Evidence:
        """Add weights.

        Raises:
            DynaMaskError: weights of a family that is not accepted, that know other classes than the first ones, or
                one-stage weights that were added before.
        """
        if predictor.family not in self.families:
            wrong = {
                "one-stage": "a one-stage model, and this report compares mask branches; give DynaMask's weights, or "
                "use a report sodar-… for it",
                "two-stage": "a two-stage model, and this report compares one-stage models; give weights of SOLO, "
                "SOLOv2 or SODAR, or use sodar-table8, which takes both",
            }
            raise DynaMaskError(f"{name} is {wrong[predictor.family]}")
        for other in self.evidences:
            if predictor.class_names != other.predictor.class_names:
                raise DynaMaskError(f"{name} and {other.name} know different classes; compare them in separate reports")
            if predictor.family == "one-stage" and checkpoint.sha256 == other.checkpoint.sha256:
                raise DynaMaskError(f"{name} and {other.name} are the same weights; give them once")
        self.evidences.append(Evidence(name, predictor, checkpoint, self))
        return self.evidences[-1]

    @property
    def two_stage(self) -> list[Evidence]:
        """The two-stage weights."""
        return [evidence for evidence in self.evidences if not evidence.one_stage]

    @property
    def switched(self) -> list[Evidence]:
        """The weights with a trained switch."""
        return [evidence for evidence in self.evidences if evidence.has_switch]

    @property
    def main(self) -> Evidence:
        """The first weights with a trained switch; :class:`DynaMaskError` if there are none."""
        if not self.switched:
            names = ", ".join(evidence.label for evidence in self.evidences)
            raise DynaMaskError(
                f"{names} have no trained switch; give weights with the mask branch {REGION_FPN} and a switch trained "
                "for it"
            )
        return self.switched[0]

    @property
    def region_fpn(self) -> Evidence:
        """The r-FPN to compare with other mask branches: trained like them without a switch, if there is such one."""
        without = [e for e in self.evidences if e.mask_branch == REGION_FPN and not e.has_switch]
        return without[0] if without else self.main

    def branch(self, mask_branch: str) -> Evidence | None:
        """The first weights with a mask branch."""
        return next((evidence for evidence in self.evidences if evidence.mask_branch == mask_branch), None)

    @cached_property
    def digest(self) -> str:
        """Digest of the data, for the cache."""
        return data_digest(self.dataset, self.indices)

    def collect(self, evidence: Evidence) -> Collected:
        """Predict all pictures, or read the predictions of the same weights, data and options from the cache."""
        options = self.collect_options
        if not self.switched or evidence is not self.main or evidence.mask_branch != REGION_FPN:
            options = dataclasses.replace(options, views=0, size_losses=False)
        key = {
            "weights": evidence.checkpoint.sha256,
            "data": self.digest,
            **asdict(options),
            "seed": self.options.seed if options.views else None,
            **evidence.overrides,
        }
        if evidence.one_stage:
            config = evidence.predictor.model.config
            key["voting"] = [config.voting, config.voting_iou]
        run = (evidence.predictor, self.dataset, self.indices, options, self.options.seed, self.options.progress)
        return collected_once(self.options.cache, key, lambda: collect(*run))

    def facts(self, used: Evidence | Sequence[Evidence] | None = None, **more: object) -> list[tuple[str, str]]:
        """(name, value) pairs for the head of a report.

        Args:
            used: the weights of the report; all by default. A single one is described with its checkpoint.
            more: further facts; underscores in their names are shown as spaces.
        """
        facts: dict[str, object]
        if isinstance(used, Evidence):
            checkpoint, seen = used.checkpoint, used.checkpoint.images_seen
            trained = "unknown" if seen is None else f"{seen:,}"
            facts = {"weights": f"{used.name} ({checkpoint.model}, {trained} images seen)"}
            facts["checkpoint"] = f"sha256 {checkpoint.sha256}"
        else:
            facts = {"weights": ", ".join(e.label for e in (self.evidences if used is None else used))}
        chosen, annotations = set(self.image_ids), self.dataset.coco["annotations"]
        instances = sum(a["image_id"] in chosen and not a.get("iscrowd") for a in annotations)
        facts |= {"data": self.source.data, "split": self.source.split, "pictures": len(self.indices)}
        facts |= {"true instances": instances, "seed": self.options.seed}
        facts |= {name.replace("_", " "): value for name, value in more.items()} | {"command": self.source.command}
        return [(name, f"{value:,}" if isinstance(value, int) else str(value)) for name, value in facts.items()]
