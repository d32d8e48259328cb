// Policies: which size each instance gets. Pure functions, no page; same conventions as dynamask.models.masks.policies.

// Name, label and explanation of every policy.
export const POLICIES = [
  ["learned", "Learned", "Each instance gets its most probable size, whatever the size costs."],
  ["quality", "Quality", "Each instance gets the coarsest size whose predicted quality is within 0.01 of its best, whatever the size costs."],
  ["budget", "Budget", "The sizes with the highest predicted quality whose mean cost stays within the budget: the exact optimum."],
  ["size", "Box size", "Large boxes get fine masks, small boxes coarse ones (Eq. 8 of the paper); the switch is not used."],
  ["oracle", "Oracle", "The sizes with the highest true mask IoU within the budget. It uses ground truth and bounds every policy."],
  ...[14, 28, 56, 112].map((size) => [`fixed:${size}`, `All ${size}`, `Every instance gets a mask of ${size} × ${size}.`]),
];

// What a policy does, for weights that predict quality or that do not.
export function policyNote(policy, predictsQuality) {
  if (policy === "budget" && !predictsQuality) {
    return "The most probable sizes whose mean cost stays within the budget: the exact optimum. These weights predict no quality.";
  }
  return POLICIES.find(([name]) => name === policy)[2];
}

export function policyName(policy) {
  return POLICIES.find(([name]) => name === policy)[1];
}

// Whether a policy keeps to the budget of the slider.
export function usesBudget(policy) {
  return policy === "budget" || policy === "oracle";
}

// Eq. 8: index of the size for a box by its share of the picture.
export function sizeByBox(box, width, height, sizeCount) {
  const side = Math.sqrt(Math.max(box[2] - box[0], 0) * Math.max(box[3] - box[1], 0));
  const level = Math.floor(4 + Math.log2(side / Math.sqrt(width * height)));
  return Math.min(sizeCount, Math.max(1, level)) - 1;
}

// Steps of the budget slider, at most one more.
const BUDGET_STEPS = 200;

// What a budget maximises: true mask IoU under "oracle", else the server's `values` (predicted quality, or without it
// log-probabilities). Equal predicted qualities count as rising, so that the whole budget can be spent.
function gainsOf(one, policy) {
  if (policy === "oracle") return one.iou;
  return one.quality ? one.values.map((value, k) => value + k * 1e-9) : one.values;
}

// The Pareto front of assignments: those that no other beats in both total MACs and total gain, by rising cost. It solves
// the multiple-choice knapsack exactly for all budgets at once; `pickWithin` reads off the solution of one budget.
function bestFront(gainRows, macs) {
  const layers = [];
  let costs = [0];
  let gains = [0];
  for (const logs of gainRows) {
    const heads = macs.map(() => 0);
    const layer = { costs: [], gains: [], parent: [], choice: [] };
    let best = -Infinity;
    for (;;) {
      let k = -1;
      for (let c = 0; c < macs.length; c++) {
        if (heads[c] >= costs.length) continue;
        const cost = costs[heads[c]] + macs[c];
        const kCost = k < 0 ? Infinity : costs[heads[k]] + macs[k];
        if (cost < kCost || (cost === kCost && gains[heads[c]] + logs[c] > gains[heads[k]] + logs[k])) k = c;
      }
      if (k < 0) break;
      const parent = heads[k]++;
      const gain = gains[parent] + logs[k];
      if (gain <= best) continue;
      best = gain;
      layer.costs.push(costs[parent] + macs[k]);
      layer.gains.push(gain);
      layer.parent.push(parent);
      layer.choice.push(k);
    }
    layers.push(layer);
    ({ costs, gains } = layer);
  }
  return layers;
}

