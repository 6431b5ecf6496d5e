// The room from above: anchors, tags with their trails and one-sigma circles.

import { Surface, calm, colour, number, text } from "./ui.js";

const TRAIL_MS = 9000;
const GONE_MS = 8000;
const GLIDE_MS = 220;

export class RoomMap {
  constructor() {
    this.anchors = [];
    this.version = null;
    this.tags = new Map();
    this.down = new Set();
    this.surface = new Surface(document.getElementById("map"), (c, w, h) => this.draw(c, w, h));
    this.note = document.getElementById("map-note");
    this.view = null;
  }

  clear() {
    this.anchors = [];
    this.tags.clear();
    this.view = null;
  }

  setMap(map) {
    this.version = map.version;
    // id, node, index, x, y, z, bias; millimetres.
    this.anchors = map.anchors.map(([id, node, , x, y]) => ({ id, node, x, y }));
    this.view = null;
    this.surface.ask();
  }

  /** Tags that moved, and the nodes whose anchors are out of work. */
  update(tags, down) {
    const now = performance.now();
    this.down = down;
    for (const t of tags) {
      const old = this.tags.get(t.tag);
      const shown = old ? this.shown(old, now) : [t.x_mm, t.y_mm];
      const trail = old ? old.trail : [];
      trail.push([t.x_mm, t.y_mm, now]);
      this.tags.set(t.tag, { ...t, from: shown, since: now, trail });
    }
    for (const [id, tag] of this.tags) {
      while (tag.trail.length && now - tag.trail[0][2] > TRAIL_MS) tag.trail.shift();
      if (now - tag.since > GONE_MS) this.tags.delete(id);
    }
    const map = this.version == null ? "no map" : `map version ${this.version}`;
    text(this.note, `${this.tags.size} tags, ${this.anchors.length} anchors, ${map}`);
    this.surface.ask();
  }

  /** Where a tag is drawn: it glides to its newest position. */
  shown(tag, now) {
    const x = calm.matches ? 1 : Math.min((now - tag.since) / GLIDE_MS, 1);
    return [tag.from[0] + (tag.x_mm - tag.from[0]) * x, tag.from[1] + (tag.y_mm - tag.from[1]) * x];
  }

  /** The part of the room that is shown: all anchors, and tags that stray; grows, never shrinks. */
  bounds() {
    const v = this.view ?? { x0: Infinity, y0: Infinity, x1: -Infinity, y1: -Infinity };
    const points = [...this.anchors.map((a) => [a.x, a.y]), ...[...this.tags.values()].map((t) => [t.x_mm, t.y_mm])];
    for (const [x, y] of points) {
      v.x0 = Math.min(v.x0, x); v.x1 = Math.max(v.x1, x);
      v.y0 = Math.min(v.y0, y); v.y1 = Math.max(v.y1, y);
    }
    if (v.x0 > v.x1) return null;
    return (this.view = v);
  }

