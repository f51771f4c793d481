// Shared by charts and trees: the page's data, and elements built without any HTML parsing.
"use strict";

addEventListener("error", (event) => {
  document.documentElement.dataset.error = event.message;
  const box = document.getElementById("failure");
  box.hidden = false;
  box.textContent = "This page's script failed: " + event.message;
});

const DATA = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);

/** An element with attributes and children; strings become text nodes, null children vanish. */
function el(tag, attributes = {}, ...children) {
  const node = tag.startsWith("svg:")
    ? document.createElementNS("http://www.w3.org/2000/svg", tag.slice(4))
    : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat(Infinity)) {
    if (child !== null && child !== undefined && child !== false) node.append(child);
  }
  return node;
}

for (const node of document.querySelectorAll("[data-colour], [data-share]")) {
  if (node.dataset.colour) node.style.setProperty("--colour", node.dataset.colour);
  if (node.dataset.share) node.style.setProperty("--share", node.dataset.share);
}
