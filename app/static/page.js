// The element that Gradio gives to the Explore tab, and what Gradio offers beside it.

export const page = {
  element: null,
  root: null, // .dm
  canvas: null,
  props: null, // `value`, `examples` and `weights` from Python
  request: null, // request(data) asks the server; the answer becomes `props.value`
  upload: null, // upload(file) resolves to { path } on the server
  signal: null, // aborted when the tab is built again: ends the listeners on document and window
};

let running = null;

// Takes over the element of a host: { element, props, request, upload, watch }.
export function bind(host) {
  running?.abort();
  running = new AbortController();
  const root = host.element.querySelector(".dm");
  Object.assign(page, host, { root, canvas: root.querySelector(".dm-canvas"), signal: running.signal });
}

export function $(selector) {
  return page.element.querySelector(selector);
}

// Announces a text to screen readers.
export function say(text) {
  $(".dm-status").textContent = text;
}

// Shows a sentence beside the picture chooser; an empty one removes it. `look` is "problem" or "note".
export function notify(text, look = "problem") {
  const node = $(".dm-alert");
  node.textContent = text;
  node.hidden = !text;
  node.classList.toggle("dm-note", look === "note");
}
