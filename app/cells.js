// One-stage weights: what the page shows where a cell of a grid, and no box and no switch, made each mask.

const CELL_COLOURS = { cell: "#FFB000", neighbour: "#7FE7FF", moved: "#FF5FA2" }; // as dynamask.viz.cells

function oneStage() {
  return state.view?.family === "one-stage";
}

// A colour for each instance; neighbours in the list get hues far apart, all light enough for black letters.
function instanceColour(index) {
  const [hue, light] = [(index * 0.618033988749895) % 1, 0.66];
  const part = (n) => {
    const k = (n + hue * 12) % 12;
    const value = light - 0.8 * Math.min(light, 1 - light) * Math.max(-1, Math.min(k - 3, 9 - k, 1));
    return Math.round(value * 255).toString(16).padStart(2, "0");
  };
  return { colour: `#${part(0)}${part(8)}${part(4)}`, text: "#000000" };
}

// Colour and outline of an instance: those of its size or level, or a colour of its own.
function styleOf(one, k) {
  return state.each && oneStage() ? { ...styles()[k], ...instanceColour(one.index) } : styles()[k];
}

function tagText(one, style) {
  if (oneStage()) return `${style.size} ${one.label} ${one.score.toFixed(2)}`;
  return state.overrides.has(one.index) ? `${style.size}*` : String(style.size);
}

function levelText(k) {
  const { strides, grids } = state.view.levels;
  return `stride ${strides[k]}, grid ${grids[k]} × ${grids[k]}`;
}

// ---- panels ----

// How many objects each level of the grid has.
function levelCounts() {
  return state.view.styles.map((_, k) => state.picks.filter((pick) => pick === k).length);
}

const LEVEL_PATTERNS = ["double outline", "plain outline", "long dashes", "short dashes", "dotted outline"];

function fillLevelLegend() {
  const counts = levelCounts();
  const items = state.view.styles.map((style, k) => make("li", {}, outlineSample(style), sizeBadge(style),
    make("span", {}, make("span", { className: "dm-hidden" }, `${LEVEL_PATTERNS[k]}: `), `${levelText(k)}, ${counts[k]} ${counts[k] === 1 ? "object" : "objects"}`)));
  $(".dm-legend").replaceChildren(...items);
}

function fillLevelNumbers(numbers) {
  const { view } = state;
  const some = numbers.count > 0;
  const figures = [
    figure(String(numbers.count), "", numbers.count === 1 ? "instance" : "instances"),
    figure(formatGmacs(view.image_macs), "G", "MACs of the picture: backbone, FPN, head"),
    figure(some ? formatGmacs(numbers.mean) : "–", "G", "mean MACs to decode a mask"),
    figure(some ? formatGmacs(numbers.total) : "–", "G", "MACs of all shown masks"),
  ];
  const truth = meanTruth(state.picks);
  if (truth !== null) figures.push(figure(truth.toFixed(3), "", "true boundary IoU, mean"));
  $(".dm-figures").replaceChildren(...figures);
  const counts = levelCounts();
  const total = Math.max(numbers.count, 1);
  $(".dm-bars").replaceChildren(...view.styles.map((style, k) => barRow(style, counts[k] / total, `${counts[k]} · ${percent(counts[k] / total)}`,
    false, `level ${k + 1}, ${levelText(k)}: ${counts[k]} of ${numbers.count} instances`)));
  setText($(".dm-timing-text"), `Finding and decoding ${view.instances.length} candidates: ${milliseconds(view.timings.mask_branch)}.`);
  fillLevelLegend();
}

function levelFoot(view) {
  return `Measured once on this server for this picture: backbone, FPN and head ${milliseconds(view.timings.detect)}, decoding and ` +
    `suppressing the candidates ${milliseconds(view.timings.mask_branch)}. 1 MAC = 2 FLOPs.`;
}

function levelTip(one, k) {
  return [make("strong", {}, `${one.label} ${one.score.toFixed(2)}`),
    make("span", {}, `level ${k + 1}: ${levelText(k)}`),
    make("span", {}, `cell (${one.cell.join(", ")}) · ${boxText(one.box)} px`)];
}

// ---- asking for what is behind an instance ----

// One question at a time; what is asked meanwhile by another control waits in `state.queued`.
function explainSelected(one) {
  if (one.behind || one.asked || state.busy) return;
  one.asked = true;
  state.busy = true;
  state.explaining = true;
  trigger("select", { ask: "explain", token: state.view.token, row: one.index });
}

