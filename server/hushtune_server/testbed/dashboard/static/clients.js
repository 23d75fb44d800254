// What is to know about every client: how far it is, what the secrecy gate says, what is on its way, what Bob and Eve make of it?

import { bytes, db, duration, fixed, h, percent, scaled, sorted, there, whole } from "./dom.js";
import { blocks, curve, scale } from "./drawings.js";
import { broken, goneSince, latest, round } from "./parts.js";

const GATES = { granted: ["good", "✓ granted"], deferred: ["wait", "… deferred"], excluded: ["bad", "✖ excluded"] };

export function cards(state) {
  const now = round(state), placed = state.places?.clients ?? {};
  const names = sorted({ ...placed, ...now.clients, ...Object.fromEntries(Object.entries(state.live?.processes ?? {}).filter(([, p]) => p.role === "client")) });
  if (!names.length) return h("p", { class: "empty" }, "No client has said anything yet.");
  return h("div", { class: "clients" }, names.map((name) => card(name, now.clients?.[name] ?? {}, state)));
}

function card(name, client, state) {
  const process = state.live?.processes?.[name], gone = goneSince(state, name);
  const id = `client-${[...name].map((c) => c.codePointAt(0).toString(36)).join("-")}`;
  return h("article", { class: "card", "aria-labelledby": id },
    h("h3", { id }, name, " ", h("span", { class: "phase" }, doing(process, client, gone))),
    process?.total && !gone ? h("progress", { max: process.total, value: process.done, "aria-label": `${process.what}: ${percent(process.done / process.total)}` }) : h("div", { class: "noprogress" }),
    gone && !client.died && !client.report ? part("Away", h("p", { class: "faint" }, `fell silent in round ${gone} and has no part in this one`))
      : [gate(client, state), training(client, state), upload(client, state), outcome(name, client, state)]);
}

function doing(process, client, gone) {
  if (client.died) return `✖ silent for ${duration(client.died.silent_s)}, taken for dead`;
  if (gone) return `✖ silent since round ${gone}, taken for dead`;
  if (process?.ended) return process.ended;
  return process?.phase || "not started";
}

function gate(client, state) {
  const g = client.gate ?? {}, decision = g.decision ?? client.assigned?.decision ?? client.refused?.decision;
  if (!decision) return part("Secrecy gate", h("p", { class: "faint" }, broken(state) ? "not decided" : "not decided yet"));
  const [mood, label] = GATES[decision] ?? ["wait", decision];
  return part("Secrecy gate", h("p", {}, h("span", { class: `tag ${mood}` }, label), there(g.rate_coded) ? ` ${fixed(g.rate_coded, 2)} secret bit/symbol` : ""),
    there(g.snr_main_db) ? scale(g.snr_main_db, g.snr_tap_bound_db, client.attacked?.snr_mean_db) : "",
    there(g.rate_gaussian) ? h("p", { class: "note" }, `Gaussian limit ${fixed(g.rate_gaussian, 2)} bit/symbol; block errors expected ${percent(g.block_error_rate)}`) : "",
    g.reason ? h("details", {}, h("summary", {}, "why"), h("p", { class: "note" }, g.reason)) : "");
}

function training(client, state) {
  const step = client.step ?? {}, done = client.trained;
  if (!client.curve && !there(step.step)) return part("Training", h("p", { class: "faint" }, client.assigned?.decision && client.assigned.decision !== "granted" ? "does not train in this round" : broken(state) ? "none" : "not begun"));
  const says = done ? `${whole(done.steps)} steps, loss ${fixed(done.loss_first, 3)} → ${fixed(done.loss_last, 3)}, ${scaled(done.energy_j, "J")} (modelled)`
    : `step ${step.step} of ${step.steps}, loss ${fixed(step.loss, 3)}, ${fixed(step.tokens_per_s, 0)} token/s`;
  return part("Training", curve(client.curve ?? {}, step.steps, says), h("p", { class: "note" }, says));
}

