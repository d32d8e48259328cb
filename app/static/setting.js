// What the other tabs learn of the Explore page: the present setting, and an event when it changes.

import { shownPicks, summaryOf } from "./choices.js";
import { budgetMacs, oneStage, state } from "./state.js";

// Events on `document`; their `detail` is the present setting.
export const CHANGED = "dynamask-changed"; // after a change, when the moves pause
export const PICTURE = "dynamask-picture"; // another picture, or other weights; the server's session has it by then

// { policy, budget (GMACs), mean (GMACs per shown instance), score, weights, kind, key, picks }; {} without a picture.
// With one-stage weights `family` is "one-stage", `picks` is empty, and policy, budget and mean are missing.
export function now() {
  const { view, score, policy } = state;
  if (!view) return {};
  const common = { score, weights: view.weights, kind: view.kind, key: view.key };
  if (oneStage()) return { ...common, family: view.family, picks: [] };
  return { ...common, policy, budget: budgetMacs() / 1e9, mean: summaryOf(state.picks).mean / 1e9, picks: shownPicks() };
}

export function announce(type) {
  document.dispatchEvent(new CustomEvent(type, { detail: now() }));
}