function explained() {
  state.busy = false;
  state.explaining = false;
  const queued = state.queued;
  state.queued = null;
  if (queued) ask(...queued);
  return Boolean(queued);
}

function receiveCell(answer) {
  if (answer.token === state.view?.token) state.view.instances[answer.row].behind = answer;
  explained();
  refresh();
}

// ---- on the picture ----

function arrow(context, [x0, y0], [x1, y1], unit) {
  const angle = Math.atan2(y1 - y0, x1 - x0);
  const head = Math.min(12 * unit, Math.hypot(x1 - x0, y1 - y0) * 0.7);
  context.beginPath();
  context.moveTo(x0, y0);
  context.lineTo(x1, y1);
  for (const turn of [-0.45, 0.45]) {
    context.moveTo(x1, y1);
    context.lineTo(x1 - head * Math.cos(angle + turn), y1 - head * Math.sin(angle + turn));
  }
  context.stroke();
}

// The lines of a grid over the padded frame, as far as they lie in the picture.
function drawGridLines(context, [height, width], grid, colour, unit, dash) {
  const [w, h] = state.view.view;
  context.beginPath();
  for (let i = 1; i < grid; i++) {
    const [x, y] = [(width * i) / grid, (height * i) / grid];
    if (x < w) {
      context.moveTo(x, 0);
      context.lineTo(x, h);
    }
    if (y < h) {
      context.moveTo(0, y);
      context.lineTo(w, y);
    }
  }
  context.setLineDash(dash.map((part) => part * unit));
  for (const [shade, thickness] of [["rgba(0,0,0,.35)", 2], [colour, 1]]) {
    context.strokeStyle = shade;
    context.lineWidth = thickness * unit;
    context.stroke();
  }
  context.setLineDash([]);
}

function twice(context, colour, width, unit, stroke) {
  for (const [shade, thickness] of [["#111", width + 2], [colour, width]]) {
    context.strokeStyle = shade;
    context.lineWidth = thickness * unit;
    stroke();
  }
}

// Grid, cell, neighbours and where they were moved to, of the selected instance.
function drawBehind(context, scale, unit) {
  const { view } = state;
  const one = state.shown.find((each) => each.index === state.selected);
  if (!one?.behind) return;
  const { behind } = one;
  const [sx, sy] = [view.view[0] / view.size[0], view.view[1] / view.size[1]];
  const frame = [behind.frame[0] * sy, behind.frame[1] * sx];
  const place = ([x, y]) => [x * sx, y * sy];
  context.setTransform(scale, 0, 0, scale, 0, 0);
  context.globalAlpha = 1;
  drawGridLines(context, frame, behind.grid, "rgba(255,255,255,.55)", unit, []);
  if (behind.mask_grid !== behind.grid) drawGridLines(context, frame, behind.mask_grid, "rgba(255,255,255,.95)", unit, [2, 4]);
  const [half, up] = [frame[1] / behind.mask_grid / 2, frame[0] / behind.mask_grid / 2];
  if (behind.aggregated) {
    for (const [x, y] of behind.base.map(place)) {
      twice(context, CELL_COLOURS.neighbour, 2, unit, () => context.strokeRect(x - half, y - up, 2 * half, 2 * up));
    }
  }
  const [x0, y0, x1, y1] = [...place(behind.cell_box.slice(0, 2)), ...place(behind.cell_box.slice(2))];
  context.fillStyle = "rgba(255,176,0,.4)";
  context.fillRect(x0, y0, x1 - x0, y1 - y0);
  twice(context, CELL_COLOURS.cell, 2.5, unit, () => context.strokeRect(x0, y0, x1 - x0, y1 - y0));
  if (!behind.aggregated) return;
  const [starts, ends] = [behind.base.map(place), behind.positions.map(place)];
  ends.forEach((end, i) => behind.moved[i] && twice(context, CELL_COLOURS.moved, 2, unit, () => arrow(context, starts[i], end, unit)));
  for (const [x, y] of ends) {
    context.beginPath();
    context.arc(x, y, 4 * unit, 0, 7);
    context.fillStyle = CELL_COLOURS.moved;
    context.fill();
    context.strokeStyle = "#fff";
    context.lineWidth = 1.5 * unit;
    context.stroke();
  }
}

// ---- the details ----

