// Which tables and lists are on the page, and what do they say?

import { bytes, clock, db, duration, fixed, h, percent, scaled, sorted, table, there, whole } from "./dom.js";
import { bars } from "./drawings.js";

let asked = null;

/** Looks at one round from now on; `null` is the newest, whichever that will be. */
export const look = (number) => { asked = number; };
export const looking = () => asked;

/** The number of the newest round that anybody has spoken of. */
export const newest = (state) => sorted(state.live?.rounds).at(-1);

/** The number of the round that is looked at: the one that was chosen, else, or when it is no longer kept, the newest. */
export const latest = (state) => (asked !== null && state.live?.rounds?.[asked] ? asked : newest(state));
export const round = (state) => state.live?.rounds?.[latest(state)] ?? {};

/** How a round stands, and without whom it closed. */
function closing(now) {
  if (now.failed_reason) return `failed: ${now.failed_reason}`;
  if (!now.closed) return now.opened ? "open" : "not open yet";
  return now.missing?.length ? `closed by quorum without ${listed(now.missing)}` : "closed";
}

const listed = (names) => (names.length > 4 ? `${names.slice(0, 4).join(", ")} and ${names.length - 4} more` : names.join(", "));

/** The rounds to choose from; nothing where there is but one. */
export function chooser(state) {
  const numbers = sorted(state.live?.rounds).reverse();
  if (numbers.length < 2) return "";
  return [h("option", { value: "" }, `newest (${numbers[0]})`), numbers.map((number) => h("option", { value: number }, `${number}: ${closing(state.live.rounds[number])}`.slice(0, 60)))];
}

/** Whether nothing more will happen because the run came to a bad end. */
export const broken = (state) => ["failed", "interrupted", "lost"].includes(state.run?.status);

/** The round in which a client fell silent, if nobody has heard of it since; else nothing. */
export function goneSince(state, name) {
  const rounds = state.live?.rounds ?? {};
  const died = sorted(rounds).filter((number) => Number(number) <= Number(latest(state)) && rounds[number].clients?.[name]?.died).at(-1);
  const last = state.live?.processes?.[name]?.round;
  return died !== undefined && !(there(last) && last > Number(died)) ? died : null;
}

export function head(state) {
  const run = state.run ?? {};
  if (run.status === "waiting") {
    return h("p", { class: "hint" }, "No run here yet. Start one, in another terminal: ", h("code", {}, "hushtune testbed run scenarios/small.toml"));
  }
  const now = round(state), emulator = state.live?.emulator ?? {};
  const damaged = Object.values(state.damaged ?? {}).reduce((sum, count) => sum + count, 0);
  const clients = Object.values(now.clients ?? {});
  const accepted = clients.filter((c) => c.judged?.accepted).length;
  const items = [
    ["round", latest(state) ? `${latest(state)}${now.rounds ? ` of ${now.rounds}` : ""}` : "–", closing(now)],
    ["time", h("span", { id: "spent" }, "–"), run.started ? `since ${run.started.replace("T", " ").slice(0, 16)} UTC` : "since the first line"],
    ["accepted", clients.length ? `${accepted} of ${clients.length}` : "–", "clients' adapters"],
    ["emulator", bytes(emulator.bytes_total), there(emulator.share) ? `shows ${percent(emulator.share)} of the model` : "what clients are given"],
  ];
  return [
    run.problem ? h("p", { class: "problem" }, h("b", {}, "What went wrong: "), run.problem) : "",
    h("ul", { class: "cards" }, items.map(([label, value, note]) =>
      h("li", {}, h("span", { class: "label" }, label), h("span", { class: "value" }, value), h("span", { class: "note" }, note)))),
    latest(state) !== newest(state) ? h("p", { class: "hint" }, `You are looking at round ${latest(state)}; the run has come to round ${newest(state)}.`) : "",
    damaged ? h("p", { class: "hint" }, `${damaged} damaged lines were left out (${sorted(state.damaged).join(", ")}).`) : "",
  ];
}

