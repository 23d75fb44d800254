// What do the drawings look like? Plain SVG made here, every number also in words beside it or in its label.

import { db, fixed, h, sorted, there } from "./dom.js";
import { goneSince, round } from "./parts.js";

// The map --------------------------------------------------------------------------------------------------------------------

const R = 210, WIDTH_LEAST = 420, RINGS = [50, 100, 200, 500, 1000, 2000, 5000];

export function map(state) {
  const places = state.places ?? {}, clients = round(state).clients ?? {};
  const placed = places.clients ?? {}, names = sorted({ ...placed, ...clients });
  if (!names.length) return h("p", { class: "empty" }, "Nobody is known to take part yet.");
  const known = Object.keys(placed).length > 0;
  const at = (name, i) => placed[name] ?? { x_m: 100 * Math.cos(2.4 * i + 2.2), y_m: 100 * Math.sin(2.4 * i + 2.2) };
  const eve = there(places.eavesdropper?.x_m) ? places.eavesdropper : { x_m: 400, y_m: 0 };
  const far = Math.max(120, Math.hypot(eve.x_m, eve.y_m), ...names.map((name, i) => Math.hypot(at(name, i).x_m, at(name, i).y_m)));
  const unit = R / Math.log1p(far / 40);
  const shown = ({ x_m, y_m }) => { const r = Math.hypot(x_m, y_m), k = r ? (unit * Math.log1p(r / 40)) / r : 0; return [x_m * k, -y_m * k]; };
  const spots = names.map((name, i) => ({ name, client: { ...clients[name], gone: goneSince(state, name) }, xy: shown(at(name, i)) }));
  const [ex, ey] = shown(eve), eveDoing = Object.values(state.live?.processes ?? {}).find((p) => p.role === "eavesdropper")?.phase;
  const ys = [...spots.map((s) => s.xy[1]), ey, 0];
  const left = Math.min(-60, ...spots.map((s) => s.xy[0] - (s.xy[0] < -25 ? 118 : 66))), right = Math.max(ex + 75, ...spots.map((s) => s.xy[0] + (s.xy[0] > 25 ? 118 : 66)));
  const spare = Math.max(0, WIDTH_LEAST - (right - left)) / 2;
  const box = [left - spare, Math.min(...ys) - 66, right - left + 2 * spare, Math.max(...ys) - Math.min(...ys) + 130];
  const words = spots.map(({ name, client }) => `${name}: ${quality(client).join(", ")}`).join("; ");
  return [
    h("svg", { class: "map", viewBox: box.map((v) => Math.round(v)).join(" "), role: "img", "aria-label": `Map. The owner is in the middle. ${words}` },
      known ? RINGS.filter((m) => m <= far * 1.05).map((m) => [h("circle", { class: "ring", r: unit * Math.log1p(m / 40), cx: 0, cy: 0 }),
        unit * Math.log1p(m / 40) < box[1] + box[3] - 2 ? h("text", { class: "ringlabel", x: 2, y: unit * Math.log1p(m / 40) - 3, "text-anchor": "middle" }, m >= 1000 ? `${m / 1000} km` : `${m} m`) : ""]) : "",
      spots.map(({ client, xy: [x, y] }) => [
        h("line", { class: "tapline", x1: x, y1: y, x2: ex, y2: ey }),
        h("line", { class: `link ${mood(client)}`, x1: x, y1: y, x2: 0, y2: 0, "stroke-width": width(client.gate?.snr_main_db) })]),
      node(0, 0, "owner", "Owner (Bob)", [], "square"),
      node(ex, ey, "eve", "Eve", [eveDoing ?? "the eavesdropper"], "diamond"),
      spots.map(({ name, client, xy: [x, y] }) => node(x, y, `client ${mood(client)}`, name, quality(client), "circle"))),
    h("p", { class: "legend" }, h("span", { class: "key line" }), " to the owner, thicker: heard better ", h("span", { class: "key dash" }), " what Eve hears",
      known ? " · distances are drawn compressed" : " · places unknown: no scenario beside the logs"),
    places.air?.moves ? h("p", { class: "note" }, "Somebody moves, or the channel wanders, in this scenario: the map shows where everyone began.") : "",
  ];
}

