// The details of the selected instance: crop, the four masks and their edges, switch probabilities, true quality.

import { rowOf } from "./choices.js";
import { maskField, outlineOf } from "./canvas.js";
import { make, sizeBadge } from "./dom.js";
import { boxText, formatMacs, percent } from "./format.js";
import { edgeCells, fieldIoU } from "./masks.js";
import { policyName } from "./policies.js";
import { state, styles } from "./state.js";
import { barRow } from "./widgets.js";

const LITTLE = 0.03; // difference of boundary IoU below which a finer mask is said to add little

// The panel's contents. `choose(k)` sets the size by hand (null: back to the policy), `close()` ends the selection.
export function sizeDetails(one, { choose, close }) {
  const pick = state.picks[rowOf(one.index)];
  const byHand = state.overrides.has(one.index);
  const score = one.drawn ? "drawn by you" : `score ${one.score.toFixed(2)}`;
  const chosenBy = byHand ? "set by hand" : `chosen by the policy “${policyName(state.policy)}”`;
  const parts = [
    detailsHead(`Why this size? Instance ${one.index + 1}: ${one.label}`, close),
    make("p", { className: "dm-facts" }, `${score} · box ${boxText(one.box)} px · size ${state.view.styles[pick].size} ${chosenBy}, ` +
      formatMacs(state.view.macs[pick])),
    ...refinedFacts(pick),
    sizeChooser(byHand ? state.overrides.get(one.index) : null, choose),
    ...estimate(one),
    make("h3", {}, "Switch probabilities"),
    make("div", { className: "dm-bars dm-probabilities", role: "list" }, ...styles().map((style, k) => probabilityRow(one, style, k, pick))),
    make("h3", {}, "Masks and edges at each size"),
    make("div", { className: "dm-tiles" }, ...tiles(one, pick)),
  ];
  parts.splice(-2, 0, ...qualityTable(one, pick));
  const truth = truthText(one, pick);
  if (truth) parts.push(make("p", { className: "dm-facts dm-truth" }, truth));
  return parts;
}

// How many cells the chosen size computes, where these are not all of them.
function refinedFacts(pick) {
  const { size } = state.view.styles[pick];
  const cells = state.view.cells[pick] ?? size ** 2;
  if (cells === size ** 2) return [];
  return [make("p", { className: "dm-facts" }, `At ${size} the model computes ${cells} of ${size ** 2} cells (${percent(cells / size ** 2)}), ` +
    "those nearest to the outline at the size before; the others keep the coarser mask.")];
}

// What a finer mask is worth, in one sentence; none where no quality is predicted.
function estimate(one) {
  if (!one.quality) return [];
  const [coarse, fine] = [one.quality[0][1], one.quality[one.quality.length - 1][1]];
  const [first, last] = [state.view.styles[0].size, state.view.styles[one.quality.length - 1].size];
  const end = fine - coarse < LITTLE ? ": a finer mask adds little" : "";
  return [make("p", { className: "dm-estimate", title: "Predicted boundary IoU" },
    `At ${first} this keeps an estimated ${percent(coarse)} of its outline, at ${last} ${percent(fine)}${end}.`)];
}

// Predicted and, where it is known, true quality of each size.
function qualityTable(one, pick) {
  if (!one.quality) return [];
  const columns = [["mask IoU, predicted", (k) => one.quality[k][0]], ["boundary IoU, predicted", (k) => one.quality[k][1]]];
  if (one.iou) columns.push(["mask IoU, true", (k) => one.iou[k]], ["boundary IoU, true", (k) => one.boundary[k]]);
  const head = make("tr", {}, ...["Size", ...columns.map(([name]) => name)].map((name) => make("th", { scope: "col" }, name)));
  const rows = styles().map((style, k) => make("tr", { className: k === pick ? "dm-chosen" : "" },
    make("th", { scope: "row" }, sizeBadge(style)), ...columns.map(([, value]) => make("td", {}, value(k).toFixed(3)))));
  return [make("h3", {}, "Quality of each size"),
    make("table", { className: "dm-quality" }, make("thead", {}, head), make("tbody", {}, ...rows))];
}

export function detailsHead(title, close) {
  const button = make("button", { type: "button", className: "dm-close", "aria-label": "Close the details" }, "×");
  button.addEventListener("click", close);
  return make("div", { className: "dm-why-head" }, make("h2", {}, title), button);
}

function probabilityRow(one, style, k, pick) {
  const probability = `${(one.probs[k] * 100).toFixed(1)} %`;
  const macs = formatMacs(state.view.macs[k]);
  return barRow(style, one.probs[k], `${probability} · ${macs}`, k === pick,
    `size ${style.size}: probability ${probability}, ${macs}${k === pick ? ", chosen" : ""}`);
}

function truthText(one, pick) {
  if (one.iou) return `Compared with ground truth at ${state.view.styles[pick].size}: mask IoU ${one.iou[pick].toFixed(3)}, boundary IoU ${one.boundary[pick].toFixed(3)}.`;
  return state.view.truths === null ? "" : "No ground-truth shape has a similar box.";
}

