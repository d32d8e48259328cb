// What follows a change of the state: the picture is drawn at once, the panels with the next frame.

import { draw } from "./canvas.js";
import { choose } from "./choices.js";
import { showDetails } from "./details.js";
import { setText } from "./dom.js";
import { milliseconds } from "./format.js";
import { showTable } from "./instance_table.js";
import { rememberSoon } from "./link.js";
import { $, page } from "./page.js";
import { showPanels } from "./panels.js";
import { state } from "./state.js";

let frame = 0;

// Call after every change of the state.
export function refresh() {
  if (!state.view) return;
  const started = performance.now();
  choose();
  draw();
  state.answerMs = performance.now() - started;
  if (frame) return;
  frame = requestAnimationFrame(() => {
    frame = 0;
    showAllPanels();
    setText($(".dm-answered"), `The last change was drawn in this browser in ${milliseconds(state.answerMs)}, without the server.`);
    rememberSoon();
  });
}

export function showAllPanels() {
  showPanels();
  showTable(select);
  showDetails({ choose: setSize, close });
}

// Selects an instance by its index; null selects none.
export function select(index) {
  state.selected = index;
  refresh();
}

// Sets the size of the selected instance by hand; null gives it back to the policy.
function setSize(k) {
  if (k === null) state.overrides.delete(state.selected);
  else state.overrides.set(state.selected, k);
  refresh();
}

function close() {
  select(null);
  page.canvas.focus();
}
