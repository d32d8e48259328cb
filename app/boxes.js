// Drawing a box around anything: mouse, touch, or a cross that the arrow keys move. Places are in pixels of the view.

function drawingMode(on) {
  const [w, h] = state.view?.view || [1, 1];
  state.drawing = on && state.view ? { cross: [w / 2, h / 2], start: null, end: null, pointer: false } : null;
  $(".dm-draw").setAttribute("aria-pressed", String(Boolean(state.drawing)));
  $(".dm-draw-help").hidden = !state.drawing;
  canvas.style.touchAction = state.drawing ? "none" : "";
  canvas.style.cursor = state.drawing ? "crosshair" : "default";
  if (state.drawing) $(".dm-tip").hidden = true;
  if (state.view) draw();
}

function placeOf(event) {
  const bounds = canvas.getBoundingClientRect();
  const [w, h] = state.view.view;
  const clamp = (value, top) => Math.max(0, Math.min(top, value));
  return [clamp(((event.clientX - bounds.left) / bounds.width) * w, w), clamp(((event.clientY - bounds.top) / bounds.height) * h, h)];
}

function rubberBox({ start, end }) {
  return [Math.min(start[0], end[0]), Math.min(start[1], end[1]), Math.max(start[0], end[0]), Math.max(start[1], end[1])];
}

// The box so far, and the cross of the keyboard.
function drawRubber(context, scale, unit) {
  const { start, end, cross, pointer } = state.drawing;
  context.setTransform(scale, 0, 0, scale, 0, 0);
  context.globalAlpha = 1;
  if (start && end) {
    const [x0, y0, x1, y1] = rubberBox(state.drawing);
    context.fillStyle = "rgba(255,255,255,.18)";
    context.fillRect(x0, y0, x1 - x0, y1 - y0);
    strokeBox(context, [x0, y0, x1, y1], unit);
  }
  if (pointer || document.activeElement !== canvas) return;
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

// Asks for the masks of the box, unless it is too small to mean anything.
function finishBox() {
  const { view } = state;
  const box = rubberBox(state.drawing);
  const unit = view.view[0] / Math.max(1, canvas.clientWidth);
  Object.assign(state.drawing, { start: null, end: null });
  if (box[2] - box[0] < 5 * unit || box[3] - box[1] < 5 * unit) {
    draw();
    say("The box is too small.");
    return;
  }
  const [sx, sy] = [view.size[0] / view.view[0], view.size[1] / view.view[1]];
  ask({ ask: "draw", token: view.token, boxes: [[box[0] * sx, box[1] * sy, box[2] * sx, box[3] * sy]] }, "Masking the box…");
}

function boxPointer(event) {
  const { drawing } = state;
  if (event.type === "pointerdown") {
    canvas.setPointerCapture(event.pointerId);
    Object.assign(drawing, { start: placeOf(event), end: placeOf(event), pointer: true });
  } else if (event.type === "pointermove" && drawing.pointer && drawing.start) {
    drawing.end = placeOf(event);
    draw();
  } else if (event.type === "pointerup" && drawing.pointer && drawing.start) {
    drawing.end = placeOf(event);
    drawing.pointer = false;
    finishBox();
  } else if (event.type === "pointercancel") {
    Object.assign(drawing, { start: null, end: null, pointer: false });
    draw();
  }
}

// Keys while drawing; returns whether the key was meant for the box.
function boxKey(event) {
  const { drawing } = state;
  const arrows = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] };
  const move = arrows[event.key];
  if (event.key === "Escape") {
    drawingMode(false);
    say("Drawing stopped.");
  } else if (event.key === "Enter" || event.key === " ") {
    if (drawing.start) {
      drawing.end = [...drawing.cross];
      finishBox();
    } else {
      Object.assign(drawing, { start: [...drawing.cross], end: [...drawing.cross], pointer: false });
      say("First corner set. Move to the opposite corner and press Enter.");
    }
  } else if (move) {
    const [w, h] = state.view.view;
    const step = Math.max(w, h) * (event.shiftKey ? 0.06 : 0.012);
    drawing.cross = [Math.max(0, Math.min(w, drawing.cross[0] + move[0] * step)), Math.max(0, Math.min(h, drawing.cross[1] + move[1] * step))];
    drawing.pointer = false;
    if (drawing.start) drawing.end = [...drawing.cross];
  } else {
    return false;
  }
  event.preventDefault();
  if (state.drawing && state.view) draw();
  return true;
}

// ---- the divider between two policies ----

function moveDivider(share) {
  state.divider = Math.max(0, Math.min(1, share));
  refresh();
}

// Returns whether the pointer's event belongs to the divider.
function dividerPointer(event) {
  if (!state.leftPicks) return false;
  const bounds = canvas.getBoundingClientRect();
  const share = (event.clientX - bounds.left) / bounds.width;
  const near = Math.abs(share - state.divider) * bounds.width < (event.pointerType === "touch" ? 26 : 12);
  if (event.type === "pointerdown" && near) {
    canvas.setPointerCapture(event.pointerId);
    state.pulling = true;
  } else if (event.type === "pointermove" && state.pulling) {
    moveDivider(share);
  } else if (event.type === "pointerup" || event.type === "pointercancel") {
    const was = state.pulling;
    state.pulling = false;
    state.pulled = was; // the click that follows selects nothing
    return was;
  }
  if (near || state.pulling) canvas.style.cursor = "ew-resize";
  return near || state.pulling;
}
