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
  #folder = "";
  #comparing = false; // whether an answer is waited for: word of its progress may come after it
  #plots = [];

  constructor(link, ask) {
    this.#ask = ask;
    link.on("hello", (hello) => this.#offer(hello));
    byId("browse").onsubmit = (event) => {
      event.preventDefault();
      this.#open();
    };
    byId("scrub").oninput = () => this.#scrub();
    byId("compare").onsubmit = (event) => {
      event.preventDefault();
      this.#compare();
    };
    byId("tag").onsubmit = (event) => {
      event.preventDefault();
      this.#edit("tag", { tags: byId("tags").value });
    };
    byId("delete").onclick = () => this.#sure(true);
    byId("delete-not").onclick = () => this.#sure(false);
    byId("delete-sure").onclick = () => this.#edit("delete");
    byId("restore").onclick = () => this.#edit("restore");
    byId("convert").onclick = () => this.#convert();
    link.on("compared", ({ done, of }) => {
      if (this.#comparing) byId("compared").textContent = `step ${done} of ${of} ...`;
    });
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
      const { datasets = [], models = [], folder = "" } = (await this.#ask("datasets")) ?? {};
      this.#folder = folder;
      this.#choices("dataset", datasets);
      this.#choices("compared-model", models);
      byId("compare").hidden = !models.length;
      if (!datasets.length) byId("episode-about").textContent = "There is no dataset in the studio's data folder yet.";
    }
    if (this.has.reports) {
      const { reports = [] } = (await this.#ask("reports")) ?? {};
      byId("reports-none").textContent = reports.length ? "" : "No run has left a report yet.";
      byId("reports").replaceChildren(...reports.map((report) => this.#report(report)));
    }
  }

  // Offers names in a <select>, which keeps what was chosen.
  #choices(id, names) {
    const chosen = byId(id).value;
    byId(id).replaceChildren(...names.map((name) => make("option", { textContent: name })));
    if (names.includes(chosen)) byId(id).value = chosen;
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

  async #open(index = byId("episode").valueAsNumber || 0) {
    const about = byId("episode-about");
    about.textContent = "reading ...";
    const dataset = byId("dataset").value;
    const episode = await this.#ask("episode", { dataset, index });
    about.textContent = "";
    byId("episode-view").hidden = !episode;
    this.#episode = episode && { dataset, ...episode };
    if (!episode) return;
    const { episodes, instructions, actions, dt, tags, name, deleted } = episode;
    Object.assign(byId("episode"), { max: episodes - 1, value: index });
    const told = tags ? ` Tags: ${tags}.` : "";
    about.textContent = `Episode ${index} of ${episodes}: ${instructions.join("; ") || "no instruction"}. ${actions.length} steps of ${dt} s.${told}`;
    byId("episode-images").replaceChildren(
      ...Object.keys(episode.images).map((camera) =>
        make("figure", {}, make("canvas", { width: 224, height: 224 }), make("figcaption", {}, make("b", { textContent: camera }))),
      ),
    );
    Object.assign(byId("scrub"), { max: Math.max(actions.length - 1, 0), value: 0 });
    byId("compared").textContent = "";
    byId("tags").value = tags;
    for (const id of ["tag", "delete"]) byId(id).hidden = !name;
    byId("edit").hidden = false;
    byId("restore").hidden = !deleted.length;
    byId("restore").textContent = `Restore ${deleted.at(-1)}`;
    this.#sure(false);
    this.#draw();
    this.#scrub();
  }

  // The recorded actions and, where a model was compared, its answers.
  #draw(compared = null) {
    const { actions, dimensions, dt } = compared ? { dt: this.#episode.dt, ...compared } : this.#episode;
    const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
    const axis = { stroke: colour("soft"), grid: { stroke: colour("line"), width: 1 } };
    const line = (name) => ({ stroke: colour(name), width: 1.5, points: { show: false } });
    for (const plot of this.#plots) plot.destroy();
    byId("key-answer").hidden = !compared;
    byId("key-person").hidden = !this.#turns().length;
    const boxes = dimensions.map(({ part, name, unit }) =>
      make("div", { className: "strip" }, make("h3", { textContent: `${[...new Set([part, name])].join(" ")} [${unit || "1"}]` })),
    );
    byId("episode-plots").replaceChildren(...boxes);
    const times = actions.map((_, step) => step * dt);
    this.#plots = boxes.map((box, column) => {
      const series = [actions, ...(compared ? [compared.predicted] : [])];
      const options = {
        width: box.clientWidth,
        height: 110,
        legend: { show: false },
        cursor: { y: false, points: { show: false }, drag: { x: false } },
        scales: { x: { time: false } },
        axes: [{ ...axis, size: 26 }, { ...axis, size: 50, space: 18 }],
        series: [{}, line("executed"), ...(compared ? [line("planned")] : [])],
        hooks: { drawClear: [(plot) => this.#bands(plot, times, colour("warn"))] },
      };
      const values = series.map((rows) => rows.map((row) => row[column]));
      return new uPlot(options, [times, ...values], box);
    });
    for (const plot of this.#plots)
      plot.over.onclick = ({ offsetX }) => {
        byId("scrub").value = Math.round(plot.posToVal(offsetX, "x") / dt);
        this.#scrub();
      };
  }

  // Where a person acted, behind the curves.
  #bands({ ctx, bbox, valToPos }, times, colour) {
    const { dt } = this.#episode;
    ctx.save();
    Object.assign(ctx, { fillStyle: colour, globalAlpha: 0.2 });
    for (const [from, to] of this.#turns()) {
      const [left, right] = [times[from] - dt / 2, times[to] + dt / 2].map((time) =>
        Math.min(Math.max(valToPos(time, "x", true), bbox.left), bbox.left + bbox.width),
      );
      ctx.fillRect(left, bbox.top, right - left, bbox.height);
    }
    ctx.restore();
  }

  // First and last step of each turn of a person's.
  #turns() {
    const turns = [];
    (this.#episode.interventions ?? []).forEach((acted, step, all) => {
      if (acted && !all[step - 1]) turns.push([step, step]);
      else if (acted) turns.at(-1)[1] = step;
    });
    return turns;
  }

  #scrub() {
    const { every, images, dt } = this.#episode;
    const step = byId("scrub").valueAsNumber;
    const canvases = [...byId("episode-images").querySelectorAll("canvas")];
    Object.values(images).forEach((taken, i) => draw(canvases[i], taken[Math.floor(step / every)]));
    byId("scrub-at").textContent = `step ${step}, ${fixed(step * dt, 2)} s`;
    for (const plot of this.#plots) plot.setCursor({ left: plot.valToPos(step * dt, "x"), top: 0 });
  }

  // -- what the operator may do with one --------------------------------------------------------

  async #compare() {
    const shown = this.#episode;
    const button = byId("compare").querySelector("button");
    button.disabled = this.#comparing = true;
    byId("compared").textContent = "loading the model ...";
    const found = await this.#ask("compare", { dataset: shown.dataset, index: shown.index, model: byId("compared-model").value });
    button.disabled = this.#comparing = false;
    byId("compared").textContent = "";
    if (!found || shown !== this.#episode) return;
    const errors = found.errors.map(({ name, mean, unit }) => `${name} ${fixed(mean, unit === "1" ? 2 : 1)}${unit === "1" ? "" : ` ${unit}`}`);
    const said = [
      `${found.model}: accuracy ${fixed(found.accuracy, 3)}, ${fixed(found.latency_ms)} ms an answer`,
      `Mean error: ${errors.join(", ")}`,
      ...found.notes,
    ];
    byId("compared").textContent = `${said.join(". ")}.`;
    this.#draw(found);
    this.#scrub();
  }

  #sure(asked) {
    byId("deleting").hidden = !asked;
    byId("delete").hidden = asked || !this.#episode?.name;
    byId("delete-what").textContent = `${this.#episode?.name} stays in the file and can be restored.`;
  }

  async #edit(what, given) {
    const { dataset, index, name } = this.#episode;
    const done = await this.#ask(what, { dataset, index, named: name, ...given });
    if (!done) return;
    const last = what === "delete" ? this.#episode.episodes - 2 : index;
    await this.#open(Math.min(index, last));
  }

  // Fills in the job's form, for people to complete.
  #convert() {
    const path = `${this.#folder}/${this.#episode.dataset}`;
    const quoted = (text) => (/^[\w./-]+$/.test(text) ? text : `'${text}'`);
    byId("kind").value = "convert";
    byId("arguments").value = `--dataset ${quoted(path)} --to lerobot --output converted`;
    location.hash = "jobs";
    byId("arguments").focus();
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
