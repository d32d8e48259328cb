// The table of the shown instances.

import { make, setText, sizeBadge } from "./dom.js";
import { boxText, formatCount, percent } from "./format.js";
import { $ } from "./page.js";
import { oneStage, state, styles } from "./state.js";

let filled = { view: null, rows: "" };

// One row for each shown instance; `select(index)` opens its details. Rows stay while the instances stay, so that a move
// of the slider changes a few cells and keeps the focus.
export function showTable(select) {
  const body = $(".dm-table tbody");
  const rows = state.shown.map((one) => one.index).join(" ");
  if (filled.view !== state.view || filled.rows !== rows) {
    body.replaceChildren(...state.shown.map((one) => newRow(one, select)));
    filled = { view: state.view, rows };
  }
  state.shown.forEach((one, i) => fillRow(body.children[i], one, state.picks[i]));
  $(".dm-table-scroll").hidden = !state.shown.length;
  $(".dm-table-empty").hidden = Boolean(state.shown.length);
  if (!state.shown.length) setText($(".dm-table-empty"), emptyText());
}

function newRow(one, select) {
  const button = make("button", { type: "button", className: "dm-pick" }, String(one.index + 1));
  const cells = [one.label, one.drawn ? "drawn" : one.score.toFixed(2), boxText(one.box), "", "", ""];
  const line = make("tr", {}, make("td", {}, button), ...cells.map((text) => make("td", {}, text)));
  line.pick = button;
  line.dataset.instance = one.index;
  line.addEventListener("click", () => select(one.index));
  return line;
}

// Size, probability and cost of an instance at index `k`; rows that look as before are left alone.
function fillRow(line, one, k) {
  const style = styles()[k];
  const selected = one.index === state.selected;
  const look = `${k} ${selected} ${style.colour}`;
  if (line.look === look) return;
  line.look = look;
  const [, , , , size, detail, macs] = line.children;
  line.className = selected ? "dm-selected" : "";
  line.pick.setAttribute("aria-pressed", String(selected));
  line.pick.setAttribute("aria-label", `Instance ${one.index + 1}, ${one.label}, ${oneStage() ? "level" : "size"} ${style.size}: details`);
  size.replaceChildren(sizeBadge(style));
  setText(detail, oneStage() ? one.cell.join(", ") : percent(one.probs[k]));
  setText(macs, formatCount(state.view.macs[k]));
}

function emptyText() {
  const { instances } = state.view;
  if (!instances.length) return `No object was found in this picture.${oneStage() ? "" : " Draw a box around something."}`;
  if (state.hidden.size) return "No instance is shown: lower the score, or switch a class on.";
  return `None of the ${instances.length} candidates reaches score ${state.score.toFixed(2)}: lower the score.`;
}
