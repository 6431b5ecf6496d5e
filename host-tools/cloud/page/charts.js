// Figures over time. Points have `at_s`; a second without a point leaves a hole in the line.

import { Surface, clock, colour, number, text } from "./ui.js";

/** The window grows with the data from the first to the last of these. */
const WINDOWS = [60, 120, 300, 600];
/** Seconds without a point that break a line. */
const HOLE = 4;

/** Seconds to show, ending with the newest point. */
function windowOf(points, end) {
  const age = points.length ? end - points[0].at_s : 0;
  return WINDOWS.find((s) => age < s) ?? WINDOWS.at(-1);
}

/** Runs of [x, y] without holes. */
function runs(points, of, X, Y) {
  const all = [];
  let run = null, last = -Infinity;
  for (const p of points) {
    const value = of(p);
    if (value == null) continue;
    if (p.at_s - last > HOLE) all.push((run = []));
    run.push([X(p.at_s), Y(value)]);
    last = p.at_s;
  }
  return all;
}

function stroke(c, run) {
  c.beginPath();
  run.forEach(([x, y], i) => (i ? c.lineTo(x, y) : c.moveTo(x, y)));
  if (run.length === 1) c.lineTo(run[0][0] + 1, run[0][1]);
  c.stroke();
}

function fill(c, run, base) {
  c.beginPath();
  c.moveTo(run[0][0], base);
  for (const [x, y] of run) c.lineTo(x, y);
  c.lineTo(run.at(-1)[0], base);
  c.closePath();
  c.fill();
}

/** Lowest and highest, at least `least` apart; with `zero` between them or at an end. */
function extent(points, of, least, zero = false) {
  let [low, high] = [Infinity, -Infinity];
  for (const p of points) {
    const v = of(p);
    if (v == null) continue;
    low = Math.min(low, v);
    high = Math.max(high, v);
  }
  if (low > high) return null;
  if (zero) {
    [low, high] = [Math.min(low, 0), Math.max(high, 0)];
    const short = Math.max(least - (high - low), 0);
    return high + low < 0 ? [low - short, high] : [low, high + short];
  }
  const short = least - (high - low);
  return short > 0 ? [low - short / 2, high + short / 2] : [low, high];
}

/** The line in a tile. */
export class Spark {
  constructor(canvas, of, least, tone) {
    this.points = [];
    this.end = 0;
    this.surface = new Surface(canvas, (c, w, h) => {
      const range = extent(this.points, of, least);
      if (!range) return;
      const seconds = windowOf(this.points, this.end);
      const X = (t) => w - ((this.end - t) / seconds) * w;
      const Y = (v) => h - 5 - ((v - range[0]) / (range[1] - range[0])) * (h - 10);
      const ground = c.createLinearGradient(0, 0, 0, h);
      ground.addColorStop(0, `color-mix(in srgb, ${colour(tone)} 26%, transparent)`);
      ground.addColorStop(1, `color-mix(in srgb, ${colour(tone)} 1%, transparent)`);
      c.fillStyle = ground;
      c.strokeStyle = colour(tone);
      c.lineWidth = 1.5;
      c.lineJoin = "round";
      for (const run of runs(this.points, of, X, Y)) {
        fill(c, run, h);
        stroke(c, run);
      }
    });
  }
  update(points, end) {
    this.points = points;
    this.end = end;
    this.surface.ask();
  }
}

const LANES = [
  {
    name: "Current", unit: "A", tone: "sun", digits: 0, least: 10, zero: true,
    of: (p) => (p.current_ma == null ? null : p.current_ma / 1000), show: (v) => `${number(v, 1)} A`,
  },
  {
    name: "Voltage", unit: "V", tone: "sky", digits: 0, least: 4,
    of: (p) => (p.voltage_mv == null ? null : p.voltage_mv / 1000), show: (v) => `${number(v, 1)} V`,
  },
  {
    name: "Cell spread", unit: "mV", tone: "ok", digits: 0, least: 10,
    of: (p) => (p.cell_min_mv == null || p.cell_max_mv == null ? null : p.cell_max_mv - p.cell_min_mv),
    show: (v) => `${number(v)} mV spread`,
  },
];
const LEFT = 86, RIGHT = 46, FOOT = 18;

