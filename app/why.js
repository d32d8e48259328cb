// The details of one instance: why this size? Crop, four masks and their edges, what the switch thinks, what is true.

function canvasTile(label, one, paint) {
  const canvas = make("canvas", { role: "img", "aria-label": label });
  const [x0, y0, x1, y1] = one.viewBox;
  const scale = 240 / Math.max(x1 - x0, y1 - y0, 1e-6);
  canvas.width = Math.max(8, Math.round((x1 - x0) * scale));
  canvas.height = Math.max(8, Math.round((y1 - y0) * scale));
  paint(canvas.getContext("2d"), canvas.width, canvas.height, scale);
  return make("div", { className: "dm-tile-frame" }, canvas);
}

function drawCrop(context, picture, one, w, h, filter) {
  const [x0, y0, x1, y1] = one.viewBox;
  context.filter = filter;
  context.drawImage(picture, x0, y0, x1 - x0, y1 - y0, 0, 0, w, h);
  context.filter = "none";
}

// Cells of a mask as pixels of a colour; `values` 0-255 are the opacity.
function drawCells(context, values, size, colour, strength, w, h) {
  const cells = new OffscreenCanvas(size, size);
  const cellContext = cells.getContext("2d");
  const pixels = cellContext.createImageData(size, size);
  const rgb = [1, 3, 5].map((start) => parseInt(colour.slice(start, start + 2), 16));
  values.forEach((value, cell) => pixels.data.set([...rgb, Math.round(value * strength)], cell * 4));
  cellContext.putImageData(pixels, 0, 0);
  context.imageSmoothingEnabled = false;
  context.drawImage(cells, 0, 0, w, h);
}

// A mask on its own cells over the crop, with the outline that it gives in the picture.
function maskFrame(picture, one, style, k, path) {
  return canvasTile(`Mask of ${style.size} × ${style.size} cells`, one, (context, w, h, scale) => {
    drawCrop(context, picture, one, w, h, "grayscale(1) brightness(0.55)");
    drawCells(context, one.masks[k], style.size, style.colour, 0.8, w, h);
    const [x0, y0] = one.viewBox;
    context.setTransform(scale, 0, 0, scale, -x0 * scale, -y0 * scale);
    context.strokeStyle = "#fff";
    context.lineWidth = 2 / scale;
    context.stroke(path);
  });
}

function edgeFrame(one, style, k) {
  return canvasTile(`Edges of the mask of ${style.size} × ${style.size} cells`, one, (context, w, h) => {
    const edges = edgeCells(one.masks[k], style.size);
    drawCells(context, edges.map((edge) => edge * 255), style.size, "#f4f6fa", 1, w, h);
  });
}

function tileCaption(view, style, one, k, pick, agreement) {
  const last = view.styles.length - 1;
  const facts = [];
  if (k === pick) facts.push("chosen");
  if (one.iou) facts.push(`IoU ${one.iou[k].toFixed(3)}`, `boundary ${one.boundary[k].toFixed(3)}`);
  else facts.push(k === last ? "finest" : `IoU with ${view.styles[last].size}: ${agreement.toFixed(2)}`);
  return make("figcaption", {}, sizeBadge(style), ...facts.map((fact) => make("span", {}, fact)));
}

function tiles(picture, view, sizeStyles, one, pick, paths, agreements) {
  const crop = make("figure", { className: "dm-tile" },
    canvasTile("The crop of the picture", one, (context, w, h) => drawCrop(context, picture, one, w, h, "none")),
    make("figcaption", {}, make("span", {}, "the crop")),
    make("div", { className: "dm-tile-frame dm-tile-word", "aria-hidden": "true" }, "edges (Eq. 4)"));
  return [crop, ...sizeStyles.map((style, k) => make("figure", { className: k === pick ? "dm-tile dm-chosen" : "dm-tile" },
    maskFrame(picture, one, style, k, paths[k]), tileCaption(view, style, one, k, pick, agreements[k]), edgeFrame(one, style, k)))];
}

// Radio buttons: the policy's choice, or a size by hand.
function sizeChooser(sizeStyles, one, held, setSize) {
  const choice = (value, text, k) => {
    const radio = make("input", { type: "radio", name: "dm-override", value, checked: held === k });
    radio.addEventListener("change", () => setSize(k));
    return make("label", { className: "dm-policy" }, radio, make("span", {}, text));
  };
  return make("fieldset", { className: "dm-override" },
    make("legend", {}, "Size of this instance"),
    make("div", { className: "dm-override-list" }, choice("policy", "policy", null),
      ...sizeStyles.map((style, k) => choice(String(style.size), String(style.size), k))));
}

