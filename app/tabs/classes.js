// The table of classes: sorted, filtered and downloaded here; the server only says which table.

const $ = (selector) => element.querySelector(selector);
const state = { table: null, key: "mean", down: true, filter: "", least: 1 };
const LAST = 1000; // stands for "more than 112" when sorting

function make(tag, attributes = {}, ...children) {
  const node = Object.assign(document.createElement(tag), attributes);
  node.append(...children);
  return node;
}

const percent = (share) => `${Math.round(share * 100)} %`;
const sizes = () => state.table.styles.map((style) => style.size);

// [key, heading, group, value to sort by, cell]
function columns() {
  const list = [
    ["name", "Class", "", (one) => one.name.toLowerCase(), (one) => make("td", { className: "dt-name" }, one.name)],
    ["instances", "Instances", "", (one) => one.instances, (one) => make("td", {}, one.instances.toLocaleString("en"))],
  ];
  if (state.table.classes.some((one) => one.shares)) {
    list.push(["shares", "Chosen sizes", "The switch", (one) => (one.shares ? one.shares[2] + one.shares[3] : -1), bars]);
    list.push(["mean", "Mean size", "The switch", (one) => one.mean_size ?? -1, (one) => make("td", {}, one.mean_size === null ? "–" : one.mean_size.toFixed(1))]);
  }
  if (state.table.classes.some((one) => one.needs)) {
    sizes().forEach((size, k) => list.push([`kept${size}`, `${size}`, "Boundary IoU of an ideal mask at", (one) => one.needs?.boundary_iou[k] ?? -1,
      (one) => kept(one.needs?.boundary_iou[k])]));
    for (const [key, heading] of [["needed_size_boundary", "boundary"], ["needed_size_mask", "whole mask"]]) {
      list.push([key, heading, "Needs for 95 % of the", (one) => (one.needs ? one.needs[key] ?? LAST : -1), (one) => needed(one.needs, key)]);
    }
  }
  return list;
}

function bars(one) {
  if (!one.shares) return make("td", {}, "–");
  const stack = make("div", { className: "dt-stack" });
  const words = one.shares.map((share, k) => `${percent(share)} at ${sizes()[k]}`).join(", ");
  stack.setAttribute("role", "img");
  stack.setAttribute("aria-label", words);
  stack.title = words;
  one.shares.forEach((share, k) => {
    if (share <= 0) return;
    const { colour, text, size } = state.table.styles[k];
    const part = make("span", {}, share >= 0.3 ? `${size}: ${percent(share)}` : share >= 0.13 ? `${size}` : "");
    Object.assign(part.style, { width: `${share * 100}%`, background: colour, color: text });
    stack.append(part);
  });
  return make("td", {}, stack);
}

function kept(value) {
  if (value === undefined) return make("td", {}, "–");
  return make("td", { className: `dt-kept${value >= 0.95 ? " dt-enough" : ""}` }, value.toFixed(2));
}

function needed(needs, key) {
  if (!needs) return make("td", {}, "–");
  const style = state.table.styles.find((each) => each.size === needs[key]);
  if (!style) return make("td", {}, `> ${sizes()[3]}`);
  const badge = make("span", { className: "dt-badge" }, `${style.size}`);
  Object.assign(badge.style, { background: style.colour, color: style.text });
  return make("td", {}, badge);
}

function drawHead(list) {
  const groups = make("tr");
  for (let i = 0; i < list.length; ) {
    const group = list[i][2];
    let span = 1;
    while (i + span < list.length && list[i + span][2] === group) span += 1;
    groups.append(make("th", { className: group ? "dt-group" : "", colSpan: span, scope: "colgroup" }, group));
    i += span;
  }
  const names = make("tr");
  for (const [key, heading] of list) {
    const sorted = key === state.key;
    const button = make("button", { type: "button" }, heading + (sorted ? (state.down ? " ↓" : " ↑") : ""));
    button.dataset.key = key;
    button.addEventListener("click", () => {
      [state.down, state.key] = [sorted ? !state.down : key !== "name", key];
      draw();
      $(`th button[data-key="${key}"]`)?.focus();
    });
    const cell = make("th", { scope: "col" }, button);
    if (sorted) cell.setAttribute("aria-sort", state.down ? "descending" : "ascending");
    names.append(cell);
  }
  $("thead").replaceChildren(groups, names);
}

function shownClasses(list) {
  const value = (list.find(([key]) => key === state.key) || list[1])[3];
  const words = state.filter.trim().toLowerCase();
  const rows = state.table.classes.filter((one) => one.instances >= state.least && one.name.toLowerCase().includes(words));
  const compare = (a, b) => (value(a) < value(b) ? -1 : value(a) > value(b) ? 1 : 0);
  return rows.sort((a, b) => (state.down ? -1 : 1) * compare(a, b) || a.name.localeCompare(b.name));
}

function facts() {
  const { weights, data, pictures, instances, boxes, macs, full_macs: full } = state.table;
  const where = { gt: "in true boxes", detected: "detected, score at least 0.5" }[boxes];
  const parts = [boxes ? `${weights} on ${data}` : data, `${pictures} pictures`, `${instances.toLocaleString("en")} instances${where ? ` (${where})` : ""}`];
  if (macs) parts.push(`${(macs / 1e9).toPrecision(3)} mean GMACs per instance, ${percent(macs / full)} of “112 for all”`);
  return parts.join(" · ");
}

function draw() {
  const { table } = state;
  for (const control of element.querySelectorAll(".dt-tools input, .dt-tools button")) control.disabled = !table;
  if (!table) {
    $(".dt-facts").textContent = $(".dt-count").textContent = "";
    $("thead").replaceChildren();
    $("tbody").replaceChildren(make("tr", {}, make("td", { className: "dt-empty" }, "Nothing to show yet: send pictures or annotations below.")));
    return;
  }
  const list = columns();
  const rows = shownClasses(list);
  drawHead(list);
  $(".dt-facts").textContent = facts();
  $(".dt-legend").replaceChildren(...table.styles.map(({ size, colour, text }) => {
    const badge = make("span", { className: "dt-badge" }, `${size}`);
    Object.assign(badge.style, { background: colour, color: text });
    return make("li", {}, badge, `${size} × ${size}`);
  }));
  const body = rows.map((one) => make("tr", {}, ...list.map((column) => column[4](one))));
  $("tbody").replaceChildren(...(body.length ? body : [make("tr", {}, make("td", { className: "dt-empty", colSpan: list.length }, "No class fits the filter."))]));
  $(".dt-count").textContent = `${rows.length} of ${table.classes.length} classes`;
}

function download() {
  const link = make("a", {
    href: URL.createObjectURL(new Blob([state.table.csv], { type: "text/csv" })),
    download: "dynamask-classes.csv",
  });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function receive(text) {
  const table = text ? JSON.parse(text) : {};
  state.table = table.classes ? table : null;
  draw();
}

$(".dt-filter").addEventListener("input", (event) => {
  state.filter = event.target.value;
  draw();
});
$(".dt-least").addEventListener("input", (event) => {
  state.least = Math.max(1, Number(event.target.value) || 1);
  draw();
});
$(".dt-download").addEventListener("click", download);
watch("value", () => receive(props.value));
receive(props.value);
