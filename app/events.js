// What a visitor does: controls, pointer, keys, and pictures on their way to the server.

function busy(on, text = "Analysing the picture…") {
  $(".dm-busy").hidden = !on;
  $(".dm-busy-text").textContent = text;
  root.classList.toggle("dm-is-busy", on);
  for (const control of element.querySelectorAll(".dm-file, .dm-example")) control.disabled = on;
  if (on) complain("");
}

function say(text) {
  $(".dm-status").textContent = text;
}

// A sentence beside the picture chooser; empty takes it away.
function complain(text) {
  $(".dm-alert").textContent = text;
  $(".dm-alert").hidden = !text;
}

async function send(file) {
  if (!file || !$(".dm-busy").hidden) return;
  busy(true, "Sending the picture…");
  try {
    const { path } = await upload(file);
    busy(true);
    trigger("upload", { path, name: file.name || "pasted picture" });
  } catch (error) {
    busy(false);
    complain(`The picture could not be sent (${error?.message || "no answer"}). It may be larger than the server takes.`);
  }
}

function connectControls() {
  const list = $(".dm-policy-list");
  for (const [value, text, note] of POLICIES) {
    const radio = make("input", { type: "radio", name: "dm-policy", value });
    radio.addEventListener("change", () => {
      state.policy = value;
      refresh();
    });
    const words = value.startsWith("fixed:") ? `all ${text}` : text;
    list.append(make("label", { className: "dm-policy", title: note }, radio, make("span", {}, words)));
  }
  $(".dm-budget").addEventListener("input", (event) => {
    state.step = Number(event.target.value);
    state.policy = "budget";
    refresh();
  });
  $(".dm-score").addEventListener("input", (event) => {
    state.score = Number(event.target.value);
    refresh();
  });
  $(".dm-opacity").addEventListener("input", (event) => {
    state.opacity = Number(event.target.value);
    refresh();
  });
  $(".dm-boxes").addEventListener("change", (event) => {
    state.boxes = event.target.checked;
    refresh();
  });
}

// Index of the shown instance under the pointer: the topmost mask, else the smallest box; null where there is none.
function instanceAt(event) {
  const bounds = canvas.getBoundingClientRect();
  const x = ((event.clientX - bounds.left) / bounds.width) * state.view.view[0];
  const y = ((event.clientY - bounds.top) / bounds.height) * state.view.view[1];
  const context = canvas.getContext("2d");
  context.setTransform(1, 0, 0, 1, 0, 0);
  const row = state.shown.findIndex((one, i) => context.isPointInPath(outline(one, state.picks[i]).path, x, y, "evenodd"));
  if (row >= 0) return state.shown[row].index;
  const area = ({ viewBox: b }) => (b[2] - b[0]) * (b[3] - b[1]);
  const boxed = state.shown.filter(({ viewBox: b }) => x >= b[0] && x <= b[2] && y >= b[1] && y <= b[3]);
  return boxed.length ? boxed.reduce((a, b) => (area(b) < area(a) ? b : a)).index : null;
}

function showTip(event) {
  const tip = $(".dm-tip");
  const row = state.shown.findIndex((one) => one.index === state.hovered);
  tip.hidden = row < 0;
  if (row < 0) return;
  const one = state.shown[row];
  const k = state.picks[row];
  const odds = state.view.styles.map((style, i) => `${style.size}: ${percent(one.probs[i])}`).join("  ");
  tip.replaceChildren(make("strong", {}, `${one.label} ${one.score.toFixed(2)} → ${state.view.styles[k].size}`),
    make("span", {}, `box ${boxText(one.box)} px · ${formatMacs(state.view.macs[k])}`), make("span", {}, odds));
  const stage = $(".dm-stage").getBoundingClientRect();
  tip.style.left = `${Math.max(4, Math.min(event.clientX - stage.left + 14, stage.width - tip.offsetWidth - 4))}px`;
  tip.style.top = `${Math.max(4, Math.min(event.clientY - stage.top + 16, stage.height - tip.offsetHeight - 4))}px`;
}

function connectCanvas() {
  canvas.addEventListener("click", (event) => {
    if (!state.view) return;
    select(instanceAt(event));
    if (state.selected === null) return;
    const calm = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
    setTimeout(() => $(".dm-why").scrollIntoView({ block: "nearest", behavior: calm ? "auto" : "smooth" }), 60);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!state.view || event.pointerType === "touch") return;
    const over = instanceAt(event);
    if (over !== state.hovered) {
      state.hovered = over;
      draw();
    }
    canvas.style.cursor = over === null ? "default" : "pointer";
    showTip(event);
  });
  canvas.addEventListener("pointerleave", () => {
    state.hovered = null;
    $(".dm-tip").hidden = true;
    if (state.view) draw();
  });
  canvas.addEventListener("keydown", (event) => {
    const move = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (event.key === "Escape") select(null);
    if (!move || !state.shown.length) return;
    event.preventDefault();
    const row = state.shown.findIndex((one) => one.index === state.selected);
    const count = state.shown.length;
    const next = row < 0 ? (move > 0 ? 0 : count - 1) : (row + move + count) % count;
    select(state.shown[next].index);
    say(`Instance ${state.shown[next].index + 1}, ${state.shown[next].label}, size ${state.view.styles[state.picks[next]].size}.`);
  });
}

function connectPictures() {
  $(".dm-file").addEventListener("change", (event) => {
    send(event.target.files[0]);
    event.target.value = "";
  });
  const carriesFile = (event) => [...(event.dataTransfer?.types || [])].includes("Files");
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
    if (file) send(file);
  });
  fillExamples($(".dm-examples"), JSON.parse(props.thumbnails || "[]"), (index) => {
    busy(true);
    trigger("select", { index });
  });
  document.addEventListener("dynamask-settled", () => busy(false));
}

connectControls();
connectCanvas();
connectPictures();
emptyWhy($(".dm-why"));
new ResizeObserver(() => state.view && draw()).observe($(".dm-stage"));
watch("value", () => receive(props.value).catch((error) => {
  busy(false);
  complain(`The answer of the server could not be shown (${error.message}).`);
}));
receive(props.value);
element.dynamask = state;
