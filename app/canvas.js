// The canvas: one picture, its instances and the controls. Runs inside Gradio's gr.HTML with `element`, `trigger`,
// `props`, `upload` and `watch`; only a new picture asks the server.

const $ = (selector) => element.querySelector(selector);
const root = $(".dm");
const canvas = $(".dm-canvas");
const state = {
  policy: "learned", step: 200, score: 0.5, opacity: 0.45, boxes: false,
  selected: null, hovered: null, view: null, picture: null, shown: [], picks: [], front: null, why: null, answerMs: 0,
};
const BUDGET_STEPS = 200;
const POLICIES = [
  ["learned", "Learned", "Each instance gets the size that the switch thinks best, whatever it costs."],
  ["budget", "Budget", "The most probable sizes whose mean cost stays within the budget: an exact choice."],
  ["size", "By box", "Large boxes get fine masks, small boxes coarse ones (the paper's Eq. 8); the switch is not asked."],
  ...[14, 28, 56, 112].map((size) => [`fixed:${size}`, String(size), `Every instance gets ${size} × ${size}.`]),
];

// ---- what is shown ----

function budgetMacs() {
  const { macs } = state.view;
  return macs[0] + ((macs[macs.length - 1] - macs[0]) * state.step) / BUDGET_STEPS;
}

function nearestStep(macs) {
  const { macs: costs } = state.view;
  const span = Math.max(costs[costs.length - 1] - costs[0], 1);
  return Math.min(BUDGET_STEPS, Math.max(0, Math.ceil(((macs - costs[0]) / span) * BUDGET_STEPS - 1e-9)));
}

// The instances above the score, best first, and the index of the size of each.
function choose() {
  const { view } = state;
  state.shown = view.instances.filter((one) => one.score >= state.score);
  const key = state.shown.length;
  const front = () => {
    if (state.front?.key !== key) state.front = { key, layers: budgetFront(state.shown.map((one) => one.probs), view.macs) };
    return state.front.layers;
  };
  const sizes = view.styles.map((style) => style.size);
  state.picks = chooseSizes(state.shown, state.policy, { sizes, macs: view.macs, budget: budgetMacs(), size: view.size, front });
}

function field(one, k) {
  return pasteField(one.masks[k], state.view.styles[k].size, one.viewBox, ...state.view.view);
}

function outline(one, k) {
  return (one.outlines[k] ??= outlinePath(field(one, k)));
}

// ---- drawing ----

// Fits the canvas to the stage; returns canvas pixels per picture pixel.
function fitCanvas() {
  const [width, height] = state.view.view;
  const stage = $(".dm-stage");
  const limit = window.innerWidth < 760 ? window.innerHeight * 0.56 : Math.max(320, window.innerHeight * 0.66);
  const shrink = Math.min(stage.clientWidth / width, limit / height);
  const ratio = Math.min(window.devicePixelRatio || 1, 2);
  const [w, h] = [width, height].map((side) => Math.max(1, Math.round(side * shrink)));
  if (canvas.width !== Math.round(w * ratio) || canvas.height !== Math.round(h * ratio)) {
    [canvas.width, canvas.height] = [Math.round(w * ratio), Math.round(h * ratio)];
    [canvas.style.width, canvas.style.height] = [`${w}px`, `${h}px`];
  }
  return { scale: canvas.width / width, ratio };
}

function strokeOutline(context, path, style, unit, strong) {
  const casing = style.text === "#000000" ? "#111" : "#fff";
  const width = style.width * 0.8 * unit * (strong ? 1.5 : 1);
  context.lineJoin = "round";
  context.setLineDash([]);
  context.strokeStyle = casing;
  context.globalAlpha = 0.85;
  context.lineWidth = width + 2 * unit;
  context.stroke(path);
  context.globalAlpha = 1;
  context.setLineDash(style.gap ? [style.dash * unit, style.gap * unit] : []);
  context.strokeStyle = style.colour;
  context.lineWidth = width;
  context.stroke(path);
  context.setLineDash([]);
  if (style.core) {
    context.strokeStyle = casing;
    context.lineWidth = unit;
    context.stroke(path);
  }
}

