// Requests to the server: one at a time. While one runs, the controls that would send another are disabled.

import { $, notify, page, say } from "./page.js";
import { setText } from "./dom.js";
import { state } from "./state.js";

const MOST_BYTES = 100e6;
const SENDING_CONTROLS = ".dm-file, .dm-example, .dm-webcam, .dm-scene button, .dm-weights, .dm-measure, [data-export], .dm-clear-boxes";

let explaining = null; // the instance whose explanation is under way; does not disable any control
let queued = null; // the request that waits for it

// Marks the page as busy or idle; `quiet` keeps the picture uncovered.
export function busy(on, text = "Analysing the picture…", quiet = false) {
  state.busy = on;
  $(".dm-busy").hidden = !on || quiet;
  setText($(".dm-busy-text"), text);
  page.root.classList.toggle("dm-is-busy", on);
  page.root.setAttribute("aria-busy", String(on));
  for (const control of page.element.querySelectorAll(SENDING_CONTROLS)) control.disabled = on;
  if (on) {
    notify("");
    say(text);
  }
}

// Sends a request unless one is running; behind an explanation it waits.
export function ask(request, text, quiet = false) {
  if (explaining) {
    queued = [request, text, quiet];
    return;
  }
  if (state.busy) return;
  busy(true, text, quiet);
  page.request(request);
}

// Opens a picture with the chosen weights.
export function open(request, text) {
  ask({ ask: "open", weights: $(".dm-weights").value, ...request }, text);
}

// Uploads a file and opens it.
export async function send(file) {
  if (!file || isWaiting()) return;
  if (file.size > MOST_BYTES) {
    notify(`This file has ${Math.round(file.size / 1e6)} MB; choose a picture of at most ${MOST_BYTES / 1e6} MB.`);
    return;
  }
  busy(true, "Sending the picture…");
  try {
    const { path } = await page.upload(file);
    busy(false);
    open({ kind: "upload", path, name: file.name || "pasted picture" });
  } catch (error) {
    busy(false);
    notify(`The picture could not be sent (${error?.message || "no answer"}). It may be larger than the server takes.`);
  }
}

// Whether a request runs that the visitor has to wait for.
export function isWaiting() {
  return state.busy && !explaining;
}

// ---- explanations of one-stage instances ----

// Asks for what lies behind an instance of one-stage weights, once.
export function askExplanation(one) {
  if (one.explanation || one.asked || state.busy) return;
  one.asked = true;
  state.busy = true;
  explaining = one;
  page.request({ ask: "explain", token: state.view.token, row: one.index });
}

// Ends the request for an explanation; returns whether another request was waiting and has been sent now.
export function endExplanation(failed = false) {
  if (explaining && failed) explaining.failed = true;
  explaining = null;
  state.busy = false;
  const next = queued;
  queued = null;
  if (next) ask(...next);
  return Boolean(next);
}

// Called when the server refuses a request; returns whether another request is running now.
export function endRefused() {
  if (explaining && endExplanation(true)) return true;
  busy(false);
  return false;
}
