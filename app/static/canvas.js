// Drawing on the canvas: the picture, its instances with their sizes, the divider and the box that is being drawn.

import { drawSelectedCell } from "./cell_grid.js";
import { picksOf } from "./choices.js";
import { outlinePath, pasteField } from "./masks.js";
import { page, $ } from "./page.js";
import { policyName } from "./policies.js";
import { oneStage, state, styleOf } from "./state.js";

const FONT = "system-ui, sans-serif";

// Values of an instance's mask at index `k` in the pixels of the view, see `pasteField`.
export function maskField(one, k) {
  if (oneStage()) return pasteField(one.masks[0], one.shape[1], one.viewMaskBox, ...state.view.view, one.shape[0]);
  return pasteField(one.masks[k], state.view.styles[k].size, one.viewMaskBox, ...state.view.view);
}

// The outline of an instance at index `k`, traced once.
export function outlineOf(one, k) {
  return (one.outlines[k] ??= outlinePath(maskField(one, k)));
}

// Fits the canvas to the page. Returns `scale` (canvas pixels per pixel of the view) and `ratio` (canvas pixels per CSS
// pixel), or null while the tab is hidden.
function fitCanvas() {
  const [width, height] = state.view.view;
  const available = $(".dm-stage").clientWidth;
  if (!available) return null;
  const limit = window.innerWidth < 760 ? window.innerHeight * 0.56 : Math.max(320, window.innerHeight * 0.64);
  const shrink = Math.min(available / width, limit / height);
  const ratio = Math.min(window.devicePixelRatio || 1, 2);
  const [w, h] = [width, height].map((side) => Math.max(1, Math.round(side * shrink)));
  const { canvas } = page;
  if (canvas.width !== Math.round(w * ratio) || canvas.height !== Math.round(h * ratio)) {
    [canvas.width, canvas.height] = [Math.round(w * ratio), Math.round(h * ratio)];
    [canvas.style.width, canvas.style.height] = [`${w}px`, `${h}px`];
  }
  return { scale: canvas.width / width, ratio };
}

// Draws everything anew.
export function draw() {
  const fitted = fitCanvas();
  if (!fitted) return;
  const { scale, ratio } = fitted;
  const context = page.canvas.getContext("2d");
  const [width] = state.view.view;
  const unit = ratio / scale; // one CSS pixel in pixels of the view
  const cut = state.leftPicks ? state.divider * width : 0;
  drawPicture(context);
  if (state.leftPicks) drawInstances(context, state.leftPicks, 0, cut, scale, unit);
  drawInstances(context, state.picks, cut, width, scale, unit);
  drawTags(context, scale, ratio);
  if (state.leftPicks) drawDivider(context, ratio);
  context.setTransform(scale, 0, 0, scale, 0, 0);
  context.globalAlpha = 1;
  if (oneStage()) drawSelectedCell(context, unit);
  if (state.drawing) drawNewBox(context, unit);
}

let scaled = null; // the picture at the canvas's size

function drawPicture(context) {
  const { width, height } = context.canvas;
  if (scaled?.view !== state.view || scaled.image.width !== width || scaled.image.height !== height) {
    const sheet = new OffscreenCanvas(width, height);
    const sheetContext = sheet.getContext("2d");
    sheetContext.imageSmoothingQuality = "high";
    sheetContext.drawImage(state.picture, 0, 0, width, height);
    scaled = { view: state.view, image: sheet.transferToImageBitmap() };
  }
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.globalAlpha = 1;
  context.drawImage(scaled.image, 0, 0);
}

// ---- instances ----

// All instances, the best score on top, between two columns of the view.
function drawInstances(context, picks, from, to, scale, unit) {
  context.save();
  context.setTransform(scale, 0, 0, scale, 0, 0);
  if (from > 0 || to < state.view.view[0]) {
    context.beginPath();
    context.rect(from, 0, to - from, state.view.view[1]);
    context.clip();
  }
  for (let row = state.shown.length - 1; row >= 0; row--) {
    const one = state.shown[row];
    if (one.index === state.selected || one.index === state.hovered) {
      context.setTransform(scale, 0, 0, scale, 0, 0);
      drawInstance(context, one, picks[row], unit);
    } else {
      const { image, x, y } = sprite(one, picks[row], scale, unit);
      context.globalAlpha = 1;
      context.setTransform(1, 0, 0, 1, 0, 0);
      context.drawImage(image, x, y);
    }
  }
  context.restore();
}

