// All cells of all slaves: one module per slave, one field per cell or sensor.

import { Surface, colour, number, scale, text } from "./ui.js";

const total = (values) => values.reduce((sum, v) => sum + (v ?? 0), 0);

const QUANTITIES = {
  voltage: {
    of: (s) => s.cells_mv, scale: "viridis", step: 10, least: 40,
    sum: (all) => `${number(total(all) / 1000, 1)} V`,
    unit: (v) => `${number(v / 1000, 3)} V`, end: (v) => `${number(v / 1000, 2)} V`,
  },
  soc: {
    of: (s) => s.soc_ppm, scale: "viridis", step: 10000, least: 50000,
    sum: (all) => `${number(total(all) / all.length / 10000, 1)} %`,
    unit: (v) => `${number(v / 10000, 1)} %`, end: (v) => `${number(v / 10000)} %`,
  },
  temperature: {
    of: (s) => s.temps_dc, scale: "inferno", step: 10, least: 60,
    sum: (all) => `${number(Math.max(...all) / 10, 1)} °C`,
    unit: (v) => `${number(v / 10, 1)} °C`, end: (v) => `${number(v / 10)} °C`,
  },
};

// Word and colour of a state in which a slave is not simply at work.
const LABELS = {
  absent: ["absent", "faint"], init: ["joining", "sky"], standby: ["standby", "muted"],
  tripped: ["trip", "trip"], isolated: ["isolated", "warn"], quarantined: ["quarantine", "warn"],
};
const STALE_MS = 4000;

export class Cells {
  constructor() {
    this.slaves = new Map();
    this.quantity = "voltage";
    this.domain = [0, 1];
    this.shrunk = -Infinity;
    this.pick = null;
    this.modules = [];
    this.canvas = document.getElementById("cells");
    this.surface = new Surface(this.canvas, (c, w, h) => this.draw(c, w, h));
    this.legend = new Surface(document.getElementById("legend"), (c, w, h) => this.drawLegend(c, w, h));
    this.readout = document.getElementById("cell");
    for (const input of document.querySelectorAll("input[name=quantity]")) {
      input.addEventListener("change", () => {
        this.quantity = input.value;
        this.shrunk = -Infinity;
        this.pick = null;
        this.refresh();
      });
    }
    this.canvas.addEventListener("pointermove", (e) => this.choose(this.at(e.offsetX, e.offsetY)));
    this.canvas.addEventListener("pointerleave", () => this.choose(null));
    this.canvas.addEventListener("blur", () => this.choose(null));
    this.canvas.addEventListener("keydown", (e) => this.key(e));
  }

  /** `slaves` by node, each with `seen`, the time of the page at which it was updated. */
  update(slaves) {
    this.slaves = slaves;
    this.refresh();
  }

  refresh() {
    this.spread();
    this.surface.ask();
    this.legend.ask();
    this.tell();
  }

  /** Fits the colours to the values: wider at once, narrower only now and then. */
  spread() {
    const { of, step, least, end } = QUANTITIES[this.quantity];
    let low = Infinity, high = -Infinity;
    this.low = this.high = null;
    for (const slave of this.slaves.values()) {
      if (slave.state === "absent") continue;
      of(slave).forEach((v, i) => {
        if (v == null) return;
        if (v < low) { low = v; this.low = { node: slave.node, i }; }
        if (v > high) { high = v; this.high = { node: slave.node, i }; }
      });
    }
    if (low > high) return;
    low = Math.floor(low / step) * step;
    high = Math.ceil(high / step) * step;
    if (high - low < least) {
      const middle = Math.round((low + high) / 2 / step) * step;
      [low, high] = [middle - least / 2, middle + least / 2];
    }
    const now = performance.now();
    if (now - this.shrunk > 5000) {
      this.domain = [low, high];
      this.shrunk = now;
    } else {
      this.domain = [Math.min(low, this.domain[0]), Math.max(high, this.domain[1])];
    }
    text(document.getElementById("legend-low"), end(this.domain[0]));
    text(document.getElementById("legend-high"), end(this.domain[1]));
  }

  colourOf(value) {
    const [low, high] = this.domain;
    return scale(QUANTITIES[this.quantity].scale, (value - low) / (high - low));
  }

  drawLegend(c, w, h) {
    for (let x = 0; x < w; x++) {
      c.fillStyle = scale(QUANTITIES[this.quantity].scale, x / (w - 1));
      c.fillRect(x, 0, 1.5, h);
    }
  }

