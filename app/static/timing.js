// The time of the mask branch: measured on request for the present choice of sizes.

import { shownPicks } from "./choices.js";
import { formatMacs, milliseconds, plural } from "./format.js";
import { ask } from "./server.js";
import { state } from "./state.js";

let askedFor = ""; // the choice that is being measured, as JSON

export function measure() {
  askedFor = JSON.stringify(shownPicks());
  ask({ ask: "measure", token: state.view.token, picks: shownPicks() }, "Measuring the mask branch…", true);
}

// Keeps an answer { milliseconds, count, mean }.
export function keepTiming(answer) {
  state.timing = { ...answer, picks: askedFor };
}

// Whether the last measured time belongs to another choice than the present one.
export function isStale() {
  return state.timing !== null && state.timing.picks !== JSON.stringify(shownPicks());
}

export function timingText() {
  const { timing, view } = state;
  if (!timing) {
    const candidates = plural(view.instances.length, "candidate");
    return `Mask branch, all four sizes of ${candidates}: ${milliseconds(view.timings.mask_branch)}. Measure times the chosen sizes only.`;
  }
  const time = milliseconds(timing.milliseconds);
  if (isStale()) return `Mask branch: ${time} for the choice measured last (mean ${formatMacs(timing.mean)}).`;
  return `Mask branch with the chosen sizes: ${time}, measured for ${plural(timing.count, "instance")}.`;
}