/** A mark with a name and lines below it, written away from the middle so that they stay apart. */
function node(x, y, kind, name, below, shape) {
  const marks = { square: () => h("rect", { x: x - 9, y: y - 9, width: 18, height: 18, rx: 3 }), circle: () => h("circle", { cx: x, cy: y, r: 9 }),
    diamond: () => h("path", { d: `M${x} ${y - 11}L${x + 11} ${y}L${x} ${y + 11}L${x - 11} ${y}Z` }) };
  const beside = shape === "circle" && Math.abs(x) > 25;
  const anchor = shape === "square" ? "start" : beside ? (x < 0 ? "end" : "start") : "middle";
  const tx = shape === "square" ? x + 13 : beside ? x + Math.sign(x) * 15 : x, top = shape === "square" ? y + 22 : beside ? y - 4 : y < 0 || shape === "diamond" ? y - 17 - 15 * below.length : y + 26;
  const cut = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);
  return h("g", { class: `node ${kind}` }, marks[shape](), h("text", { class: "name", x: tx, y: top, "text-anchor": anchor }, cut(name, 22)),
    below.map((line, i) => h("text", { class: "below", x: tx, y: top + 15 * (i + 1), "text-anchor": anchor }, cut(line, 26))));
}

const mood = (client) => client.died || client.gone ? "bad" : ({ granted: "good", deferred: "wait", excluded: "bad" })[client.gate?.decision ?? client.assigned?.decision] ?? "unknown";
const width = (snr) => (there(snr) ? Math.max(1.5, Math.min(7, 2 + snr / 4)) : 1.2);

function quality(client) {
  const g = client.gate;
  if (client.died || client.gone) return ["✖ taken for dead"];
  if (!g) return client.report ? ["has reported"] : [];
  const sign = { granted: "✓", deferred: "…", excluded: "✖" }[g.decision] ?? "";
  return there(g.snr_main_db) ? [`${sign} ${db(g.snr_main_db)}`, `tap ≤ ${db(g.snr_tap_bound_db)}`] : [`${sign} ${g.decision}`];
}

// Small drawings -------------------------------------------------------------------------------------------------------------

/** The loss by step. */
export function curve(points, steps, says) {
  const keys = sorted(points), losses = keys.map((key) => points[key]);
  if (!keys.length) return "";
  const low = Math.min(...losses), high = Math.max(...losses), span = high - low || 1;
  const x = (step) => 34 + (252 * (Number(step) - 1)) / Math.max(1, (steps ?? keys.length) - 1), y = (loss) => 10 + 52 * (1 - (loss - low) / span);
  return h("svg", { class: "curve", viewBox: "0 0 300 80", role: "img", "aria-label": `Training curve: ${says}` },
    h("line", { class: "axis", x1: 34, y1: 66, x2: 290, y2: 66 }), h("line", { class: "axis", x1: 34, y1: 6, x2: 34, y2: 66 }),
    h("text", { class: "tick", x: 30, y: 14, "text-anchor": "end" }, fixed(high, 2)), keys.length > 1 ? h("text", { class: "tick", x: 30, y: 65, "text-anchor": "end" }, fixed(low, 2)) : "",
    h("text", { class: "tick", x: 290, y: 76, "text-anchor": "end" }, `step ${steps ?? ""}`),
    h("polyline", { class: "loss", points: keys.map((key) => `${x(key).toFixed(1)},${y(points[key]).toFixed(1)}`).join(" ") }),
    h("circle", { class: "lossnow", cx: x(keys.at(-1)), cy: y(losses.at(-1)), r: 3 }));
}

