// The panels around the picture. All text enters through textContent; nothing a visitor sends is read as HTML.

// An element with properties, attributes (keys with a dash, `role`, `style`) and children.
function make(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(properties)) {
    if (key.includes("-") || key === "role" || key === "style" || key === "scope" || key === "for") node.setAttribute(key, value);
    else node[key] = value;
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

function formatGmacs(macs) {
  return macs >= 1e12 ? String(Math.round(macs / 1e9)) : (macs / 1e9).toPrecision(3);
}

// MACs with their unit: GMACs, as budgets are given, unless that would be all zeros.
function formatMacs(macs) {
  return macs >= 1e6 ? `${formatGmacs(macs)} GMACs` : `${Number((macs / 1e3).toPrecision(3))} kMACs`;
}

function percent(share) {
  const value = share * 100;
  return value > 0 && value < 1 ? "<1 %" : `${Math.round(value)} %`;
}

const SVG = "http://www.w3.org/2000/svg";

function svgLine(attributes) {
  const line = document.createElementNS(SVG, "line");
  for (const [key, value] of Object.entries({ x1: 3, y1: 8, x2: 41, y2: 8, ...attributes })) line.setAttribute(key, value);
  return line;
}

// A short piece of outline as the picture shows it.
function outlineSample(style) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 44 16");
  svg.setAttribute("class", "dm-swatch");
  svg.setAttribute("aria-hidden", "true");
  const dash = style.gap ? `${style.dash} ${style.gap}` : "none";
  const casing = style.text === "#000000" ? "#111" : "#fff";
  svg.append(svgLine({ stroke: casing, "stroke-width": style.width + 3, "stroke-linecap": "round" }));
  svg.append(svgLine({ stroke: style.colour, "stroke-width": style.width, "stroke-dasharray": dash }));
  if (style.core) svg.append(svgLine({ stroke: casing, "stroke-width": 1.2 }));
  return svg;
}

function sizeBadge(style, extra = "") {
  return make("span", { className: `dm-badge ${extra}`, style: `background:${style.colour};color:${style.text}` }, String(style.size));
}

const PATTERNS = ["dotted outline", "dashed outline", "plain outline", "double outline"];

function fillLegend(node, view) {
  node.replaceChildren(...view.styles.map((style, k) => make("li", {},
    outlineSample(style), sizeBadge(style),
    make("span", {}, make("span", { className: "dm-hidden" }, `${PATTERNS[k]}: `), formatMacs(view.macs[k])))));
}

// Where "every instance at this size" lies on the budget slider, whose thumb is 16 px wide.
function fillTicks(node, view) {
  const [low, high] = [view.macs[0], view.macs[view.macs.length - 1]];
  node.replaceChildren(...view.styles.map((style, k) => {
    const share = (view.macs[k] - low) / Math.max(high - low, 1);
    return make("span", { style: `left:calc(8px + ${share.toFixed(4)} * (100% - 16px))` }, String(style.size));
  }));
}

// One horizontal bar: label, filled track, text. `value` 0-1.
function barRow(style, value, text, chosen, description) {
  const row = make("div", { className: chosen ? "dm-bar dm-chosen" : "dm-bar", role: "listitem", "aria-label": description },
    sizeBadge(style),
    make("span", { className: "dm-track", "aria-hidden": "true" },
      make("span", { className: "dm-fill", style: `width:${(value * 100).toFixed(2)}%;background:${style.colour}` })),
    make("span", { className: "dm-bar-text", "aria-hidden": "true" }, text));
  return row;
}

// How many of the shown instances have each size.
function fillShares(node, view, picks) {
  const counts = view.macs.map((_, k) => picks.filter((pick) => pick === k).length);
  const total = Math.max(picks.length, 1);
  node.replaceChildren(...view.styles.map((style, k) => barRow(style, counts[k] / total, `${counts[k]} · ${percent(counts[k] / total)}`,
    false, `size ${style.size}: ${counts[k]} of ${picks.length} instances`)));
}