  /** As many columns as make the modules about 1.35 times as wide as high. */
  columns(count, w, h) {
    let best = 1, least = Infinity;
    for (let n = 1; n <= count; n++) {
      const rows = Math.ceil(count / n);
      const wrong = Math.abs(Math.log(w / n / (h / rows) / 1.35)) + (n * rows - count) / count;
      if (wrong < least) [best, least] = [n, wrong];
    }
    return best;
  }

  draw(c, w, h) {
    const nodes = [...this.slaves.keys()].sort((a, b) => a - b);
    this.modules = [];
    if (!nodes.length) return;
    const columns = this.columns(nodes.length, w, h);
    const rows = Math.ceil(nodes.length / columns);
    const gap = nodes.length > 64 ? 5 : 8;
    const mw = (w - gap * (columns - 1)) / columns;
    const mh = (h - gap * (rows - 1)) / rows;
    this.perRow = columns;
    nodes.forEach((node, n) => {
      const x = (n % columns) * (mw + gap), y = Math.floor(n / columns) * (mh + gap);
      this.module(c, this.slaves.get(node), x, y, mw, mh);
    });
    this.marks(c);
  }

  module(c, slave, x, y, w, h) {
    const [label, tone] = LABELS[slave.state] ?? [null, null];
    const serious = { warn: "warn", derate: "derate", trip: "trip" }[slave.severity];
    const edge = serious ?? (tone === "warn" ? "warn" : null);
    const absent = slave.state === "absent";
    const stale = performance.now() - slave.seen > STALE_MS;
    const head = h > 44 ? 18 : h > 30 ? 13 : 0;
    const pad = w > 70 ? 6 : 3;

    c.beginPath();
    c.roundRect(x + 0.5, y + 0.5, w - 1, h - 1, 7);
    c.lineWidth = 1;
    c.setLineDash(absent ? [3, 3] : []);
    c.fillStyle = colour("bg");
    if (!absent) c.fill();
    c.strokeStyle = edge ? colour(edge) : colour("line");
    if (edge) c.lineWidth = 1.5;
    c.stroke();
    c.setLineDash([]);

    if (head) {
      c.textBaseline = "middle";
      this.surface.font(head > 15 ? 11 : 9.5, 600);
      c.fillStyle = colour(absent ? "faint" : "text");
      c.textAlign = "left";
      c.fillText(String(slave.node).padStart(2, "0"), x + pad + 1, y + head / 2 + 2);
      const word = label ?? (serious ? { warn: "warning", derate: "derate", trip: "trip" }[slave.severity] : null);
      c.textAlign = "right";
      if (word && w > 58) {
        this.surface.font(10.5, 550);
        c.fillStyle = colour(edge ?? tone);
        c.fillText(word, x + w - pad - 1, y + head / 2 + 2);
      } else if (w > 58) {
        this.surface.font(10.5, 450);
        c.fillStyle = colour("faint");
        c.fillText(this.sum(slave), x + w - pad - 1, y + head / 2 + 2);
      }
    }
    const values = QUANTITIES[this.quantity].of(slave);
    if (absent || !values.length) return;
    const top = y + (head ? head + 3 : pad), bottom = y + h - pad;
    const lines = values.length > 9 ? 2 : 1;
    const per = Math.ceil(values.length / lines);
    const between = w > 70 ? 2 : 1;
    const cw = (w - 2 * pad - between * (per - 1)) / per;
    const ch = (bottom - top - between * (lines - 1)) / lines;
    const cells = [];
    c.globalAlpha = stale ? 0.3 : 1;
    values.forEach((value, i) => {
      const cx = x + pad + (i % per) * (cw + between), cy = top + Math.floor(i / per) * (ch + between);
      c.beginPath();
      c.roundRect(cx, cy, cw, ch, Math.min(2.5, cw / 4));
      c.fillStyle = value == null ? colour("empty") : this.colourOf(value);
      c.fill();
      cells.push([cx, cy, cw, ch]);
    });
    c.globalAlpha = 1;
    this.modules.push({ node: slave.node, x, y, w, h, cells, per, grid: [cw + between, ch + between, x + pad, top] });
  }

  /** The slave in one figure. */
  sum(slave) {
    const q = QUANTITIES[this.quantity];
    const values = q.of(slave).filter((v) => v != null);
    return values.length ? q.sum(values) : "";
  }

  box(pick) {
    return pick && this.modules.find((m) => m.node === pick.node)?.cells[pick.i];
  }

