// The live page: one stream of server-sent events per master; each message holds what changed.

import { Cells } from "./cells.js";
import { Spark, Trends } from "./charts.js";
import { RoomMap } from "./map.js";
import { clock, number, span, text } from "./ui.js";

const HISTORY_S = 600;
const EVENTS = 200;
const $ = (id) => document.getElementById(id);
const tile = (name) => document.querySelector(`[data-tile=${name}]`);

const cells = new Cells();
const room = new RoomMap();
const trends = new Trends();
const load = new Spark(tile("load").querySelector("canvas"), (p) => p.load_ppm, 100000, "sky");
const latency = new Spark(tile("latency").querySelector("canvas"), (p) => p.latency_max_us, 4000, "ok");

let stream = null;
let master = new URLSearchParams(location.search).get("master") ?? "";
let heard = 0;
/** What is known of the master shown. */
let known = blank();

function blank() {
  return { slaves: new Map(), history: [], pack: null, events: new Map(), view: null };
}

function connect() {
  stream?.close();
  known = blank();
  room.clear();
  stream = new EventSource(`events?master=${encodeURIComponent(master)}`);
  stream.addEventListener("message", (e) => take(JSON.parse(e.data)));
  stream.addEventListener("error", () => links());
}

function take(view) {
  heard = performance.now();
  showMasters(view.masters);
  if (view.name == null) {
    known.view = view;
    wait(
      view.masters.length ? `No master called ${master} has been heard; choose one above.`
        : view.broker ? "Connected to the broker; no master has been heard yet."
          : "Waiting for the broker …",
    );
    return links();
  }
  wait(null);
  if (view.reset) {
    known = blank();
    room.clear();
  }
  known.view = view;
  for (const slave of view.slaves) known.slaves.set(slave.node, { ...slave, seen: heard });
  for (const node of known.slaves.keys()) if (!view.nodes.includes(node)) known.slaves.delete(node);
  if (view.pack) known.pack = view.pack;
  if (view.map) room.setMap(view.map);
  if (view.history.length) merge(view.history);
  const down = new Set();
  for (const s of known.slaves.values()) if (["absent", "quarantined"].includes(s.state)) down.add(s.node);
  cells.update(known.slaves);
  room.update(view.tags, down);
  showFacts(view);
  showTiles();
  if (view.events.length || view.reset) showEvents(view.events, view.reset);
  showActive();
  links();
}

function merge(points) {
  const all = new Map(known.history.map((p) => [p.at_s, p]));
  for (const p of points) all.set(p.at_s, p);
  const newest = Math.max(...all.keys());
  known.history = [...all.values()].filter((p) => newest - p.at_s < HISTORY_S).sort((a, b) => a.at_s - b.at_s);
  trends.update(known.history, newest);
  load.update(known.history, newest);
  latency.update(known.history, newest);
}

function wait(why) {
  document.body.classList.toggle("waiting", why != null);
  text($("waiting").firstElementChild, why ?? "");
}

function showMasters(masters) {
  const nav = $("masters");
  const names = masters.map((m) => m.name).join("\n");
  if (nav.dataset.names !== names) {
    nav.dataset.names = names;
    nav.replaceChildren(...masters.map((m) => {
      const button = document.createElement("button");
      button.append(Object.assign(document.createElement("i"), { className: "dot" }), m.name, document.createElement("small"));
      button.addEventListener("click", () => {
        master = m.name;
        history.replaceState(null, "", `?master=${encodeURIComponent(master)}`);
        connect();
      });
      return button;
    }));
  }
  masters.forEach((m, i) => {
    const button = nav.children[i];
    const shown = known.view?.name ?? master;
    if (m.name === shown) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
    button.firstElementChild.dataset.state = m.online ? m.state ?? "" : "";
    button.title = m.online ? `${m.name}: ${m.state ?? "no data yet"}` : `${m.name}: out of reach`;
    text(button.lastElementChild, m.soc_ppm == null ? "" : `${number(m.soc_ppm / 10000)} %`);
  });
}