  draw(c, w, h) {
    const v = this.bounds();
    if (!v) {
      this.surface.font(13);
      c.fillStyle = colour("faint");
      c.textAlign = "center";
      c.fillText("No anchors and no tags", w / 2, h / 2);
      return;
    }
    const edge = 18;
    const zoom = Math.min((w - 2 * edge) / Math.max(v.x1 - v.x0, 1000), (h - 2 * edge) / Math.max(v.y1 - v.y0, 1000));
    const X = (x) => w / 2 + (x - (v.x0 + v.x1) / 2) * zoom;
    const Y = (y) => h / 2 - (y - (v.y0 + v.y1) / 2) * zoom;
    this.grid(c, w, h, zoom, X, Y);
    const now = performance.now();

    c.lineWidth = 1.25;
    for (const a of this.anchors) {
      const [x, y] = [X(a.x), Y(a.y)];
      const out = this.down.has(a.node);
      c.strokeStyle = colour(out ? "trip" : "muted");
      c.beginPath();
      if (out) {
        c.moveTo(x - 3.5, y - 3.5); c.lineTo(x + 3.5, y + 3.5);
        c.moveTo(x + 3.5, y - 3.5); c.lineTo(x - 3.5, y + 3.5);
      } else {
        c.moveTo(x, y - 4); c.lineTo(x + 4, y); c.lineTo(x, y + 4); c.lineTo(x - 4, y); c.closePath();
      }
      c.stroke();
    }
    let moving = false;
    const tags = [...this.tags.values()].sort((a, b) => a.tag - b.tag);
    for (const tag of tags) {
      const tone = colour(`tag${(tag.tag % 6) + 1}`);
      const [mx, my] = this.shown(tag, now);
      const [x, y] = [X(mx), Y(my)];
      moving ||= now - tag.since < GLIDE_MS;
      const points = [...tag.trail.slice(0, -1).map(([tx, ty, t]) => [X(tx), Y(ty), t]), [x, y, now]];
      c.lineCap = "round";
      c.lineWidth = 2;
      c.strokeStyle = tone;
      for (let i = 1; i < points.length; i++) {
        c.globalAlpha = 0.55 * Math.max(0, 1 - (now - points[i][2]) / TRAIL_MS);
        c.beginPath();
        c.moveTo(points[i - 1][0], points[i - 1][1]);
        c.lineTo(points[i][0], points[i][1]);
        c.stroke();
      }
      c.globalAlpha = 1;
    }
    for (const tag of tags) {
      const tone = colour(`tag${(tag.tag % 6) + 1}`);
      const [x, y] = this.shown(tag, now).map((m, i) => (i ? Y(m) : X(m)));
      c.fillStyle = c.strokeStyle = tone;
      c.beginPath();
      c.arc(x, y, Math.max(tag.sigma_mm * zoom, 5), 0, 2 * Math.PI);
      c.globalAlpha = 0.16;
      c.fill();
      c.globalAlpha = 0.8;
      c.lineWidth = 1;
      c.stroke();
      c.globalAlpha = 1;
      c.beginPath();
      c.arc(x, y, 3.5, 0, 2 * Math.PI);
      c.fill();
    }
    this.surface.font(11, 600);
    c.textAlign = "left";
    c.textBaseline = "middle";
    c.lineJoin = "round";
    for (const tag of tags) {
      const [x, y] = this.shown(tag, now).map((m, i) => (i ? Y(m) : X(m)));
      const right = x < w - 26;
      c.textAlign = right ? "left" : "right";
      c.strokeStyle = colour("panel");
      c.lineWidth = 3;
      c.strokeText(tag.tag, x + (right ? 8 : -8), y - 8);
      c.fillStyle = colour("text");
      c.fillText(tag.tag, x + (right ? 8 : -8), y - 8);
    }
    if (moving) this.surface.ask();
  }

  grid(c, w, h, zoom, X, Y) {
    const { x0, x1, y0, y1 } = this.view;
    const step = [500, 1000, 2000, 5000, 10000, 20000, 50000].find((s) => s * zoom >= 42) ?? 100000;
    const [left, right] = [-1, 1].map((side) => (x0 + x1) / 2 + (side * w) / 2 / zoom);
    const [low, high] = [-1, 1].map((side) => (y0 + y1) / 2 + (side * h) / 2 / zoom);
    c.strokeStyle = colour("hair");
    c.lineWidth = 1;
    c.beginPath();
    for (let x = Math.ceil(left / step) * step; x <= right; x += step) {
      c.moveTo(Math.round(X(x)) + 0.5, 0);
      c.lineTo(Math.round(X(x)) + 0.5, h);
    }
    for (let y = Math.ceil(low / step) * step; y <= high; y += step) {
      c.moveTo(0, Math.round(Y(y)) + 0.5);
      c.lineTo(w, Math.round(Y(y)) + 0.5);
    }
    c.stroke();
    // Scale bar.
    const long = step * zoom;
    c.strokeStyle = c.fillStyle = colour("faint");
    c.beginPath();
    c.moveTo(w - long - 2, h - 10); c.lineTo(w - long - 2, h - 5); c.lineTo(w - 2, h - 5); c.lineTo(w - 2, h - 10);
    c.stroke();
    this.surface.font(11);
    c.textAlign = "center";
    c.textBaseline = "alphabetic";
    c.fillText(`${number(step / 1000, step < 1000 ? 1 : 0)} m`, w - 2 - long / 2, h - 11);
  }
}
