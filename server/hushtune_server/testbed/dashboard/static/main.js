// What is on the page right now? The state as the server tells it, drawn part by part, only where something has changed.

import { clock, duration, h, merged, show, there, whole } from "./dom.js";
import { allocation, chooser, events, head, ledger, look, looking, processes, result } from "./parts.js";
import { bytesOf, cards } from "./clients.js";
import { map } from "./drawings.js";

const place = (id) => document.getElementById(id);
let state = Object.create(null);
let drawn = new Map();
let connected = false;
let due = false;

const PARTS = [
  ["head", head, (s) => [s.run, s.live?.rounds, s.live?.emulator, s.damaged]],
  ["round", chooser, (s) => [s.live?.rounds]],
  ["air-b", map, (s) => [s.places, s.live?.rounds, s.live?.processes]],
  ["clients-b", cards, (s) => [s.live?.rounds, s.live?.processes, s.live?.settings_of, s.places]],
  ["bytes-b", bytesOf, (s) => [s.live?.rounds, s.bytes]],
  ["shares-b", allocation, (s) => [s.live?.rounds, s.equal]],
  ["result-b", result, (s) => [s.live?.settings, s.live?.rounds, s.live?.history, s.run]],
  ["ledger-b", ledger, (s) => [s.live?.rounds]],
  ["events-b", (s) => events(s, place("trouble").checked), (s) => [s.live?.news, place("trouble").checked]],
  ["processes-b", processes, (s) => [s.live?.processes, s.live?.rounds]],
];

function draw() {
  due = false;
  for (const [id, make, depends] of PARTS) {
    const on = [looking(), state.run?.status, ...depends(state)];
    const before = drawn.get(id);
    if (before && before.every((part, i) => part === on[i])) continue;
    drawn.set(id, on);
    show(place(id), make(state));
  }
  choice();
  document.title = `${state.run?.id ?? "waiting"} – Hushtune`;
  line();
}

/** The list of rounds shows the one that is looked at, and is there only where there are several. */
function choice() {
  const list = place("round"), known = looking() !== null && state.live?.rounds?.[looking()];
  if (!known) look(null);
  place("rounds").hidden = list.options.length === 0;
  const wanted = known ? looking() : "";
  if (list.value !== wanted) list.value = wanted;
}

function soon() {
  if (!due) { due = true; requestAnimationFrame(draw); }
}

/** The line at the top changes only when something a person would want to be told has changed. */
function line() {
  const run = state.run ?? {}, seen = state.live?.seen ?? {};
  const over = ["finished", "failed", "interrupted"].includes(run.status);
  const told = !connected ? (over ? `${run.status}; this page is no longer served` : "connection lost – trying again") : run.status === "waiting" ? "waiting for a run to begin"
    : { running: "running, live", finished: "finished", failed: "failed", interrupted: "interrupted", lost: "lost: its testbed is gone",
        gathered: "gathered logs, live" }[run.status] ?? run.status ?? "";
  const node = place("line");
  show(node, h("span", { class: `dot ${connected ? run.status : "lost"}`, "aria-hidden": "true" }), h("span", {}, told));
  place("title").textContent = run.id ?? "Hushtune";
  const spent = there(seen.first) ? duration((run.status === "running" ? Math.max(Date.now() / 1000, seen.last) : seen.last) - seen.first) : "";
  place("title").title = spent && `${spent}, ${whole(seen.lines)} lines, the last at ${clock(seen.last)}`;
  const spentAt = document.getElementById("spent");
  if (spentAt) spentAt.textContent = spent || "–";
}

function follow() {
  const source = new EventSource("events");
  source.addEventListener("open", () => { connected = true; soon(); });
  source.addEventListener("error", () => { connected = false; line(); });
  source.addEventListener("state", (event) => { state = merged({}, JSON.parse(event.data)); drawn = new Map(); soon(); });
  source.addEventListener("patch", (event) => { state = merged(state, JSON.parse(event.data)); soon(); });
}

const THEMES = ["system", "light", "dark"];
function theme(wanted) {
  const root = document.documentElement;
  if (wanted === "system") delete root.dataset.theme; else root.dataset.theme = wanted;
  place("theme").textContent = `Theme: ${wanted}`;
  try { localStorage.setItem("hushtune-theme", wanted); } catch { /* a browser that keeps nothing */ }
}
function kept() {
  try { return localStorage.getItem("hushtune-theme"); } catch { return null; }
}

let chosen = THEMES.includes(kept()) ? kept() : "system";
theme(chosen);
place("theme").addEventListener("click", () => { chosen = THEMES[(THEMES.indexOf(chosen) + 1) % THEMES.length]; theme(chosen); });
place("trouble").addEventListener("change", soon);
place("round").addEventListener("change", (event) => { look(event.target.value || null); soon(); });
setInterval(() => { if (state.run?.status === "running") line(); }, 1000);
follow();
