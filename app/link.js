// The state in the address: `#w=people&e=astronaut.jpg&p=budget&b=0.0500…`. Opening such a link restores what it names.

function roundTo(value, digits) {
  return Number(value.toFixed(digits));
}

// What the address says about the present picture and settings; own pictures stay with their owner.
function linkText() {
  const { view } = state;
  const words = new URLSearchParams();
  words.set("w", view.weights);
  if (view.kind === "example") words.set("e", view.key);
  if (view.kind === "scene") words.set("s", view.key);
  if (!oneStage()) {
    words.set("p", state.policy);
    words.set("b", (budgetMacs() / 1e9).toPrecision(4));
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

let remembering = 0;
let written = null;

// Writes the address when the moves pause; browsers limit how often it may change.
function rememberSoon() {
  clearTimeout(remembering);
  remembering = setTimeout(() => {
    if (!state.view || state.busy) return;
    written = `#${linkText()}`;
    if (window.location.hash !== written) window.history.replaceState(window.history.state, "", written);
    document.dispatchEvent(new CustomEvent("dynamask-changed", { detail: now() }));
  }, 250);
}

function within(text, low, high) {
  const value = text === null || text === "" ? NaN : Number(text);
  return Number.isFinite(value) && value >= low && value <= high ? value : null;
}

// Reads an address; parts that make no sense are left out.
function readLink(hash) {
  const words = new URLSearchParams(hash.replace(/^#/, ""));
  const names = POLICIES.map(([name]) => name);
  const known = (policy) => (names.includes(policy) ? policy : null);
  const [left, place] = (words.get("v") || "").split(",");
  const scene = /^(\d{1,10}):(\d{1,10}):(mixed|[01](?:\.\d+)?)$/.exec(words.get("s") || "");
  const boxes = (words.get("d") || "").split(";").map((box) => box.split(",").map(Number))
    .filter((box) => box.length === 4 && box.every(Number.isFinite)).slice(0, 20);
  return {
    weights: words.get("w"), example: words.get("e"), scene: scene ? sceneWish(scene[1], scene[2], scene[3]) : null,
    policy: known(words.get("p")), budget: within(words.get("b"), 0, 1e6), score: within(words.get("t"), 0.05, 0.99),
    opacity: within(words.get("o"), 0, 1), boxes: words.get("x") === "1", paper: words.get("c") === "paper", each: words.get("c") === "each",
    compare: known(left), divider: within(place || null, 0, 1) ?? 0.5, selected: within(words.get("i"), 1, 1e4),
    hidden: words.getAll("h"), drawn: boxes,
    fixed: (words.get("f") || "").split(",").map((pair) => pair.split(":").map(Number)).filter(([i, size]) => i >= 1 && size),
  };
}

function sceneWish(seed, index, word) {
  return { kind: "scene", seed: Number(seed), index: Number(index), difficulty: word === "mixed" ? null : Number(word) };
}

// The settings of a link, once its picture is there.
function applySettings(link) {
  const { view } = state;
  const sizes = view.styles.map((style) => style.size);
  Object.assign(state, {
    policy: link.policy ?? state.policy, score: link.score ?? state.score, opacity: link.opacity ?? state.opacity,
    boxes: link.boxes, paper: link.paper, each: link.each, compare: link.compare, divider: link.divider,
    selected: link.selected === null ? null : link.selected - 1, hidden: new Set(link.hidden),
    overrides: new Map(link.fixed.filter(([i, size]) => i <= view.instances.length && sizes.includes(size))
      .map(([i, size]) => [i - 1, sizes.indexOf(size)])),
  });
  if (link.budget !== null && !oneStage()) state.step = nearestStep(link.budget * 1e9 * 0.9999);
  showLegendAndClasses();
  refresh();
}

// Goes where a link leads: another picture asks the server first.
function follow(hash) {
  if (!/[#&][a-z]=/.test(hash) || hash === written) return;
  const link = readLink(hash);
  const { view } = state;
  const wanted = link.scene || (link.example ? { kind: "example", key: link.example } : null);
  const key = wanted && (wanted.key ?? `${wanted.seed}:${wanted.index}:${wanted.difficulty ?? "mixed"}`);
  const here = view && (!wanted || (wanted.kind === view.kind && key === view.key));
  const sameWeights = view && (!link.weights || link.weights === view.weights);
  if (here && sameWeights && !link.drawn.length) {
    applySettings(link);
    return;
  }
  state.pending = link;
  const wish = { ask: "open", keep: Boolean(link.weights), weights: link.weights || view?.weights, ...(wanted || { kind: "same" }) };
  if (link.drawn.length) wish.boxes = link.drawn;
  ask(wish, "Opening the link…");
}

async function copyLink() {
  const address = `${window.location.href.split("#")[0]}#${linkText()}`;
  window.history.replaceState(window.history.state, "", `#${linkText()}`);
  const own = state.view.kind === "own" ? " Your own picture is not part of it: it stays with you." : "";
  try {
    await navigator.clipboard.writeText(address);
    complain(`The link is copied.${own}`, "note");
  } catch {
    complain(`The link is in the address bar, ready to be copied.${own}`, "note");
  }
}

// What the other tabs may know and do.
function now() {
  const { view } = state;
  if (!view) return {};
  if (oneStage()) return { family: view.family, score: state.score, weights: view.weights, kind: view.kind, key: view.key, picks: [] };
  return { policy: state.policy, budget: budgetMacs() / 1e9, mean: summaryOf(state.picks).mean / 1e9, score: state.score,
    weights: view.weights, kind: view.kind, key: view.key, picks: shownPicks() };
}

window.dynamask = {
  now,
  setBudget(gmacs) {
    if (!state.view || oneStage() || !Number.isFinite(gmacs)) return;
    state.step = nearestStep(gmacs * 1e9);
    state.policy = "budget";
    choose();
    refresh();
  },
};