function figure(value, unit, label) {
  return make("div", { className: "dm-figure" },
    make("div", { className: "dm-figure-value" }, value, unit ? make("small", {}, ` ${unit}`) : null),
    make("div", { className: "dm-figure-label" }, label));
}

// A time in milliseconds as [number, unit].
function timeParts(value) {
  if (value >= 1e4) return [(value / 1e3).toFixed(1), "s"];
  return [value < 10 ? value.toFixed(1) : String(Math.round(value)), "ms"];
}

function milliseconds(value) {
  return timeParts(value).join(" ");
}

// Mean cost, share of the full cost, counts and measured time of the present choice.
function fillFigures(node, view, summary) {
  node.replaceChildren(
    figure(String(summary.count), "", summary.count === 1 ? "instance" : "instances"),
    figure(summary.count ? formatGmacs(summary.mean) : "–", "G", "mean MACs per instance"),
    figure(summary.count ? percent(summary.mean / view.macs[view.macs.length - 1]) : "–", "", "of 112 for all"),
    figure(...timeParts(view.timings.mask_branch), `mask branch, all 4 sizes of ${view.instances.length}`));
}

// The scale from the cheapest to the finest size with the mean as a bar and the budget as a mark.
function fillGauge(nodes, view, summary, budget, applied) {
  const top = view.macs[view.macs.length - 1];
  const place = (macs) => `${Math.min(100, (macs / top) * 100).toFixed(2)}%`;
  nodes.bar.style.width = summary.count ? place(summary.mean) : "0";
  nodes.mark.style.left = place(budget);
  nodes.mark.classList.toggle("dm-idle", !applied);
  const mean = summary.count ? `Mean ${formatGmacs(summary.mean)} GMACs` : "No instance";
  const against = applied ? `budget ${formatGmacs(budget)} GMACs` : `budget ${formatGmacs(budget)} GMACs, not applied`;
  const text = summary.count ? `${mean} · ${against} · total ${formatMacs(summary.mean * summary.count)}` : `${mean} · ${against}`;
  nodes.text.textContent = text;
  nodes.gauge.setAttribute("aria-label", text);
}

function boxText(box) {
  return `${Math.round(box[2] - box[0])} × ${Math.round(box[3] - box[1])}`;
}

// One row per shown instance; its number is a button that opens the details.
function fillTable(body, view, shown, picks, selected, select) {
  body.replaceChildren(...shown.map((one, row) => {
    const style = view.styles[picks[row]];
    const button = make("button", { type: "button", className: "dm-pick", "aria-pressed": String(one.index === selected),
      "aria-label": `Instance ${one.index + 1}, ${one.label}, size ${style.size}: why?` }, String(one.index + 1));
    const line = make("tr", { className: one.index === selected ? "dm-selected" : "" },
      make("td", {}, button), make("td", {}, one.label), make("td", {}, one.score.toFixed(2)), make("td", {}, boxText(one.box)),
      make("td", {}, sizeBadge(style)), make("td", {}, percent(one.probs[picks[row]])), make("td", {}, formatGmacs(view.macs[picks[row]])));
    line.dataset.instance = one.index;
    line.addEventListener("click", () => select(one.index));
    return line;
  }));
}

// A mask on its own cells over the crop of the picture, with the outline that it gives in the picture.
function drawTile(canvas, picture, view, one, k, path) {
  const style = view.styles[k];
  const [x0, y0, x1, y1] = one.viewBox;
  const side = 240;
  const scale = side / Math.max(x1 - x0, y1 - y0, 1e-6);
  canvas.width = Math.max(8, Math.round((x1 - x0) * scale));
  canvas.height = Math.max(8, Math.round((y1 - y0) * scale));
  const context = canvas.getContext("2d");
  context.filter = "grayscale(1) brightness(0.55)";
  context.drawImage(picture, x0, y0, x1 - x0, y1 - y0, 0, 0, canvas.width, canvas.height);
  context.filter = "none";
  const cells = new OffscreenCanvas(style.size, style.size);
  const cellContext = cells.getContext("2d");
  const pixels = cellContext.createImageData(style.size, style.size);
  const rgb = [1, 3, 5].map((start) => parseInt(style.colour.slice(start, start + 2), 16));
  one.masks[k].forEach((value, cell) => pixels.data.set([...rgb, Math.round(value * 0.8)], cell * 4));
  cellContext.putImageData(pixels, 0, 0);
  context.imageSmoothingEnabled = false;
  context.drawImage(cells, 0, 0, canvas.width, canvas.height);
  context.setTransform(scale, 0, 0, scale, -x0 * scale, -y0 * scale);
  context.strokeStyle = "#fff";
  context.lineWidth = 2 / scale;
  context.stroke(path);
}