  /** The extremes wear a thin ring, the cell under the pointer a strong one. */
  marks(c) {
    for (const [pick, width, grow] of [[this.low, 1.25, 1.5], [this.high, 1.25, 1.5], [this.pick, 2, 2.5]]) {
      const box = this.box(pick);
      if (!box) continue;
      const [x, y, w, h] = box;
      c.beginPath();
      c.roundRect(x - grow, y - grow, w + 2 * grow, h + 2 * grow, 4);
      c.strokeStyle = colour("mark");
      c.lineWidth = width;
      c.stroke();
    }
  }

  at(px, py) {
    const m = this.modules.find((m) => px >= m.x && px < m.x + m.w && py >= m.y && py < m.y + m.h);
    if (!m) return null;
    const [dx, dy, x0, y0] = m.grid;
    const column = Math.min(Math.max(Math.floor((px - x0) / dx), 0), m.per - 1);
    const row = Math.max(Math.floor((py - y0) / dy), 0);
    const i = Math.min(row * m.per + column, m.cells.length - 1);
    return { node: m.node, i };
  }

  choose(pick) {
    if (pick?.node === this.pick?.node && pick?.i === this.pick?.i) return;
    this.pick = pick;
    this.surface.ask();
    this.tell();
  }

  key(e) {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[e.key];
    if (!step || !this.modules.length) return;
    e.preventDefault();
    const box = this.box(this.pick);
    if (!box) return this.choose({ node: this.modules[0].node, i: 0 });
    // The nearest field in that direction.
    const [x, y] = [box[0] + box[2] / 2, box[1] + box[3] / 2];
    let best = null, least = Infinity;
    for (const m of this.modules) {
      m.cells.forEach(([cx, cy, cw, ch], i) => {
        const dx = cx + cw / 2 - x, dy = cy + ch / 2 - y;
        const along = dx * step[0] + dy * step[1], across = Math.abs(dx * step[1]) + Math.abs(dy * step[0]);
        if (along > 1 && along + 3 * across < least) [best, least] = [{ node: m.node, i }, along + 3 * across];
      });
    }
    if (best) this.choose(best);
    // The line itself changes with every message; only a step is spoken.
    text(document.getElementById("spoken"), [...this.readout.children].map((part) => part.textContent).join(", "));
  }

  /** The line below: the cell that is pointed at, else the extremes. */
  tell() {
    const parts = [];
    const q = QUANTITIES[this.quantity];
    const kind = this.quantity === "temperature" ? "sensor" : "cell";
    const slave = this.pick && this.slaves.get(this.pick.node);
    if (slave) {
      const { i } = this.pick;
      parts.push([`Slave ${slave.node}, ${kind} ${i + 1}`, ""]);
      if (kind === "cell") {
        parts.push([QUANTITIES.voltage.unit(slave.cells_mv[i] ?? NaN), ""]);
        parts.push([QUANTITIES.soc.unit(slave.soc_ppm[i] ?? NaN), " charged"]);
      } else {
        parts.push([QUANTITIES.temperature.unit(slave.temps_dc[i] ?? NaN), ""]);
      }
      parts.push(["", `all its cells ${number(total(slave.cells_mv) / 1000, 2)} V`]);
      if (slave.soh_ppm != null) {
        const pct = (ppm) => number(ppm / 10000, 1);
        parts.push(["", `health ${pct(slave.soh_ppm)} ± ${pct(2 * slave.soh_sigma_ppm)} %`]);
      }
      parts.push(["", `${slave.state}, gate ${slave.gate_on ? "on" : "off"}${slave.balancing ? ", balancing" : ""}`]);
      parts.push(["", slave.uid]);
    } else if (this.low && this.high && this.slaves.size) {
      const value = (p) => q.of(this.slaves.get(p.node))[p.i];
      const place = (p) => ` slave ${p.node}, ${kind} ${p.i + 1}`;
      parts.push(["Lowest", ` ${q.unit(value(this.low))},${place(this.low)}`]);
      parts.push(["Highest", ` ${q.unit(value(this.high))},${place(this.high)}`]);
      const count = [...this.slaves.values()].reduce((n, s) => n + q.of(s).filter((v) => v != null).length, 0);
      parts.push(["", `${number(count)} ${kind}s`]);
    }
    const html = parts.map(([strong, rest]) => {
      const line = document.createElement("span");
      if (strong) line.append(Object.assign(document.createElement("b"), { textContent: strong.replace("NaN", "–") }));
      line.append(rest);
      return line;
    });
    this.readout.replaceChildren(...html);
  }
}
