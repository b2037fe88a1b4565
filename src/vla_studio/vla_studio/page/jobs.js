// Jobs: start, follow, cancel.

import { byId, fixed, make } from "./elements.js";
import uPlot from "./vendor/uplot.js";

const PERIOD = 2000; // ms between two looks at the list
const OPEN = ["queued", "running"];

export class Jobs {
  #link;
  #say;
  #shown = ""; // the job whose log is open
  #plot = null;

  constructor(link, say) {
    this.#link = link;
    this.#say = say;
    byId("start").onsubmit = (event) => {
      event.preventDefault();
      const given = { kind: byId("kind").value.trim(), arguments: byId("arguments").value };
      this.#do("start_job", given);
    };
    link.on("job", () => this.#look());
    setInterval(() => this.#look(), PERIOD);
  }

  async #do(name, given) {
    try {
      await this.#link.ask(name, given);
      this.#say("");
      this.#look();
    } catch (error) {
      this.#say(error.message);
    }
  }

  async #look() {
    if (byId("jobs-section").hidden || !this.#link.open) return;
    try {
      const { jobs } = await this.#link.ask("jobs", { limit: 20 });
      byId("jobs").replaceChildren(...jobs.map((job) => this.#row(job)));
      if (this.#shown) this.#log(this.#shown);
    } catch {
      // the node has gone: its section goes as well
    }
  }

  #row(job) {
    const left = job.seconds_left > 0 ? `, ${fixed(job.seconds_left)} s left` : "";
    const of = job.total ? ` of ${job.total}` : "";
    const buttons = make(
      "span",
      { className: "row" },
      make("button", { type: "button", textContent: "Log", onclick: () => this.#log(job.job_id) }),
    );
    if (OPEN.includes(job.state))
      buttons.append(
        make("button", {
          type: "button",
          textContent: "Cancel",
          onclick: () => this.#do("cancel_job", { job: job.job_id }),
        }),
      );
    const state = `${job.state}, ${job.step}${of}${left}. ${job.message}`;
    const what = [job.arguments.join(" "), state].filter(Boolean).join(": ");
    return make(
      "div",
      { className: "job" },
      make("strong", { textContent: job.kind }),
      make("progress", { max: 1, value: job.fraction }),
      buttons,
      make("span", { className: "what", textContent: what }),
    );
  }

  // The loss by optimiser steps, as far as the log goes back.
  #loss(text) {
    const found = [...text.matchAll(/step (\d+) of \d+ +loss ([\d.]+)/g)];
    byId("loss").hidden = found.length < 2;
    if (found.length < 2) return;
    const data = [1, 2].map((group) => found.map((match) => Number(match[group])));
    const style = getComputedStyle(document.documentElement);
    const [soft, line, stroke] = ["soft", "line", "planned"].map((name) => style.getPropertyValue(`--${name}`).trim());
    const axis = { stroke: soft, grid: { stroke: line, width: 1 } };
    this.#plot?.destroy();
    this.#plot = new uPlot(
      {
        width: byId("job-section").clientWidth - 30,
        height: 200,
        title: "loss by step",
        legend: { show: false },
        scales: { x: { time: false } },
        axes: [axis, { ...axis, size: 60 }],
        series: [{}, { stroke, width: 1.5 }],
      },
      data,
      byId("loss"),
    );
  }

  async #log(job) {
    try {
      const { text } = await this.#link.ask("job_log", { job, lines: 500 });
      this.#shown = job;
      byId("job-section").hidden = false;
      byId("job-title").textContent = `Log of ${job}`;
      byId("job-log").textContent = text || "(nothing printed)";
      this.#loss(text);
    } catch (error) {
      this.#say(error.message);
    }
  }
}
