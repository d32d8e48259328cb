// The divider between two policies.

import { page } from "./page.js";
import { refresh } from "./refresh.js";
import { state } from "./state.js";

let pulling = false;
let pulled = false; // the pointer was released from the divider: the click that follows selects nothing

export function moveDivider(share) {
  state.divider = Math.max(0, Math.min(1, share));
  refresh();
}

// Whether a click ends a move of the divider; true once.
export function endsPull() {
  const ended = pulled;
  pulled = false;
  return ended;
}

// A pointer event on the canvas; returns whether it belongs to the divider.
export function dividerPointer(event) {
  if (!state.leftPicks) return false;
  const bounds = page.canvas.getBoundingClientRect();
  const share = (event.clientX - bounds.left) / bounds.width;
  const near = Math.abs(share - state.divider) * bounds.width < (event.pointerType === "touch" ? 26 : 12);
  if (event.type === "pointerdown" && near) {
    page.canvas.setPointerCapture(event.pointerId);
    pulling = true;
  } else if (event.type === "pointermove" && pulling) {
    moveDivider(share);
  } else if (event.type === "pointerup" || event.type === "pointercancel") {
    pulled = pulling;
    pulling = false;
    return pulled;
  }
  if (near || pulling) page.canvas.style.cursor = "ew-resize";
  return near || pulling;
}