function drawInstance(context, one, k, unit) {
  const style = styleOf(one, k);
  const path = outlineOf(one, k);
  const strong = one.index === state.selected || one.index === state.hovered;
  context.globalAlpha = state.opacity;
  context.fillStyle = style.colour;
  context.fill(path, "evenodd");
  strokeOutline(context, path, style, unit, strong);
  if (state.boxes || one.drawn || one.index === state.selected) strokeBox(context, one.viewBox, unit);
}

// An instance that is neither selected nor hovered, kept as an image: a move of the slider only copies pixels.
function sprite(one, k, scale, unit) {
  const key = `${state.opacity} ${state.paper} ${state.each} ${state.boxes} ${scale} ${unit}`;
  if (one.sprites[k]?.key === key) return one.sprites[k];
  const pad = 5 * unit;
  const [left, top, right, bottom] = one.viewMaskBox;
  const { width, height } = page.canvas;
  const [x, y] = [left, top].map((side) => Math.max(0, Math.floor((side - pad) * scale)));
  const w = Math.max(1, Math.min(width, Math.ceil((right + pad) * scale)) - x);
  const h = Math.max(1, Math.min(height, Math.ceil((bottom + pad) * scale)) - y);
  const sheet = new OffscreenCanvas(w, h);
  const context = sheet.getContext("2d");
  context.setTransform(scale, 0, 0, scale, -x, -y);
  drawInstance(context, one, k, unit);
  one.sprites[k] = { key, x, y, image: sheet.transferToImageBitmap() };
  return one.sprites[k];
}

// Draws all sizes of all instances and solves the budget while the browser is idle, so that no later move waits.
export function drawAhead(view) {
  const work = view.instances.flatMap((one) => (oneStage() ? [[one, one.level]] : view.styles.map((_, k) => [one, k])));
  const later = window.requestIdleCallback || ((run) => setTimeout(() => run({ timeRemaining: () => 8 }), 30));
  const run = (deadline) => {
    const fitted = state.view === view && fitCanvas();
    if (!fitted) return;
    while (work.length && deadline.timeRemaining() > 3) sprite(...work.shift(), fitted.scale, fitted.ratio / fitted.scale);
    if (work.length) {
      later(run);
      return;
    }
    if (!oneStage()) picksOf("budget");
    state.ready = true;
  };
  later(run);
}

function strokeOutline(context, path, style, unit, strong) {
  const casing = style.text === "#000000" ? "#111" : "#fff";
  const width = style.width * 0.8 * unit * (strong ? 1.5 : 1);
  context.lineJoin = "round";
  context.strokeStyle = casing;
  context.globalAlpha = 0.85;
  context.lineWidth = width + 2 * unit;
  context.stroke(path);
  context.globalAlpha = 1;
  if (style.gap) context.setLineDash([style.dash * unit, style.gap * unit]);
  context.strokeStyle = style.colour;
  context.lineWidth = width;
  context.stroke(path);
  context.setLineDash([]);
  if (style.core) {
    context.strokeStyle = casing;
    context.lineWidth = unit;
    context.stroke(path);
  }
}

function strokeBox(context, [x0, y0, x1, y1], unit) {
  context.setLineDash([4 * unit, 3 * unit]);
  for (const [colour, width] of [["#000", 2.5], ["#fff", 1.2]]) {
    context.strokeStyle = colour;
    context.lineWidth = width * unit;
    context.strokeRect(x0, y0, x1 - x0, y1 - y0);
  }
  context.setLineDash([]);
}

// ---- tags ----

function tagText(one, style) {
  if (oneStage()) return `${style.size} ${one.label} ${one.score.toFixed(2)}`;
  return state.overrides.has(one.index) ? `${style.size}*` : String(style.size);
}

