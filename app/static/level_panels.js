// The panels of one-stage weights: levels of the grid in place of mask sizes.

import { countsOf, meanTruth, summaryOf } from "./choices.js";
import { setText } from "./dom.js";
import { formatCount, milliseconds, plural } from "./format.js";
import { $ } from "./page.js";
import { state, styles } from "./state.js";
import { figure, legendItem, shareRows } from "./widgets.js";

// Stride and grid of a level (index 0 is the finest).
export function levelText(k) {
  const { strides, grids } = state.view.levels;
  return `stride ${strides[k]}, grid ${grids[k]} × ${grids[k]}`;
}

// Counts, costs, the share of each level and the legend with its counts.
export function showLevelNumbers() {
  const { view } = state;
  const { count, mean, total } = summaryOf(state.picks);
  const truth = meanTruth(state.picks);
  $(".dm-figures").replaceChildren(
    figure(String(count), count === 1 ? "instance" : "instances"),
    figure(formatCount(view.image_macs), "MACs for the picture: backbone, FPN, head"),
    figure(count ? formatCount(mean) : "–", "MACs to decode a mask, mean"),
    figure(count ? formatCount(total) : "–", "MACs to decode all shown masks"),
    truth === null ? "" : figure(truth.toFixed(3), "boundary IoU, mean"));
  $(".dm-bars").replaceChildren(...shareRows((style, n, k) => `level ${k + 1}, ${levelText(k)}: ${n} of ${plural(count, "instance")}`));
  setText($(".dm-timing-text"), `Decoding and suppressing ${plural(view.instances.length, "candidate")}: ${milliseconds(view.timings.mask_branch)}.`);
  const counts = countsOf(state.picks);
  $(".dm-legend").replaceChildren(...styles().map((style, k) => legendItem(style, style.name, `${levelText(k)}, ${plural(counts[k], "object")}`)));
}

// The times below the page.
export function levelFoot() {
  const { timings } = state.view;
  return `Measured once on this server for this picture: backbone, FPN and head ${milliseconds(timings.detect)}; decoding and ` +
    `suppressing the candidates ${milliseconds(timings.mask_branch)}. 1 MAC = 2 FLOPs.`;
}
