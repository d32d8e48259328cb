// Following a link: its picture is opened, then its settings are applied.

import { isForeign, readLink, writeAddress } from "./link.js";
import { notify } from "./page.js";
import { showClasses, showLegend } from "./picture_panels.js";
import { refresh } from "./refresh.js";
import { ask } from "./server.js";
import { allowMacs, oneStage, state } from "./state.js";

let pending = null; // the link whose picture is under way

// Goes to what an address names: another picture asks the server first.
export function follow(hash) {
  if (!isForeign(hash)) return;
  const link = readLink(hash);
  const { view } = state;
  const sameWeights = view && (!link.weights || link.weights === view.weights);
  if (sameWeights && isShown(link.picture) && !link.drawn.length) {
    applySettings(link);
    return;
  }
  pending = link;
  const request = { ask: "open", keep: Boolean(link.weights), weights: link.weights || view?.weights, ...(link.picture || { kind: "same" }) };
  if (link.drawn.length) request.boxes = link.drawn;
  ask(request, "Opening the link…");
}

function isShown(picture) {
  const { view } = state;
  if (!picture) return Boolean(view);
  const key = picture.key ?? `${picture.seed}:${picture.index}:${picture.difficulty ?? "mixed"}`;
  return view?.kind === picture.kind && view.key === key;
}

// Applies the link that led to the picture shown now; returns whether there was one.
export function applyPending() {
  const link = pending;
  pending = null;
  if (link) applySettings(link);
  return Boolean(link);
}

// Forgets the link whose picture was refused.
export function dropPending() {
  pending = null;
}

function applySettings(link) {
  const { view } = state;
  const sizes = view.styles.map((style) => style.size);
  const { boxes, paper, each, compare, divider } = link;
  Object.assign(state, {
    boxes, paper, each, compare, divider,
    policy: link.policy ?? state.policy,
    score: link.score ?? state.score,
    opacity: link.opacity ?? state.opacity,
    selected: link.selected === null ? null : link.selected - 1,
    hidden: new Set(link.hidden),
    overrides: new Map(link.sizes.filter(([number, size]) => number <= view.instances.length && sizes.includes(size))
      .map(([number, size]) => [number - 1, sizes.indexOf(size)])),
  });
  if (link.budget !== null && !oneStage()) allowMacs(link.budget * 1e9 * 1.000005); // the address holds six digits
  showLegend();
  showClasses(refresh);
  refresh();
}

export async function copyLink() {
  const address = writeAddress();
  const own = state.view.kind === "own" ? " It does not contain your own picture." : "";
  try {
    await navigator.clipboard.writeText(address);
    notify(`The link is copied.${own}`, "note");
  } catch {
    notify(`The link is in the address bar, ready to be copied.${own}`, "note");
  }
}
