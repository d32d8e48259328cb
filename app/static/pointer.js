// Pointer and keys on the canvas: hovering, selecting, drawing boxes, moving the divider.

import { boxKey, boxPointer, positionOf } from "./boxes.js";
import { draw, outlineOf } from "./canvas.js";
import { rowOf } from "./choices.js";
import { dividerPointer, endsPull } from "./divider.js";
import { make } from "./dom.js";
import { boxText, formatMacs, percent } from "./format.js";
import { levelText } from "./level_panels.js";
import { $, page, say } from "./page.js";
import { select } from "./refresh.js";
import { isWaiting } from "./server.js";
import { oneStage, state } from "./state.js";

export function connectPointer() {
  const { canvas } = page;
  for (const type of ["pointerdown", "pointermove", "pointerup", "pointercancel"]) {
    canvas.addEventListener(type, (event) => {
      if (!state.view || (type === "pointerdown" && event.button > 0)) return;
      if (state.drawing) boxPointer(event);
      else if (!dividerPointer(event) && type === "pointermove") hover(event);
    });
  }
  canvas.addEventListener("click", (event) => {
    if (!state.view || state.drawing || isWaiting() || endsPull()) return;
    select(instanceAt(event));
    if (state.selected !== null) setTimeout(scrollToDetails, 60);
  });
  canvas.addEventListener("pointerleave", () => {
    state.hovered = null;
    $(".dm-tip").hidden = true;
    if (state.view) draw();
  });
  canvas.addEventListener("keydown", (event) => {
    if (state.view && !(state.drawing && boxKey(event))) selectByKey(event);
  });
  canvas.addEventListener("focus", () => state.drawing && draw());
}

function scrollToDetails() {
  const calm = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
  $(".dm-why").scrollIntoView({ block: "nearest", behavior: calm ? "auto" : "smooth" });
}

// Index of the shown instance under the pointer: the topmost mask, else the smallest box; null where there is none.
function instanceAt(event) {
  const [x, y] = positionOf(event);
  const picks = state.leftPicks && x < state.divider * state.view.view[0] ? state.leftPicks : state.picks;
  const context = page.canvas.getContext("2d");
  context.setTransform(1, 0, 0, 1, 0, 0);
  const row = state.shown.findIndex((one, i) => context.isPointInPath(outlineOf(one, picks[i]), x, y, "evenodd"));
  if (row >= 0) return state.shown[row].index;
  const area = ({ viewBox: [x0, y0, x1, y1] }) => (x1 - x0) * (y1 - y0);
  const boxed = state.shown.filter(({ viewBox: [x0, y0, x1, y1] }) => x >= x0 && x <= x1 && y >= y0 && y <= y1);
  return boxed.length ? boxed.reduce((a, b) => (area(b) < area(a) ? b : a)).index : null;
}

function hover(event) {
  if (event.pointerType === "touch") return;
  const over = instanceAt(event);
  if (over !== state.hovered) {
    state.hovered = over;
    draw();
  }
  page.canvas.style.cursor = over === null ? "default" : "pointer";
  showTip(event);
}

function showTip(event) {
  const tip = $(".dm-tip");
  const row = rowOf(state.hovered);
  tip.hidden = row < 0;
  if (row < 0) return;
  const [one, k] = [state.shown[row], state.picks[row]];
  tip.replaceChildren(...(oneStage() ? levelTip(one, k) : sizeTip(one, k)));
  const stage = $(".dm-stage").getBoundingClientRect();
  tip.style.left = `${Math.max(4, Math.min(event.clientX - stage.left + 14, stage.width - tip.offsetWidth - 4))}px`;
  tip.style.top = `${Math.max(4, Math.min(event.clientY - stage.top + 16, stage.height - tip.offsetHeight - 4))}px`;
}

function sizeTip(one, k) {
  const { styles, macs } = state.view;
  return [make("strong", {}, `${one.label} ${one.score.toFixed(2)} → ${styles[k].size}`),
    make("span", {}, `box ${boxText(one.box)} px · ${formatMacs(macs[k])}`),
    make("span", {}, styles.map((style, i) => `${style.size}: ${percent(one.probs[i])}`).join("  "))];
}

function levelTip(one, k) {
  return [make("strong", {}, `${one.label} ${one.score.toFixed(2)}`),
    make("span", {}, `level ${k + 1}: ${levelText(k)}`),
    make("span", {}, `cell (${one.cell.join(", ")}) · ${boxText(one.box)} px`)];
}

// Arrow keys step through the instances, Escape ends the selection.
function selectByKey(event) {
  const move = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  const count = state.shown.length;
  if (event.key === "Escape") select(null);
  if (!move || !count) return;
  event.preventDefault();
  const row = rowOf(state.selected);
  const next = row < 0 ? (move > 0 ? 0 : count - 1) : (row + move + count) % count;
  const one = state.shown[next];
  select(one.index);
  say(`Instance ${one.index + 1}, ${one.label}, ${oneStage() ? "level" : "size"} ${state.view.styles[state.picks[next]].size}.`);
}
