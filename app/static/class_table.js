// The Classes tab: a table that is sorted, filtered and downloaded in the browser; the server sends it once.

import { make, saveFile, sizeBadge } from "./dom.js";
import { formatMacs, percent } from "./format.js";

const ABOVE_ALL = 1000; // sorts classes that need more than the finest size
const LONG = 20; // classes of a table that starts without those of fewer than FEW instances
const FEW = 5;

let host = null; // { element, props, watch }
let state = null;

const $ = (selector) => host.element.querySelector(selector);

// Runs the tab in a host, see app/templates.py.
export function start(newHost) {
  host = newHost;
  state = { table: null, key: "mean", descending: true, filter: "", least: 1 };
  $(".dt-filter").addEventListener("input", (event) => {
    state.filter = event.target.value;
    draw();
  });
  $(".dt-least").addEventListener("input", (event) => {
    state.least = Math.max(1, Number(event.target.value) || 1);
    draw();
  });
  $(".dt-download").addEventListener("click", () => saveFile(state.table.csv, "text/csv", "dynamask-classes.csv"));
  host.watch("value", () => receive(host.props.value));
  receive(host.props.value);
}

function receive(text) {
  const table = text ? JSON.parse(text) : {};
  state.table = table.classes ? table : null;
  state.least = table.classes?.filter((one) => one.instances >= FEW).length > LONG ? FEW : 1;
  $(".dt-least").value = state.least;
  draw();
}

function draw() {
  const { table } = state;
  for (const control of host.element.querySelectorAll(".dt-tools input, .dt-tools button")) control.disabled = !table;
  if (!table) {
    for (const selector of [".dt-facts", ".dt-count", "thead"]) $(selector).replaceChildren();
    $("tbody").replaceChildren(make("tr", {}, make("td", { className: "dt-empty" }, "No table yet: upload pictures or annotations below.")));
    return;
  }
  const list = columns();
  const rows = shownClasses(list);
  drawHead(list);
  $(".dt-facts").textContent = facts();
  $(".dt-legend").replaceChildren(...table.styles.map((style) => make("li", {}, badge(style), `${style.size} × ${style.size}`)));
  $("tbody").replaceChildren(...rows.map((one) => make("tr", {}, ...list.map((column) => column.cell(one)))));
  if (!rows.length) $("tbody").append(make("tr", {}, make("td", { className: "dt-empty", colSpan: list.length }, "No class matches the filter.")));
  const least = state.least > 1 ? ` with at least ${state.least} instances` : "";
  $(".dt-count").textContent = `${rows.length} of ${table.classes.length} classes${least}`;
}

// What is measured on what, in one line.
function facts() {
  const { weights, data, pictures, instances, boxes, score, macs, full_macs: full } = state.table;
  const where = { gt: " (in ground-truth boxes)", detected: ` (detected with a score of at least ${score})` }[boxes] || "";
  const parts = [boxes ? `${weights} on ${data}` : data, `${pictures} pictures`, `${instances.toLocaleString("en")} instances${where}`];
  if (macs) parts.push(`mean ${formatMacs(macs)} per instance, ${percent(macs / full)} of the cost at 112 × 112`);
  return parts.join(" · ");
}

// The classes that match the filter, sorted.
function shownClasses(list) {
  const { value } = list.find((column) => column.key === state.key) || list[1];
  const words = state.filter.trim().toLowerCase();
  const rows = state.table.classes.filter((one) => one.instances >= state.least && one.name.toLowerCase().includes(words));
  const compare = (a, b) => (value(a) < value(b) ? -1 : value(a) > value(b) ? 1 : 0);
  return rows.sort((a, b) => (state.descending ? -1 : 1) * compare(a, b) || a.name.localeCompare(b.name));
}

// ---- columns ----

// The columns that the table has figures for: key, heading, group, `value(one)` to sort by, `cell(one)`.
function columns() {
  const { classes, styles } = state.table;
  const list = [
    { key: "name", heading: "Class", group: "", value: (one) => one.name.toLowerCase(), cell: (one) => cell(one.name, "dt-name") },
    { key: "instances", heading: "Instances", group: "", value: (one) => one.instances, cell: (one) => cell(one.instances.toLocaleString("en")) },
  ];
  if (classes.some((one) => one.shares)) {
    const group = "Chosen by the switch";
    list.push({ key: "shares", heading: "Sizes", group, value: (one) => (one.shares ? one.shares[2] + one.shares[3] : -1), cell: shareCell });
    list.push({ key: "mean", heading: "Mean size", group, value: (one) => one.mean_size ?? -1, cell: (one) => cell(one.mean_size?.toFixed(1) ?? "–") });
  }
  if (classes.some((one) => one.needs)) {
    styles.forEach(({ size }, k) => {
      const iou = (one) => one.needs?.boundary_iou[k];
      list.push({ key: `kept${size}`, heading: `${size}`, group: "Boundary IoU of an ideal mask at", value: (one) => iou(one) ?? -1, cell: (one) => iouCell(iou(one)) });
    });
    for (const [key, heading] of [["needed_size_boundary", "boundary IoU"], ["needed_size_mask", "mask IoU"]]) {
      const value = (one) => (one.needs ? one.needs[key] ?? ABOVE_ALL : -1);
      list.push({ key, heading, group: "Smallest size with 0.95", value, cell: (one) => neededCell(one.needs, key) });
    }
  }
  return list;
}

function cell(content, className = "") {
  return make("td", { className }, content);
}

function badge(style) {
  return sizeBadge(style, "dt-badge");
}

// A bar of the shares of the sizes.
function shareCell(one) {
  if (!one.shares) return cell("–");
  const { styles } = state.table;
  const text = one.shares.map((share, k) => `${percent(share)} at ${styles[k].size}`).join(", ");
  const bar = make("div", { className: "dt-stack", role: "img", "aria-label": text, title: text });
  one.shares.forEach((share, k) => {
    if (share <= 0) return;
    const { colour, text: letters, size } = styles[k];
    const label = share >= 0.3 ? `${size}: ${percent(share)}` : share >= 0.13 ? `${size}` : "";
    bar.append(make("span", { style: `width:${share * 100}%;background:${colour};color:${letters}` }, label));
  });
  return cell(bar);
}

function iouCell(value) {
  return value === undefined ? cell("–") : cell(value.toFixed(2), `dt-kept${value >= 0.95 ? " dt-enough" : ""}`);
}

function neededCell(needs, key) {
  if (!needs) return cell("–");
  const { styles } = state.table;
  const style = styles.find((each) => each.size === needs[key]);
  return cell(style ? badge(style) : `> ${styles[styles.length - 1].size}`);
}

function drawHead(list) {
  const groups = make("tr");
  for (const { group } of list) {
    const last = groups.lastElementChild;
    if (last?.textContent === group) last.colSpan += 1;
    else groups.append(make("th", { className: group ? "dt-group" : "", scope: "colgroup" }, group));
  }
  $("thead").replaceChildren(groups, make("tr", {}, ...list.map(headCell)));
}

// A heading that sorts by its column, and in the other direction when it is pressed again.
function headCell({ key, heading }) {
  const sorted = key === state.key;
  const button = make("button", { type: "button" }, heading + (sorted ? (state.descending ? " ↓" : " ↑") : ""));
  button.dataset.key = key;
  button.addEventListener("click", () => {
    state.descending = sorted ? !state.descending : key !== "name";
    state.key = key;
    draw();
    $(`th button[data-key="${key}"]`)?.focus();
  });
  const head = make("th", { scope: "col" }, button);
  if (sorted) head.setAttribute("aria-sort", state.descending ? "descending" : "ascending");
  return head;
}
