// Strips of the last seconds, in SI units: what the model planned, what was sent to the robot, and
// when a limit changed it. An end effector's deltas are drawn as velocities, delta / dt.

import { byId, isSeen, make, onTicks } from "./elements.js";
import uPlot from "./vendor/uplot.js";

const SECONDS = 10;
const PERIOD = 500; // ms between two drawings
const LAG = 0.3; // s for which time goes on without news
const LEAST = 0.02; // span of the values' axis, so that noise around 0 looks like none
const TWIST = ["x", "y", "z", "rx", "ry", "rz"];

function span(_, low, high) {
  if (low === null) return [-LEAST, LEAST];
  const margin = Math.max(0.1 * (high - low), (LEAST - (high - low)) / 2);
  return [low - margin, high + margin];
}

// One number of an action: its planned and its executed values by time.
class Strip {
  planned = []; // [time, value], by time
  executed = [];
  kind = "";
  #plot;

  constructor(name, unit) {
    this.box = make("div", { className: "strip" }, make("h3", {}, `${[...new Set(name.split(" "))].join(" ")} [${unit || "1"}]`));
    this.box.dataset.strip = name;
  }

  // Whether a limit of this kind bounds this number: a gripper is bounded by none.
  isClippedBy(limit) {
    if (this.kind === "gripper") return false;
    if (this.kind.startsWith("eef") && /^(linear|translation)/.test(limit)) return this.axis < 3;
    if (this.kind.startsWith("eef") && /^(angular|rotation)/.test(limit)) return this.axis >= 3;
    return true;
  }

  plan(from, points) {
    this.planned = [...this.planned.filter(([time]) => time < from), ...points];
  }

  // Whether it is drawn already and scrolled out of sight.
  get #away() {
    const { top, bottom } = this.box.getBoundingClientRect();
    return this.#plot && (bottom < 0 || top > innerHeight);
  }

  draw(now, clipped, colours) {
    const recent = ([time]) => time > now - SECONDS;
    this.planned = this.planned.filter(recent);
    this.executed = this.executed.filter(recent);
    if (this.#away) return;
    const times = [...new Set([...this.planned, ...this.executed].map(([time]) => time))].sort((a, b) => a - b);
    const values = (points) => {
      const found = new Map(points);
      return times.map((time) => found.get(time));
    };
    const sent = values(this.executed);
    const changed = times.map((time, i) => (clipped(time) ? sent[i] : undefined));
    const data = [times.map((time) => time - now), values(this.planned), sent, changed];
    if (!this.#plot) this.#make(colours, data);
    else this.#plot.setData(data);
  }

  resize() {
    this.#plot?.setSize({ width: this.box.clientWidth, height: 96 });
  }

  #make(colours, data) {
    const line = (colour) => ({ stroke: colour, width: 1.5, spanGaps: true, points: { show: false } });
    const axis = { stroke: colours.soft, grid: { stroke: colours.line, width: 1 }, size: 50 };
    const options = {
      width: this.box.clientWidth || 300,
      height: 96,
      legend: { show: false },
      cursor: { show: false },
      scales: { x: { time: false, range: [-SECONDS, 0.5] }, y: { range: span } },
      axes: [{ ...axis, size: 28 }, { ...axis, space: 18 }],
      series: [
        {},
        line(colours.planned),
        // A gripper is told what to do when that changes.
        { ...line(colours.executed), paths: this.kind === "gripper" ? uPlot.paths.stepped({ align: 1 }) : undefined },
        { stroke: colours.bad, paths: () => null, points: { show: true, size: 5, fill: colours.bad } },
      ],
    };
    this.#plot = new uPlot(options, data, this.box);
  }
}

export class Strips {
  #strips = new Map(); // "part dim" -> Strip
  #clips = []; // {from, to, kinds} of limits that changed commands
  #counts = null;
  #seen = 0;
  #now = 0; // the graph's newest time, and when it was heard
  #heard = 0;
  #shape = "";
  #drawn = 0; // the time of the last drawing

  constructor(link) {
    link.on("chunk", (chunk) => this.#plan(chunk));
    link.on("executed", (sample) => this.#execute(sample));
    link.on("command", (status) => this.#clip(status));
    onTicks(PERIOD, () => this.#draw());
    addEventListener("resize", () => this.#strips.forEach((strip) => strip.resize()));
  }

  #plan({ parts, dt, actions, header, produced }) {
    this.#time(produced);
    this.#arrange(parts);
    const width = parts.reduce((sum, part) => sum + part.dims.length, 0);
    let column = 0;
    for (const part of parts)
      for (const dim of part.dims) {
        const scale = part.kind === "eef_delta" ? 1 / dt : 1;
        const points = [];
        for (let step = 0; step * width < actions.length; step++)
          points.push([header.stamp + step * dt, scale * actions[step * width + column]]);
        this.#strips.get(`${part.name} ${dim}`).plan(header.stamp, points);
        column++;
      }
  }

  #arrange(parts) {
    const shape = JSON.stringify(parts.map(({ name, kind, dims }) => [name, kind, dims]));
    if (shape === this.#shape) return;
    this.#shape = shape;
    this.#strips.clear();
    for (const part of parts)
      part.dims.forEach((dim, i) => {
        const unit = part.kind === "eef_delta" ? `${part.units[i]}/s` : part.units[i];
        const strip = new Strip(`${part.name} ${dim}`, unit);
        strip.kind = part.kind;
        strip.axis = i;
        this.#strips.set(`${part.name} ${dim}`, strip);
      });
    byId("strips").replaceChildren(...[...this.#strips.values()].map((strip) => strip.box));
  }

  // Simulated time may be slow, or stand still.
  #time(now) {
    if (now < this.#now - SECONDS) for (const strip of this.#strips.values()) strip.planned = strip.executed = [];
    [this.#now, this.#heard] = [now, performance.now()];
  }

  #execute({ what, time, values }) {
    this.#time(time);
    for (const strip of this.#strips.values()) {
      const axis = what === "twist" && strip.kind === "eef_delta" ? strip.axis : -1;
      const index = what === "gripper" && strip.kind === "gripper" ? 0 : axis;
      if (index >= 0 && index < Math.min(values.length, TWIST.length))
        strip.executed.push([time, values[index]]);
    }
  }

  #clip({ header, clip_kinds, clip_counts }) {
    const before = this.#counts;
    this.#counts = new Map(clip_kinds.map((kind, i) => [kind, clip_counts[i]]));
    const kinds = before ? clip_kinds.filter((kind) => this.#counts.get(kind) > (before.get(kind) ?? 0)) : [];
    if (kinds.length) this.#clips.push({ from: this.#seen, to: header.stamp, kinds });
    this.#seen = header.stamp;
    this.#clips = this.#clips.filter(({ to }) => to > header.stamp - SECONDS);
  }

  #draw() {
    const now = this.#now + Math.min((performance.now() - this.#heard) / 1000, LAG);
    if (!isSeen(byId("strips")) || now === this.#drawn) return;
    this.#drawn = now; // where time stands still nothing has changed
    const style = getComputedStyle(document.documentElement);
    const colours = {};
    for (const name of ["planned", "executed", "bad", "soft", "line"])
      colours[name] = style.getPropertyValue(`--${name}`).trim();
    for (const strip of this.#strips.values()) {
      const marks = this.#clips.filter(({ kinds }) => kinds.some((kind) => strip.isClippedBy(kind)));
      const clipped = (time) => marks.some(({ from, to }) => time > from && time <= to);
      strip.draw(now, clipped, colours);
    }
  }
}