function upload(client, state) {
  const sends = client.sends ?? {}, keys = sorted(sends);
  if (!keys.length) {
    const s = client.sealed;
    return part("Upload", h("p", { class: "faint" }, s?.bytes_sealed ? `sealed: ${bytes(s.bytes_sealed)}` : s?.bytes_encoded ? `encoded: ${bytes(s.bytes_encoded)}` : broken(state) ? "nothing was sent" : "nothing to send yet"));
  }
  const sealed = client.sealed?.bytes_sealed;
  return part("Upload",
    h("p", { class: "note" }, sealed ? `${bytes(client.sealed.bytes_raw)} of changes encoded and sealed in ${bytes(sealed)}` : ""),
    keys.map((key) => transmission(key, sends[key], client)));
}

function transmission(key, send, client) {
  const [kind, attempt] = key.split("."), heard = client.heard?.[key] ?? {};
  const count = send.blocks ?? heard.blocks ?? 0;
  const sound = heard.blocks_sound, share = there(heard.blocks_done) && count ? heard.blocks_done / count : heard.bytes_total ? heard.bytes_done / heard.bytes_total : 0;
  const decoded = there(sound), missing = decoded ? count - sound : send.missing;
  const says = decoded ? (missing ? `${whole(sound)} of ${whole(count)} blocks sound, ${whole(missing)} to be sent again` : `all ${whole(count)} blocks sound`)
    : share ? `${whole(Math.round(share * count))} of ${whole(count)} blocks heard by the owner` : `${whole(count)} blocks coded, ${client.carried?.[key] ? "on air" : "going to the air"}`;
  return h("div", { class: "attempt" },
    h("p", {}, h("b", {}, `${attempt === "1" ? "transmission 1" : `repeat ${attempt - 1} (ARQ)`}${kind === "key" ? ", the key" : ""}`), ` ${says}`, there(send.airtime_s) ? `, ${duration(send.airtime_s)} on air` : ""),
    blocks(count, decoded ? 1 : Math.min(1, share), decoded ? missing : 0, says));
}

function outcome(name, client, state) {
  const judged = client.judged ?? {}, trouble = client.trouble, now = round(state);
  const without = now.closed && now.missing?.includes(name) && !now.failed_reason, why = now.reasons?.[name];
  const alone = state.live?.settings_of?.[name];
  const lines = [
    judged.accepted === true ? h("span", { class: "tag good" }, "✓ accepted by the owner") : judged.accepted === false ? [h("span", { class: "tag bad" }, "✖ refused by the owner"), judged.reason ? ` ${judged.reason}` : ""] : "",
    there(judged.perplexity_public) ? ` public text ${fixed(judged.perplexity_public_before, 1)} → ${fixed(judged.perplexity_public, 1)}` : "",
    there(alone) ? `; alone, on held-out private text: ${fixed(alone, 1)}` : "",
    without ? [h("span", { class: "tag wait" }, "… the round closed by quorum without it"), why ? ` ${why}` : ""] : "",
    trouble ? [h("span", { class: "tag bad" }, `✖ ${trouble.duty ?? "in trouble"}`), trouble.problem ?? trouble.reason ? ` ${trouble.problem ?? trouble.reason}` : ""] : "",
  ].filter(Boolean);
  return lines.length ? part("Verdict", h("p", {}, lines)) : "";
}

const part = (title, ...children) => h("section", { class: "part" }, h("h4", {}, title), ...children);

// The same bytes -------------------------------------------------------------------------------------------------------------

export function bytesOf(state) {
  const now = round(state), laid = state.bytes?.[latest(state)] ?? {};
  const names = sorted(now.clients).filter((name) => now.clients[name].sealed?.digest || now.clients[name].received || now.clients[name].attacked || laid[name]);
  if (!names.length) return h("p", { class: "empty" }, broken(state) ? "No update was sealed." : "No update is sealed yet.");
  return [
    h("div", { class: "ears" }, names.map((name) => ears(name, now.clients[name], laid[name] ?? {}))),
    h("p", { class: "note" }, "Bob is the owner, Eve the eavesdropper; both hear the same transmission. A bit error rate of one half is what guessing gives: "
      + "a check of the machinery, not a proof of secrecy. What secrecy rests on is the bound of the code, which the report states with its assumptions."),
  ];
}