function drawInstance(context, one, k, unit) {
  const style = state.view.styles[k];
  const { path } = outline(one, k);
  const strong = one.index === state.selected || one.index === state.hovered;
  context.globalAlpha = state.opacity;
  context.fillStyle = style.colour;
  context.fill(path, "evenodd");
  strokeOutline(context, path, style, unit, strong);
  if (state.boxes || one.index === state.selected) {
    const [x0, y0, x1, y1] = one.viewBox;
    context.setLineDash([4 * unit, 3 * unit]);
    for (const [colour, width] of [["#000", 2.5], ["#fff", 1.2]]) {
      context.strokeStyle = colour;
      context.lineWidth = width * unit;
      context.strokeRect(x0, y0, x1 - x0, y1 - y0);
    }
    context.setLineDash([]);
  }
}

// The size, printed at the top of the instance; tags that would overlap move down.
function drawTags(context, scale, ratio) {
  const taken = [];
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.font = "700 13px system-ui, sans-serif";
  context.textBaseline = "middle";
  context.textAlign = "center";
  state.shown.forEach((one, row) => {
    const style = state.view.styles[state.picks[row]];
    const text = String(style.size);
    const [w, h] = [context.measureText(text).width + 12, 19];
    const toCss = scale / ratio;
    let x = ((one.viewBox[0] + one.viewBox[2]) / 2) * toCss - w / 2;
    let y = one.viewBox[1] * toCss + 3;
    x = Math.max(2, Math.min(canvas.width / ratio - w - 2, x));
    y = Math.max(2, Math.min(canvas.height / ratio - h - 2, y));
    for (let i = 0; i < 12 && taken.some((t) => x < t.x + t.w && t.x < x + w && y < t.y + h && t.y < y + h); i++) y += h + 1;
    taken.push({ x, y, w });
    context.globalAlpha = 1;
    context.beginPath();
    context.roundRect(x, y, w, h, 5);
    context.fillStyle = style.colour;
    context.fill();
    context.strokeStyle = style.text;
    context.lineWidth = one.index === state.selected ? 2.5 : 1;
    context.stroke();
    context.fillStyle = style.text;
    context.fillText(text, x + w / 2, y + h / 2 + 0.5);
  });
}

function draw() {
  const { scale, ratio } = fitCanvas();
  const context = canvas.getContext("2d");
  context.setTransform(scale, 0, 0, scale, 0, 0);
  context.globalAlpha = 1;
  context.imageSmoothingQuality = "high";
  context.drawImage(state.picture, 0, 0, ...state.view.view);
  const unit = ratio / scale; // one CSS pixel in picture pixels
  for (let row = state.shown.length - 1; row >= 0; row--) drawInstance(context, state.shown[row], state.picks[row], unit);
  drawTags(context, scale, ratio);
}

// ---- panels ----

function summary() {
  const total = state.picks.reduce((sum, k) => sum + state.view.macs[k], 0);
  return { count: state.picks.length, mean: state.picks.length ? total / state.picks.length : 0 };
}

function showControls() {
  const slider = $(".dm-budget");
  const budget = budgetMacs();
  slider.value = state.step;
  slider.setAttribute("aria-valuetext", `${formatGmacs(budget)} GMACs per instance`);
  $(".dm-budget-value").textContent = `${formatGmacs(budget)} GMACs per instance`;
  $(".dm-score").value = state.score;
  $(".dm-score-value").textContent = state.score.toFixed(2);
  $(".dm-opacity-value").textContent = percent(state.opacity);
  $(".dm-policy-note").textContent = POLICIES.find(([name]) => name === state.policy)[2];
  for (const radio of element.querySelectorAll("[name=dm-policy]")) radio.checked = radio.value === state.policy;
  $(".dm-budget-card").classList.toggle("dm-idle-budget", state.policy !== "budget");
}

function showWhy() {
  const row = state.shown.findIndex((one) => one.index === state.selected);
  if (row < 0) {
    state.selected = null;
    state.why = null;
    emptyWhy($(".dm-why"));
    return;
  }
  const one = state.shown[row];
  const why = `${received} ${one.index} ${state.picks[row]}`;
  if (why === state.why) return;
  state.why = why;
  const ks = state.view.styles.map((_, k) => k);
  if (!one.agreements) {
    const fields = ks.map((k) => field(one, k));
    one.agreements = fields.map((each) => fieldIoU(each, fields[fields.length - 1]));
  }
  fillWhy($(".dm-why"), state.picture, state.view, one, state.picks[row], ks.map((k) => outline(one, k).path), one.agreements, () => {
    select(null);
    canvas.focus();
  });
}

