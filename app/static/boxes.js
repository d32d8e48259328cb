// Drawing a box: with the mouse, by touch, or with a cross that the arrow keys move. Positions are in pixels of the view.

import { draw } from "./canvas.js";
import { $, page, say } from "./page.js";
import { ask } from "./server.js";
import { state } from "./state.js";

const ARROWS = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] };

// Starts or ends the drawing of boxes.
export function setDrawing(on) {
  const [w, h] = state.view?.view || [1, 1];
  state.drawing = on && state.view ? { cross: [w / 2, h / 2], start: null, end: null, box: null, pointer: false } : null;
  const drawing = Boolean(state.drawing);
  $(".dm-draw").setAttribute("aria-pressed", String(drawing));
  $(".dm-draw-help").hidden = !drawing;
  page.canvas.style.touchAction = drawing ? "none" : "";
  page.canvas.style.cursor = drawing ? "crosshair" : "default";
  if (drawing) $(".dm-tip").hidden = true;
  if (state.view) draw();
}

// Where an event of the pointer is.
export function positionOf(event) {
  const bounds = page.canvas.getBoundingClientRect();
  const [w, h] = state.view.view;
  return [clamp(((event.clientX - bounds.left) / bounds.width) * w, w), clamp(((event.clientY - bounds.top) / bounds.height) * h, h)];
}

function clamp(value, top) {
  return Math.max(0, Math.min(top, value));
}

// Sets the corners of the box that is being drawn; null for no box.
function setCorners(start, end) {
  const box = start && [Math.min(start[0], end[0]), Math.min(start[1], end[1]), Math.max(start[0], end[0]), Math.max(start[1], end[1])];
  Object.assign(state.drawing, { start, end, box });
}

// Asks for the mask of the box, unless it is too small.
function finishBox() {
  const { view } = state;
  const { box } = state.drawing;
  const unit = view.view[0] / Math.max(1, page.canvas.clientWidth);
  setCorners(null, null);
  if (box[2] - box[0] < 5 * unit || box[3] - box[1] < 5 * unit) {
    draw();
    say("The box is too small.");
    return;
  }
  const [sx, sy] = [view.size[0] / view.view[0], view.size[1] / view.view[1]];
  ask({ ask: "draw", token: view.token, boxes: [[box[0] * sx, box[1] * sy, box[2] * sx, box[3] * sy]] }, "Masking the box…");
}

// A pointer event on the canvas while boxes are drawn.
export function boxPointer(event) {
  const { drawing } = state;
  if (event.type === "pointerdown") {
    page.canvas.setPointerCapture(event.pointerId);
    drawing.pointer = true;
    setCorners(positionOf(event), positionOf(event));
  } else if (event.type === "pointermove" && drawing.pointer && drawing.start) {
    setCorners(drawing.start, positionOf(event));
    draw();
  } else if (event.type === "pointerup" && drawing.pointer && drawing.start) {
    setCorners(drawing.start, positionOf(event));
    drawing.pointer = false;
    finishBox();
  } else if (event.type === "pointercancel") {
    drawing.pointer = false;
    setCorners(null, null);
    draw();
  }
}

// A key while boxes are drawn; returns whether it was used.
export function boxKey(event) {
  const move = ARROWS[event.key];
  if (event.key === "Escape") {
    setDrawing(false);
    say("Drawing stopped.");
  } else if (event.key === "Enter" || event.key === " ") {
    setCorner();
  } else if (move) {
    moveCross(move, event.shiftKey);
  } else {
    return false;
  }
  event.preventDefault();
  if (state.drawing && state.view) draw();
  return true;
}

// Sets a corner at the cross: the first one starts the box, the second one ends it.
function setCorner() {
  const { start, cross } = state.drawing;
  if (start) {
    setCorners(start, [...cross]);
    finishBox();
    return;
  }
  setCorners([...cross], [...cross]);
  state.drawing.pointer = false;
  say("First corner set. Move to the opposite corner and press Enter.");
}

function moveCross([dx, dy], fast) {
  const { drawing } = state;
  const [w, h] = state.view.view;
  const step = Math.max(w, h) * (fast ? 0.06 : 0.012);
  drawing.cross = [clamp(drawing.cross[0] + dx * step, w), clamp(drawing.cross[1] + dy * step, h)];
  drawing.pointer = false;
  if (drawing.start) setCorners(drawing.start, [...drawing.cross]);
}