function showFacts(view) {
  text($("bus"), view.bus ?? "–");
  text($("uptime"), view.uptime_ms == null ? "–" : span(view.uptime_ms));
  const { received, missing, lost } = view.records;
  const parts = [number(received), `${number(missing)} missing`];
  if (lost) parts.push(`${number(lost)} lost`);
  text($("records"), parts.join(" · "));
  $("records").classList.toggle("bad", missing > 0 || lost > 0);
  document.title = `${view.name} · Heliograph`;
}

function put(name, value, note) {
  text(tile(name).querySelector("output"), value);
  const p = tile(name).querySelector(".note");
  if (p) text(p, note ?? "");
}

function showTiles() {
  const p = known.pack;
  const volts = p?.voltage_mv == null ? null : p.voltage_mv / 1000;
  const amps = p?.current_ma == null ? null : p.current_ma / 1000;
  const both = volts != null && amps != null;
  const spread = p?.cell_min_mv == null || p?.cell_max_mv == null ? ""
    : `cells ${number(p.cell_min_mv / 1000, 3)} to ${number(p.cell_max_mv / 1000, 3)} V`;
  put("voltage", number(volts, 1), spread);
  const way = amps == null ? "" : Math.abs(amps) < 0.05 ? "at rest" : amps > 0 ? "discharging" : "charging";
  put("current", amps == null ? "–" : number(Math.abs(amps), 1), way);
  const warmest = p?.temp_max_dc == null ? "" : `warmest ${number(p.temp_max_dc / 10, 1)} °C`;
  put("power", both ? number(Math.abs(volts * amps) / 1000, 1) : "–", warmest);
  const soc = (v) => (v == null ? null : v / 10000);
  const [low, mean, high] = [soc(p?.soc_min_ppm), soc(p?.soc_ppm), soc(p?.soc_max_ppm)];
  const health = p?.soh_ppm == null ? "" : `, health ${number(soc(p.soh_ppm), 1)} %`;
  put("soc", number(mean, 1), low == null ? "" : `${number(low, 1)} to ${number(high, 1)}${health}`);
  const range = tile("soc").querySelector(".range");
  range.style.visibility = low == null ? "hidden" : "";
  if (low != null) {
    range.firstElementChild.style.cssText = `left:${low}%;right:${100 - high}%`;
    range.lastElementChild.style.left = `${mean}%`;
    range.setAttribute("aria-label", `mean ${number(mean, 1)} %, from ${number(low, 1)} to ${number(high, 1)} %`);
  }
  put("load", p ? number(p.load_ppm / 10000, 1) : "–");
  put("latency", p?.latency_max_us == null ? "–" : number(p.latency_max_us / 1000, 2));
  slaves(p);
}

function slaves(p) {
  const t = tile("slaves");
  text(t.querySelector("output"), p ? String(p.members) : "–");
  text(t.querySelector("small"), p ? `of ${p.expected}` : "");
  const counts = {};
  for (const s of known.slaves.values()) if (s.state !== "active") counts[s.state] = (counts[s.state] ?? 0) + 1;
  const tone = { tripped: "trip", absent: "warn", isolated: "warn", quarantined: "warn" };
  const key = JSON.stringify(counts);
  const note = t.querySelector(".note");
  if (note.dataset.key === key) return;
  note.dataset.key = key;
  const parts = Object.entries(counts).map(([state, n], i) => {
    const b = Object.assign(document.createElement("b"), { textContent: `${n} ${state}`, className: tone[state] ?? "" });
    return i ? [", ", b] : [b];
  });
  note.replaceChildren(...(parts.length ? parts.flat() : ["all at work"]));
}

const ICONS = {
  trip: "M6 .8 11.6 11H.4Z", derate: "M6 .5 11.5 6 6 11.5.5 6Z", warn: "M6 .5 11.5 6 6 11.5.5 6Z",
  none: "M6 3.2a2.8 2.8 0 1 1 0 5.6 2.8 2.8 0 0 1 0-5.6Z",
};

