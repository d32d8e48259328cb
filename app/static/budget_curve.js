// The Budget curve tab: quality against cost for the picture on Explore. The server sends the figures once a picture; only
// another picture, or another set of shown instances, asks it again.

import { setBudget } from "./controls.js";
import { make, svg } from "./dom.js";
import { formatMacs, percent, plural } from "./format.js";
import { CHANGED, now, PICTURE } from "./setting.js";

const LINES = {
  curve: { stroke: "var(--accent)", "stroke-width": 3 },
  random: { stroke: "currentColor", "stroke-width": 2, "stroke-dasharray": "9 5", opacity: 0.55 },
  oracle: { stroke: "currentColor", "stroke-width": 2, "stroke-dasharray": "2 5", opacity: 0.8 },
};
const AREA = { left: 50, right: 884, top: 14, bottom: 398, width: 900, height: 460 };

let host = null; // { element, props, request, watch }
let running = null; // ends the listeners on document when the tab is built again
let state = null;

const $ = (selector) => host.element.querySelector(selector);

// Runs the tab in a host, see app/templates.py.
export function start(newHost) {
  running?.abort();
  running = new AbortController();
  host = newHost;
  state = { data: null, measure: null, wanted: null, points: [], dots: [], current: -1, setting: {}, asked: "", outdated: true };
  host.element.dynamaskCurve = state; // for tests and the console
  connectPlot();
  draw();
  host.watch("value", () => receive(host.props.value));
  document.addEventListener(CHANGED, (event) => {
    state.setting = event.detail;
    if (state.measure) drawPresent();
    askSoon();
  }, { signal: running.signal });
  document.addEventListener(PICTURE, () => {
    state.outdated = true;
    askSoon();
  }, { signal: running.signal });
  new IntersectionObserver(askSoon).observe(host.element);
  let drawnWidth = 0;
  new ResizeObserver(() => {
    const width = Math.round($(".dt-plot").getBoundingClientRect().width);
    if (width && width !== drawnWidth) draw();
    drawnWidth = width;
  }).observe($(".dt-plot"));
  receive(host.props.value);
}

// ---- figures from the server ----

let timer = null;

function askSoon() {
  clearTimeout(timer);
  timer = setTimeout(ask, 150);
}

// Asks for the curve of the shown instances, unless it is known or the tab is hidden.
function ask() {
  if (!host.element.getClientRects().length) return;
  state.setting = now();
  const shown = state.setting.picks?.map(([index]) => index).sort((a, b) => a - b) ?? null;
  const wanted = JSON.stringify(shown);
  if (!state.outdated && wanted === state.asked) return;
  state.outdated = false;
  state.asked = wanted;
  host.request({ shown });
}

// Takes the figures, JSON text. `macs` is missing where there is no curve; `sentence` then says why.
function receive(text) {
  if (!text) return;
  state.data = JSON.parse(text);
  state.setting = now();
  $(".dt-read").textContent = state.data.sentence || "";
  chooseMeasure(state.wanted);
  showMeasures();
}

function chooseMeasure(key) {
  const measures = state.data?.measures || [];
  state.measure = measures.find((each) => each.key === key) || measures[0] || null;
  draw();
}

function showMeasures() {
  const labels = (state.data.measures || []).map((measure) => {
    const radio = make("input", { type: "radio", name: "dt-measure", value: measure.key, checked: measure === state.measure });
    radio.addEventListener("change", () => {
      state.wanted = measure.key;
      chooseMeasure(measure.key);
    });
    return make("label", {}, radio, make("span", {}, measure.name));
  });
  $(".dt-measures").replaceChildren($(".dt-measures legend"), ...labels);
}

// ---- the plot ----