/** Three lanes over one axis of time, with a line to read them off. */
export class Trends {
  constructor() {
    this.points = [];
    this.end = 0;
    this.at = null;
    const canvas = document.getElementById("trends");
    this.readout = document.getElementById("trend");
    this.surface = new Surface(canvas, (c, w, h) => this.draw(c, w, h));
    canvas.addEventListener("pointermove", (e) => this.point(e.offsetX));
    canvas.addEventListener("pointerleave", () => this.point(null));
  }
  update(points, end) {
    this.points = points;
    this.end = end;
    this.surface.ask();
  }
  point(x) {
    this.at = x;
    this.surface.ask();
  }
  draw(c, w, h) {
    const wide = w - LEFT - RIGHT;
    this.seconds = windowOf(this.points, this.end);
    const X = (t) => LEFT + wide - ((this.end - t) / this.seconds) * wide;
    const lane = (h - FOOT) / LANES.length;
    this.axis(c, w, h, X);
    LANES.forEach((l, i) => this.lane(c, l, i * lane + 6, lane - 12, w, X));
    this.cross(c, h, wide);
  }
  axis(c, w, h, X) {
    this.surface.font(11);
    c.fillStyle = colour("faint");
    c.strokeStyle = colour("hair");
    c.lineWidth = 1;
    c.textBaseline = "alphabetic";
    for (let part = 0; part < 5; part++) {
      const back = (part * this.seconds) / 5;
      const x = Math.round(X(this.end - back)) + 0.5;
      c.beginPath();
      c.moveTo(x, 0);
      c.lineTo(x, h - FOOT);
      c.stroke();
      c.textAlign = "center";
      const label = back < 120 ? `${back} s` : `${back / 60} min`;
      c.fillText(back ? `\u2212${label}` : "now", x, h - 3);
    }
  }
  lane(c, l, top, high, w, X) {
    c.textAlign = "left";
    c.textBaseline = "middle";
    this.surface.font(12, 500);
    c.fillStyle = colour("muted");
    c.fillText(l.name, 0, top + high / 2 - 8);
    this.surface.font(11);
    c.fillStyle = colour("faint");
    c.fillText(l.unit, 0, top + high / 2 + 8);
    const range = extent(this.points, l.of, l.least, l.zero);
    if (!range) return;
    const Y = (v) => top + high - ((v - range[0]) / (range[1] - range[0])) * high;
    c.textAlign = "right";
    c.fillText(number(range[1], l.digits), w, top + 4);
    c.fillText(number(range[0], l.digits), w, top + high - 4);
    const base = l.zero ? Y(0) : top + high;
    if (l.zero) {
      c.strokeStyle = colour("line");
      c.beginPath();
      c.moveTo(LEFT, Math.round(base) + 0.5);
      c.lineTo(w - RIGHT + 6, Math.round(base) + 0.5);
      c.stroke();
    }
    c.save();
    c.beginPath();
    c.rect(LEFT, top - 4, w - LEFT - RIGHT + 4, high + 8);
    c.clip();
    c.lineWidth = 1.5;
    c.lineJoin = "round";
    for (const run of runs(this.points, l.of, X, Y)) {
      c.fillStyle = `color-mix(in srgb, ${colour(l.tone)} 13%, transparent)`;
      fill(c, run, base);
      c.strokeStyle = colour(l.tone);
      stroke(c, run);
    }
    c.restore();
  }
  cross(c, h, wide) {
    let shown = "";
    if (this.at != null && this.points.length) {
      const t = this.end - ((LEFT + wide - this.at) / wide) * this.seconds;
      const nearest = this.points.reduce((a, b) => (Math.abs(b.at_s - t) < Math.abs(a.at_s - t) ? b : a));
      if (Math.abs(nearest.at_s - t) < HOLE) {
        const x = Math.round(LEFT + wide - ((this.end - nearest.at_s) / this.seconds) * wide) + 0.5;
        c.strokeStyle = colour("muted");
        c.lineWidth = 1;
        c.beginPath();
        c.moveTo(x, 0);
        c.lineTo(x, h - FOOT);
        c.stroke();
        const values = LANES.map((l) => [l.of(nearest), l.show]).filter(([v]) => v != null);
        shown = [clock(nearest.at_s * 1000), ...values.map(([v, show]) => show(v))].join(" · ");
      }
    }
    text(this.readout, shown);
  }
}
