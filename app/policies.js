// Who chooses the sizes: pure functions, no page. Same conventions as dynamask.models.masks.policies.

// Eq. 8: index of the size for a box by its share of the picture.
function sizeByBox(box, width, height, sizeCount) {
  const side = Math.sqrt(Math.max(box[2] - box[0], 0) * Math.max(box[3] - box[1], 0));
  const level = Math.floor(4 + Math.log2(side / Math.sqrt(width * height)));
  return Math.min(sizeCount, Math.max(1, level)) - 1;
}

// The switch's preferences as gains that add up: log p.
function logGains(probabilities) {
  return probabilities.map((p) => p.map((value) => Math.log(Math.max(value, 1e-30))));
}

function budgetFront(probabilities, macs) {
  return bestFront(logGains(probabilities), macs);
}

// Every assignment of sizes that no other beats in both total MACs and total gain: rising cost, rising gain. The exact
// multiple-choice knapsack for all budgets at once; `pickWithin` reads one budget off it.
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

// Index of the size of each instance under a policy: "learned", "budget", "size" or "fixed:SIZE".
// `macs` per size, `budget` in MACs per instance, `size` [width, height] of the picture that the boxes refer to.
function chooseSizes(instances, policy, { sizes, macs, budget, size, front }) {
  if (policy === "budget") return pickWithin(front(), budget);
  if (policy === "size") return instances.map((one) => sizeByBox(one.box, size[0], size[1], sizes.length));
  if (policy.startsWith("fixed:")) return instances.map(() => sizes.indexOf(Number(policy.slice(6))));
  return instances.map((one) => one.probs.indexOf(Math.max(...one.probs)));
}

// Index of the size of each shown instance, with what the visitor fixed by hand.
//
// Under "budget" and "oracle" the mean over all shown instances stays within `budget` MACs as far as the hand leaves
// room: what it fixed is paid first. "oracle" takes the sizes with the highest true IoU; instances without a truth keep
// the learned size. `overrides` maps an instance's index to a size index; `fronts` is a Map that keeps solved knapsacks.
function assign(shown, policy, { sizes, macs, budget, size, overrides, fronts }) {
  const chosen = new Map(overrides);
  let free = shown.filter((one) => !overrides.has(one.index));
  const take = (ones, picks) => ones.forEach((one, i) => chosen.set(one.index, picks[i]));
  const options = { sizes, macs, size };
  if (policy === "oracle") {
    const blind = free.filter((one) => !one.iou);
    take(blind, chooseSizes(blind, "learned", options));
    free = free.filter((one) => one.iou);
  }
  if (policy !== "budget" && policy !== "oracle") {
    take(free, chooseSizes(free, policy, options));
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
