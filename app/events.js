// What a visitor does: controls, pointer, keys.

function connectPolicies() {
  const list = $(".dm-policy-list");
  for (const [value, text, note] of POLICIES) {
    const radio = make("input", { type: "radio", name: "dm-policy", value });
    radio.addEventListener("change", () => {
      state.policy = value;
      refresh();
    });
    list.append(make("label", { className: "dm-policy", title: note }, radio, make("span", {}, text)));
  }
  for (const [selector, change] of [[".dm-left", (value) => (state.compare = value)], [".dm-right", (value) => (state.policy = value)]]) {
    $(selector).append(...POLICIES.map(([value, text]) => make("option", { value }, text)));
    $(selector).addEventListener("change", (event) => {
      change(event.target.value);
      refresh();
    });
  }
  $(".dm-compare").addEventListener("click", () => {
    state.compare = state.compare ? null : state.policy === "fixed:112" ? "learned" : "fixed:112";
    canvas.style.touchAction = state.compare ? "pan-y" : "";
    refresh();
  });
  $(".dm-divider").addEventListener("input", (event) => moveDivider(Number(event.target.value) / 100));
}

function connectControls() {
  const live = (selector, type, change) => $(selector).addEventListener(type, (event) => {
    change(event.target);
    refresh();
  });
  live(".dm-budget", "input", (slider) => {
    state.step = Number(slider.value);
    if (state.policy !== "oracle") state.policy = "budget";
  });
  live(".dm-score", "input", (slider) => (state.score = Number(slider.value)));
  live(".dm-opacity", "input", (slider) => (state.opacity = Number(slider.value)));
  live(".dm-boxes", "change", (box) => (state.boxes = box.checked));
  live(".dm-each", "change", (box) => (state.each = box.checked));
  live(".dm-paper", "change", (box) => {
    state.paper = box.checked;
    if (state.view && !oneStage()) fillLegend($(".dm-legend"), state.view, styles());
  });
  $(".dm-draw").addEventListener("click", () => {
    drawingMode(!state.drawing);
    if (state.drawing) {
      canvas.focus();
      draw();
    }
  });
  $(".dm-clear-boxes").addEventListener("click", () => {
    open({ kind: "same", keep: true, weights: state.view.weights }, "Removing the boxes…");
  });
  $(".dm-measure").addEventListener("click", () => {
    state.measuring = JSON.stringify(shownPicks());
    ask({ ask: "measure", token: state.view.token, picks: shownPicks() }, "Measuring the mask branch…", true);
  });
  $(".dm-share").addEventListener("click", () => state.view && copyLink());
  for (const button of element.querySelectorAll("[data-export]")) {
    button.addEventListener("click", () => {
      $(".dm-menu").open = false;
      if (!state.view) return;
      ask({ ask: "export", what: button.dataset.export, token: state.view.token, picks: shownPicks(), opacity: state.opacity,
        boxes: state.boxes }, "Making the file…", true);
    });
  }
  document.addEventListener("click", (event) => {
    if (!event.target.closest?.(".dm-menu")) $(".dm-menu").open = false;
  });
  $(".dm-menu").addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    $(".dm-menu").open = false;
    $(".dm-menu summary").focus();
  });
}

// Index of the shown instance under the pointer: the topmost mask, else the smallest box; null where there is none.
function instanceAt(event) {
  const [x, y] = placeOf(event);
  const picks = state.leftPicks && x < state.divider * state.view.view[0] ? state.leftPicks : state.picks;
  const context = canvas.getContext("2d");
  context.setTransform(1, 0, 0, 1, 0, 0);
  const row = state.shown.findIndex((one, i) => context.isPointInPath(outline(one, picks[i]).path, x, y, "evenodd"));
  if (row >= 0) return state.shown[row].index;
  const area = ({ viewBox: b }) => (b[2] - b[0]) * (b[3] - b[1]);
  const boxed = state.shown.filter(({ viewBox: b }) => x >= b[0] && x <= b[2] && y >= b[1] && y <= b[3]);
  return boxed.length ? boxed.reduce((a, b) => (area(b) < area(a) ? b : a)).index : null;
}

function sizeTip(one, k) {
  const odds = state.view.styles.map((style, i) => `${style.size}: ${percent(one.probs[i])}`).join("  ");
  return [make("strong", {}, `${one.label} ${one.score.toFixed(2)} → ${state.view.styles[k].size}`),
    make("span", {}, `box ${boxText(one.box)} px · ${formatMacs(state.view.macs[k])}`), make("span", {}, odds)];
}

function showTip(event) {
  const tip = $(".dm-tip");
  const row = state.shown.findIndex((one) => one.index === state.hovered);
  tip.hidden = row < 0;
  if (row < 0) return;
  const one = state.shown[row];
  const k = state.picks[row];
  tip.replaceChildren(...(oneStage() ? levelTip(one, k) : sizeTip(one, k)));
  const stage = $(".dm-stage").getBoundingClientRect();
  tip.style.left = `${Math.max(4, Math.min(event.clientX - stage.left + 14, stage.width - tip.offsetWidth - 4))}px`;
  tip.style.top = `${Math.max(4, Math.min(event.clientY - stage.top + 16, stage.height - tip.offsetHeight - 4))}px`;
}

function hover(event) {
  if (event.pointerType === "touch") return;
  const over = instanceAt(event);
  if (over !== state.hovered) {
    state.hovered = over;
    draw();
  }
  canvas.style.cursor = over === null ? "default" : "pointer";
  showTip(event);
}

