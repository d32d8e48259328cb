// Choosing a picture: examples, scenes, files by button, drop and paste; and choosing the weights.

import { make, setText } from "./dom.js";
import { roundTo } from "./format.js";
import { $, page } from "./page.js";
import { showExamples } from "./picture_panels.js";
import { ask, open, send } from "./server.js";
import { state } from "./state.js";

export function connectChoosers() {
  showExamples(JSON.parse(page.props.examples || "[]"), ({ kind, key, seed, index, difficulty }) => {
    open(kind === "scene" ? { kind, seed, index, difficulty } : { kind, key });
  });
  connectWeights();
  connectSceneForm();
  connectFiles();
}

function connectWeights() {
  const select = $(".dm-weights");
  const choices = JSON.parse(page.props.weights || "[]");
  select.append(...choices.map(({ name, about }) => make("option", { value: name }, about ? `${name} (${about})` : name)));
  select.addEventListener("change", () => {
    const weights = select.value;
    if (state.view) ask({ ask: "open", kind: "same", keep: true, weights }, `Analysing with the weights ${weights}…`);
  });
}

// Each press of the button makes the next scene of the seed.
function connectSceneForm() {
  const slider = $(".dm-difficulty");
  slider.addEventListener("input", () => {
    const value = Number(slider.value);
    const word = value < 0 ? "mixed" : value.toFixed(2);
    slider.setAttribute("aria-valuetext", word);
    setText($(".dm-difficulty-value"), word);
  });
  let made = 0;
  $(".dm-seed").addEventListener("input", () => (made = 0));
  $(".dm-scene").addEventListener("submit", (event) => {
    event.preventDefault();
    const difficulty = Number(slider.value);
    made += made % 10 === 8 ? 2 : 1; // every tenth scene of a seed is empty
    open({ kind: "scene", seed: $(".dm-seed").valueAsNumber, index: made, difficulty: difficulty < 0 ? null : roundTo(difficulty, 2) },
      "Making the scene…");
  });
}

function connectFiles() {
  const { signal } = page;
  const onExplore = () => page.root.offsetParent !== null;
  const carriesFile = (event) => onExplore() && [...(event.dataTransfer?.types || [])].includes("Files");
  $(".dm-file").addEventListener("change", (event) => {
    send(event.target.files[0]);
    event.target.value = "";
  });
  document.addEventListener("dragover", (event) => {
    if (!carriesFile(event)) return;
    event.preventDefault();
    $(".dm-drop").hidden = false;
  }, { signal });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) $(".dm-drop").hidden = true;
  }, { signal });
  document.addEventListener("drop", (event) => {
    if (!carriesFile(event)) return;
    event.preventDefault();
    $(".dm-drop").hidden = true;
    send(event.dataTransfer.files[0]);
  }, { signal });
  document.addEventListener("paste", (event) => {
    const file = [...(event.clipboardData?.files || [])].find((each) => each.type.startsWith("image/"));
    if (file && onExplore()) send(file);
  }, { signal });
}