const SETTINGS = [
  ["full_zero_shot", "full model, zero-shot"], ["emulator_zero_shot", "emulator, zero-shot"],
  ["emulator_fine_tuned", "emulator + returned blocks"], ["plug_in", "plug-in: full model + blocks"],
  ["bound", "bound: trained in the full model"], ["full_fine_tuned", "full fine-tuning"],
];
const OPTIONAL = new Set(["bound", "full_fine_tuned"]);

export function result(state) {
  const scores = state.live?.settings ?? {}, now = round(state), over = broken(state);
  const shown = SETTINGS.filter(([key]) => there(scores[key]) || !OPTIONAL.has(key));
  const top = Math.max(1, ...shown.map(([key]) => scores[key] ?? 0));
  const rows = shown.map(([key, label]) => [label, there(scores[key]) ? scores[key].toFixed(1) : h("span", { class: "faint" }, over ? "–" : "not yet"),
    h("svg", { class: "hbar", viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" },
      h("rect", { class: key === "plug_in" ? "fill strongfill" : "fill", x: 0, y: 1, height: 8, width: there(scores[key]) ? (100 * scores[key]) / top : 0 }))]);
  const mean = now.mean ?? {};
  return [
    table("Perplexity on held-out private text, lower is better", ["setting", "#perplexity", "beside the others"], rows, { strong: (row) => row[0].startsWith("plug-in") }),
    there(mean.perplexity_public)
      ? h("p", { class: "note" }, `On public text, round ${latest(state)}'s mean takes the full model from ${mean.perplexity_public_before?.toFixed(1)} to `
        + `${mean.perplexity_public.toFixed(1)}: ${now.plug_in ? (now.plug_in.kept ? "kept." : `rolled back. ${now.plug_in.reason ?? ""}`) : mean.kept ? "does no harm." : "does harm."}`)
      : h("p", { class: "note" }, over ? "Not scored: the run ended before the referee came to it." : "The referee scores the settings when the last round is over."),
    past(state),
  ];
}

/** Every round in a line, the newest first; nothing where there is but one. */
function past(state) {
  const told = state.live?.history ?? {}, numbers = sorted(told).reverse();
  if (numbers.length < 2) return "";
  const rows = numbers.map((number) => {
    const r = told[number], scores = there(r.after) ? `${fixed(r.before, 1)} → ${fixed(r.after, 1)}` : "–";
    const gone = r.missing?.length ? ` without ${listed(r.missing)}` : "";
    const came = r.failed_reason ? `failed: ${r.failed_reason}` : there(r.closed) ? `${whole(r.accepted)} accepted${gone}` : "goes on";
    return [number, came, scores, r.kept === true ? "kept" : r.kept === false ? "rolled back" : "–"];
  });
  return h("div", { class: "past" }, table("Every round, and what it did to the perplexity on public text", ["round", "came to", "#perplexity", "the model"], rows));
}

const QUANTITIES = [
  ["band", "bandwidth_hz", (v) => scaled(v, "Hz")], ["share of the update", "adapter_share", percent],
  ["transmit power", "power_w", (v) => scaled(v, "W")], ["clock", "clock_flops", (v) => scaled(v, "FLOP/s")],
];

export function allocation(state) {
  const now = round(state), equal = state.equal?.[latest(state)] ?? {};
  const names = sorted(now.clients).filter((name) => now.clients[name].assigned);
  if (!names.length) return h("p", { class: "empty" }, broken(state) ? "Nothing was shared out." : "Nothing is shared out yet: the coordinator waits for every client's report.");
  const solved = now.solved ?? {};
  return [
    h("p", { class: "legend" }, h("span", { class: "key fill" }), " assigned ", equal.clients ? [h("span", { class: "key mark" }), " equal share"] : ""),
    h("div", { class: "quantities" }, QUANTITIES.map(([label, key, shown]) => bars(label, names.map((name) => ({
      name: now.clients[name].died ? `${name} ✖` : name, value: now.clients[name].assigned[key], other: equal.clients?.[name]?.[key],
    })), shown))),
    h("p", { class: "note" }, solved.method ? `Solved by ${solved.method} in ${duration(solved.seconds)}, value ${fixed(solved.objective, 3)}`
      + (there(solved.gap) ? `, ${solved.gap < 1e-5 ? "less than 0.001 %" : `at most ${percent(solved.gap)}`} from the best` : "") + (there(equal.objective) ? `; the equal share is worth ${fixed(equal.objective, 3)}.` : ".") : "",
      equal.problem ? ` An equal share cannot be had: ${equal.problem}` : equal.clients ? "" : " No equal share to compare with: the logs do not say enough, or there is no scenario beside them."),
  ];
}

/** The sum of what is there; nothing where nothing is. */
const total = (rows, key) => { const found = rows.map((row) => row[key]).filter(there); return found.length ? found.reduce((sum, one) => sum + one, 0) : undefined; };

export function ledger(state) {
  const rounds = state.live?.rounds ?? {};
  const rows = sorted(rounds).flatMap((number) => sorted(rounds[number].clients).map((name) => {
    const c = rounds[number].clients[name], sent = Object.values(c.sends ?? {}).filter((s) => s.stage === "sent");
    return { name, number, compute: c.trained?.energy_j, radio: total(sent, "energy_j"), airtime: total(sent, "airtime_s"),
      train: c.trained?.train_s, modelled: c.trained?.train_modelled_s, up: total(sent, "bytes_frame") };
  })).filter((row) => [row.compute, row.radio, row.train].some(there));
  const many = new Set(rows.map((row) => row.number)).size > 1;
  const shown = rows.map((r) => [many ? `${r.name}, round ${r.number}` : r.name, scaled(r.compute, "J"), scaled(r.radio, "J"), duration(r.modelled),
    duration(r.airtime), duration(r.train), bytes(r.up)]);
  if (rows.length > 1) {
    shown.push(["all", scaled(total(rows, "compute"), "J"), scaled(total(rows, "radio"), "J"), duration(total(rows, "modelled")), duration(total(rows, "airtime")),
      duration(total(rows, "train")), bytes(total(rows, "up"))]);
  }
  return [
    table("What every client spent", ["client", "#computing", "#radio", "#training", "#on air", "#training here", "#frames sent"], shown, { strong: (row) => row[0] === "all", empty: broken(state) ? "Nobody trained or sent." : "Nobody has trained or sent yet." }),
    rows.length ? h("p", { class: "note" }, "Energy, training and time on air are modelled from the scenario's devices; “training here” is this machine's own time.") : "",
  ];
}

const LEVELS = { info: "", warning: "⚠ warning: ", error: "✖ error: ", critical: "✖ error: " };

export function events(state, troubleOnly) {
  const news = state.live?.news ?? {};
  const keys = Object.keys(news).sort().reverse().filter((key) => !troubleOnly || news[key].level !== "info");
  if (!keys.length) return h("p", { class: "empty" }, troubleOnly ? "No warnings and no errors." : "Nothing has happened yet.");
  return h("ol", { class: "events", tabindex: "0", "aria-label": "Latest events, the newest first" }, keys.map((key) => {
    const item = news[key];
    return h("li", { class: item.level === "info" ? null : `is-${item.level}`, title: item.means },
      h("time", {}, clock(item.at)), h("span", { class: `who by-${item.role}` }, item.who),
      h("span", { class: "what" }, LEVELS[item.level] ?? "", h("b", {}, (item.event ?? "").replaceAll("_", " ")), item.about ? ` (${item.about})` : "", item.text ? `: ${item.text}` : ""));
  }));
}

export function processes(state) {
  const all = state.live?.processes ?? {};
  const order = ["owner", "coordinator", "air", "eavesdropper", "client", "referee"];
  const rank = (name) => (order.indexOf(all[name].role) + order.length + 1) % (order.length + 1);
  const names = sorted(all).sort((a, b) => rank(a) - rank(b));
  const rows = names.map((name) => {
    const p = all[name];
    const done = p.total ? `, ${percent(Math.min(1, p.done / p.total))}` : "";
    return [name, p.ended ? `✖ ${p.ended}` : `${p.phase || "starting"}${done}`, clock(p.at), [goneSince(state, name) ? "✖ silent " : "", p.lives > 1 ? `restarted ${p.lives - 1}×` : "", p.warnings ? ` ${p.warnings} ⚠` : ""].join("")];
  });
  return table("What every process is doing", ["process", "doing", "last word", ""], rows, { empty: "No process has said anything yet." });
}

export { db, whole };