// Indices of the sizes of the best assignment whose mean cost is at most `budget` MACs per instance.
function pickWithin(front, budget) {
  const picks = new Array(front.length).fill(0);
  if (!front.length) return picks;
  const { costs } = front[front.length - 1];
  const limit = budget * front.length + 0.5; // half a MAC for rounding
  let entry = 0;
  while (entry + 1 < costs.length && costs[entry + 1] <= limit) entry++;
  for (let i = front.length - 1; i >= 0; i--) {
    picks[i] = front[i].choice[entry];
    entry = front[i].parent[entry];
  }
  return picks;
}

// Index of the size of each instance under a policy without a budget.
//
// `sizes` in mask pixels, `size` [width, height] of the picture that the boxes refer to.
function chooseSizes(instances, policy, { sizes, size }) {
  if (policy === "size") return instances.map((one) => sizeByBox(one.box, size[0], size[1], sizes.length));
  if (policy.startsWith("fixed:")) return instances.map(() => sizes.indexOf(Number(policy.slice(6))));
  return instances.map((one) => one.chosen[policy]);
}

// How a budget is shared: `free`, the instances whose sizes it decides; `given`, a Map from the index of the others to
// their size: by hand, or without ground truth under "oracle"; `spent`, the MACs of those; and the solved knapsack.
function shareOut(shown, policy, { sizes, macs, size, overrides, fronts }) {
  const given = new Map(overrides);
  let free = shown.filter((one) => !overrides.has(one.index));
  if (policy === "oracle") {
    const unknown = free.filter((one) => !one.iou);
    chooseSizes(unknown, "learned", { sizes, size }).forEach((k, i) => given.set(unknown[i].index, k));
    free = free.filter((one) => one.iou);
  }
  const solvable = new Set(free.map((one) => one.index));
  const spent = shown.reduce((sum, one) => sum + (solvable.has(one.index) ? 0 : macs[given.get(one.index)]), 0);
  const key = `${policy} ${[...solvable].join(" ")}`;
  if (!fronts.has(key)) {
    if (fronts.size > 8) fronts.clear();
    fronts.set(key, bestFront(free.map((one) => gainsOf(one, policy)), macs));
  }
  return { free, given, spent, front: fronts.get(key) };
}

// Mean costs of the shown instances at the steps of the budget slider, rising; each gives another assignment than the one
// before. The first is the cheapest assignment, the last the best one without a limit. The arguments are those of `assign`.
export function budgetStops(shown, policy, setting) {
  if (!shown.length) return [];
  const { spent, front } = shareOut(shown, policy, setting);
  const costs = front.length ? front[front.length - 1].costs : [0];
  const last = costs.length - 1;
  const chosen = new Set([0, last]);
  for (let step = 1, entry = 0; step < BUDGET_STEPS; step++) {
    const limit = costs[0] + ((costs[last] - costs[0]) * step) / BUDGET_STEPS;
    while (entry < last && costs[entry + 1] <= limit) entry++;
    chosen.add(entry);
  }
  return [...chosen].sort((a, b) => a - b).map((entry) => (costs[entry] + spent) / shown.length);
}

// Index of the size of each shown instance under a policy, with sizes set by hand.
//
// Under "budget" and "oracle" the mean over all shown instances stays within `budget` MACs: sizes set by hand are paid
// first, the other instances share the rest. "oracle" takes the sizes with the highest true IoU; instances without
// ground truth keep their most probable size. `macs` and `sizes` by size; `overrides` maps an instance's index to a size
// index; `fronts` is a Map in which solved knapsacks are kept.
export function assign(shown, policy, setting) {
  const { overrides, budget } = setting;
  if (!usesBudget(policy)) {
    const picks = chooseSizes(shown, policy, setting);
    return shown.map((one, i) => overrides.get(one.index) ?? picks[i]);
  }
  const { free, given, spent, front } = shareOut(shown, policy, setting);
  const picks = pickWithin(front, (budget * shown.length - spent) / free.length);
  free.forEach((one, i) => given.set(one.index, picks[i]));
  return shown.map((one) => given.get(one.index));
}