function line(e, fresh) {
  const li = document.createElement("li");
  const severity = ICONS[e.severity] ? e.severity : "none";
  li.className = severity + (fresh ? " fresh" : "") + (e.active === false ? " over" : "");
  const time = Object.assign(document.createElement("time"), { textContent: clock(e.at_ms), dateTime: new Date(e.at_ms).toISOString() });
  const icon = document.createElement("span");
  icon.innerHTML = `<svg viewBox="0 0 12 12" role="img" aria-label="${severity === "none" ? "notice" : severity}"><path d="${ICONS[severity]}" fill="currentColor"/></svg>`;
  const node = Object.assign(document.createElement("span"), { className: "node", textContent: e.node == null ? "" : String(e.node).padStart(2, "0") });
  const words = document.createElement("span");
  words.textContent = e.text || `${e.what}${e.node == null ? "" : ` of slave ${e.node}`}`;
  li.append(time, icon, node, words);
  return li;
}

function showEvents(events, reset) {
  for (const e of events) known.events.set(e.id, e);
  const newest = [...known.events.values()].sort((a, b) => b.at_ms - a.at_ms || b.id - a.id).slice(0, EVENTS);
  known.events = new Map(newest.map((e) => [e.id, e]));
  const fresh = new Set(reset ? [] : events.map((e) => e.id));
  const list = $("events");
  if (newest.length) list.replaceChildren(...newest.map((e) => line(e, fresh.has(e.id))));
  else list.replaceChildren(Object.assign(document.createElement("li"), { className: "none-yet", textContent: "Nothing has happened yet." }));
}

/** How many slaves are in trouble now, worst first. */
function showActive() {
  const counts = ["trip", "derate", "warn"].map((severity) => {
    const n = [...known.slaves.values()].filter((s) => s.severity === severity).length;
    return [severity, n, { trip: "tripped", derate: "derated", warn: n === 1 ? "warning" : "warnings" }[severity]];
  });
  const key = JSON.stringify(counts);
  const chips = $("active");
  if (chips.dataset.key === key) return;
  chips.dataset.key = key;
  const some = counts.filter(([, n]) => n).map(([severity, n, word]) => [severity, `${n} ${word}`]);
  const all = some.length ? some : [["", "no alarms"]];
  chips.replaceChildren(...all.map(([className, textContent]) => Object.assign(document.createElement("span"), { className, textContent })));
}

/** The way from the master to this page, link by link. What lies behind a broken one is unknown. */
function links() {
  const live = stream?.readyState === EventSource.OPEN && performance.now() - heard < 3000;
  const view = known.view;
  const state = {
    page: live,
    broker: live && view?.broker,
    bridge: live && view?.broker && view?.bridge?.online,
    master: live && view?.broker && view?.bridge?.online && view?.bridge?.master,
  };
  const next = { master: "bridge", bridge: "broker", broker: "page" };
  for (const li of $("chain").children) {
    const link = li.dataset.link;
    const ok = Boolean(state[link]);
    const nobody = view?.name == null && (link === "bridge" || link === "master");
    const hidden = !ok && (nobody || (next[link] && !state[next[link]]));
    const is = ok ? "" : hidden ? "unknown" : "down";
    if (li.className !== is) li.className = is;
    const word = ok ? "connected" : hidden ? "unknown" : "out of reach";
    const why = link === "master" && view?.bridge?.trouble ? `: ${view.bridge.trouble}` : "";
    li.title = `${li.textContent} ${word}${ok ? "" : why}`;
    li.setAttribute("aria-label", li.title);
  }
  const stale = view?.name != null && !state.master;
  document.body.classList.toggle("stale", stale);
  text($("age"), stale && known.pack ? `showing ${clock(known.pack.at_ms)}` : "");
}

wait("Connecting …");
connect();
setInterval(links, 1000);
