// Pictures on their way to the server and answers on their way back; only these wait.

function busy(on, text = "Analysing the picture…", quiet = false) {
  state.busy = on;
  $(".dm-busy").hidden = !on || quiet;
  setText($(".dm-busy-text"), text);
  root.classList.toggle("dm-is-busy", on);
  root.setAttribute("aria-busy", String(on));
  const waiting = ".dm-file, .dm-example, .dm-webcam, .dm-scene button, .dm-weights, .dm-measure, [data-export], .dm-clear-boxes";
  for (const control of element.querySelectorAll(waiting)) control.disabled = on;
  if (on) {
    complain("");
    say(text);
  }
}

function say(text) {
  $(".dm-status").textContent = text;
}

// A sentence beside the picture chooser; empty takes it away.
function complain(text, look = "problem") {
  $(".dm-alert").textContent = text;
  $(".dm-alert").hidden = !text;
  $(".dm-alert").classList.toggle("dm-note", look === "note");
}

// Asks the server, one wish at a time; a second click while one runs is nothing, but a question about a cell is waited for.
function ask(wish, text, quiet = false) {
  if (state.explaining) {
    state.queued = [wish, text, quiet];
    return;
  }
  if (state.busy) return;
  busy(true, text, quiet);
  trigger("select", wish);
}

function open(wish, text) {
  ask({ ask: "open", weights: $(".dm-weights").value, ...wish }, text);
}

const MOST_BYTES = 100e6;

async function send(file) {
  if (!file || (state.busy && !state.explaining)) return;
  if (file.size > MOST_BYTES) {
    complain(`This file has ${Math.round(file.size / 1e6)} MB; choose a picture of at most ${MOST_BYTES / 1e6} MB.`);
    return;
  }
  busy(true, "Sending the picture…");
  try {
    const { path } = await upload(file);
    busy(false);
    open({ kind: "upload", path, name: file.name || "pasted picture" });
  } catch (error) {
    busy(false);
    complain(`The picture could not be sent (${error?.message || "no answer"}). It may be larger than the server takes.`);
  }
}

// ---- answers ----

async function decodeInstances(instances, masks, view, first) {
  const bytes = await inflate(masks);
  const grids = view.family === "one-stage" ? splitByShape(bytes, instances.map((one) => one.shape))
    : splitMasks(bytes, view.styles.map((style) => style.size), instances.length);
  const [sx, sy] = [view.view[0] / view.size[0], view.view[1] / view.size[1]];
  return instances.map((one, i) => ({ ...one, masks: grids[i], index: first + i, outlines: [], sprites: [], agreements: null,
    spot: one.spot ? [one.spot[0] * sx, one.spot[1] * sy] : null,
    viewBox: [one.box[0] * sx, one.box[1] * sy, one.box[2] * sx, one.box[3] * sy] }));
}

async function prepare(view) {
  const picture = new Image();
  picture.src = view.picture;
  [view.instances] = await Promise.all([decodeInstances(view.instances, view.masks, view, 0), picture.decode()]);
  return window.createImageBitmap ? createImageBitmap(picture) : picture;
}

// Solves the budget and draws all sizes of all instances while nothing else happens, so that no later move waits.
function traceAhead(view) {
  const work = view.instances.flatMap((one) => view.styles.map((_, k) => [one, k])).filter(([one, k]) => (one.level ?? k) === k);
  const later = window.requestIdleCallback || ((run) => setTimeout(() => run({ timeRemaining: () => 8 }), 30));
  const run = (deadline) => {
    const fitted = state.view === view && fitCanvas();
    if (!fitted) return;
    const unit = fitted.ratio / fitted.scale;
    while (work.length && deadline.timeRemaining() > 3) sprite(...work.shift(), fitted.scale, unit);
    if (work.length) later(run);
    else {
      if (!oneStage()) picksOf("budget");
      state.ready = true;
    }
  };
  later(run);
}

function showLegendAndClasses() {
  const { view } = state;
  if (!oneStage()) fillLegend($(".dm-legend"), view, styles());
  const names = [...new Set(view.instances.map((one) => one.label))].sort();
  fillClasses($(".dm-class-list"), names, state.hidden, (name, on) => {
    if (on) state.hidden.delete(name);
    else state.hidden.add(name);
    refresh();
  });
  $(".dm-classes").hidden = !names.length;
}

