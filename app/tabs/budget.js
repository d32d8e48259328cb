// The budget curve: drawn here, from figures that the server sends once a picture. Only another picture, or another set
// of shown instances, asks the server again.

const $ = (selector) => element.querySelector(selector);
const SVG = "http://www.w3.org/2000/svg";
const AREA = { left: 50, right: 884, top: 14, bottom: 398, width: 900, height: 460 };
const state = { data: null, measure: null, at: -1, now: null, asked: "", dirty: true };

function shape(name, attributes = {}, text = null) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== null) node.textContent = text;
  return node;
}

const gmacs = (macs) => (macs / 1e9).toPrecision(3);
const percent = (share) => `${Math.round(share * 100)} %`;

// ---- asking ----

function shownNow() {
  state.now = now();
  return Array.isArray(state.now.picks) ? state.now.picks.map(([index]) => index).sort((a, b) => a - b) : null;
}

const visible = () => element.getClientRects().length > 0;

// Asks the server for the curve, unless what it would say is known.
function ask() {
  if (!visible()) return;
  const shown = shownNow();
  const wanted = JSON.stringify(shown);
  if (!state.dirty && wanted === state.asked) return;
  state.dirty = false;
  state.asked = wanted;
  trigger("select", { shown });
}

let waiting = null;
function askSoon() {
  clearTimeout(waiting);
  waiting = setTimeout(ask, 150);
}

// ---- the picture of the curve ----

// Round steps that cut [low, high] into about `count` parts.
function ticks(low, high, count) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((each) => each >= rough * 0.999);
  const found = [];
  for (let value = Math.ceil(low / step - 1e-9) * step; value <= high + step * 1e-9; value += step) found.push(value);
  return { found, digits: Math.max(0, -Math.floor(Math.log10(step) + 1e-9)) };
}

function scales(measure) {
  const lines = [measure.curve, measure.fixed, measure.random || [], measure.oracle || [], [measure.learned]].flat();
  const values = lines.map((point) => point.value);
  const spread = Math.max(Math.max(...values) - Math.min(...values), 0.02);
  const low = Math.max(0, Math.min(...values) - spread * 0.12);
  const high = Math.min(1, Math.max(...values) + spread * 0.12);
  const { macs } = state.data;
  const start = macs[0] - (macs[3] - macs[0]) * 0.03;
  const end = macs[3] + (macs[3] - macs[0]) * 0.03;
  return {
    low, high, start, end,
    x: (value) => AREA.left + ((value - start) / (end - start)) * (AREA.right - AREA.left),
    y: (value) => AREA.bottom - ((value - low) / (high - low)) * (AREA.bottom - AREA.top),
  };
}

// Fits the drawing to the page, so that its letters keep their size.
function fit() {
  const width = Math.max(280, Math.round($(".dt-plot").getBoundingClientRect().width) || 900);
  const height = Math.round(Math.min(460, Math.max(300, width * 0.5)));
  Object.assign(AREA, { width, height, right: width - 14, bottom: height - 52 });
  $(".dt-plot").setAttribute("viewBox", `0 0 ${width} ${height}`);
}

function drawAxes(svg, scale) {
  const across = ticks(scale.start / 1e9, scale.end / 1e9, AREA.width < 500 ? 4 : 7);
  for (const value of across.found) {
    const x = scale.x(value * 1e9);
    svg.append(shape("line", { x1: x, x2: x, y1: AREA.top, y2: AREA.bottom, class: "dt-grid" }));
    svg.append(shape("text", { x, y: AREA.bottom + 19, "text-anchor": "middle", "font-size": 13, class: "dt-soft" }, value.toFixed(across.digits)));
  }
  const up = ticks(scale.low, scale.high, 6);
  for (const value of up.found) {
    const y = scale.y(value);
    svg.append(shape("line", { x1: AREA.left, x2: AREA.right, y1: y, y2: y, class: "dt-grid" }));
    svg.append(shape("text", { x: AREA.left - 10, y: y + 4, "text-anchor": "end", "font-size": 13, class: "dt-soft" }, value.toFixed(Math.max(2, up.digits))));
  }
  svg.append(shape("text", { x: (AREA.left + AREA.right) / 2, y: AREA.height - 8, "text-anchor": "middle", "font-size": 13.5 }, "mean GMACs per instance"));
}

