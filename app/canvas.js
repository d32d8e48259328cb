// The canvas: one picture, its instances and what is chosen for them. Runs inside Gradio's gr.HTML with `element`,
// `trigger`, `props`, `upload` and `watch`; every control is answered here, only pictures and new boxes ask the server.

const $ = (selector) => element.querySelector(selector);
const root = $(".dm");
const canvas = $(".dm-canvas");
const state = {
  policy: "learned", step: 200, score: 0.5, opacity: 0.45, boxes: false, paper: false, each: false,
  hidden: new Set(), overrides: new Map(), compare: null, divider: 0.5, drawing: null,
  selected: null, hovered: null, view: null, picture: null, shown: [], picks: [], leftPicks: null,
  fronts: new Map(), why: null, answerMs: 0, timing: null, scores: {}, explaining: false, queued: null,
};
const BUDGET_STEPS = 200;
const POLICIES = [
  ["learned", "Learned", "Each instance gets the size that the switch thinks best, whatever it costs."],
  ["budget", "Budget", "The most probable sizes whose mean cost stays within the budget: an exact choice."],
  ["size", "By box", "Large boxes get fine masks, small boxes coarse ones (the paper's Eq. 8); the switch is not asked."],
  ["oracle", "Oracle", "The sizes with the highest true IoU within the budget. It knows the truth, so it bounds every policy."],
  ...[14, 28, 56, 112].map((size) => [`fixed:${size}`, `All ${size}`, `Every instance gets ${size} × ${size}.`]),
];

function policyName(policy) {
  return POLICIES.find(([name]) => name === policy)[1];
}

// ---- what is shown ----

function styles() {
  return (state.paper && state.view.paper_styles) || state.view.styles;
}

function budgetMacs() {
  const { macs } = state.view;
  return macs[0] + ((macs[macs.length - 1] - macs[0]) * state.step) / BUDGET_STEPS;
}

function nearestStep(macs) {
  const { macs: costs } = state.view;
  const span = Math.max(costs[costs.length - 1] - costs[0], 1);
  return Math.min(BUDGET_STEPS, Math.max(0, Math.ceil(((macs - costs[0]) / span) * BUDGET_STEPS - 1e-9)));
}

// The policies that the present picture allows.
function allowed(policy) {
  return policy !== "oracle" || Boolean(state.view?.instances.some((one) => one.iou));
}

function picksOf(policy) {
  const { view, overrides, fronts } = state;
  if (oneStage()) return state.shown.map((one) => one.level);
  return assign(state.shown, allowed(policy) ? policy : "learned", {
    sizes: view.styles.map((style) => style.size), macs: view.macs, budget: budgetMacs(), size: view.size, overrides, fronts });
}

// The instances above the score in the classes that are on, best first, and the index of the size (or level) of each.
function choose() {
  state.shown = state.view.instances.filter((one) => one.score >= state.score && !state.hidden.has(one.label))
    .sort((a, b) => b.score - a.score);
  state.picks = picksOf(state.policy);
  state.leftPicks = state.compare && !oneStage() ? picksOf(state.compare) : null;
}

function field(one, k) {
  if (oneStage()) return pasteField(one.masks[0], one.shape[1], one.viewBox, ...state.view.view, one.shape[0]);
  return pasteField(one.masks[k], state.view.styles[k].size, one.viewBox, ...state.view.view);
}

function outline(one, k) {
  return (one.outlines[k] ??= outlinePath(field(one, k)));
}

// ---- drawing ----

// Fits the canvas to the stage; returns canvas pixels per picture pixel, or null while the page is hidden.
function fitCanvas() {
  const [width, height] = state.view.view;
  const stage = $(".dm-stage");
  if (!stage.clientWidth) return null;
  const limit = window.innerWidth < 760 ? window.innerHeight * 0.56 : Math.max(320, window.innerHeight * 0.64);
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
  context.strokeStyle = casing;
  context.globalAlpha = 0.85;
  context.lineWidth = width + 2 * unit;
  context.stroke(path);
  context.globalAlpha = 1;
  if (style.gap) context.setLineDash([style.dash * unit, style.gap * unit]);
  context.strokeStyle = style.colour;
  context.lineWidth = width;
  context.stroke(path);
  if (style.gap) context.setLineDash([]);
  if (style.core) {
    context.strokeStyle = casing;
    context.lineWidth = unit;
    context.stroke(path);
  }
}