function draw() {
  const { data, measure } = state;
  const plot = $(".dt-plot");
  plot.replaceChildren();
  fitPlot(plot);
  $(".dt-axis").textContent = measure ? `Vertical axis: ${measure.axis}` : "";
  $(".dt-title").textContent = data?.title || "";
  plot.toggleAttribute("hidden", Boolean(data?.sentence));
  if (!measure) {
    const text = data?.macs ? "No instance is shown on Explore: lower its score threshold." : "Choose a picture on Explore first.";
    plot.append(svg("text", { x: AREA.width / 2, y: AREA.height / 2, "text-anchor": "middle", "font-size": 15, class: "dt-soft" }, text));
    $(".dt-note").textContent = "";
    $(".dt-keys").replaceChildren();
    return;
  }
  const scale = scales(measure);
  drawAxes(plot, scale);
  for (const name of ["oracle", "random", "curve"]) if (measure[name]) drawLine(plot, scale, measure[name], LINES[name]);
  drawDots(plot, scale, measure);
  showKeys(measure);
  drawPresent();
}

// Fits the drawing to the page, so that its letters keep their size.
function fitPlot(plot) {
  const width = Math.max(280, Math.round(plot.getBoundingClientRect().width) || 900);
  const height = Math.round(Math.min(460, Math.max(300, width * 0.5)));
  Object.assign(AREA, { width, height, right: width - 14, bottom: height - 52 });
  plot.setAttribute("viewBox", `0 0 ${width} ${height}`);
}

// The ranges of both axes, and the functions from values to coordinates of the plot.
function scales(measure) {
  const points = [measure.curve, measure.fixed, measure.random || [], measure.oracle || [], [measure.learned], measure.quality || []].flat();
  const values = points.map((point) => point.value);
  const [least, most] = [Math.min(...values), Math.max(...values)];
  const margin = Math.max(most - least, 0.02) * 0.12;
  const [low, high] = [Math.max(0, least - margin), Math.min(1, most + margin)];
  const { macs } = state.data;
  const side = (macs[3] - macs[0]) * 0.03;
  const [start, end] = [macs[0] - side, macs[3] + side];
  return {
    low, high, start, end,
    x: (value) => AREA.left + ((value - start) / (end - start)) * (AREA.right - AREA.left),
    y: (value) => AREA.bottom - ((value - low) / (high - low)) * (AREA.bottom - AREA.top),
  };
}

// Round values that cut [low, high] into about `count` parts, and the digits that they need.
function ticks(low, high, count) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((each) => each >= rough * 0.999);
  const values = [];
  for (let value = Math.ceil(low / step - 1e-9) * step; value <= high + step * 1e-9; value += step) values.push(value);
  return { values, digits: Math.max(0, -Math.floor(Math.log10(step) + 1e-9)) };
}

function drawAxes(plot, scale) {
  const unit = scale.end >= 1e9 ? 1e9 : 1e6;
  const across = ticks(scale.start / unit, scale.end / unit, AREA.width < 500 ? 4 : 7);
  for (const value of across.values) {
    const x = scale.x(value * unit);
    plot.append(svg("line", { x1: x, x2: x, y1: AREA.top, y2: AREA.bottom, class: "dt-grid" }));
    plot.append(svg("text", { x, y: AREA.bottom + 19, "text-anchor": "middle", "font-size": 13, class: "dt-soft" }, value.toFixed(across.digits)));
  }
  const up = ticks(scale.low, scale.high, 6);
  for (const value of up.values) {
    const y = scale.y(value);
    plot.append(svg("line", { x1: AREA.left, x2: AREA.right, y1: y, y2: y, class: "dt-grid" }));
    plot.append(svg("text", { x: AREA.left - 10, y: y + 4, "text-anchor": "end", "font-size": 13, class: "dt-soft" }, value.toFixed(Math.max(2, up.digits))));
  }
  plot.append(svg("text", { x: (AREA.left + AREA.right) / 2, y: AREA.height - 8, "text-anchor": "middle", "font-size": 13.5 },
    `Mean MACs per instance (${unit === 1e9 ? "billions" : "millions"})`));
}

function drawLine(plot, scale, points, attributes) {
  const steps = points.map((point, i) => `${i ? "L" : "M"}${scale.x(point.macs).toFixed(1)} ${scale.y(point.value).toFixed(1)}`);
  plot.append(svg("path", { d: steps.join(""), fill: "none", "stroke-linejoin": "round", ...attributes }));
}