function drawLine(svg, scale, points, attributes) {
  const steps = points.map((point, i) => `${i ? "L" : "M"}${scale.x(point.macs).toFixed(1)} ${scale.y(point.value).toFixed(1)}`);
  svg.append(shape("path", { d: steps.join(""), fill: "none", "stroke-linejoin": "round", ...attributes }));
}

// What can be touched, from left to right: points of the curve, the fixed sizes and the switch's own choice.
function targets(measure) {
  const curve = measure.curve.map((point) => ({ ...point, kind: "budget" }));
  const fixed = measure.fixed.map((point) => ({ ...point, kind: "fixed" }));
  return [...curve, ...fixed, { ...measure.learned, kind: "learned" }].sort((a, b) => a.macs - b.macs || a.value - b.value);
}

function describe(point) {
  const where = `${gmacs(point.macs)} GMACs per instance, ${state.measure.name} ${point.value.toFixed(3)}`;
  if (point.kind === "fixed") return `All at ${point.size}: ${where}.`;
  const sizes = point.shares.map((share, k) => (share > 0 ? `${percent(share)} at ${state.data.sizes[k]}` : "")).filter(Boolean);
  const start = point.kind === "learned" ? "The switch's own choice: " : "";
  return `${start}${where}: ${sizes.join(", ")}.`;
}

function mark(point, scale) {
  const [x, y] = [scale.x(point.macs), scale.y(point.value)];
  const group = shape("g", { class: "dt-dot", role: "button", tabindex: "-1", "aria-label": describe(point) });
  if (point.kind === "fixed") {
    const k = state.data.sizes.indexOf(point.size);
    group.append(shape("circle", { cx: x, cy: y, r: 9, fill: state.data.colours[k], stroke: "currentColor", "stroke-width": 1.5 }));
    const above = y > AREA.top + 34;
    const anchor = x > AREA.right - 30 ? "end" : x < AREA.left + 30 ? "start" : "middle";
    group.append(shape("text", { x: anchor === "end" ? x + 9 : anchor === "start" ? x - 9 : x, y: above ? y - 15 : y + 26, "text-anchor": anchor, "font-size": 14, "font-weight": 700 }, AREA.width < 500 ? `${point.size}` : `all ${point.size}`));
  } else if (point.kind === "learned") {
    const star = Array.from({ length: 10 }, (_, i) => {
      const [radius, angle] = [i % 2 ? 5 : 12, (i * Math.PI) / 5 - Math.PI / 2];
      return `${(x + radius * Math.cos(angle)).toFixed(1)},${(y + radius * Math.sin(angle)).toFixed(1)}`;
    });
    group.append(shape("path", { d: `M${star.join("L")}Z`, fill: "var(--card)", stroke: "currentColor", "stroke-width": 2 }));
  } else {
    group.append(shape("circle", { cx: x, cy: y, r: 4, fill: "var(--accent)" }));
  }
  return group;
}

function drawNow() {
  const svg = $(".dt-plot");
  svg.querySelector(".dt-now")?.remove();
  const point = presentPoint();
  if (!point) return;
  const scale = scales(state.measure);
  const [x, y] = [scale.x(point.macs), scale.y(Math.min(scale.high, Math.max(scale.low, point.value)))];
  const group = shape("g", { class: "dt-now", "pointer-events": "none" });
  group.append(shape("line", { x1: x, x2: x, y1: y, y2: AREA.bottom, stroke: "currentColor", "stroke-dasharray": "4 4", "stroke-width": 1.5 }));
  group.append(shape("circle", { cx: x, cy: y, r: 13, fill: "none", stroke: "currentColor", "stroke-width": 3 }));
  const right = x > AREA.right - 70;
  group.append(shape("text", { x: right ? x - 20 : x + 20, y: y + 22, "text-anchor": right ? "end" : "start", "font-size": 14, "font-weight": 700 }, "now"));
  svg.append(group);
}