function strokeBox(context, [x0, y0, x1, y1], unit) {
  context.setLineDash([4 * unit, 3 * unit]);
  for (const [colour, width] of [["#000", 2.5], ["#fff", 1.2]]) {
    context.strokeStyle = colour;
    context.lineWidth = width * unit;
    context.strokeRect(x0, y0, x1 - x0, y1 - y0);
  }
  context.setLineDash([]);
}

function drawInstance(context, one, k, unit) {
  const style = styleOf(one, k);
  const { path } = outline(one, k);
  const strong = one.index === state.selected || one.index === state.hovered;
  context.globalAlpha = state.opacity;
  context.fillStyle = style.colour;
  context.fill(path, "evenodd");
  strokeOutline(context, path, style, unit, strong);
  if (state.boxes || one.drawn || one.index === state.selected) strokeBox(context, one.viewBox, unit);
}

// The instance as it looks at rest, kept as a small picture: a move of the slider then only copies pixels.
function sprite(one, k, scale, unit) {
  const key = `${state.opacity} ${state.paper} ${state.each} ${state.boxes} ${scale} ${unit}`;
  const kept = one.sprites[k];
  if (kept?.key === key) return kept;
  const pad = 5 * unit;
  const [x0, y0] = [one.viewBox[0], one.viewBox[1]].map((side) => Math.max(0, Math.floor((side - pad) * scale)));
  const w = Math.max(1, Math.min(canvas.width, Math.ceil((one.viewBox[2] + pad) * scale)) - x0);
  const h = Math.max(1, Math.min(canvas.height, Math.ceil((one.viewBox[3] + pad) * scale)) - y0);
  const sheet = new OffscreenCanvas(w, h);
  const context = sheet.getContext("2d");
  context.setTransform(scale, 0, 0, scale, -x0, -y0);
  drawInstance(context, one, k, unit);
  one.sprites[k] = { key, x: x0, y: y0, picture: sheet.transferToImageBitmap() };
  return one.sprites[k];
}

// All instances, the best score on top, inside columns from..to of the picture.
function drawLayer(context, picks, from, to, scale, unit) {
  context.save();
  if (from > 0 || to < state.view.view[0]) {
    context.beginPath();
    context.rect(from, 0, to - from, state.view.view[1]);
    context.clip();
  }
  for (let row = state.shown.length - 1; row >= 0; row--) {
    const one = state.shown[row];
    if (one.index === state.selected || one.index === state.hovered) {
      context.setTransform(scale, 0, 0, scale, 0, 0);
      drawInstance(context, one, picks[row], unit);
    } else {
      const { picture, x, y } = sprite(one, picks[row], scale, unit);
      context.globalAlpha = 1;
      context.setTransform(1, 0, 0, 1, 0, 0);
      context.drawImage(picture, x, y);
    }
  }
  context.restore();
}

// The picture at the canvas's size, scaled once.
function drawBase(context) {
  const key = `${canvas.width} ${canvas.height}`;
  if (state.base?.key !== key || state.base.view !== state.view) {
    const sheet = new OffscreenCanvas(canvas.width, canvas.height);
    const sheetContext = sheet.getContext("2d");
    sheetContext.imageSmoothingQuality = "high";
    sheetContext.drawImage(state.picture, 0, 0, canvas.width, canvas.height);
    state.base = { key, view: state.view, picture: sheet.transferToImageBitmap() };
  }
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.globalAlpha = 1;
  context.drawImage(state.base.picture, 0, 0);
}

