// Answers of the server: a picture, masks for drawn boxes, an explanation, a time, a file.

import { setDrawing } from "./boxes.js";
import { draw, drawAhead } from "./canvas.js";
import { allowed, choose, forgetSolutions } from "./choices.js";
import { saveFile } from "./dom.js";
import { plural } from "./format.js";
import { rememberSoon } from "./link.js";
import { inflate, splitByShape, splitMasks } from "./masks.js";
import { applyPending, dropPending, follow } from "./navigation.js";
import { $, say } from "./page.js";
import { showClasses, showLegend, showPicture } from "./picture_panels.js";
import { refresh, showAllPanels } from "./refresh.js";
import { busy, endExplanation, endRefused } from "./server.js";
import { announce, PICTURE } from "./setting.js";
import { oneStage, state } from "./state.js";
import { keepTiming } from "./timing.js";

const RECEIVERS = {
  view: (answer) => receiveView(answer),
  both: (answer) => receiveView(answer.view, answer.more),
  more: receiveMore,
  cell: receiveExplanation,
  time: receiveTime,
  file: receiveFile,
};

// Takes an answer, JSON text; an empty text is no answer.
export async function receive(text) {
  if (!text) return;
  const answer = JSON.parse(text);
  await RECEIVERS[answer.type]?.(answer);
}

// Called when the server refuses a request; Gradio shows the reason.
export function receiveRefusal() {
  if (!state.busy || endRefused()) return;
  dropPending();
  if (!state.view) return;
  $(".dm-weights").value = state.view.weights;
  refresh();
}

// ---- a picture ----

let turn = 0; // counts views: of two that are decoded at a time, the later one is shown

async function receiveView(view, more = null) {
  const own = ++turn;
  const picture = await decodeView(view);
  const drawn = more ? await decodeInstances(more.instances, more.masks, view, view.instances.length) : [];
  if (own !== turn) return;
  view.instances.push(...drawn);
  if (more) view.token = more.token;
  const first = state.view === null;
  replacePicture(view, picture);
  setDrawing(false);
  showPicture(refresh);
  draw();
  showAllPanels();
  busy(false);
  announce(PICTURE);
  if (!first) say(`${view.title || "Picture"} analysed: ${plural(state.shown.length, "instance")}.`);
  drawAhead(view);
  if (applyPending()) return;
  if (first) follow(window.location.hash);
  else rememberSoon();
}

const scores = {}; // score threshold by weights

// Puts a view into the state, and changes the settings that do not fit it.
function replacePicture(view, picture) {
  const before = state.view;
  if (!before) {
    state.score = view.score;
  } else if (before.weights !== view.weights) { // scores of different detectors differ: each keeps its own threshold
    scores[before.weights] = state.score;
    state.score = scores[view.weights] ?? view.score;
  }
  Object.assign(state, { view, picture, selected: null, hovered: null, timing: null, ready: false, overrides: new Map(), hidden: new Set() });
  forgetSolutions();
  if (!oneStage()) {
    if (!allowed(state.policy)) state.policy = "learned";
    if (state.compare && !allowed(state.compare)) state.compare = "fixed:112";
  }
  choose(); // before anything is shown: picks of another family's picture have no style in this one
}

// Decodes the masks of a view in place; resolves to its picture.
async function decodeView(view) {
  const image = new Image();
  image.src = view.picture;
  [view.instances] = await Promise.all([decodeInstances(view.instances, view.masks, view, 0), image.decode()]);
  return createImageBitmap(image);
}

// Instances with their masks, their boxes and what the masks cover in pixels of the view, and their index on the page, counted from `first`.
async function decodeInstances(instances, masks, view, first) {
  const bytes = await inflate(masks);
  const grids = view.family === "one-stage" ? splitByShape(bytes, instances.map((one) => one.shape))
    : splitMasks(bytes, view.styles.map((style) => style.size), instances.length);
  const [sx, sy] = [view.view[0] / view.size[0], view.view[1] / view.size[1]];
  const inView = ([x0, y0, x1, y1]) => [x0 * sx, y0 * sy, x1 * sx, y1 * sy];
  return instances.map((one, i) => ({
    ...one, masks: grids[i], index: first + i, outlines: [], sprites: [],
    spot: one.spot ? [one.spot[0] * sx, one.spot[1] * sy] : null,
    viewBox: inView(one.box), viewMaskBox: inView(one.mask_box),
  }));
}

// ---- smaller answers ----

async function receiveMore(answer) {
  const { view } = state;
  const added = await decodeInstances(answer.instances, answer.masks, view, view.instances.length);
  if (state.view !== view) return;
  view.instances.push(...added);
  for (const one of added) state.hidden.delete(one.label);
  const one = added[added.length - 1];
  state.selected = one.index;
  showLegend();
  showClasses(refresh);
  busy(false);
  refresh();
  say(`Instance ${one.index + 1}, ${one.label}: the most probable size is ${view.styles[one.chosen.learned].size}.`);
  drawAhead(view);
}

function receiveExplanation(answer) {
  if (answer.token === state.view?.token) state.view.instances[answer.row].explanation = answer;
  endExplanation();
  refresh();
}

function receiveTime(answer) {
  keepTiming(answer);
  busy(false);
  refresh();
}

function receiveFile(answer) {
  const bytes = Uint8Array.from(atob(answer.data), (letter) => letter.charCodeAt(0));
  saveFile(bytes, answer.media, answer.name);
  busy(false);
  say(`${answer.name} is saved.`);
}
