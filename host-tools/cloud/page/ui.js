// What the parts of the page share: numbers as people read them, colours, and a canvas that is
// sharp, follows its size and is drawn at most once a frame.

const formats = new Map();
/** A number with `digits` decimals, thousands apart; a dash for a missing one. */
export function number(value, digits = 0) {
  if (value == null) return "–";
  if (!formats.has(digits)) {
    formats.set(digits, new Intl.NumberFormat("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits }));
  }
  return formats.get(digits).format(value).replaceAll(",", "\u202f").replace("-", "\u2212");
}

export const two = (n) => String(n).padStart(2, "0");
export const clock = (ms) => {
  const d = new Date(ms);
  return `${two(d.getHours())}:${two(d.getMinutes())}:${two(d.getSeconds())}`;
};
export function span(ms) {
  const s = Math.floor(ms / 1000);
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${two(s % 60)} s`;
  const h = Math.floor(s / 3600);
  return h < 48 ? `${h} h ${two(Math.floor(s / 60) % 60)} min` : `${Math.floor(h / 24)} d ${h % 24} h`;
}

/** Sets text only where it changed, so that assistive technology is not told again. */
export function text(element, value) {
  if (element.textContent !== value) element.textContent = value;
}

// Colours of the style sheet, read again when the system turns dark or light.
let colours = {};
const listeners = [];
export function colour(name) {
  return (colours[name] ??= getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim());
}
for (const query of ["(prefers-color-scheme: light)", "(resolution: 1dppx)"]) {
  matchMedia(query).addEventListener("change", () => {
    colours = {};
    for (const redraw of listeners) redraw();
  });
}

export const calm = matchMedia("(prefers-reduced-motion: reduce)");

// Viridis (Smith and van der Walt, 2015) and the upper part of Inferno: their lightness rises
// evenly, so they are read without colour vision too.
const SCALES = {
  viridis: "440154 482475 414487 355f8d 2a788e 21918c 22a884 44bf70 7ad151 bddf26 fde725",
  inferno: "2c0b57 57106e 781c6d 9a2865 bc3754 d84c3e ed6925 f98e09 fbb61a f4df53",
};
const tables = {};
for (const [name, stops] of Object.entries(SCALES)) {
  const rgb = stops.split(" ").map((hex) => [0, 2, 4].map((i) => parseInt(hex.slice(i, i + 2), 16)));
  tables[name] = Array.from({ length: 101 }, (_, i) => {
    const x = (i / 100) * (rgb.length - 1);
    const k = Math.min(Math.floor(x), rgb.length - 2);
    return `rgb(${rgb[k].map((c, j) => Math.round(c + (rgb[k + 1][j] - c) * (x - k))).join(" ")})`;
  });
}
/** Colour of `x` between 0 and 1. */
export const scale = (name, x) => tables[name][Math.round(100 * Math.min(Math.max(x, 0), 1))];

/** A canvas whose `draw(context, width, height)` works in CSS pixels. */
export class Surface {
  constructor(canvas, draw) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.draw = draw;
    this.asked = false;
    this.width = this.height = 0;
    new ResizeObserver(() => this.fit()).observe(canvas);
    listeners.push(() => this.fit());
  }
  fit() {
    const { clientWidth: w, clientHeight: h } = this.canvas;
    const ratio = devicePixelRatio || 1;
    this.canvas.width = Math.round(w * ratio);
    this.canvas.height = Math.round(h * ratio);
    [this.width, this.height] = [w, h];
    this.context.setTransform(ratio, 0, 0, ratio, 0, 0);
    this.paint();
  }
  /** Draws in the next frame. */
  ask() {
    if (this.asked) return;
    this.asked = true;
    requestAnimationFrame(() => this.paint());
  }
  paint() {
    this.asked = false;
    if (!this.width || !this.height) return;
    this.context.clearRect(0, 0, this.width, this.height);
    this.draw(this.context, this.width, this.height);
  }
  font(size, weight = 400) {
    this.context.font = `${weight} ${size}px ${colour("font")}`;
  }
}