// The size, printed at the top of the instance, or level, class and score, printed on its cell; tags that would overlap move down.
function drawTags(context, scale, ratio) {
  const taken = [];
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.font = "700 13px system-ui, sans-serif";
  context.textBaseline = "middle";
  context.textAlign = "center";
  const cut = state.leftPicks ? (state.divider * canvas.width) / ratio : -1;
  state.shown.forEach((one, row) => {
    if (one.behind && one.index === state.selected) return; // its cell is drawn there
    const toCss = scale / ratio;
    const middle = (one.spot ? one.spot[0] : (one.viewBox[0] + one.viewBox[2]) / 2) * toCss;
    const style = styleOf(one, (middle < cut ? state.leftPicks : state.picks)[row]);
    const text = tagText(one, style);
    const [w, h] = [(oneStage() ? context.measureText(text).width : text.length * 8) + 12, 19];
    let y = one.spot ? one.spot[1] * toCss - h / 2 : one.viewBox[1] * toCss + 3;
    const x = Math.max(2, Math.min(canvas.width / ratio - w - 2, middle - w / 2));
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

// The divider with its handle and what stands on either side, in CSS pixels.
function drawDivider(context, ratio) {
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.globalAlpha = 1;
  const [w, h] = [canvas.width / ratio, canvas.height / ratio];
  const x = state.divider * w;
  for (const [colour, width] of [["rgba(0,0,0,.55)", 5], ["#fff", 2.5]]) {
    context.fillStyle = colour;
    context.fillRect(x - width / 2, 0, width, h);
  }
  context.beginPath();
  context.arc(x, h / 2, 14, 0, 7);
  context.fillStyle = "#fff";
  context.fill();
  context.fillStyle = "#222";
  context.font = "700 14px system-ui, sans-serif";
  context.textAlign = "center";
  context.textBaseline = "middle";
  context.fillText("↔", x, h / 2 + 0.5);
  context.font = "600 12.5px system-ui, sans-serif";
  for (const [text, left] of [[policyName(state.compare), true], [policyName(state.policy), false]]) {
    const width = context.measureText(text).width + 16;
    const start = left ? x - width - 8 : x + 8;
    if (start < 2 || start + width > w - 2) continue;
    context.fillStyle = "rgba(16, 20, 28, 0.85)";
    context.beginPath();
    context.roundRect(start, h - 28, width, 22, 6);
    context.fill();
    context.fillStyle = "#fff";
    context.fillText(text, start + width / 2, h - 16.5);
  }
}

function draw() {
  const fitted = fitCanvas();
  if (!fitted) return;
  const { scale, ratio } = fitted;
  const context = canvas.getContext("2d");
  const [width] = state.view.view;
  drawBase(context);
  context.setTransform(scale, 0, 0, scale, 0, 0);
  const unit = ratio / scale; // one CSS pixel in picture pixels
  const cut = state.leftPicks ? state.divider * width : 0;
  if (state.leftPicks) drawLayer(context, state.leftPicks, 0, cut, scale, unit);
  drawLayer(context, state.picks, cut, width, scale, unit);
  drawTags(context, scale, ratio);
  if (state.leftPicks) drawDivider(context, ratio);
  if (oneStage()) drawBehind(context, scale, unit);
  if (state.drawing) drawRubber(context, scale, unit);
}

// ---- panels ----

function summaryOf(picks) {
  const total = picks.reduce((sum, k) => sum + state.view.macs[k], 0);
  return { count: picks.length, total, mean: picks.length ? total / picks.length : 0 };
}

function showControls() {
  const slider = $(".dm-budget");
  const budget = budgetMacs();
  slider.value = state.step;
  slider.setAttribute("aria-valuetext", `${formatGmacs(budget)} GMACs per instance`);
  setText($(".dm-budget-value"), `${formatGmacs(budget)} GMACs per instance`);
  $(".dm-score").value = state.score;
  setText($(".dm-score-value"), state.score.toFixed(2));
  $(".dm-opacity").value = state.opacity;
  setText($(".dm-opacity-value"), percent(state.opacity));
  $(".dm-boxes").checked = state.boxes;
  $(".dm-paper").checked = state.paper;
  $(".dm-each").checked = state.each;
  const byHand = state.overrides.size ? " A star marks sizes set by hand." : "";
  setText($(".dm-policy-note"), POLICIES.find(([name]) => name === state.policy)[2] + byHand);
  for (const radio of element.querySelectorAll("[name=dm-policy]")) {
    radio.checked = radio.value === state.policy;
    radio.disabled = !allowed(radio.value);
    radio.closest("label").hidden = radio.value === "oracle" && radio.disabled;
  }
  $(".dm-budget-card").classList.toggle("dm-idle-budget", state.policy !== "budget" && state.policy !== "oracle");
  showCompare();
}

function showCompare() {
  const on = state.compare !== null && !oneStage();
  $(".dm-compare").setAttribute("aria-pressed", String(on));
  $(".dm-divider-row").hidden = !on;
  if (!on) return;
  $(".dm-left").value = state.compare;
  $(".dm-right").value = state.policy;
  for (const option of element.querySelectorAll(".dm-left option, .dm-right option")) option.disabled = !allowed(option.value);
  $(".dm-divider").value = Math.round(state.divider * 100);
  $(".dm-divider").setAttribute("aria-valuetext", `${Math.round(state.divider * 100)} % of the picture shows ${policyName(state.compare)}`);
  const [left, right] = [summaryOf(state.leftPicks), summaryOf(state.picks)];
  const differ = state.picks.filter((k, i) => k !== state.leftPicks[i]).length;
  const truth = [state.leftPicks, state.picks].map(meanTruth);
  const quality = truth[0] === null ? "" : ` · true boundary IoU ${truth[0].toFixed(3)} → ${truth[1].toFixed(3)}`;
  setText($(".dm-compare-text"), right.count
    ? `${formatGmacs(left.mean)} → ${formatGmacs(right.mean)} mean GMACs · ${differ} of ${right.count} sizes differ${quality}`
    : "No instance is shown.");
}

// Mean true boundary IoU of the shown instances that have a truth; null where none has.
function meanTruth(picks) {
  const values = state.shown.map((one, i) => (one.boundary ? one.boundary[oneStage() ? 0 : picks[i]] : null)).filter((value) => value !== null);
  return values.length ? values.reduce((a, b) => a + b, 0) / values.length : null;
}

function showNumbers(numbers) {
  const { view } = state;
  fillFigures($(".dm-figures"), view, numbers, meanTruth(state.picks));
  const applied = state.policy === "budget" || state.policy === "oracle";
  fillGauge({ gauge: $(".dm-gauge"), bar: $(".dm-gauge-bar"), mark: $(".dm-gauge-mark"), text: $(".dm-gauge-text") },
    view, numbers, budgetMacs(), applied);
  fillShares($(".dm-bars"), styles(), state.picks);
  showTiming(numbers);
}

function showPanels() {
  const { view } = state;
  const numbers = summaryOf(state.picks);
  showControls();
  if (oneStage()) fillLevelNumbers(numbers);
  else showNumbers(numbers);
  fillTable($(".dm-table tbody"), view, styles(), state, select);
  const none = state.shown.length === 0;
  $(".dm-table-scroll").hidden = none;
  $(".dm-table-empty").hidden = !none;
  $(".dm-clear-boxes").hidden = !view.instances.some((one) => one.drawn);
  if (none) {
    $(".dm-table-empty").textContent = !view.instances.length ? (oneStage() ? "No object was found in this picture." : "No object was found in this picture. Draw a box around something.")
      : state.hidden.size ? "Nothing is shown: lower the score, or switch a class on."
        : `None of the ${view.instances.length} candidates reaches score ${state.score.toFixed(2)}: lower the score.`;
  }
  const sizes = view.styles.map((style, k) => `${state.picks.filter((pick) => pick === k).length} at ${style.size}`).join(", ");
  canvas.setAttribute("aria-label", `${view.title || "Picture"}: ${state.shown.length} instances, ${sizes}`);
  showWhy();
}

// The time of the mask branch: measured for the present setting, or else for all four sizes at the analysis.
function showTiming(numbers) {
  const { timing, view } = state;
  const picksKey = JSON.stringify(shownPicks());
  const fresh = timing && timing.picks === picksKey;
  setText($(".dm-timing-text"), fresh
    ? `Mask branch at this setting: ${milliseconds(timing.milliseconds)}, measured for ${timing.count} ${timing.count === 1 ? "instance" : "instances"}.`
    : timing ? `Mask branch: ${milliseconds(timing.milliseconds)} at the setting measured last (${formatGmacs(timing.mean)} mean GMACs).`
      : `Mask branch, all 4 sizes of ${view.instances.length}: ${milliseconds(view.timings.mask_branch)}. Measure it as it really runs at this setting:`);
  $(".dm-timing").classList.toggle("dm-stale", Boolean(timing) && !fresh);
  $(".dm-measure").disabled = root.classList.contains("dm-is-busy") || !numbers.count;
}

function shownPicks() {
  return state.shown.map((one, i) => [one.index, state.picks[i]]);
}

let frame = 0;
let received = 0;

// Answers a change of the controls: the picture at once, the panels with the next frame.
function refresh() {
  if (!state.view) return;
  const started = performance.now();
  choose();
  draw();
  state.answerMs = performance.now() - started;
  if (frame) return;
  frame = requestAnimationFrame(() => {
    frame = 0;
    showPanels();
    setText($(".dm-answered"), `The last move was drawn in this browser in ${milliseconds(state.answerMs)}, without the server.`);
    rememberSoon();
  });
}

function select(index) {
  state.selected = index;
  refresh();
}

// Fixes the size of one instance by hand; null gives it back to the policy.
function override(index, k) {
  if (k === null) state.overrides.delete(index);
  else state.overrides.set(index, k);
  refresh();
}