function chosenBy(policy, held) {
  return held === null ? `by ${policyName(policy)}` : "by hand";
}

// The panel of one instance. `paths` and `agreements` per size; `held` is the size index set by hand, or null.
function fillWhy(node, { picture, view, sizeStyles, one, pick, held, policy, paths, agreements, setSize, close }) {
  const closer = make("button", { type: "button", className: "dm-close", "aria-label": "Close the details" }, "×");
  closer.addEventListener("click", close);
  const bars = sizeStyles.map((style, k) => {
    const odds = `${(one.probs[k] * 100).toFixed(1)} %`;
    return barRow(style, one.probs[k], `${odds} · ${formatMacs(view.macs[k])}`, k === pick,
      `size ${style.size}: probability ${odds}, ${formatMacs(view.macs[k])}${k === pick ? ", chosen" : ""}`);
  });
  const truth = one.iou ? `True quality at ${view.styles[pick].size}: IoU ${one.iou[pick].toFixed(3)}, boundary IoU ${one.boundary[pick].toFixed(3)}.`
    : view.truths === null ? "" : "No true shape has a box like this one.";
  node.replaceChildren(
    make("div", { className: "dm-why-head" }, make("h2", {}, `Why this size? Instance ${one.index + 1}: ${one.label}`), closer),
    make("p", { className: "dm-facts" }, `${one.drawn ? "drawn by you" : `score ${one.score.toFixed(2)}`} · box ${boxText(one.box)} px · ` +
      `size ${view.styles[pick].size} ${chosenBy(policy, held)}, ${formatMacs(view.macs[pick])}`),
    sizeChooser(sizeStyles, one, held, setSize),
    make("h3", {}, "What the switch thinks"),
    make("div", { className: "dm-bars dm-probabilities", role: "list" }, ...bars),
    make("h3", {}, "Its four masks and their edges"),
    make("div", { className: "dm-tiles" }, ...tiles(picture, view, sizeStyles, one, pick, paths, agreements)),
    ...(truth ? [make("p", { className: "dm-facts dm-truth" }, truth)] : []));
}

function emptyWhy(node) {
  if (oneStage()) {
    node.replaceChildren(make("h2", {}, "Why this mask?"), make("p", { className: "dm-invite" },
      "Select an instance in the picture or in the table: its cell of the grid, the cells around it, the mask that each of them suggests, and the mask made of them."));
    return;
  }
  node.replaceChildren(make("h2", {}, "Why this size?"),
    make("p", { className: "dm-invite" }, "Select an instance in the picture or in the table: its four masks, what the switch thinks of each, and what each costs."));
}

function showWhy() {
  const node = $(".dm-why");
  const row = state.shown.findIndex((one) => one.index === state.selected);
  if (row < 0) {
    state.selected = null;
    if (state.why !== null || !node.childElementCount || node.family !== root.dataset.family) emptyWhy(node);
    node.family = root.dataset.family;
    state.why = null;
    return;
  }
  const one = state.shown[row];
  if (oneStage()) {
    showCellWhy(node, one);
    return;
  }
  const held = state.overrides.has(one.index) ? state.overrides.get(one.index) : null;
  const why = [received, one.index, state.picks[row], held, state.policy, state.paper].join(" ");
  if (why === state.why) return;
  state.why = why;
  const ks = state.view.styles.map((_, k) => k);
  if (!one.agreements) {
    const fields = ks.map((k) => field(one, k));
    one.agreements = fields.map((each) => fieldIoU(each, fields[fields.length - 1]));
  }
  const focused = node.contains(document.activeElement) ? document.activeElement.value : null;
  fillWhy(node, { picture: state.picture, view: state.view, sizeStyles: styles(), one, pick: state.picks[row], held, policy: state.policy,
    paths: ks.map((k) => outline(one, k).path), agreements: one.agreements, setSize: (k) => override(one.index, k),
    close: () => {
      select(null);
      canvas.focus();
    } });
  if (focused) [...node.querySelectorAll("[name=dm-override]")].find((radio) => radio.value === focused)?.focus();
}
