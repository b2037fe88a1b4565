// What is thought of the episode: an estimate that suggests a verdict, and the operator, who decides.

import { byId, fixed, isSeen, isTyped } from "./elements.js";

const OTHER = { success: "failure", failure: "success" };

export class Verdicts {
  #ask;
  #suggested = ""; // empty: nothing is
  #kept = false; // whether verdicts are
  #mine = false;

  constructor(link, ask) {
    this.#ask = ask;
    link.on("hello", ({ verdicts }) => {
      this.#kept = verdicts;
      this.#show(null);
    });
    link.on("estimate", (estimate) => this.#show(estimate));
    document.body.addEventListener("seat", ({ detail }) => {
      this.#mine = detail;
      this.#allow();
    });
    for (const button of document.querySelectorAll("[data-verdict]"))
      button.onclick = () => this.#give(button.dataset.verdict);
    addEventListener("keydown", (event) => this.#key(event));
  }

  #show(estimate) {
    this.#suggested = estimate?.suggested ?? "";
    byId("estimate").hidden = !estimate;
    if (!estimate) return;
    byId("progress").value = estimate.progress ?? 0;
    byId("progress-said").textContent = `${fixed(100 * estimate.progress)} %`;
    byId("suggested").textContent = `suggested: ${this.#suggested}`;
    byId("suggested").className = `badge ${this.#suggested === "success" ? "good" : ""}`;
    this.#allow();
  }

  #allow() {
    byId("confirm-keys").hidden = !(this.#mine && this.#kept);
  }

  #key(event) {
    const wanted = { KeyY: this.#suggested, KeyN: OTHER[this.#suggested] }[event.code];
    const plain = !(event.ctrlKey || event.altKey || event.metaKey || event.repeat || isTyped(event));
    if (wanted && plain && this.#mine && this.#kept && isSeen(byId("estimate"))) this.#give(wanted);
  }

  async #give(verdict) {
    if (await this.#ask("verdict", { verdict, note: byId("note").value })) byId("note").value = "";
  }
}
