// The controls beside the picture: policies, sliders, check boxes, tools and the export menu.

import { setDrawing } from "./boxes.js";
import { draw } from "./canvas.js";
import { choose, shownPicks } from "./choices.js";
import { moveDivider } from "./divider.js";
import { make } from "./dom.js";
import { copyLink } from "./navigation.js";
import { $, page } from "./page.js";
import { showLegend } from "./picture_panels.js";
import { POLICIES } from "./policies.js";
import { refresh } from "./refresh.js";
import { ask, open } from "./server.js";
import { allowMacs, oneStage, state } from "./state.js";
import { measure } from "./timing.js";

export function connectControls() {
  connectPolicies();
  connectComparison();
  connectSettings();
  connectTools();
  connectExport();
}

// Moves the budget slider to a mean of `gmacs` per instance and uses the budget.
export function setBudget(gmacs) {
  if (!state.view || oneStage() || !Number.isFinite(gmacs)) return;
  allowMacs(gmacs * 1e9);
  state.policy = "budget";
  choose();
  refresh();
}

function connectPolicies() {
  for (const [value, text, note] of POLICIES) {
    const radio = make("input", { type: "radio", name: "dm-policy", value });
    radio.addEventListener("change", () => {
      state.policy = value;
      refresh();
    });
    const list = $(value.startsWith("fixed:") ? ".dm-fixed-list" : ".dm-policy-list");
    list.append(make("label", { className: "dm-policy", title: note }, radio, make("span", {}, text)));
  }
}

// Two policies side by side: `compare` left of the divider, `policy` right of it.
function connectComparison() {
  for (const [selector, key] of [[".dm-left", "compare"], [".dm-right", "policy"]]) {
    $(selector).append(...POLICIES.map(([value, text]) => make("option", { value }, text)));
    $(selector).addEventListener("change", (event) => {
      state[key] = event.target.value;
      refresh();
    });
  }
  $(".dm-compare").addEventListener("click", () => {
    state.compare = state.compare ? null : state.policy === "fixed:112" ? "learned" : "fixed:112";
    page.canvas.style.touchAction = state.compare ? "pan-y" : "";
    refresh();
  });
  $(".dm-divider").addEventListener("input", (event) => moveDivider(Number(event.target.value) / 100));
}

function connectSettings() {
  const live = (selector, type, change) => $(selector).addEventListener(type, (event) => {
    change(event.target);
    refresh();
  });
  live(".dm-budget", "input", (slider) => {
    if (!state.stops.length) return;
    allowMacs(state.stops[Number(slider.value)]);
    if (state.policy !== "oracle") state.policy = "budget";
  });
  live(".dm-score", "input", (slider) => (state.score = Number(slider.value)));
  live(".dm-opacity", "input", (slider) => (state.opacity = Number(slider.value)));
  live(".dm-boxes", "change", (box) => (state.boxes = box.checked));
  live(".dm-each", "change", (box) => (state.each = box.checked));
  live(".dm-paper", "change", (box) => {
    state.paper = box.checked;
    if (state.view) showLegend();
  });
}

function connectTools() {
  $(".dm-draw").addEventListener("click", () => {
    setDrawing(!state.drawing);
    if (!state.drawing) return;
    page.canvas.focus();
    draw();
  });
  $(".dm-clear-boxes").addEventListener("click", () => {
    open({ kind: "same", keep: true, weights: state.view.weights }, "Removing the boxes…");
  });
  $(".dm-measure").addEventListener("click", measure);
  $(".dm-share").addEventListener("click", () => state.view && copyLink());
}

function connectExport() {
  const menu = $(".dm-menu");
  for (const button of page.element.querySelectorAll("[data-export]")) {
    button.addEventListener("click", () => {
      menu.open = false;
      if (!state.view) return;
      const { opacity, boxes, view } = state;
      ask({ ask: "export", what: button.dataset.export, token: view.token, picks: shownPicks(), opacity, boxes }, "Making the file…", true);
    });
  }
  menu.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    menu.open = false;
    $(".dm-menu summary").focus();
  });
  document.addEventListener("click", (event) => {
    if (!event.target.closest?.(".dm-menu")) menu.open = false;
  }, { signal: page.signal });
}
