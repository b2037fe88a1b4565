// What lies on the studio's machine: episodes of datasets, reports, and what `vla doctor` finds.

import { byId, clock, drawn, fixed, make } from "./elements.js";
import uPlot from "./vendor/uplot.js";

const LEVELS = { ok: "good", warning: "warn", error: "bad" };

async function draw(canvas, base64) {
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  drawn(canvas, await createImageBitmap(new Blob([bytes], { type: "image/jpeg" })));
}

export class Library {
  #ask;
  #episode = null;
  #plots = [];

  constructor(link, ask) {
    this.#ask = ask;
    link.on("hello", (hello) => this.#offer(hello));
    byId("browse").onsubmit = (event) => {
      event.preventDefault();
      this.#open();
    };
    byId("scrub").oninput = () => this.#scrub();
    byId("examine").onclick = () => this.#examine();
    addEventListener("hashchange", () => this.look());
  }

  #offer({ reports, datasets }) {
    byId("browse").hidden = !datasets;
    byId("episode-about").textContent = datasets ? "" : "Start the studio with --data FOLDER to browse datasets.";
    byId("reports-none").textContent = reports ? "" : "Start the studio with --results FOLDER to see reports.";
    this.has = { reports, datasets };
    this.look();
  }

  // Reads the lists again, if they are to be seen.
  async look() {
    if (location.hash !== "#data" || !this.has) return;
    if (this.has.datasets) {
      const { datasets = [] } = (await this.#ask("datasets")) ?? {};
      const chosen = byId("dataset").value;
      byId("dataset").replaceChildren(...datasets.map((name) => make("option", { textContent: name })));
      if (datasets.includes(chosen)) byId("dataset").value = chosen;
      if (!datasets.length) byId("episode-about").textContent = "There is no dataset in the studio's data folder yet.";
    }
    if (this.has.reports) {
      const { reports = [] } = (await this.#ask("reports")) ?? {};
      byId("reports-none").textContent = reports.length ? "" : "No run has left a report yet.";
      byId("reports").replaceChildren(...reports.map((report) => this.#report(report)));
    }
  }

  #report({ name, time, files }) {
    const links = files.map((file) => {
      const path = [...name.split("/"), file].map(encodeURIComponent).join("/");
      return make("a", { href: `/results/${path}`, target: "_blank", rel: "noopener", textContent: file });
    });
    const when = `${new Date(1000 * time).toLocaleDateString()} ${clock(time)}`;
    return make("div", {}, make("h3", { textContent: name }), make("div", { className: "hint", textContent: when }), make("div", { className: "row" }, ...links));
  }

  // -- episodes ---------------------------------------------------------------------------------

  async #open() {
    const about = byId("episode-about");
    about.textContent = "reading ...";
    const given = { dataset: byId("dataset").value, index: byId("episode").valueAsNumber || 0 };
    const episode = await this.#ask("episode", given);
    about.textContent = "";
    byId("episode-view").hidden = !episode;
    if (!episode) return;
    this.#episode = episode;
    const { episodes, index, instructions, actions, dt } = episode;
    byId("episode").max = episodes - 1;
    about.textContent = `Episode ${index} of ${episodes}: ${instructions.join("; ") || "no instruction"}. ${actions.length} steps of ${dt} s.`;
    byId("episode-images").replaceChildren(
      ...Object.keys(episode.images).map((name) =>
        make("figure", {}, make("canvas", { width: 224, height: 224 }), make("figcaption", {}, make("b", { textContent: name }))),
      ),
    );
    Object.assign(byId("scrub"), { max: Math.max(actions.length - 1, 0), value: 0 });
    this.#draw();
    this.#scrub();
  }

  #draw() {
    const { actions, dimensions, dt } = this.#episode;
    const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
    const axis = { stroke: colour("soft"), grid: { stroke: colour("line"), width: 1 } };
    for (const plot of this.#plots) plot.destroy();
    const boxes = dimensions.map(({ part, name, unit }) =>
      make("div", { className: "strip" }, make("h3", { textContent: `${part} ${name} [${unit || "1"}]` })),
    );
    byId("episode-plots").replaceChildren(...boxes);
    const times = actions.map((_, step) => step * dt);
    this.#plots = boxes.map((box, column) => {
      const values = actions.map((action) => action[column]);
      const options = {
        width: box.clientWidth,
        height: 110,
        legend: { show: false },
        cursor: { y: false, points: { show: false }, drag: { x: false } },
        scales: { x: { time: false } },
        axes: [{ ...axis, size: 26 }, { ...axis, size: 50 }],
        series: [{}, { stroke: colour("planned"), width: 1.5, points: { show: false } }],
      };
      return new uPlot(options, [times, values], box);
    });
    for (const plot of this.#plots)
      plot.over.onclick = ({ offsetX }) => {
        byId("scrub").value = Math.round(plot.posToVal(offsetX, "x") / dt);
        this.#scrub();
      };
  }

  #scrub() {
    const { every, images, dt } = this.#episode;
    const step = byId("scrub").valueAsNumber;
    const canvases = [...byId("episode-images").querySelectorAll("canvas")];
    Object.values(images).forEach((taken, i) => draw(canvases[i], taken[Math.floor(step / every)]));
    byId("scrub-at").textContent = `step ${step}, ${fixed(step * dt, 2)} s`;
    for (const plot of this.#plots) plot.setCursor({ left: plot.valToPos(step * dt, "x"), top: 0 });
  }

  // -- this machine -----------------------------------------------------------------------------

  async #examine() {
    const button = byId("examine");
    Object.assign(button, { disabled: true, textContent: "Examining ..." });
    const { findings } = (await this.#ask("doctor")) ?? {};
    Object.assign(button, { disabled: false, textContent: "Examine this machine" });
    if (!findings) return;
    byId("findings").replaceChildren(
      ...findings.map(({ level, ...rest }) =>
        make("div", { className: "finding" },
          make("span", { textContent: level, className: LEVELS[level] ?? "" }),
          make("span", { textContent: Object.values(rest).filter(Boolean).join(": ") })),
      ),
    );
  }
}
