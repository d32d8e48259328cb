// The panel of the selected instance: which details it shows, and when it is filled anew.

import { cellDetails } from "./cell_details.js";
import { rowOf } from "./choices.js";
import { make } from "./dom.js";
import { $ } from "./page.js";
import { askExplanation } from "./server.js";
import { sizeDetails } from "./size_details.js";
import { oneStage, state } from "./state.js";

const INVITATIONS = {
  sizes: ["Why this size?", "Select an instance in the picture or in the table to see its four masks, the switch's probability of each size, and what each size costs."],
  cells: ["Why this mask?", "Select an instance in the picture or in the table to see its cell of the grid, the cells around it, the mask that each of them gives alone, and the mask computed from all of them."],
};

let filled = { view: null, key: "" };

// Fills the panel if what it shows has changed. `actions`: choose(k) and close().
export function showDetails(actions) {
  const one = state.shown[rowOf(state.selected)];
  if (!one) state.selected = null;
  const key = one ? keyOf(one) : `none ${oneStage()}`;
  if (filled.view !== state.view || filled.key !== key) {
    filled = { view: state.view, key };
    fill(one, actions);
  }
  if (one && oneStage()) askExplanation(one);
}

// What the details of an instance depend on, beside the picture.
function keyOf(one) {
  if (oneStage()) return ["cell", one.index, Boolean(one.explanation), Boolean(one.failed)].join(" ");
  return [one.index, state.picks[rowOf(one.index)], state.overrides.has(one.index), state.policy, state.paper].join(" ");
}

function fill(one, actions) {
  const node = $(".dm-why");
  const focused = node.contains(document.activeElement) ? document.activeElement.value : null;
  if (one) node.replaceChildren(...(oneStage() ? cellDetails(one, actions) : sizeDetails(one, actions)));
  else showInvitation(oneStage() ? "cells" : "sizes");
  if (focused) [...node.querySelectorAll("[name=dm-override]")].find((radio) => radio.value === focused)?.focus();
}

// What the panel says while no instance is selected; `kind` is "sizes" or "cells".
export function showInvitation(kind) {
  const [title, text] = INVITATIONS[kind];
  $(".dm-why").replaceChildren(make("h2", {}, title), make("p", { className: "dm-invite" }, text));
}