function showPanels() {
  const { view } = state;
  const numbers = summary();
  showControls();
  fillFigures($(".dm-figures"), view, numbers);
  fillGauge({ gauge: $(".dm-gauge"), bar: $(".dm-gauge-bar"), mark: $(".dm-gauge-mark"), text: $(".dm-gauge-text") },
    view, numbers, budgetMacs(), state.policy === "budget");
  fillShares($(".dm-bars"), view, state.picks);
  fillTable($(".dm-table tbody"), view, state.shown, state.picks, state.selected, select);
  const none = state.shown.length === 0;
  $(".dm-table-scroll").hidden = none;
  $(".dm-table-empty").hidden = !none;
  $(".dm-table-empty").textContent = view.instances.length
    ? `None of the ${view.instances.length} candidates reaches score ${state.score.toFixed(2)}: lower the score.`
    : "No object was found in this picture.";
  const sizes = view.styles.map((style, k) => `${state.picks.filter((pick) => pick === k).length} at ${style.size}`).join(", ");
  canvas.setAttribute("aria-label", `${view.title || "Picture"}: ${state.shown.length} instances, ${sizes}`);
  showWhy();
}

let frame = 0;
let received = 0;

// Answers a change of the controls before the next frame.
function refresh() {
  if (!state.view || frame) return;
  frame = requestAnimationFrame(() => {
    frame = 0;
    const focused = document.activeElement?.closest?.(".dm-table tr")?.dataset.instance;
    const started = performance.now();
    choose();
    draw();
    showPanels();
    state.answerMs = performance.now() - started;
    $(".dm-answered").textContent = `The last move was answered in this browser in ${milliseconds(state.answerMs)}, without the server.`;
    if (focused !== undefined) $(`.dm-table tr[data-instance="${focused}"] .dm-pick`)?.focus();
  });
}

function select(index) {
  state.selected = index;
  refresh();
}

// ---- a new view from the server ----

async function prepare(view) {
  const picture = new Image();
  picture.src = view.picture;
  const [bytes] = await Promise.all([inflate(view.masks), picture.decode()]);
  const masks = splitMasks(bytes, view.styles.map((style) => style.size), view.instances.length);
  const [sx, sy] = [view.view[0] / view.size[0], view.view[1] / view.size[1]];
  const byScore = view.instances.map((one, i) => ({ ...one, masks: masks[i] })).sort((a, b) => b.score - a.score);
  view.instances = byScore.map((one, index) => ({ ...one, index, outlines: [], agreements: null,
    viewBox: [one.box[0] * sx, one.box[1] * sy, one.box[2] * sx, one.box[3] * sy] }));
  return picture;
}

// Traces the outlines of all sizes while nothing else happens, so that no later move waits for them.
function traceAhead(view) {
  const work = view.instances.flatMap((one) => view.styles.map((_, k) => [one, k]));
  const later = window.requestIdleCallback || ((run) => setTimeout(() => run({ timeRemaining: () => 8 }), 30));
  const run = (deadline) => {
    while (work.length && state.view === view && deadline.timeRemaining() > 3) outline(...work.shift());
    if (work.length && state.view === view) later(run);
  };
  later(run);
}

async function receive(text) {
  const turn = ++received;
  if (!text) return;
  const view = JSON.parse(text);
  const picture = await prepare(view);
  if (turn !== received) return;
  const first = state.view === null;
  Object.assign(state, { view, picture, selected: null, hovered: null, front: null });
  if (first) state.score = view.score;
  root.dataset.empty = "false";
  $(".dm-score").min = view.lowest_score;
  fillLegend($(".dm-legend"), view);
  fillTicks($(".dm-ticks"), view);
  $(".dm-caption").textContent = [view.title, `${view.size[0]} × ${view.size[1]} px`, view.credit].filter(Boolean).join(" · ");
  $(".dm-measured").textContent = footText(view);
  choose();
  if (state.policy === "learned") state.step = nearestStep(summary().mean || view.macs[view.macs.length - 1]);
  draw();
  showPanels();
  busy(false);
  if (!first) say(`${view.title || "Picture"} analysed: ${state.shown.length} instances.`);
  traceAhead(view);
}
