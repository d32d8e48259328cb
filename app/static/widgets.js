// Pieces that several panels are made of.

import { countsOf } from "./choices.js";
import { make, sizeBadge, svg } from "./dom.js";
import { percent } from "./format.js";
import { state, styles } from "./state.js";

// A number (with the letter of its unit) over its label.
export function figure(number, label) {
  const [value, letter] = number.split(" ");
  return make("div", { className: "dm-figure" },
    make("div", { className: "dm-figure-value" }, value, letter ? make("small", {}, ` ${letter}`) : null),
    make("div", { className: "dm-figure-label" }, label));
}

// One bar for each size (or level) with its share of the shown instances; `describe(style, count, k)` for screen readers.
export function shareRows(describe) {
  const total = Math.max(state.picks.length, 1);
  return countsOf(state.picks).map((count, k) => barRow(styles()[k], count / total, `${count} · ${percent(count / total)}`,
    false, describe(styles()[k], count, k)));
}

// A horizontal bar: badge, track filled to `value` (0 to 1), text.
export function barRow(style, value, text, chosen, description) {
  return make("div", { className: chosen ? "dm-bar dm-chosen" : "dm-bar", role: "listitem", "aria-label": description },
    sizeBadge(style),
    make("span", { className: "dm-track", "aria-hidden": "true" },
      make("span", { className: "dm-fill", style: `width:${(value * 100).toFixed(2)}%;background:${style.colour}` })),
    make("span", { className: "dm-bar-text", "aria-hidden": "true" }, text));
}

// An entry of the legend: outline, badge and text; `pattern` describes the outline to screen readers.
export function legendItem(style, pattern, text) {
  return make("li", {}, outlineSample(style), sizeBadge(style),
    make("span", {}, make("span", { className: "dm-hidden" }, `${pattern}: `), text));
}

// A short piece of outline as it looks in the picture.
function outlineSample(style) {
  const line = (attributes) => svg("line", { x1: 3, y1: 8, x2: 41, y2: 8, ...attributes });
  const casing = style.text === "#000000" ? "#111" : "#fff";
  const dash = style.gap ? `${style.dash} ${style.gap}` : "none";
  const sample = svg("svg", { viewBox: "0 0 44 16", class: "dm-swatch", "aria-hidden": "true" });
  sample.append(
    line({ stroke: casing, "stroke-width": style.width + 3, "stroke-linecap": "round" }),
    line({ stroke: style.colour, "stroke-width": style.width, "stroke-dasharray": dash }));
  if (style.core) sample.append(line({ stroke: casing, "stroke-width": 1.2 }));
  return sample;
}