function connectPointer() {
  for (const type of ["pointerdown", "pointermove", "pointerup", "pointercancel"]) {
    canvas.addEventListener(type, (event) => {
      if (!state.view || (event.type === "pointerdown" && event.button > 0)) return;
      if (state.drawing) boxPointer(event);
      else if (!dividerPointer(event) && type === "pointermove") hover(event);
    });
  }
  canvas.addEventListener("click", (event) => {
    if (!state.view || state.drawing || (state.busy && !state.explaining)) return;
    if (state.pulled) {
      state.pulled = false;
      return;
    }
    select(instanceAt(event));
    if (state.selected === null) return;
    const calm = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
    setTimeout(() => $(".dm-why").scrollIntoView({ block: "nearest", behavior: calm ? "auto" : "smooth" }), 60);
  });
  canvas.addEventListener("pointerleave", () => {
    state.hovered = null;
    $(".dm-tip").hidden = true;
    if (state.view) draw();
  });
}

function connectKeys() {
  canvas.addEventListener("keydown", (event) => {
    if (!state.view || (state.drawing && boxKey(event))) return;
    const move = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (event.key === "Escape") select(null);
    if (!move || !state.shown.length) return;
    event.preventDefault();
    const row = state.shown.findIndex((one) => one.index === state.selected);
    const count = state.shown.length;
    const next = row < 0 ? (move > 0 ? 0 : count - 1) : (row + move + count) % count;
    select(state.shown[next].index);
    const word = oneStage() ? "level" : "size";
    say(`Instance ${state.shown[next].index + 1}, ${state.shown[next].label}, ${word} ${state.view.styles[state.picks[next]].size}.`);
  });
  canvas.addEventListener("focus", () => state.drawing && draw());
}

function onExplore() {
  return root.offsetParent !== null;
}

function connectFiles() {
  $(".dm-file").addEventListener("change", (event) => {
    send(event.target.files[0]);
    event.target.value = "";
  });
  const carriesFile = (event) => onExplore() && [...(event.dataTransfer?.types || [])].includes("Files");
  document.addEventListener("dragover", (event) => {
    if (!carriesFile(event)) return;
    event.preventDefault();
    $(".dm-drop").hidden = false;
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) $(".dm-drop").hidden = true;
  });
  document.addEventListener("drop", (event) => {
    if (!carriesFile(event)) return;
    event.preventDefault();
    $(".dm-drop").hidden = true;
    send(event.dataTransfer.files[0]);
  });
  document.addEventListener("paste", (event) => {
    const file = [...(event.clipboardData?.files || [])].find((each) => each.type.startsWith("image/"));
    if (file && onExplore()) send(file);
  });
}

function connectPictures() {
  fillExamples($(".dm-examples"), JSON.parse(props.examples || "[]"), ({ kind, key, seed, index, difficulty }) => {
    open(kind === "scene" ? { kind, seed, index, difficulty } : { kind, key });
  });
  const shelf = JSON.parse(props.weights || "[]");
  $(".dm-weights").append(...shelf.map(({ name, about }) => make("option", { value: name }, about ? `${name} (${about})` : name)));
  $(".dm-weights").addEventListener("change", () => {
    const weights = $(".dm-weights").value;
    if (state.view) ask({ ask: "open", kind: "same", keep: true, weights }, `Analysing with the weights ${weights}…`);
  });
  $(".dm-difficulty").addEventListener("input", () => {
    const value = Number($(".dm-difficulty").value);
    const word = value < 0 ? "mixed" : value.toFixed(2);
    $(".dm-difficulty").setAttribute("aria-valuetext", word);
    setText($(".dm-difficulty-value"), word);
  });
  let made = 0;
  $(".dm-seed").addEventListener("input", () => (made = 0));
  $(".dm-scene").addEventListener("submit", (event) => {
    event.preventDefault();
    const difficulty = Number($(".dm-difficulty").value);
    made += made % 10 === 8 ? 2 : 1; // every tenth scene of a world is empty
    open({ kind: "scene", seed: $(".dm-seed").valueAsNumber, index: made, difficulty: difficulty < 0 ? null : roundTo(difficulty, 2) },
      "Making the scene…");
  });
  $(".dm-webcam").addEventListener("click", openCamera);
  $(".dm-camera-take").addEventListener("click", takePicture);
  $(".dm-camera-cancel").addEventListener("click", () => $(".dm-camera").close());
  document.addEventListener("dynamask-refused", () => {
    if (!state.busy) return;
    if (state.explaining) {
      const one = state.view.instances.find((each) => each.asked && !each.behind && !each.failed);
      if (one) one.failed = true;
      if (explained()) return;
    }
    busy(false);
    state.pending = null;
    if (state.view) {
      $(".dm-weights").value = state.view.weights;
      refresh();
    }
  });
}

connectPolicies();
connectControls();
connectPointer();
connectKeys();
connectFiles();
connectPictures();
emptyWhy($(".dm-why"));
new ResizeObserver(() => state.view && draw()).observe($(".dm-stage"));
window.addEventListener("hashchange", () => follow(window.location.hash));
watch("value", () => receive(props.value).catch((error) => {
  busy(false);
  complain(`The answer of the server could not be shown (${error.message}).`);
}));
receive(props.value);
element.dynamask = state;
