// Elements of the page. Text enters through textContent or as text nodes; nothing from outside is read as HTML.

// An element with properties, attributes (keys with a dash, `role`, `style`, `scope`, `for`) and children.
export function make(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(properties)) {
    if (key.includes("-") || ["role", "style", "scope", "for"].includes(key)) node.setAttribute(key, value);
    else node[key] = value;
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

// An SVG element with attributes and, if given, a text.
export function svg(tag, attributes = {}, text = null) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== null) node.textContent = text;
  return node;
}

// Sets a text only where it differs: an unchanged node costs no layout.
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// Offers bytes (or a string) to the browser as a file to save.
export function saveFile(content, media, name) {
  const address = URL.createObjectURL(new Blob([content], { type: media }));
  make("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 30_000);
}

// A mask size (or level) on its colour.
export function sizeBadge(style, className = "dm-badge") {
  return make("span", { className, style: `background:${style.colour};color:${style.text}` }, String(style.size));
}