function showPicture() {
  const { view } = state;
  root.dataset.empty = "false";
  root.dataset.family = view.family || "two-stage";
  root.dataset.title = view.title;
  $(".dm-score").min = view.lowest_score;
  $(".dm-weights").value = view.weights;
  if (!oneStage()) fillTicks($(".dm-ticks"), view);
  showLegendAndClasses();
  fillCaption($(".dm-caption"), view);
  setText($(".dm-measured"), oneStage() ? levelFoot(view) : footText(view));
  setText($(".dm-one-weights"), view.weights);
  for (const button of element.querySelectorAll(".dm-example")) {
    button.setAttribute("aria-current", String(button.dataset.key === view.key));
  }
}

async function receiveView(view, more) {
  const turn = ++received;
  const picture = await prepare(view);
  const drawn = more ? await decodeInstances(more.instances, more.masks, view, view.instances.length) : [];
  if (turn !== received) return;
  view.instances.push(...drawn);
  const first = state.view === null;
  const families = [state.view?.family, view.family];
  if (!first && families[0] !== families[1]) { // scores of the two families are not alike: each keeps its own threshold
    state.scores[families[0]] = state.score;
    state.score = state.scores[families[1]] ?? view.score;
  }
  Object.assign(state, { view, picture, selected: null, hovered: null, timing: null, ready: false, overrides: new Map(), hidden: new Set() });
  state.fronts.clear();
  if (first) state.score = view.score;
  if (more) view.token = more.token;
  if (!oneStage() && state.policy === "oracle" && !allowed("oracle")) state.policy = "learned";
  if (!oneStage() && state.compare && !allowed(state.compare)) state.compare = "fixed:112";
  choose(); // before anything is shown: what was chosen for another family's picture has no style in this one
  drawingMode(false);
  showPicture();
  if (state.policy === "learned" && !oneStage()) state.step = nearestStep(summaryOf(state.picks).mean || view.macs[view.macs.length - 1]);
  draw();
  showPanels();
  busy(false);
  document.dispatchEvent(new CustomEvent("dynamask-picture", { detail: now() }));
  if (!first) say(`${view.title || "Picture"} analysed: ${state.shown.length} instances.`);
  traceAhead(view);
  const link = state.pending;
  state.pending = null;
  if (link) applySettings(link);
  else if (first) follow(window.location.hash);
  else rememberSoon();
}

async function receiveMore(answer) {
  const { view } = state;
  const added = await decodeInstances(answer.instances, answer.masks, view, view.instances.length);
  if (state.view !== view) return;
  view.instances.push(...added);
  view.instances.forEach((one) => state.hidden.has(one.label) && one.drawn && state.hidden.delete(one.label));
  state.selected = added.length ? added[added.length - 1].index : state.selected;
  showLegendAndClasses();
  busy(false);
  refresh();
  const one = added[added.length - 1];
  const best = one.probs.indexOf(Math.max(...one.probs));
  say(`Instance ${one.index + 1}, ${one.label}: the switch chooses ${view.styles[best].size}.`);
  traceAhead(view);
}

function receiveTime(answer) {
  state.timing = { ...answer, picks: state.measuring };
  busy(false);
  refresh();
}

function receiveFile(answer) {
  const bytes = Uint8Array.from(atob(answer.data), (letter) => letter.charCodeAt(0));
  const address = URL.createObjectURL(new Blob([bytes], { type: answer.media }));
  const link = make("a", { href: address, download: answer.name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 30_000);
  busy(false);
  say(`${answer.name} is saved.`);
}

async function receive(text) {
  if (!text) return;
  const answer = JSON.parse(text);
  if (answer.type === "view") await receiveView(answer);
  else if (answer.type === "both") await receiveView(answer.view, answer.more);
  else if (answer.type === "cell") receiveCell(answer);
  else if (answer.type === "more") await receiveMore(answer);
  else if (answer.type === "time") receiveTime(answer);
  else if (answer.type === "file") receiveFile(answer);
}

// ---- webcam ----

async function openCamera() {
  const dialog = $(".dm-camera");
  const video = $(".dm-video");
  if (!navigator.mediaDevices?.getUserMedia) {
    complain("This browser gives no webcam to this page; it needs https or localhost. Choose a picture instead.");
    return;
  }
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 1280 } } });
  } catch {
    complain("The webcam cannot be used: it is missing, busy, or not allowed for this page. Choose a picture instead.");
    return;
  }
  video.srcObject = stream;
  dialog.showModal();
  video.play().catch(() => undefined);
  dialog.addEventListener("close", () => stream.getTracks().forEach((track) => track.stop()), { once: true });
}

function takePicture() {
  const video = $(".dm-video");
  if (!video.videoWidth) return;
  const shot = make("canvas", { width: video.videoWidth, height: video.videoHeight });
  shot.getContext("2d").drawImage(video, 0, 0);
  $(".dm-camera").close();
  shot.toBlob((blob) => send(new File([blob], "webcam.png", { type: "image/png" })), "image/png");
}
