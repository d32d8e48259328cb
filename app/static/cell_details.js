// The details of the selected instance of one-stage weights: its cell, its representations and the mask made of them.

import { make, sizeBadge } from "./dom.js";
import { boxText, formatMacs } from "./format.js";
import { levelText } from "./level_panels.js";
import { cropFrame, detailsHead } from "./size_details.js";
import { state, styles } from "./state.js";

// The panel's contents; `close()` ends the selection.
export function cellDetails(one, { close }) {
  const parts = [
    detailsHead(`Why this mask? Instance ${one.index + 1}: ${one.label}`, close),
    make("p", { className: "dm-facts" }, sizeBadge(styles()[one.level]),
      ` score ${one.score.toFixed(2)} · ${boxText(one.box)} px · ${levelText(one.level)} · cell (${one.cell.join(", ")})`),
  ];
  if (one.explanation) parts.push(...explanationParts(one.explanation));
  else parts.push(make("p", { className: "dm-facts" }, one.failed ? "The cell could not be read; open the picture again." : "Reading its cell…"));
  const truth = truthText(one);
  if (truth) parts.push(make("p", { className: "dm-facts dm-truth" }, truth));
  return parts;
}

function truthText(one) {
  if (one.iou) return `Compared with ground truth: mask IoU ${one.iou[0].toFixed(3)}, boundary IoU ${one.boundary[0].toFixed(3)}.`;
  return state.view.truths === null ? "" : "No ground-truth shape overlaps this mask with an IoU of 0.5 or more.";
}

function explanationParts(explanation) {
  const { tiles, limit, scales } = explanation;
  const title = tiles.length > 1 ? "Representations, and the mask computed from them" : "Representation, and the mask";
  const [sx, sy] = [state.view.view[0] / state.view.size[0], state.view.view[1] / state.view.size[1]];
  const crop = explanation.crop.map((side, i) => side * (i % 2 ? sy : sx));
  const end = limit.toPrecision(2);
  return [
    make("p", { className: "dm-sentence" }, `${explanation.sentence} Decoding it takes ${formatMacs(explanation.macs)}.`),
    positionKey(explanation),
    make("h3", {}, title),
    make("div", { className: "dm-tiles dm-cell-tiles" },
      make("figure", { className: "dm-tile" }, cropFrame(crop), make("figcaption", {}, make("strong", {}, "picture"))),
      ...tiles.map((tile) => imageTile(tile.picture, tile.name, tile.place)), imageTile(explanation.mask, "mask", "", true)),
    make("div", { className: "dm-keys" }, scaleKey("logit", scales.logit, [`≤ −${end}`, "0", `≥ ${end}`]),
      scaleKey("probability", scales.probability, ["0", "0.5", "1"])),
  ];
}

function imageTile(source, name, place, chosen = false) {
  const image = make("img", { src: source, alt: `${name} ${place}` });
  return make("figure", { className: chosen ? "dm-tile dm-chosen" : "dm-tile" }, make("div", { className: "dm-tile-frame" }, image),
    make("figcaption", {}, make("strong", {}, name), place ? make("span", {}, place) : null));
}

// What the marks in the picture mean.
function positionKey({ aggregated, base, positions, moved }) {
  const mark = (kind, text) => make("span", { className: "dm-mark-item" },
    make("span", { className: `dm-mark dm-mark-${kind}`, "aria-hidden": "true" }), text);
  return make("p", { className: "dm-facts dm-marks" }, mark("cell", "the cell"),
    aggregated && base.length ? mark("neighbour", "neighbours") : null,
    aggregated && positions.length ? mark("moved", moved.some(Boolean) ? "positions after the learned offset" : "sampled positions") : null);
}

// A colour scale with its ends and its middle.
function scaleKey(name, colours, marks) {
  return make("div", { className: "dm-key" }, make("span", {}, name),
    make("span", { className: "dm-key-bar", style: `background:linear-gradient(to right, ${colours.join(", ")})` }),
    make("span", { className: "dm-key-marks" }, ...marks.map((mark) => make("span", {}, mark))));
}