function maskTile(picture, view, one, k, pick, path, agreement) {
  const style = view.styles[k];
  const last = view.styles.length - 1;
  const canvas = make("canvas", { role: "img", "aria-label": `Mask of ${style.size} × ${style.size} cells` });
  drawTile(canvas, picture, view, one, k, path);
  const note = k === last ? "finest" : `IoU with ${view.styles[last].size}: ${agreement.toFixed(2)}`;
  return make("figure", { className: k === pick ? "dm-tile dm-chosen" : "dm-tile" },
    make("div", { className: "dm-tile-frame" }, canvas),
    make("figcaption", {}, sizeBadge(style), make("span", {}, k === pick ? `chosen · ${note}` : note)));
}

// The details of one instance. `paths` and `agreements` per size; `close` empties the panel.
function fillWhy(node, picture, view, one, pick, paths, agreements, close) {
  const closer = make("button", { type: "button", className: "dm-close", "aria-label": "Close the details" }, "×");
  closer.addEventListener("click", close);
  const bars = view.styles.map((style, k) => barRow(style, one.probs[k], `${(one.probs[k] * 100).toFixed(1)} % · ${formatMacs(view.macs[k])}`,
    k === pick, `size ${style.size}: probability ${(one.probs[k] * 100).toFixed(1)} %, ${formatMacs(view.macs[k])}${k === pick ? ", chosen" : ""}`));
  node.replaceChildren(
    make("div", { className: "dm-why-head" },
      make("h2", {}, `Instance ${one.index + 1}: ${one.label}`), closer),
    make("p", { className: "dm-facts" },
      `score ${one.score.toFixed(2)} · box ${boxText(one.box)} px · size ${view.styles[pick].size} at ${formatMacs(view.macs[pick])}`),
    make("h3", {}, "What the switch thinks"),
    make("div", { className: "dm-bars dm-probabilities", role: "list" }, ...bars),
    make("h3", {}, "Its four masks"),
    make("div", { className: "dm-tiles" }, ...paths.map((path, k) => maskTile(picture, view, one, k, pick, path, agreements[k]))));
}

function emptyWhy(node) {
  node.replaceChildren(make("h2", {}, "Why this size?"),
    make("p", { className: "dm-invite" }, "Select an instance in the picture or in the table: its four masks, what the switch thinks of each, and what each costs."));
}

// Thumbnails of the examples, each a button.
function fillExamples(node, examples, choose) {
  node.replaceChildren(...examples.map((example, index) => {
    const image = make("img", { src: example.picture, alt: "" });
    const button = make("button", { type: "button", className: "dm-example", title: [example.title, example.credit].filter(Boolean).join(" · "),
      "aria-label": `Example: ${example.title}` }, image);
    button.addEventListener("click", () => choose(index, example));
    return button;
  }));
}

// What stands below everything: times and the costs that are no part of the mean.
function footText(view) {
  return `Measured once on this server for this picture: finding the objects ${milliseconds(view.timings.detect)}, all four masks of ` +
    `all ${view.instances.length} candidates above score ${view.lowest_score} ${milliseconds(view.timings.mask_branch)}. ` +
    `Not in the mean: the switch, ${formatMacs(view.switch_macs)} per instance, and the projections, ${formatMacs(view.image_macs)} per picture. ` +
    "1 MAC = 2 FLOPs.";
}
