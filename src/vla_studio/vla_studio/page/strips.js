// Strips of the last seconds, in SI units: what the model planned, what was sent to the robot, and
// when a limit changed it. An end effector's deltas are drawn as velocities, delta / dt.

import { byId, make } from "./elements.js";
import uPlot from "./vendor/uplot.js";

const SECONDS = 10;
const PERIOD = 200; // ms between two drawings
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

  plan(from, points) {
    this.planned = [...this.planned.filter(([time]) => time < from), ...points];
  }

  draw(now, clipped, colours) {
    const recent = ([time]) => time > now - SECONDS;
    this.planned = this.planned.filter(recent);
    this.executed = this.executed.filter(recent);
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
      axes: [{ ...axis, size: 28 }, axis],
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
  #clips = []; // [from, to] in which a limit changed commands
  #count = null;
  #seen = 0;
  #now = 0; // the graph's newest time, and when it was heard
  #heard = 0;
  #shape = "";

  constructor(link) {
    link.on("chunk", (chunk) => this.#plan(chunk));
    link.on("executed", (sample) => this.#execute(sample));
    link.on("command", (status) => this.#clip(status));
    setInterval(() => this.#draw(), PERIOD);
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

  #clip({ header, clip_counts }) {
    const count = clip_counts.reduce((sum, n) => sum + n, 0);
    if (this.#count !== null && count > this.#count) this.#clips.push([this.#seen, header.stamp]);
    [this.#count, this.#seen] = [count, header.stamp];
    this.#clips = this.#clips.filter(([, to]) => to > header.stamp - SECONDS);
  }

  #draw() {
    if (document.hidden) return;
    const style = getComputedStyle(document.documentElement);
    const colours = {};
    for (const name of ["planned", "executed", "bad", "soft", "line"])
      colours[name] = style.getPropertyValue(`--${name}`).trim();
    const now = this.#now + Math.min((performance.now() - this.#heard) / 1000, LAG);
    const clipped = (time) => this.#clips.some(([from, to]) => time > from && time <= to);
    for (const strip of this.#strips.values()) strip.draw(now, clipped, colours);
  }
}
