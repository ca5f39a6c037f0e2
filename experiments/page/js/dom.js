// Making elements: text goes in as text, so that no name or command is read as HTML.

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [k, v] of Object.entries(value)) node.style.setProperty(k, v);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

const el = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
const byId = (id) => document.getElementById(id);
const DATA = JSON.parse(byId("data").textContent);

const percent = (fraction) => (100 * fraction).toFixed(1);
const number = (value) => String(Number(value.toPrecision(4)));
const duration = (seconds) =>
  seconds < 90 ? `${seconds.toFixed(1)} s` : seconds < 5400 ? `${(seconds / 60).toFixed(1)} min` : `${(seconds / 3600).toFixed(1)} h`;
const plural = (n, one, many = `${one}s`) => `${n.toLocaleString("en")} ${n === 1 ? one : many}`;
const unique = (values) => [...new Set(values)];

// Text order in which numbers count as numbers: "eps 2" before "eps 10", "0.05" before "0.1".
const collator = new Intl.Collator("en", { sensitivity: "base" });
const pieces = (text) => String(text).split(/(\d+(?:\.\d+)?(?:e-?\d+)?)/); // text at even places, numbers at odd ones
function compare(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  const [left, right] = [pieces(a), pieces(b)];
  for (let i = 0; i < Math.min(left.length, right.length); i++) {
    const order = i % 2 ? left[i] - right[i] : collator.compare(left[i], right[i]);
    if (order) return order;
  }
  return left.length - right.length;
}

// Terms and what they are; without those that are empty.
function terms(pairs) {
  const shown = pairs.filter(([, value]) => value !== null && value !== undefined && value !== "");
  return el("dl", { class: "terms" }, shown.map(([term, value]) => [el("dt", null, term), el("dd", null, value)]));
}

const code = (text) => el("code", { class: "command" }, text);
const commit = (hash) => el("code", { title: hash }, hash ? hash.replace(/^([0-9a-f]{10})[0-9a-f]*/, "$1") : "not recorded");