// The points that can be chosen, from left to right; in the drawing stars lie over circles, and circles over dots.
function drawDots(plot, scale, measure) {
  const points = [
    ...measure.curve.map((point) => ({ ...point, kind: "budget" })),
    ...measure.fixed.map((point) => ({ ...point, kind: "fixed" })),
    { ...measure.learned, kind: "learned" },
    ...(measure.quality ? [{ ...measure.quality, kind: "quality" }] : []),
  ].sort((a, b) => a.macs - b.macs || a.value - b.value);
  const dots = points.map((point) => dotOf(point, scale));
  const current = Math.min(Math.max(state.current, 0), dots.length - 1);
  dots[current].setAttribute("tabindex", "0");
  for (const kind of ["budget", "fixed", "quality", "learned"]) plot.append(...dots.filter((_, i) => points[i].kind === kind));
  Object.assign(state, { points, dots, current });
}

function dotOf(point, scale) {
  const [x, y] = [scale.x(point.macs), scale.y(point.value)];
  const group = svg("g", { class: "dt-dot", role: "button", tabindex: "-1", "aria-label": describe(point) });
  if (point.kind === "fixed") {
    const colour = state.data.colours[state.data.sizes.indexOf(point.size)];
    group.append(svg("circle", { cx: x, cy: y, r: 9, fill: colour, stroke: "currentColor", "stroke-width": 1.5 }), sizeLabel(point, x, y));
  } else if (point.kind === "learned") {
    group.append(svg("path", { d: starPath(x, y), fill: "var(--card)", stroke: "currentColor", "stroke-width": 2 }));
  } else if (point.kind === "quality") {
    group.append(svg("path", { d: `M${x} ${y - 10}l9 10l-9 10l-9 -10z`, fill: "var(--card)", stroke: "currentColor", "stroke-width": 2 }));
  } else {
    group.append(svg("circle", { cx: x, cy: y, r: 4, fill: "var(--accent)" }));
  }
  return group;
}

function sizeLabel(point, x, y) {
  const anchor = x > AREA.right - 30 ? "end" : x < AREA.left + 30 ? "start" : "middle";
  const shift = { end: 9, start: -9, middle: 0 }[anchor];
  return svg("text", { x: x + shift, y: y > AREA.top + 34 ? y - 15 : y + 26, "text-anchor": anchor, "font-size": 14, "font-weight": 700 },
    AREA.width < 500 ? `${point.size}` : `all ${point.size}`);
}

function starPath(x, y) {
  const corners = Array.from({ length: 10 }, (_, i) => {
    const [radius, angle] = [i % 2 ? 5 : 12, (i * Math.PI) / 5 - Math.PI / 2];
    return `${(x + radius * Math.cos(angle)).toFixed(1)},${(y + radius * Math.sin(angle)).toFixed(1)}`;
  });
  return `M${corners.join("L")}Z`;
}

// Marks where Explore stands: mean cost and mean value of the sizes that it shows, over the instances with a value.
function drawPresent() {
  const plot = $(".dt-plot");
  plot.querySelector(".dt-now")?.remove();
  const { measure, data, setting } = state;
  const picks = (setting.picks || []).filter(([index]) => measure.values[index]);
  if (!picks.length) return;
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const scale = scales(measure);
  const value = mean(picks.map(([index, k]) => measure.values[index][k]));
  const x = scale.x(mean(picks.map(([, k]) => data.macs[k])));
  const y = scale.y(Math.min(scale.high, Math.max(scale.low, value)));
  const right = x > AREA.right - 70;
  const group = svg("g", { class: "dt-now", "pointer-events": "none" });
  group.append(
    svg("line", { x1: x, x2: x, y1: y, y2: AREA.bottom, stroke: "currentColor", "stroke-dasharray": "4 4", "stroke-width": 1.5 }),
    svg("circle", { cx: x, cy: y, r: 13, fill: "none", stroke: "currentColor", "stroke-width": 3 }),
    svg("text", { x: right ? x - 20 : x + 20, y: y + 22, "text-anchor": right ? "end" : "start", "font-size": 14, "font-weight": 700 }, "now"));
  plot.append(group);
}

