// How do values become elements? Text is only ever set as text, so nothing that a client is called can become markup.

const SVG = "http://www.w3.org/2000/svg";
const DRAWN = new Set(["svg", "g", "line", "rect", "circle", "text", "path", "polyline", "title", "tspan"]);

/** Makes an element; attributes that are null or false are left out, children may be nested lists, texts, numbers. */
export function h(name, attributes = {}, ...children) {
  const made = DRAWN.has(name) ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes ?? {})) {
    if (value !== null && value !== undefined && value !== false) made.setAttribute(key, value === true ? "" : String(value));
  }
  for (const child of children.flat(4)) {
    if (child === null || child === undefined || child === false || child === "") continue;
    made.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
  return made;
}

/** Makes the children of `place` look like `fresh`, keeping what is alike: focus, scrolling and selections stay. */
export function show(place, ...fresh) {
  const made = document.createElement(place.nodeName);
  made.append(...fresh.flat(4).filter((child) => child instanceof Node));
  match(place, made);
}

function match(old, made) {
  const wanted = [...made.childNodes];
  wanted.forEach((fresh, i) => {
    const known = old.childNodes[i];
    if (!known) old.append(fresh);
    else if (known.nodeName !== fresh.nodeName || known.nodeType !== fresh.nodeType) known.replaceWith(fresh);
    else if (known.nodeType === Node.TEXT_NODE) { if (known.data !== fresh.data) known.data = fresh.data; }
    else { attributes(known, fresh); match(known, fresh); }
  });
  while (old.childNodes.length > wanted.length) old.lastChild.remove();
}

function attributes(known, fresh) {
  for (const { name } of [...known.attributes]) if (!fresh.hasAttribute(name) && name !== "open") known.removeAttribute(name);
  for (const { name, value } of fresh.attributes) if (known.getAttribute(name) !== value) known.setAttribute(name, value);
}

/** Applies a merge patch (RFC 7396). What is made has no prototype, so that no name can reach one. */
export function merged(tree, patch) {
  const made = Object.assign(Object.create(null), tree);
  for (const [key, value] of Object.entries(patch)) {
    if (value === null) delete made[key];
    else if (typeof value === "object" && !Array.isArray(value)) {
      const below = made[key];
      made[key] = merged(typeof below === "object" && !Array.isArray(below) ? below : {}, value);
    } else made[key] = value;
  }
  return made;
}

// Numbers in words ------------------------------------------------------------------------------------------------------------

const PREFIXES = [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"], [1, ""], [1e-3, "m"], [1e-6, "µ"], [1e-9, "n"]];
export const there = (value) => typeof value === "number" && Number.isFinite(value);

/** Three digits and a metric prefix: 5.29 MHz. */
export function scaled(value, unit) {
  if (!there(value)) return "–";
  if (value === 0) return `0 ${unit}`;
  const [size, prefix] = PREFIXES.find(([each]) => Math.abs(value) >= each * 0.9995) ?? PREFIXES.at(-1);
  const digits = prefix === "" && Number.isInteger(value) ? String(value) : (value / size).toPrecision(3);
  return `${digits} ${prefix}${unit}`;
}
export const bytes = (value) => scaled(value, "B");
export const db = (value) => (there(value) ? `${value.toFixed(1).replace("-", "−")} dB` : "–");
export const fixed = (value, digits) => (there(value) ? value.toFixed(digits) : "–");
export const percent = (value) => (!there(value) ? "–" : value > 0 && value < 1e-5 ? "under 0.001 %" : `${Number((100 * value).toPrecision(3))} %`);
export const whole = (value) => (there(value) ? value.toLocaleString("en").replaceAll(",", "\u202f") : "–");

export function duration(seconds) {
  if (!there(seconds)) return "–";
  if (Math.abs(seconds) < 100) return scaled(seconds, "s");
  const minutes = Math.floor(seconds / 60), hours = Math.floor(minutes / 60);
  return hours ? `${hours} h ${minutes % 60} min` : `${minutes} min ${Math.floor(seconds % 60)} s`;
}
export const clock = (moment) => (there(moment) && moment > 0 ? new Date(1000 * moment).toLocaleTimeString("en-GB") : "–");
export const sorted = (tree) => Object.keys(tree ?? {}).sort(new Intl.Collator("en", { numeric: true }).compare);

/** A table with a caption; cells are texts or nodes, columns named with a leading # hold numbers. */
export function table(caption, columns, rows, { strong = () => false, empty = "Nothing yet." } = {}) {
  if (!rows.length) return h("p", { class: "empty" }, empty);
  const numeric = columns.map((name) => name.startsWith("#"));
  return h("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": caption },
    h("table", {}, h("caption", {}, caption),
      h("thead", {}, h("tr", {}, columns.map((name, i) => h("th", { scope: "col", class: numeric[i] ? "n" : null }, name.replace(/^#/, ""))))),
      h("tbody", {}, rows.map((row) => h("tr", { class: strong(row) ? "strong" : null }, row.map((cell, i) =>
        h(i ? "td" : "th", { scope: i ? null : "row", class: numeric[i] ? "n" : null }, cell)))))));
}