// Where Explore stands: mean MACs and mean value of the sizes that it shows, over the instances of the measure.
function presentPoint() {
  const { measure, data, now: setting } = state;
  const picks = (setting?.picks || []).filter(([index]) => measure && measure.values[index]);
  if (!measure || !picks.length) return null;
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  return { macs: mean(picks.map(([, k]) => data.macs[k])), value: mean(picks.map(([index, k]) => measure.values[index][k])) };
}

function draw() {
  const { data, measure } = state;
  const svg = $(".dt-plot");
  svg.replaceChildren();
  fit();
  $(".dt-axis").textContent = measure ? `Upwards: ${measure.axis}` : "";
  $(".dt-title").textContent = data?.title || "";
  if (!measure) {
    svg.append(shape("text", { x: AREA.width / 2, y: AREA.height / 2, "text-anchor": "middle", "font-size": 15, class: "dt-soft" },
      data?.macs ? "No instance is shown on Explore: lower its score threshold." : "Choose a picture on Explore first."));
    svg.toggleAttribute("hidden", Boolean(state.sentence));
    $(".dt-read").textContent = state.sentence || "";
    $(".dt-note").textContent = "";
    $(".dt-keys").replaceChildren();
    return;
  }
  svg.removeAttribute("hidden");
  const scale = scales(measure);
  drawAxes(svg, scale);
  if (measure.oracle) drawLine(svg, scale, measure.oracle, { stroke: "currentColor", "stroke-width": 2, "stroke-dasharray": "2 5", opacity: 0.8 });
  if (measure.random) drawLine(svg, scale, measure.random, { stroke: "currentColor", "stroke-width": 2, "stroke-dasharray": "9 5", opacity: 0.55 });
  drawLine(svg, scale, measure.curve, { stroke: "var(--accent)", "stroke-width": 3 });
  state.targets = targets(measure);
  state.dots = state.targets.map((point) => mark(point, scale));
  const order = { budget: 0, fixed: 1, learned: 2 };
  state.dots.map((dot, i) => [dot, order[state.targets[i].kind]]).sort((a, b) => a[1] - b[1]).forEach(([dot]) => svg.append(dot));
  state.at = Math.min(Math.max(state.at, 0), state.dots.length - 1);
  state.dots[state.at].setAttribute("tabindex", "0");
  drawKeys(measure);
  drawNow();
}

function drawKeys(measure) {
  const entries = [["Switch within the budget", { stroke: "var(--accent)", "stroke-width": 3 }]];
  if (measure.random) entries.push(["The same sizes dealt out at random", { stroke: "currentColor", "stroke-width": 2, "stroke-dasharray": "9 5", opacity: 0.55 }]);
  if (measure.oracle) entries.push(["Best there is (knows the truth)", { stroke: "currentColor", "stroke-width": 2, "stroke-dasharray": "2 5" }]);
  const items = entries.map(([text, attributes]) => {
    const icon = shape("svg", { viewBox: "0 0 30 14", "aria-hidden": "true" });
    icon.append(shape("line", { x1: 0, x2: 30, y1: 7, y2: 7, ...attributes }));
    const item = document.createElement("li");
    item.append(icon, text);
    return item;
  });
  const star = document.createElement("li");
  star.textContent = "☆ the switch's own choice   ◯ Explore now";
  $(".dt-keys").replaceChildren(...items, star);
  const { instances, truth } = state.data;
  $(".dt-note").textContent = measure.key === "probability"
    ? `Over ${instances} instance${instances === 1 ? "" : "s"}. ${truth ? "" : "No true masks are known for this picture: "}the probability says what the switch believes, not how good the masks are.`
    : `Over the ${measure.known} of ${instances} shown instances that match a true object of the scene.`;
}

