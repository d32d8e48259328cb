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

// Changes a text only if it is another: an unchanged node costs no layout.
function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
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

function fillLegend(node, view, sizeStyles) {
  node.replaceChildren(...sizeStyles.map((style, k) => make("li", {},
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
function fillShares(node, sizeStyles, picks) {
  const counts = sizeStyles.map((_, k) => picks.filter((pick) => pick === k).length);
  const total = Math.max(picks.length, 1);
  node.replaceChildren(...sizeStyles.map((style, k) => barRow(style, counts[k] / total, `${counts[k]} · ${percent(counts[k] / total)}`,
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

// Counts, costs and, where there is a truth, the quality of the present choice.
function fillFigures(node, view, summary, truth) {
  const some = summary.count > 0;
  const figures = [
    figure(String(summary.count), "", summary.count === 1 ? "instance" : "instances"),
    figure(some ? percent(summary.mean / view.macs[view.macs.length - 1]) : "–", "", "of 112 for all"),
    figure(some ? formatGmacs(summary.mean) : "–", "G", "mean MACs per instance"),
    figure(some ? formatGmacs(summary.total) : "–", "G", "MACs in total"),
  ];
  if (truth !== null) figures.push(figure(truth.toFixed(3), "", "true boundary IoU, mean"));
  node.replaceChildren(...figures);
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
  const text = `${mean} · ${against}`;
  nodes.text.textContent = text;
  nodes.gauge.setAttribute("aria-label", text);
}

function boxText(box) {
  return `${Math.round(box[2] - box[0])} × ${Math.round(box[3] - box[1])}`;
}

// One row per shown instance; its number is a button that opens the details. Rows are kept while the instances stay,
// so that a move of the slider changes a few cells and keeps the focus.
function fillTable(body, view, sizeStyles, { shown, picks, selected }, select) {
  const key = shown.map((one) => one.index).join(" ");
  if (body.dataset.key !== key || body.view !== view) {
    body.replaceChildren(...shown.map((one) => tableRow(one, select)));
    body.dataset.key = key;
    body.view = view;
  }
  shown.forEach((one, row) => {
    const line = body.children[row];
    const k = picks[row];
    const chosen = one.index === selected;
    const look = `${k} ${chosen} ${sizeStyles[k].colour}`;
    if (line.look === look) return;
    line.look = look;
    const [, , , , size, odds, macs] = line.children;
    line.className = chosen ? "dm-selected" : "";
    line.pick.setAttribute("aria-pressed", String(chosen));
    line.pick.setAttribute("aria-label", `Instance ${one.index + 1}, ${one.label}, ${one.cell ? "level" : "size"} ${sizeStyles[k].size}: why?`);
    size.replaceChildren(sizeBadge(sizeStyles[k]));
    setText(odds, one.cell ? one.cell.join(", ") : percent(one.probs[k]));
    setText(macs, formatGmacs(view.macs[k]));
  });
}

function tableRow(one, select) {
  const button = make("button", { type: "button", className: "dm-pick" }, String(one.index + 1));
  const cells = [one.label, one.drawn ? "drawn" : one.score.toFixed(2), boxText(one.box), "", "", ""];
  const line = make("tr", {}, make("td", {}, button), ...cells.map((text) => make("td", {}, text)));
  line.pick = button;
  line.dataset.instance = one.index;
  line.addEventListener("click", () => select(one.index));
  return line;
}

// Thumbnails of the examples and scenes, each a button.
function fillExamples(node, examples, choose) {
  node.replaceChildren(...examples.map((example) => {
    const image = make("img", { src: example.picture, alt: "" });
    const button = make("button", { type: "button", className: "dm-example", title: [example.title, example.credit].filter(Boolean).join(" · "),
      "aria-label": `${example.kind === "scene" ? "Scene" : "Example"}: ${example.title}` }, image);
    button.dataset.key = example.key;
    button.addEventListener("click", () => choose(example));
    return button;
  }));
}

// Title, size and credit; an address in the credit becomes a link. Only examples have a credit, so it is ours.
function fillCaption(node, view) {
  const parts = [view.title, `${view.size[0]} × ${view.size[1]} px`, ...view.credit.split(" · ")].filter(Boolean);
  node.replaceChildren(...parts.flatMap((part, i) => {
    const link = i > 1 && part.startsWith("https://");
    return [i ? " · " : "", link ? make("a", { href: part, target: "_blank", rel: "noopener noreferrer" }, "source") : part];
  }));
}

// One check box a class; a hidden class is out of the picture and of all numbers.
function fillClasses(node, names, hidden, toggle) {
  node.replaceChildren(...names.map((name) => {
    const box = make("input", { type: "checkbox", checked: !hidden.has(name) });
    box.addEventListener("change", () => toggle(name, box.checked));
    return make("label", { className: "dm-check dm-class" }, box, make("span", {}, name));
  }));
}

// What stands below everything: times and the costs that are no part of the mean.
function footText(view) {
  return `Measured once on this server for this picture: finding the objects ${milliseconds(view.timings.detect)}, all four masks of ` +
    `all ${view.instances.length} candidates above score ${view.lowest_score} ${milliseconds(view.timings.mask_branch)}. ` +
    `Not in the mean: the switch, ${formatMacs(view.switch_macs)} per instance, and the projections, ${formatMacs(view.image_macs)} per picture. ` +
    "1 MAC = 2 FLOPs.";
}
