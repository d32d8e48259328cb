// The state in the address: `#w=things&e=astronaut.jpg&p=budget&b=0.0500…`. Writing and reading; see navigation.js for
// following a link.

import { roundTo } from "./format.js";
import { POLICIES } from "./policies.js";
import { announce, CHANGED } from "./setting.js";
import { budgetMacs, oneStage, state } from "./state.js";

// The present picture and settings as the text of an address. Uploaded pictures are not part of it.
export function linkText() {
  const { view } = state;
  const words = new URLSearchParams();
  words.set("w", view.weights);
  if (view.kind === "example") words.set("e", view.key);
  if (view.kind === "scene") words.set("s", view.key);
  if (!oneStage()) {
    words.set("p", state.policy);
    words.set("b", (budgetMacs() / 1e9).toPrecision(6));
  }
  words.set("t", state.score.toFixed(2));
  words.set("o", state.opacity.toFixed(2));
  if (state.boxes) words.set("x", "1");
  if (oneStage() ? state.each : state.paper) words.set("c", oneStage() ? "each" : "paper");
  if (state.compare && !oneStage()) words.set("v", `${state.compare},${state.divider.toFixed(2)}`);
  if (state.selected !== null) words.set("i", state.selected + 1);
  for (const label of state.hidden) words.append("h", label);
  if (state.overrides.size) words.set("f", [...state.overrides].map(([index, k]) => `${index + 1}:${view.styles[k].size}`).join(","));
  const drawn = view.kind === "own" ? [] : view.instances.filter((one) => one.drawn);
  if (drawn.length) words.set("d", drawn.map((one) => one.box.map((side) => roundTo(side, 1)).join(",")).join(";"));
  return words.toString();
}

let timer = 0;
let written = null;

// Writes the address when the moves pause: browsers limit how often it may change.
export function rememberSoon() {
  clearTimeout(timer);
  timer = setTimeout(() => {
    if (!state.view || state.busy) return;
    writeAddress();
    announce(CHANGED);
  }, 250);
}

// Puts the present state into the address; returns the whole address.
export function writeAddress() {
  written = `#${linkText()}`;
  if (window.location.hash !== written) window.history.replaceState(window.history.state, "", written);
  return `${window.location.href.split("#")[0]}${written}`;
}

// Whether an address names something else than what was written last.
export function isForeign(hash) {
  return /[#&][a-z]=/.test(hash) && hash !== written;
}

// What an address asks for; parts that cannot be read are left out.
export function readLink(hash) {
  const words = new URLSearchParams(hash.replace(/^#/, ""));
  const names = POLICIES.map(([name]) => name);
  const known = (policy) => (names.includes(policy) ? policy : null);
  const [left, place] = (words.get("v") || "").split(",");
  const drawn = (words.get("d") || "").split(";").map((box) => box.split(",").map(Number))
    .filter((box) => box.length === 4 && box.every(Number.isFinite)).slice(0, 20);
  return {
    weights: words.get("w"),
    picture: readScene(words.get("s")) || (words.get("e") ? { kind: "example", key: words.get("e") } : null),
    policy: known(words.get("p")),
    budget: within(words.get("b"), 0, 1e6), // GMACs
    score: within(words.get("t"), 0.05, 0.99),
    opacity: within(words.get("o"), 0, 1),
    boxes: words.get("x") === "1",
    paper: words.get("c") === "paper",
    each: words.get("c") === "each",
    compare: known(left),
    divider: within(place || null, 0, 1) ?? 0.5,
    selected: within(words.get("i"), 1, 1e4),
    hidden: words.getAll("h"),
    sizes: (words.get("f") || "").split(",").map((pair) => pair.split(":").map(Number)).filter(([i, size]) => i >= 1 && size),
    drawn,
  };
}

function within(text, low, high) {
  const value = text === null || text === "" ? NaN : Number(text);
  return Number.isFinite(value) && value >= low && value <= high ? value : null;
}

// A scene "seed:index:difficulty" as the server takes it; the difficulty may be "mixed".
function readScene(text) {
  const scene = /^(\d{1,10}):(\d{1,10}):(mixed|[01](?:\.\d+)?)$/.exec(text || "");
  if (!scene) return null;
  const difficulty = scene[3] === "mixed" ? null : Number(scene[3]);
  return { kind: "scene", seed: Number(scene[1]), index: Number(scene[2]), difficulty };
}