// Radio buttons: the policy's choice, or a size by hand.
function sizeChooser(held, choose) {
  const option = (value, text, k) => {
    const radio = make("input", { type: "radio", name: "dm-override", value, checked: held === k });
    radio.addEventListener("change", () => choose(k));
    return make("label", { className: "dm-policy" }, radio, make("span", {}, text));
  };
  return make("fieldset", { className: "dm-override" },
    make("legend", {}, "Size of this instance"),
    make("div", { className: "dm-override-list" }, option("policy", "policy", null),
      ...styles().map((style, k) => option(String(style.size), String(style.size), k))));
}

// ---- tiles ----

function tiles(one, pick) {
  const crop = make("figure", { className: "dm-tile" }, cropFrame(one.viewMaskBox),
    make("figcaption", {}, make("span", {}, "crop")),
    make("div", { className: "dm-tile-frame dm-tile-word", "aria-hidden": "true" }, "edges (Eq. 4)"));
  return [crop, ...styles().map((style, k) => make("figure", { className: k === pick ? "dm-tile dm-chosen" : "dm-tile" },
    maskFrame(one, style, k), tileCaption(one, style, k, pick), edgeFrame(one, style, k)))];
}

function tileCaption(one, style, k, pick) {
  const facts = k === pick ? ["chosen"] : [];
  const finest = styles()[styles().length - 1];
  if (one.iou) facts.push(`IoU ${one.iou[k].toFixed(3)}`, `boundary ${one.boundary[k].toFixed(3)}`);
  else facts.push(style === finest ? "finest" : `IoU with ${finest.size}: ${agreements(one)[k].toFixed(2)}`);
  return make("figcaption", {}, sizeBadge(style), ...facts.map((fact) => make("span", {}, fact)));
}

// IoU of the mask at each size with the finest one.
function agreements(one) {
  if (!one.agreements) {
    const fields = styles().map((_, k) => maskField(one, k));
    one.agreements = fields.map((field) => fieldIoU(field, fields[fields.length - 1]));
  }
  return one.agreements;
}

// A part of the picture, [x0, y0, x1, y1] in pixels of the view.
export function cropFrame(viewBox) {
  return canvasFrame("The crop of the picture", viewBox, (context, w, h) => drawCrop(context, viewBox, w, h, "none"));
}

// A mask on its own cells over the crop, with the outline that it gives in the picture.
function maskFrame(one, style, k) {
  return canvasFrame(`Mask of ${style.size} × ${style.size} cells`, one.viewMaskBox, (context, w, h, scale) => {
    drawCrop(context, one.viewMaskBox, w, h, "grayscale(1) brightness(0.55)");
    drawCells(context, one.masks[k], style.size, style.colour, 0.8, w, h);
    const [x0, y0] = one.viewMaskBox;
    context.setTransform(scale, 0, 0, scale, -x0 * scale, -y0 * scale);
    context.strokeStyle = "#fff";
    context.lineWidth = 2 / scale;
    context.stroke(outlineOf(one, k));
  });
}

function edgeFrame(one, style, k) {
  return canvasFrame(`Edges of the mask of ${style.size} × ${style.size} cells`, one.viewMaskBox, (context, w, h) => {
    drawCells(context, edgeCells(one.masks[k], style.size).map((edge) => edge * 255), style.size, "#f4f6fa", 1, w, h);
  });
}

function canvasFrame(label, [x0, y0, x1, y1], paint) {
  const canvas = make("canvas", { role: "img", "aria-label": label });
  const scale = 240 / Math.max(x1 - x0, y1 - y0, 1e-6);
  canvas.width = Math.max(8, Math.round((x1 - x0) * scale));
  canvas.height = Math.max(8, Math.round((y1 - y0) * scale));
  paint(canvas.getContext("2d"), canvas.width, canvas.height, scale);
  return make("div", { className: "dm-tile-frame" }, canvas);
}

function drawCrop(context, [x0, y0, x1, y1], w, h, filter) {
  context.filter = filter;
  context.drawImage(state.picture, x0, y0, x1 - x0, y1 - y0, 0, 0, w, h);
  context.filter = "none";
}

// Cells of a mask as pixels of a colour; `values` from 0 to 255 are the opacity.
function drawCells(context, values, size, colour, strength, w, h) {
  const cells = new OffscreenCanvas(size, size);
  const cellContext = cells.getContext("2d");
  const pixels = cellContext.createImageData(size, size);
  const rgb = [1, 3, 5].map((start) => parseInt(colour.slice(start, start + 2), 16));
  values.forEach((value, cell) => pixels.data.set([...rgb, Math.round(value * strength)], cell * 4));
  cellContext.putImageData(pixels, 0, 0);
  context.imageSmoothingEnabled = false;
  context.drawImage(cells, 0, 0, w, h);
}