function ears(name, client, laid) {
  const same = client.sealed?.digest && client.received?.digest ? client.sealed.digest === client.received.digest : null;
  return h("article", { class: "pair", "aria-label": `the update of ${name}` }, h("h3", {}, name, " ", h("span", { class: "phase" }, laid.bytes ? bytes(laid.bytes) : bytes(client.sealed?.bytes_sealed))),
    laid.sent ? h("div", { class: "sent" }, h("h4", {}, "sent: the first bytes, and as text"), hex(laid.sent), words(laid.sent)) : "",
    h("div", { class: "sides" }, bob(client, laid, same), eve(client, laid)));
}

function bob(client, laid, same) {
  const tag = same === true ? h("span", { class: "tag good" }, "✓ digest equal") : same === false ? h("span", { class: "tag bad" }, "✖ digest differs") : h("span", { class: "tag wait" }, "… not all there");
  return h("div", { class: "ear" }, h("h4", {}, "Bob"), h("p", {}, tag), same && laid.sent ? [hex(laid.sent), words(laid.sent)] : "",
    facts([["bit errors", same ? "0" : same === false ? "some" : "–"], ["transmissions", whole(client.received?.attempts)],
      ["SHA-256", same === null ? "–" : h("code", {}, client.received.digest.slice(0, 16))], ["SNR", db(client.gate?.snr_main_db)]]));
}

function eve(client, laid) {
  const a = client.attacked ?? {}, of = laid.bits_compared, rate = of ? laid.bits_wrong / of : null;
  const guessing = there(rate) && there(laid.guessing_low) ? rate >= laid.guessing_low && rate <= laid.guessing_high : null;
  const tag = a.blocks_heard ? h("span", { class: "tag bad" }, `✖ decoded ${whole(a.blocks_heard)} blocks`) : there(a.blocks) ? h("span", { class: "tag good" }, `✓ decoded none of ${whole(a.blocks)} blocks`) : h("span", { class: "tag wait" }, tapping(client));
  return h("div", { class: "ear" }, h("h4", {}, "Eve"), h("p", {}, tag), laid.guessed ? [hex(laid.guessed, laid.sent), words(laid.guessed)] : "",
    facts([["bit error rate", there(rate) ? `${rate.toFixed(4)}${guessing === null ? "" : guessing ? ", like guessing" : ", not like guessing"}` : "–"],
      ["bits compared", of ? scaled(of, "bit") : "–"], ["check sums that held", whole(a.crc_passes)],
      ["SNR", there(a.snr_mean_db) ? `${db(a.snr_mean_db)}, assumed at most ${db(a.snr_bound_db)}${a.valid === false ? ": NOT HELD" : ""}` : "–"]]));
}

function tapping(client) {
  const each = Object.values(client.tapped ?? {}).at(-1);
  return each?.bytes_total ? `… hearing, ${percent(Math.min(1, each.bytes_done / each.bytes_total))}` : "… has heard nothing yet";
}

const facts = (pairs) => h("dl", {}, pairs.map(([term, value]) => [h("dt", {}, term), h("dd", {}, value)]));

/** The same bytes as a person might try to read them; what is no letter is a dot. */
function words(text) {
  const codes = (text.match(/../g) ?? []).map((pair) => parseInt(pair, 16));
  return h("code", { class: "text", "aria-label": "as text" }, codes.map((code) => (code > 32 && code < 127 ? String.fromCharCode(code) : "·")).join(""));
}

/** Bytes in hexadecimal; what differs from `truth` is underlined, and counted in words for those who cannot see it. */
function hex(text, truth) {
  const pairs = text.match(/../g) ?? [], right = truth?.match(/../g) ?? pairs;
  const wrong = pairs.filter((pair, i) => pair !== right[i]).length;
  const label = truth ? `the first ${pairs.length} bytes as guessed, ${wrong} of them wrong` : `the first ${pairs.length} bytes`;
  return h("code", { class: "hex", role: "img", "aria-label": label }, pairs.map((pair, i) => h("span", { class: pair === right[i] ? null : "wrong" }, pair)));
}
