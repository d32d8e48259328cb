// Policies: which size each instance gets. Pure functions, no page; same conventions as dynamask.models.masks.policies.

// Name, label and explanation of every policy.
export const POLICIES = [
  ["learned", "Learned", "Each instance gets its most probable size, whatever the size costs."],
  ["budget", "Budget", "The most probable sizes whose mean cost stays within the budget: the exact optimum."],
  ["size", "Box size", "Large boxes get fine masks, small boxes coarse ones (Eq. 8 of the paper); the switch is not used."],
  ["oracle", "Oracle", "The sizes with the highest true mask IoU within the budget. It uses ground truth and bounds every policy."],
  ...[14, 28, 56, 112].map((size) => [`fixed:${size}`, `All ${size}`, `Every instance gets a mask of ${size} × ${size}.`]),
];

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

// Log-probabilities of the switch: gains that can be added up.
function logGains(probabilities) {
  return probabilities.map((p) => p.map((value) => Math.log(Math.max(value, 1e-30))));
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
  return instances.map((one) => one.probs.indexOf(Math.max(...one.probs)));
}

// Index of the size of each shown instance under a policy, with sizes set by hand.
//
// Under "budget" and "oracle" the mean over all shown instances stays within `budget` MACs: sizes set by hand are paid
// first, the other instances share the rest. "oracle" takes the sizes with the highest true IoU; instances without
// ground truth keep their most probable size. `macs` and `sizes` by size; `overrides` maps an instance's index to a size
// index; `fronts` is a Map in which solved knapsacks are kept.
export function assign(shown, policy, { sizes, macs, budget, size, overrides, fronts }) {
  const chosen = new Map(overrides);
  let free = shown.filter((one) => !overrides.has(one.index));
  const take = (ones, picks) => ones.forEach((one, i) => chosen.set(one.index, picks[i]));
  if (policy === "oracle") {
    const unknown = free.filter((one) => !one.iou);
    take(unknown, chooseSizes(unknown, "learned", { sizes, size }));
    free = free.filter((one) => one.iou);
  }
  if (!usesBudget(policy)) {
    take(free, chooseSizes(free, policy, { sizes, size }));
  } else if (free.length) {
    const solvable = new Set(free.map((one) => one.index));
    const spent = shown.reduce((sum, one) => sum + (solvable.has(one.index) ? 0 : macs[chosen.get(one.index)]), 0);
    const key = `${policy} ${[...solvable].join(" ")}`;
    if (!fronts.has(key)) {
      if (fronts.size > 8) fronts.clear();
      fronts.set(key, bestFront(policy === "oracle" ? free.map((one) => one.iou) : logGains(free.map((one) => one.probs)), macs));
    }
    take(free, pickWithin(fronts.get(key), (budget * shown.length - spent) / free.length));
  }
  return shown.map((one) => chosen.get(one.index));
}