// The size at the top of each instance, or level, class and score on its cell; tags that would overlap move down.
function drawTags(context, scale, ratio) {
  const taken = [];
  const [right, bottom] = [context.canvas.width / ratio, context.canvas.height / ratio];
  const toCss = scale / ratio;
  const cut = state.leftPicks ? state.divider * right : -1;
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.globalAlpha = 1;
  setFont(context, "700 13px");
  state.shown.forEach((one, row) => {
    if (one.explanation && one.index === state.selected) return; // its cell is drawn there
    const middle = (one.spot ? one.spot[0] : (one.viewBox[0] + one.viewBox[2]) / 2) * toCss;
    const style = styleOf(one, (middle < cut ? state.leftPicks : state.picks)[row]);
    const text = tagText(one, style);
    const [w, h] = [(oneStage() ? context.measureText(text).width : text.length * 8) + 12, 19];
    const x = Math.max(2, Math.min(right - w - 2, middle - w / 2));
    let y = one.spot ? one.spot[1] * toCss - h / 2 : one.viewBox[1] * toCss + 3;
    y = Math.max(2, Math.min(bottom - h - 2, y));
    for (let i = 0; i < 12 && taken.some((t) => x < t.x + t.w && t.x < x + w && y < t.y + h && t.y < y + h); i++) y += h + 1;
    taken.push({ x, y, w });
    drawTag(context, text, style, [x, y, w, h], one.index === state.selected);
  });
}

function drawTag(context, text, style, [x, y, w, h], selected) {
  context.beginPath();
  context.roundRect(x, y, w, h, 5);
  context.fillStyle = style.colour;
  context.fill();
  context.strokeStyle = style.text;
  context.lineWidth = selected ? 2.5 : 1;
  context.stroke();
  context.fillStyle = style.text;
  context.fillText(text, x + w / 2, y + h / 2 + 0.5);
}

function setFont(context, font) {
  context.font = `${font} ${FONT}`;
  context.textAlign = "center";
  context.textBaseline = "middle";
}

// ---- divider and new box ----

// The divider with its handle and the policies on both sides.
function drawDivider(context, ratio) {
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.globalAlpha = 1;
  const [w, h] = [context.canvas.width / ratio, context.canvas.height / ratio];
  const x = state.divider * w;
  for (const [colour, width] of [["rgba(0,0,0,.55)", 5], ["#fff", 2.5]]) {
    context.fillStyle = colour;
    context.fillRect(x - width / 2, 0, width, h);
  }
  context.beginPath();
  context.arc(x, h / 2, 14, 0, 7);
  context.fillStyle = "#fff";
  context.fill();
  context.fillStyle = "#222";
  setFont(context, "700 14px");
  context.fillText("↔", x, h / 2 + 0.5);
  setFont(context, "600 12.5px");
  for (const [text, left] of [[policyName(state.compare), true], [policyName(state.policy), false]]) {
    const width = context.measureText(text).width + 16;
    const start = left ? x - width - 8 : x + 8;
    if (start < 2 || start + width > w - 2) continue;
    context.fillStyle = "rgba(16, 20, 28, 0.85)";
    context.beginPath();
    context.roundRect(start, h - 28, width, 22, 6);
    context.fill();
    context.fillStyle = "#fff";
    context.fillText(text, start + width / 2, h - 16.5);
  }
}

// The box that is being drawn (see boxes.js), and the cross that the arrow keys move.
function drawNewBox(context, unit) {
  const { box, cross, pointer } = state.drawing;
  if (box) {
    const [x0, y0, x1, y1] = box;
    context.fillStyle = "rgba(255,255,255,.18)";
    context.fillRect(x0, y0, x1 - x0, y1 - y0);
    strokeBox(context, box, unit);
  }
  if (pointer || document.activeElement !== page.canvas) return;
  const arm = 14 * unit;
  for (const [colour, width] of [["#000", 4], ["#fff", 2]]) {
    context.strokeStyle = colour;
    context.lineWidth = width * unit;
    context.beginPath();
    context.moveTo(cross[0] - arm, cross[1]);
    context.lineTo(cross[0] + arm, cross[1]);
    context.moveTo(cross[0], cross[1] - arm);
    context.lineTo(cross[0], cross[1] + arm);
    context.stroke();
  }
}
