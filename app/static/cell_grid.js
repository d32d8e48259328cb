// Drawing on the canvas for one-stage weights: the grid, the cell of the selected instance and the positions that its
// representations are taken from.

import { state } from "./state.js";

const COLOURS = { cell: "#FFB000", neighbour: "#7FE7FF", moved: "#FF5FA2" }; // as in dynamask.viz.cells

// Draws the explanation of the selected instance, if it has arrived. One unit is a CSS pixel in pixels of the view.
export function drawSelectedCell(context, unit) {
  const { view } = state;
  const explanation = state.shown.find((one) => one.index === state.selected)?.explanation;
  if (!explanation) return;
  const [sx, sy] = [view.view[0] / view.size[0], view.view[1] / view.size[1]];
  const place = ([x, y]) => [x * sx, y * sy];
  const frame = [explanation.frame[0] * sy, explanation.frame[1] * sx];
  drawGridLines(context, frame, explanation.grid, "rgba(255,255,255,.55)", unit, []);
  if (explanation.mask_grid !== explanation.grid) {
    drawGridLines(context, frame, explanation.mask_grid, "rgba(255,255,255,.95)", unit, [2, 4]);
  }
  const base = explanation.base.map(place);
  if (explanation.aggregated) drawNeighbours(context, base, frame, explanation.mask_grid, unit);
  const [x0, y0, x1, y1] = [...place(explanation.cell_box.slice(0, 2)), ...place(explanation.cell_box.slice(2))];
  context.fillStyle = "rgba(255,176,0,.4)";
  context.fillRect(x0, y0, x1 - x0, y1 - y0);
  strokeCased(context, COLOURS.cell, 2.5, unit, () => context.strokeRect(x0, y0, x1 - x0, y1 - y0));
  if (explanation.aggregated) drawPositions(context, base, explanation.positions.map(place), explanation.moved, unit);
}

// The lines of a grid over the padded frame, inside the picture.
function drawGridLines(context, [height, width], grid, colour, unit, dash) {
  const [w, h] = state.view.view;
  context.beginPath();
  for (let i = 1; i < grid; i++) {
    const [x, y] = [(width * i) / grid, (height * i) / grid];
    if (x < w) {
      context.moveTo(x, 0);
      context.lineTo(x, h);
    }
    if (y < h) {
      context.moveTo(0, y);
      context.lineTo(w, y);
    }
  }
  context.setLineDash(dash.map((part) => part * unit));
  for (const [shade, thickness] of [["rgba(0,0,0,.35)", 2], [colour, 1]]) {
    context.strokeStyle = shade;
    context.lineWidth = thickness * unit;
    context.stroke();
  }
  context.setLineDash([]);
}

// The cells around the cell, before the model moves them.
function drawNeighbours(context, centres, frame, grid, unit) {
  const [w, h] = [frame[1] / grid, frame[0] / grid];
  for (const [x, y] of centres) {
    strokeCased(context, COLOURS.neighbour, 2, unit, () => context.strokeRect(x - w / 2, y - h / 2, w, h));
  }
}

// The positions that representations are taken from, with an arrow where the model moved them.
function drawPositions(context, starts, ends, moved, unit) {
  ends.forEach((end, i) => moved[i] && strokeCased(context, COLOURS.moved, 2, unit, () => arrow(context, starts[i], end, unit)));
  for (const [x, y] of ends) {
    context.beginPath();
    context.arc(x, y, 4 * unit, 0, 7);
    context.fillStyle = COLOURS.moved;
    context.fill();
    context.strokeStyle = "#fff";
    context.lineWidth = 1.5 * unit;
    context.stroke();
  }
}

function arrow(context, [x0, y0], [x1, y1], unit) {
  const angle = Math.atan2(y1 - y0, x1 - x0);
  const head = Math.min(12 * unit, Math.hypot(x1 - x0, y1 - y0) * 0.7);
  context.beginPath();
  context.moveTo(x0, y0);
  context.lineTo(x1, y1);
  for (const turn of [-0.45, 0.45]) {
    context.moveTo(x1, y1);
    context.lineTo(x1 - head * Math.cos(angle + turn), y1 - head * Math.sin(angle + turn));
  }
  context.stroke();
}

// Strokes twice: a dark casing, then the colour.
function strokeCased(context, colour, width, unit, stroke) {
  for (const [shade, thickness] of [["#111", width + 2], [colour, width]]) {
    context.strokeStyle = shade;
    context.lineWidth = thickness * unit;
    stroke();
  }
}