function showKeys(measure) {
  const key = (name, text) => {
    if (!measure[name]) return null;
    const sample = svg("svg", { viewBox: "0 0 30 14", "aria-hidden": "true" });
    sample.append(svg("line", { x1: 0, x2: 30, y1: 7, y2: 7, ...LINES[name] }));
    return make("li", {}, sample, text);
  };
  const byQuality = state.data.follows !== "switch";
  const keys = [
    key("curve", byQuality ? "Highest predicted quality within the budget" : "Switch within the budget"), key("random", "Same sizes, assigned at random"), key("oracle", "Oracle (uses ground truth)"),
    make("li", {}, `☆ learned policy${measure.quality ? "   ◇ quality policy" : ""}   ◯ present setting of Explore`),
  ];
  $(".dt-keys").replaceChildren(...keys.filter(Boolean));
  $(".dt-note").textContent = noteText(measure);
}

function noteText(measure) {
  const { instances, truth } = state.data;
  if (measure.random) return `Over the ${measure.known} of ${plural(instances, "shown instance")} that match a ground-truth object.`;
  if (measure.key === "predicted_quality") return `Over ${plural(instances, "instance")}. The quality is predicted by the model, not measured.`;
  const reason = truth ? "" : "This picture has no ground-truth masks: ";
  return `Over ${plural(instances, "instance")}. ${reason}the probability shows what the switch prefers, not how good the masks are.`;
}

// ---- pointer and keys ----

function describe(point) {
  const where = `${formatMacs(point.macs)} per instance, ${state.measure.name} ${point.value.toFixed(3)}`;
  if (point.kind === "fixed") return `All at ${point.size}: ${where}.`;
  const sizes = point.shares.map((share, k) => (share > 0 ? `${percent(share)} at ${state.data.sizes[k]}` : "")).filter(Boolean);
  const name = { learned: "Learned policy: ", quality: "Quality policy: " }[point.kind] || "";
  return `${name}${where}: ${sizes.join(", ")}.`;
}

// Describes a point and moves the slider on Explore to it.
function choosePoint(index, focus = false) {
  if (index < 0 || !state.dots[index]) return;
  const moved = index !== state.current;
  state.dots[state.current]?.setAttribute("tabindex", "-1");
  state.current = index;
  state.dots[index].setAttribute("tabindex", "0");
  if (focus) state.dots[index].focus();
  $(".dt-read").textContent = describe(state.points[index]);
  if (moved || focus || state.setting.policy !== "budget") setBudget(state.points[index].budget / 1e9);
}

// Index of the point nearest to the pointer, mostly by cost; -1 when the pointer is outside the plot.
function nearestPoint(event) {
  const bounds = $(".dt-plot").getBoundingClientRect();
  const x = ((event.clientX - bounds.left) / bounds.width) * AREA.width;
  const y = ((event.clientY - bounds.top) / bounds.height) * AREA.height;
  if (!state.measure || x < AREA.left - 20 || y < 0 || y > AREA.bottom + 20) return -1;
  const scale = scales(state.measure);
  const distances = state.points.map((point) => {
    const [across, down] = [scale.x(point.macs) - x, scale.y(point.value) - y];
    return point.kind === "budget" ? Math.abs(across) + 0.02 * Math.abs(down) : Math.hypot(across, down) * 0.8;
  });
  return distances.indexOf(Math.min(...distances));
}

function connectPlot() {
  const plot = $(".dt-plot");
  plot.addEventListener("pointermove", (event) => choosePoint(nearestPoint(event)));
  plot.addEventListener("click", (event) => choosePoint(nearestPoint(event), true));
  plot.addEventListener("keydown", (event) => {
    const { current } = state;
    const last = state.dots.length - 1;
    const next = { ArrowRight: current + 1, ArrowUp: current + 1, ArrowLeft: current - 1, ArrowDown: current - 1, Home: 0, End: last,
      Enter: current, " ": current }[event.key];
    if (next === undefined) return;
    choosePoint(Math.min(last, Math.max(0, next)), true);
    event.preventDefault();
  });
}
