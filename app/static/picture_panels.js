// The panels that change with the picture only: caption, legend, classes, examples.

import { make, setText } from "./dom.js";
import { formatMacs, milliseconds, percent, plural } from "./format.js";
import { levelFoot } from "./level_panels.js";
import { $, page } from "./page.js";
import { oneStage, state, styles } from "./state.js";
import { legendItem } from "./widgets.js";

// Shows what belongs to a new picture; `refresh` is called when a class is switched on or off.
export function showPicture(refresh) {
  const { view } = state;
  const { root } = page;
  root.dataset.empty = "false";
  root.dataset.family = view.family || "two-stage";
  root.dataset.title = view.title;
  $(".dm-score").min = view.lowest_score;
  $(".dm-weights").value = view.weights;
  showLegend();
  showClasses(refresh);
  showCaption();
  setText($(".dm-measured"), oneStage() ? levelFoot() : footText());
  setText($(".dm-one-weights"), view.weights);
  for (const button of page.element.querySelectorAll(".dm-example")) {
    button.setAttribute("aria-current", String(button.dataset.key === view.key));
  }
}

// The legend of mask sizes; that of levels changes with the counts and is part of level_panels.js.
export function showLegend() {
  if (oneStage()) return;
  $(".dm-legend").replaceChildren(...styles().map((style, k) => legendItem(style, style.name, formatMacs(state.view.macs[k]))));
}

// A check box for each class; instances of a class that is off are left out of the picture and of all numbers.
export function showClasses(refresh) {
  const names = [...new Set(state.view.instances.map((one) => one.label))].sort();
  $(".dm-classes").hidden = !names.length;
  $(".dm-class-list").replaceChildren(...names.map((name) => {
    const box = make("input", { type: "checkbox", checked: !state.hidden.has(name) });
    box.addEventListener("change", () => {
      if (box.checked) state.hidden.delete(name);
      else state.hidden.add(name);
      refresh();
    });
    return make("label", { className: "dm-check dm-class" }, box, make("span", {}, name));
  }));
}

// Title, size and credit; an address in the credit becomes a link. Only bundled examples have a credit.
function showCaption() {
  const { view } = state;
  const parts = [view.title, `${view.size[0]} × ${view.size[1]} px`, ...view.credit.split(" · ")].filter(Boolean);
  $(".dm-caption").replaceChildren(...parts.flatMap((part, i) => {
    const link = i > 1 && part.startsWith("https://");
    return [i ? " · " : "", link ? make("a", { href: part, target: "_blank", rel: "noopener noreferrer" }, "source") : part];
  }));
}

// Times, and the costs that the mean leaves out.
function footText() {
  const { timings, instances, lowest_score: score, switch_macs: switchMacs, image_macs: imageMacs } = state.view;
  return `Measured once on this server for this picture: detection ${milliseconds(timings.detect)}; all four masks of ` +
    `${plural(instances.length, "candidate")} with a score of at least ${score}: ${milliseconds(timings.mask_branch)}. ` +
    `The mean leaves out the switch (${formatMacs(switchMacs)} per instance) and the projections (${formatMacs(imageMacs)} per picture). ` +
    `1 MAC = 2 FLOPs.${refinedText()}`;
}

// Which share of the cells is computed at the sizes that are refined along the outline.
function refinedText() {
  const { cells, styles: sizes } = state.view;
  const shares = sizes.map((style, k) => [style.size, (cells[k] ?? style.size ** 2) / style.size ** 2]).filter(([, share]) => share < 1);
  if (!shares.length) return "";
  return ` Of the cells, ${shares.map(([size, share]) => `${percent(share)} at ${size}`).join(" and ")} are computed, those nearest to the outline.`;
}

// Thumbnails of the examples and scenes, each a button.
export function showExamples(examples, choose) {
  $(".dm-examples").replaceChildren(...examples.map((example) => {
    const button = make("button", { type: "button", className: "dm-example", title: [example.title, example.credit].filter(Boolean).join(" · "),
      "aria-label": `${example.kind === "scene" ? "Scene" : "Example"}: ${example.title}` }, make("img", { src: example.picture, alt: "" }));
    button.dataset.key = example.key;
    button.addEventListener("click", () => choose(example));
    return button;
  }));
}