/** What the owner hears, what the tap is assumed to hear at most, and what it did hear, on one scale of dB. */
export function scale(main, bound, real) {
  const low = Math.min(-10, main, bound, real ?? 0) - 3, high = Math.max(20, main, bound) + 3, x = (v) => 10 + (280 * (v - low)) / (high - low);
  const label = `The owner hears ${db(main)}, the tap is assumed to hear at most ${db(bound)}${there(real) ? `, it heard ${db(real)}` : ""}`;
  const inside = (v, margin) => Math.min(300 - margin, Math.max(margin, x(v)));
  const zero = [h("line", { class: "axis", x1: x(0), y1: 22, x2: x(0), y2: 34 }),
    Math.abs(x(0) - inside(bound, 46)) > 62 ? h("text", { class: "tick", x: x(0), y: 47, "text-anchor": "middle" }, "0 dB") : ""];
  return h("svg", { class: "scale", viewBox: "0 0 300 51", role: "img", "aria-label": label }, h("title", {}, label),
    h("line", { class: "axis", x1: 10, y1: 28, x2: 290, y2: 28 }), zero,
    h("line", { class: main > bound ? "advantage" : "disadvantage", x1: x(bound), y1: 28, x2: x(main), y2: 28 }),
    h("path", { class: "tapmark", d: `M${x(bound)} 20V36` }), h("text", { class: "tick tap", x: inside(bound, 46), y: 47, "text-anchor": "middle" }, `Eve ≤ ${db(bound)}`),
    h("circle", { class: "mainmark", cx: x(main), cy: 28, r: 5 }), h("text", { class: "tick own", x: inside(main, 36), y: 14, "text-anchor": "middle" }, `Bob ${db(main)}`),
    there(real) ? h("path", { class: "tapreal", d: `M${x(real) - 4} 24l8 8m0 -8l-8 8` }) : "");
}

const CELLS = 60;

/** The blocks of one transmission as cells, each standing for as many as fit; heard ones are filled, missing ones crossed. */
export function blocks(count, share, missing, says) {
  const cells = Math.max(1, Math.min(CELLS, count)), width = 300 / CELLS, heard = Math.floor(share * cells + 1e-9);
  const bad = missing ? Math.max(1, Math.round((missing / count) * cells)) : 0;
  return h("svg", { class: "blocks", viewBox: "0 0 300 12", role: "img", "aria-label": says }, Array.from({ length: cells }, (_, i) => {
    const kind = i >= heard ? "unheard" : i >= heard - bad ? "missing" : "sound";
    return [h("rect", { class: kind, x: i * width + 0.5, y: 1, width: width - 1, height: 10, rx: 1 }), kind === "missing" ? h("path", { class: "cross", d: `M${i * width + 1.2} 3.5l2.6 5m0 -5l-2.6 5` }) : ""];
  }));
}

/** One quantity of every client: a bar for what it got, a mark for its equal share. */
export function bars(label, rows, shown) {
  const top = Math.max(1e-30, ...rows.flatMap((row) => [row.value ?? 0, row.other ?? 0]));
  return h("div", { class: "quantity" }, h("h3", {}, label), rows.map(({ name, value, other }) => h("div", { class: "barrow" },
    h("span", { class: "barname" }, name),
    h("svg", { class: "bar", viewBox: "0 0 200 14", preserveAspectRatio: "none", role: "img", "aria-label": `${name}: ${shown(value)}${there(other) ? `, equal share ${shown(other)}` : ""}` },
      h("rect", { class: "track", x: 0, y: 3, width: 200, height: 8 }), h("rect", { class: "fill", x: 0, y: 3, width: there(value) ? (200 * value) / top : 0, height: 8 }),
      there(other) ? h("line", { class: "mark", x1: Math.min(199, Math.max(1, (200 * other) / top)), x2: Math.min(199, Math.max(1, (200 * other) / top)), y1: 0, y2: 14 }) : ""),
    h("span", { class: "barvalue" }, shown(value), there(other) ? h("span", { class: "faint" }, ` (${shown(other)})`) : ""))));
}