function pictureTile(source, name, place, chosen = false) {
  const image = make("img", { src: source, alt: `${name} ${place}` });
  return make("figure", { className: chosen ? "dm-tile dm-chosen" : "dm-tile" }, make("div", { className: "dm-tile-frame" }, image),
    make("figcaption", {}, make("strong", {}, name), ...(place ? [make("span", {}, place)] : [])));
}

function cropTile(picture, view, crop) {
  const [sx, sy] = [view.view[0] / view.size[0], view.view[1] / view.size[1]];
  const viewBox = [crop[0] * sx, crop[1] * sy, crop[2] * sx, crop[3] * sy];
  return make("figure", { className: "dm-tile" },
    canvasTile("The crop of the picture", { viewBox }, (context, w, h) => drawCrop(context, picture, { viewBox }, w, h, "none")),
    make("figcaption", {}, make("strong", {}, "the picture")));
}

// A colour scale with its ends and its middle.
function scaleKey(name, colours, marks) {
  return make("div", { className: "dm-key" }, make("span", {}, name),
    make("span", { className: "dm-key-bar", style: `background:linear-gradient(to right, ${colours.join(", ")})` }),
    make("span", { className: "dm-key-marks" }, ...marks.map((mark) => make("span", {}, mark))));
}

function keyMark(kind, text) {
  return make("span", { className: "dm-mark-item" }, make("span", { className: `dm-mark dm-mark-${kind}`, "aria-hidden": "true" }), text);
}

function placeKeys(behind) {
  const keys = [keyMark("cell", "the cell")];
  if (behind.aggregated && behind.base.length) keys.push(keyMark("neighbour", "neighbours"));
  if (behind.aggregated && behind.positions.length) {
    keys.push(keyMark("moved", behind.moved.some(Boolean) ? "where the model moved them" : "representations taken here"));
  }
  return make("p", { className: "dm-facts dm-marks" }, ...keys);
}

function behindParts(picture, view, behind) {
  const limit = behind.limit.toPrecision(2);
  const name = behind.tiles.length > 1 ? "Its representations, and the mask made of them" : "Its representation, and the mask";
  return [
    make("p", { className: "dm-sentence" }, `${behind.sentence} Decoding it takes ${formatMacs(behind.macs)}.`),
    placeKeys(behind),
    make("h3", {}, name),
    make("div", { className: "dm-tiles dm-cell-tiles" }, cropTile(picture, view, behind.crop),
      ...behind.tiles.map((tile) => pictureTile(tile.picture, tile.name, tile.place)), pictureTile(behind.mask, "the mask", "", true)),
    make("div", { className: "dm-keys" }, scaleKey("logit", behind.scales.logit, [`≤ −${limit}`, "0", `≥ ${limit}`]),
      scaleKey("probability", behind.scales.probability, ["0", "0.5", "1"])),
  ];
}

function fillCellWhy(node, { picture, view, one, style, close }) {
  const closer = make("button", { type: "button", className: "dm-close", "aria-label": "Close the details" }, "×");
  closer.addEventListener("click", close);
  const truth = one.iou ? `True quality: IoU ${one.iou[0].toFixed(3)}, boundary IoU ${one.boundary[0].toFixed(3)}.`
    : view.truths === null ? "" : "No true shape overlaps this mask by half.";
  const waiting = one.failed ? "What is behind this mask could not be read; open the picture again." : "Reading its cell…";
  node.replaceChildren(
    make("div", { className: "dm-why-head" }, make("h2", {}, `Why this mask? Instance ${one.index + 1}: ${one.label}`), closer),
    make("p", { className: "dm-facts" }, sizeBadge(style), ` score ${one.score.toFixed(2)} · ${boxText(one.box)} px · ${levelText(one.level)} · cell (${one.cell.join(", ")})`),
    ...(one.behind ? behindParts(picture, view, one.behind) : [make("p", { className: "dm-facts" }, waiting)]),
    ...(truth ? [make("p", { className: "dm-facts dm-truth" }, truth)] : []));
}

function showCellWhy(node, one) {
  const why = ["cell", received, one.index, Boolean(one.behind), Boolean(one.failed)].join(" ");
  if (why !== state.why) {
    state.why = why;
    fillCellWhy(node, { picture: state.picture, view: state.view, one, style: styles()[one.level], close: () => {
      select(null);
      canvas.focus();
    } });
  }
  explainSelected(one);
}
