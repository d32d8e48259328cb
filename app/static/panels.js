// The panels that follow every change: controls, comparison, costs and sizes.

import { allowed, countsOf, findStops, meanPredicted, meanTruth, summaryOf } from "./choices.js";
import { make, setText } from "./dom.js";
import { formatCount, formatMacs, percent, plural } from "./format.js";
import { showLevelNumbers } from "./level_panels.js";
import { $, page } from "./page.js";
import { policyName, policyNote, usesBudget } from "./policies.js";
import { budgetMacs, oneStage, state, stepOf, styles } from "./state.js";
import { isStale, timingText } from "./timing.js";
import { figure, shareRows } from "./widgets.js";

// Shows what follows from the state; called with every change.
export function showPanels() {
  showControls();
  showComparison();
  if (oneStage()) showLevelNumbers();
  else showNumbers();
  $(".dm-clear-boxes").hidden = !state.view.instances.some((one) => one.drawn);
  const sizes = countsOf(state.picks).map((count, k) => `${count} at ${styles()[k].size}`).join(", ");
  page.canvas.setAttribute("aria-label", `${state.view.title || "Picture"}: ${plural(state.shown.length, "instance")}, ${sizes}`);
}

function showControls() {
  if (!oneStage()) showBudget();
  $(".dm-score").value = state.score;
  setText($(".dm-score-value"), state.score.toFixed(2));
  $(".dm-opacity").value = state.opacity;
  setText($(".dm-opacity-value"), percent(state.opacity));
  $(".dm-boxes").checked = state.boxes;
  $(".dm-paper").checked = state.paper;
  $(".dm-each").checked = state.each;
  const star = state.overrides.size ? " A star marks sizes set by hand." : "";
  setText($(".dm-policy-note"), policyNote(state.policy, state.view.predicts_quality) + star);
  for (const radio of page.element.querySelectorAll("[name=dm-policy]")) {
    radio.checked = radio.value === state.policy;
    radio.disabled = !allowed(radio.value);
    radio.closest("label").hidden = radio.disabled;
  }
  $(".dm-budget-card").classList.toggle("dm-idle-budget", !usesBudget(state.policy));
}

// The slider: one step for each assignment that another budget gives.
function showBudget() {
  findStops();
  const slider = $(".dm-budget");
  const macs = budgetMacs();
  const [{ macs: costs }, finest] = [state.view, state.view.macs[state.view.macs.length - 1]];
  slider.max = Math.max(1, state.stops.length - 1);
  slider.value = stepOf(macs);
  slider.disabled = state.stops.length < 2;
  slider.setAttribute("aria-valuetext", `${percent(macs / finest)} of the cost at 112, ${formatMacs(macs)} per instance`);
  setText($(".dm-budget-value"), `${percent(macs / finest)} of the cost at 112`);
  setText($(".dm-budget-macs"), `${formatMacs(macs)} per instance`);
  showTicks(costs);
}

let ticksOf = ""; // what the ticks were drawn for

// Where "every instance at this size" lies on the budget slider, whose thumb is 16 px wide.
function showTicks(costs) {
  const { stops } = state;
  const key = JSON.stringify([stops, state.paper]);
  if (key === ticksOf) return;
  ticksOf = key;
  const last = stops.length - 1;
  $(".dm-ticks").replaceChildren(...styles().flatMap((style, k) => {
    if (last < 1 || costs[k] < stops[0] - 0.5 || costs[k] > stops[last] + 0.5) return [];
    const step = stepOf(costs[k]);
    const between = step < last ? Math.max(0, costs[k] - stops[step]) / (stops[step + 1] - stops[step]) : 0;
    const share = (step + between) / last;
    return [make("span", { style: `left:calc(8px + ${share.toFixed(4)} * (100% - 16px))` }, String(style.size))];
  }));
}

// The row under the picture that compares two policies.
function showComparison() {
  const on = state.compare !== null && !oneStage();
  $(".dm-compare").setAttribute("aria-pressed", String(on));
  $(".dm-divider-row").hidden = !on;
  if (!on) return;
  $(".dm-left").value = state.compare;
  $(".dm-right").value = state.policy;
  for (const option of page.element.querySelectorAll(".dm-left option, .dm-right option")) option.disabled = !allowed(option.value);
  const share = Math.round(state.divider * 100);
  $(".dm-divider").value = share;
  $(".dm-divider").setAttribute("aria-valuetext", `${share} % of the picture shows ${policyName(state.compare)}`);
  const [left, right] = [summaryOf(state.leftPicks), summaryOf(state.picks)];
  const differ = state.picks.filter((k, i) => k !== state.leftPicks[i]).length;
  const truth = [meanTruth(state.leftPicks), meanTruth(state.picks)];
  const predicted = [meanPredicted(state.leftPicks), meanPredicted(state.picks)];
  const change = (name, [a, b]) => (a === null ? "" : ` · ${name} ${a.toFixed(3)} → ${b.toFixed(3)}`);
  const quality = change("predicted quality", predicted) + change("boundary IoU", truth);
  setText($(".dm-compare-text"), right.count
    ? `${formatMacs(left.mean)} → ${formatMacs(right.mean)} per instance · ${differ} of ${right.count} sizes differ${quality}`
    : "No instance is shown.");
}

// Counts, costs, shares of the sizes and the measured time.
function showNumbers() {
  const { view } = state;
  const { count, mean, total } = summaryOf(state.picks);
  const finest = view.macs[view.macs.length - 1];
  const truth = meanTruth(state.picks);
  const predicted = meanPredicted(state.picks);
  $(".dm-figures").replaceChildren(
    figure(String(count), count === 1 ? "instance" : "instances"),
    figure(count ? percent(mean / finest) : "–", "of the cost at 112 × 112"),
    figure(count ? formatCount(mean) : "–", "MACs per instance, mean"),
    figure(count ? formatCount(total) : "–", "MACs, all instances"),
    predicted === null ? "" : figure(predicted.toFixed(3), "predicted quality, mean"),
    truth === null ? "" : figure(truth.toFixed(3), "boundary IoU, mean"));
  showGauge(count ? mean : null, finest);
  $(".dm-bars").replaceChildren(...shareRows((style, n) => `size ${style.size}: ${n} of ${count} instances`));
  setText($(".dm-timing-text"), timingText());
  $(".dm-timing").classList.toggle("dm-stale", isStale());
  $(".dm-measure").disabled = page.root.classList.contains("dm-is-busy") || !count;
}

// The mean cost as a bar and the budget as a mark, from 0 to the finest size.
function showGauge(mean, finest) {
  const place = (macs) => `${Math.min(100, (macs / finest) * 100).toFixed(2)}%`;
  const used = usesBudget(state.policy);
  $(".dm-gauge-bar").style.width = mean === null ? "0" : place(mean);
  $(".dm-gauge-mark").style.left = place(budgetMacs());
  $(".dm-gauge-mark").classList.toggle("dm-idle", !used);
  const budget = used ? `Budget: ${formatMacs(budgetMacs())}` : "No budget: move the slider to set one";
  const text = `${mean === null ? "No instance" : `Mean: ${formatCount(mean)}`} · ${budget}`;
  setText($(".dm-gauge-text"), text);
  $(".dm-gauge").setAttribute("aria-label", text);
}
