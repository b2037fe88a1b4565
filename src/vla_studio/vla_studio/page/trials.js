// Trials: one instruction after the other, an episode each, with successes counted.

import { byId, make } from "./elements.js";
import { interval } from "./panels.js";

export class Trials {
  #prompts = [];

  constructor(link, ask) {
    link.on("hello", ({ auto_prompt }) => this.#offer(auto_prompt));
    link.on("trials", (state) => this.#show(state));
    byId("prompt").onchange = () => this.#chosen();
    byId("trials").onsubmit = (event) => {
      event.preventDefault();
      const { instructions } = this.#prompts[byId("prompt").selectedIndex];
      ask("trials", { instructions, trials: byId("trial-count").valueAsNumber });
    };
    byId("end-trials").onclick = () => link.tell("end_trials");
  }

  #offer(prompts) {
    const own = { name: "each episode's own instruction", instructions: [], trials: 10 };
    this.#prompts = prompts.length ? prompts : [own];
    byId("prompt").replaceChildren(...this.#prompts.map(({ name }) => make("option", { textContent: name })));
    this.#chosen();
  }

  #chosen() {
    byId("trial-count").value = this.#prompts[byId("prompt").selectedIndex].trials;
  }

  #show({ running, wanted, done, rows }) {
    const tried = rows.filter(({ trials }) => trials);
    const [trials, successes] = ["trials", "successes"].map((name) => tried.reduce((sum, row) => sum + row[name], 0));
    if (running) byId("trial-state").textContent = `Trial ${done + 1} of ${wanted}.`;
    else if (rows.length) byId("trial-state").textContent = `Ended after ${done} trials.`;
    if (trials) byId("trial-state").textContent += ` ${successes} of ${trials} succeeded (${interval(successes, trials)}).`;
    byId("trial-rows").hidden = !rows.length;
    byId("trial-rows").tBodies[0].replaceChildren(
      ...rows.map((row) =>
        make("tr", {}, make("td", { textContent: row.instruction }), make("td", { textContent: `${row.successes} of ${row.trials}` })),
      ),
    );
  }
}
