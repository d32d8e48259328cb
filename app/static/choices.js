// Which instances are shown, which size each of them gets, and what that costs.

import { assign, budgetStops, usesBudget } from "./policies.js";
import { allowMacs, budgetMacs, oneStage, state, styles } from "./state.js";

const fronts = new Map(); // solved knapsacks of the present picture

// Forgets what was solved for the previous picture.
export function forgetSolutions() {
  fronts.clear();
}

// Whether the present picture allows a policy: the oracle needs ground truth, "quality" weights that predict it.
export function allowed(policy) {
  if (policy === "quality") return Boolean(state.view?.predicts_quality);
  return policy !== "oracle" || Boolean(state.view?.instances.some((one) => one.iou));
}

// What the functions of policies.js need to know.
function setting() {
  const { view } = state;
  return { sizes: view.styles.map((style) => style.size), macs: view.macs, budget: budgetMacs(), size: view.size,
    overrides: state.overrides, fronts };
}

export function picksOf(policy) {
  if (oneStage()) return state.shown.map((one) => one.level);
  return assign(state.shown, allowed(policy) ? policy : "learned", setting());
}

// Sets `shown`, `picks` and `leftPicks` of the state. While no budget is in use, it is what the present sizes cost.
export function choose() {
  state.shown = state.view.instances.filter((one) => one.score >= state.score && !state.hidden.has(one.label))
    .sort((a, b) => b.score - a.score);
  state.picks = picksOf(state.policy);
  state.leftPicks = state.compare && !oneStage() ? picksOf(state.compare) : null;
  if (oneStage()) return;
  const idle = !usesBudget(state.policy) && !usesBudget(state.compare);
  if (idle && state.shown.length) allowMacs(summaryOf(state.picks).mean);
}

// Sets `stops` of the state: the steps of the budget slider.
export function findStops() {
  state.stops = budgetStops(state.shown, state.policy === "oracle" && allowed("oracle") ? "oracle" : "budget", setting());
}

// Row of an instance among the shown ones, -1 where it is not shown.
export function rowOf(index) {
  return state.shown.findIndex((one) => one.index === index);
}

// [[index of the instance, index of its size], …] of the shown instances, as the server takes them.
export function shownPicks() {
  return state.shown.map((one, i) => [one.index, state.picks[i]]);
}

// How many picks there are of each size (or level).
export function countsOf(picks) {
  return styles().map((_, k) => picks.filter((pick) => pick === k).length);
}

// Number of instances, their total MACs and the mean.
export function summaryOf(picks) {
  const total = picks.reduce((sum, k) => sum + state.view.macs[k], 0);
  return { count: picks.length, total, mean: picks.length ? total / picks.length : 0 };
}

// Mean true boundary IoU of the shown instances that have ground truth; null where none has.
export function meanTruth(picks) {
  return meanOf((one, k) => one.boundary?.[oneStage() ? 0 : k], picks);
}

// Mean predicted quality of the shown instances; null where none is predicted.
export function meanPredicted(picks) {
  return meanOf((one, k) => (one.quality ? one.values[k] : undefined), picks);
}

// Mean of value(instance, pick) over the shown instances where it is known; null where it is for none.
function meanOf(value, picks) {
  const known = state.shown.map((one, i) => value(one, picks[i])).filter((each) => each !== undefined);
  return known.length ? known.reduce((a, b) => a + b, 0) / known.length : null;
}