// ---- touching ----

function touch(index, focus = false) {
  if (index < 0 || !state.dots?.[index]) return;
  const moved = index !== state.at;
  state.dots[state.at]?.setAttribute("tabindex", "-1");
  state.at = index;
  state.dots[index].setAttribute("tabindex", "0");
  if (focus) state.dots[index].focus();
  $(".dt-read").textContent = describe(state.targets[index]);
  if (moved || focus || state.now?.policy !== "budget") setBudget(state.targets[index].budget / 1e9);
}

// Index of the target nearest to the pointer, along x first: null when the pointer is outside the plot.
function nearest(event) {
  const svg = $(".dt-plot");
  const box = svg.getBoundingClientRect();
  const x = ((event.clientX - box.left) / box.width) * AREA.width;
  const y = ((event.clientY - box.top) / box.height) * AREA.height;
  if (!state.targets || x < AREA.left - 20 || y < 0 || y > AREA.bottom + 20) return -1;
  const scale = scales(state.measure);
  const far = (point) => {
    const [across, down] = [scale.x(point.macs) - x, scale.y(point.value) - y];
    return point.kind === "budget" ? Math.abs(across) + 0.02 * Math.abs(down) : Math.hypot(across, down) * 0.8;
  };
  return state.targets.reduce((best, point, i) => (far(point) < far(state.targets[best]) ? i : best), 0);
}

function connect() {
  const svg = $(".dt-plot");
  svg.addEventListener("pointermove", (event) => touch(nearest(event)));
  svg.addEventListener("click", (event) => touch(nearest(event), true));
  svg.addEventListener("keydown", (event) => {
    const last = (state.dots?.length || 0) - 1;
    const next = { ArrowRight: state.at + 1, ArrowUp: state.at + 1, ArrowLeft: state.at - 1, ArrowDown: state.at - 1, Home: 0, End: last }[event.key];
    if (event.key === "Enter" || event.key === " ") touch(state.at, true);
    else if (next === undefined) return;
    else touch(Math.min(last, Math.max(0, next)), true);
    event.preventDefault();
  });
}

function chooseMeasure(key) {
  const measures = state.data?.measures || [];
  state.measure = measures.find((each) => each.key === key) || measures[0] || null;
  draw();
}

function fillMeasures() {
  const labels = (state.data?.measures || []).map((measure) => {
    const radio = Object.assign(document.createElement("input"), { type: "radio", name: "dt-measure", value: measure.key });
    radio.checked = measure === state.measure;
    radio.addEventListener("change", () => chooseMeasure(measure.key));
    const [label, words] = [document.createElement("label"), document.createElement("span")];
    words.textContent = measure.name;
    label.append(radio, words);
    return label;
  });
  const legend = $(".dt-measures legend");
  $(".dt-measures").replaceChildren(legend, ...labels);
}

function receive(text) {
  const data = text ? JSON.parse(text) : null;
  if (!data) return;
  state.data = data.macs ? data : null;
  state.sentence = data.sentence || "";
  const key = state.measure?.key;
  state.now = now();
  chooseMeasure(key);
  fillMeasures();
}

function onChanged(event) {
  if (!element.isConnected) return document.removeEventListener(CHANGED, onChanged);
  state.now = event.detail;
  if (state.measure) drawNow();
  askSoon();
}

function onPicture() {
  if (!element.isConnected) return document.removeEventListener(PICTURE, onPicture);
  state.dirty = true;
  askSoon();
}

connect();
draw();
watch("value", () => receive(props.value));
document.addEventListener(CHANGED, onChanged);
document.addEventListener(PICTURE, onPicture);
new IntersectionObserver(askSoon).observe(element);
let drawnFor = 0;
new ResizeObserver(() => {
  const width = Math.round($(".dt-plot").getBoundingClientRect().width);
  if (width && width !== drawnFor) draw();
  drawnFor = width;
}).observe($(".dt-plot"));
element.dynamaskCurve = state;
receive(props.value);
