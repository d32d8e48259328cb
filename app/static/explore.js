// The Explore tab: connects the page's parts. Only pictures, drawn boxes, explanations, times and files ask the server;
// every other control is answered in the browser.

import { receive, receiveRefusal } from "./answers.js";
import { connectCamera } from "./camera.js";
import { draw } from "./canvas.js";
import { connectChoosers } from "./choosers.js";
import { connectControls, setBudget } from "./controls.js";
import { showInvitation } from "./details.js";
import { follow } from "./navigation.js";
import { $, bind, notify, page } from "./page.js";
import { connectPointer } from "./pointer.js";
import { busy } from "./server.js";
import { now } from "./setting.js";
import { state } from "./state.js";

// Runs the tab in a host { element, props, request, upload, watch }, see app/templates.py.
export function start(host) {
  bind(host);
  connectControls();
  connectPointer();
  connectChoosers();
  connectCamera();
  showInvitation("sizes");
  new ResizeObserver(() => state.view && draw()).observe($(".dm-stage"));
  window.addEventListener("hashchange", () => follow(window.location.hash), { signal: page.signal });
  document.addEventListener("dynamask-refused", receiveRefusal, { signal: page.signal });
  host.watch("value", () => take(host.props.value));
  host.element.dynamask = state; // for tests and the console
  window.dynamask = { now, setBudget };
  take(host.props.value);
}

function take(text) {
  receive(text).catch((error) => {
    busy(false);
    notify(`The answer of the server could not be shown (${error.message}).`);
  });
}
