// Control, hold-to-enable, stop, the instruction.
//
// While the button is down the page only says so, again and again: the server disables the robot
// when it no longer hears it, and the command node does when it no longer hears the server.

import { byId, make } from "./elements.js";

const SIGN = 40; // ms between two signs that the button is down
const HISTORY = 20;

export class Operate {
  #link;
  #say;
  #hello = { name: "" };
  #mine = false;
  #press = 0;
  #timer = null;
  #graph = {};
  #missing = ["the graph"];

  constructor(link, say) {
    this.#link = link;
    this.#say = say;
    link.on("hello", (hello) => this.#greet(hello));
    link.on("operation", (state) => this.#show(state));
    link.on("event", ({ text, old }) => old || this.#heard(text));
    for (const name of ["services", "command", "inference", "sim", "source"]) link.on(name, (value) => this.#prepare(name, value));
    link.on("instruction", (text) => (byId("instruction").textContent = text || "none"));
    link.on("close", () => this.release());
    link.on("speed", (given) => this.#speed(given));
    this.#button();
    this.#stop();
    byId("speed-share").oninput = () => this.#sayShare();
    byId("speed-share").onchange = () => this.#setSpeed(byId("speed-share").valueAsNumber / 100);
    byId("take").onclick = () => link.tell("take");
    byId("leave").onclick = () => {
      this.release();
      link.tell("leave");
    };
    byId("agree").onclick = () => link.tell("hand_over", { agreed: true });
    byId("keep").onclick = () => link.tell("hand_over", { agreed: false });
    byId("instruct").onsubmit = (event) => {
      event.preventDefault();
      this.#instruct(byId("sentence").value.trim());
    };
  }

  #greet(hello) {
    this.#hello = hello;
    this.#press = 0;
    byId("presets").replaceChildren(
      ...hello.presets.map((text) =>
        make("button", { type: "button", textContent: text, onclick: () => this.#instruct(text) }),
      ),
    );
    byId("take").hidden = hello.role !== "operator";
    this.#history();
  }

  #show({ operator, asking, held }) {
    this.#mine = operator !== "" && operator === this.#hello.name;
    byId("operator").textContent = this.#mine
      ? "this page has control"
      : `${operator || "nobody"} has control`;
    byId("take").hidden = this.#mine || this.#hello.role !== "operator";
    byId("take").textContent = operator ? "Ask for control" : "Take control";
    byId("leave").hidden = !this.#mine;
    byId("asking").hidden = !(this.#mine && asking);
    byId("asker").textContent = `${asking} asks for control`;
    this.#allow();
    byId("speed-share").disabled = !this.#mine || held;
    byId("hold").classList.toggle("held", held);
    byId("hold").textContent = held && this.#mine ? "Enabled: release to stop" : "Hold to enable";
    this.#allowInstructions();
    document.body.dispatchEvent(new CustomEvent("seat", { detail: this.#mine }));
    if (!held) clearInterval(this.#timer);
  }

  // What has to be there before anything can move.
  #prepare(name, value) {
    this.#graph[name] = value;
    const { services, command, inference, sim, source } = this.#graph;
    const missing = [], starts = (what) => this.#hello.starts?.includes(what);
    if (!services?.enable || !command || command.state === "inactive") missing.push("the command node");
    // A model of another kind has no status, but chunks
    if ((services?.instruct || (starts("the model") && !command?.chunks)) && inference?.state !== "active" && source !== "human")
      missing.push("the model");
    if ((services?.pause || starts("the simulation")) && (!sim || sim.state === "starting" && !inference))
      missing.push("the simulation");
    const changed = missing.join() !== this.#missing.join();
    this.#missing = missing;
    this.#allowInstructions();
    if (changed) this.#allow(); // it comes often, and each change is laid out
  }

  // There is nobody to instruct before the model's node is there, and a simulation that begins gives
  // an instruction of its own.
  #allowInstructions() {
    const early = !this.#graph.services?.instruct || this.#missing.includes("the simulation");
    for (const element of document.querySelectorAll("#instruct button, #presets button"))
      element.disabled = !this.#mine || early;
  }

  #allow() {
    byId("hold").disabled = !this.#mine || this.#missing.length > 0;
    byId("ready").textContent = this.#missing.length
      ? `Waiting for ${this.#missing.join(", ")} ...`
      : this.#mine
        ? "The robot may move only while this is pressed, by pointer or by the space bar."
        : "Take control, then hold the button for as long as the robot may move.";
  }

  // The share of the command node's scale that is executed, where that node has one.
  #given = null;

  #speed(given) {
    this.#given = given;
    byId("speed").hidden = given.speed === null;
    byId("speed-share").value = 100 * given.speed;
    this.#sayShare();
  }

  #sayShare() {
    const share = byId("speed-share").valueAsNumber;
    const scale = this.#given.scale === 1 ? "" : ` of scale ${this.#given.scale}`;
    byId("speed-said").textContent = `${share} %${scale}`;
  }

  async #setSpeed(speed) {
    try {
      await this.#link.ask("speed", { speed });
      this.#say("");
    } catch (error) {
      this.#say(error.message);
      this.#speed(this.#given);
    }
  }

  // Why a hold ended, unless it was let go.
  #heard(text) {
    if (text.startsWith("disabled: ") && !text.endsWith(": released")) this.#say(text);
    else if (text === "enabled") this.#say("");
  }

  #button() {
    const button = byId("hold");
    button.onpointerdown = (event) => {
      if (event.button !== 0) return;
      button.setPointerCapture(event.pointerId);
      this.hold();
    };
    for (const name of ["pointerup", "pointercancel", "lostpointercapture", "blur", "contextmenu"])
      button.addEventListener(name, () => this.release());
    button.onkeydown = (event) => {
      if (event.code !== "Space") return;
      event.preventDefault();
      if (!event.repeat) this.hold();
    };
    button.onkeyup = (event) => event.code === "Space" && this.release();
    addEventListener("blur", () => this.release());
    addEventListener("pagehide", () => this.release());
    document.addEventListener("visibilitychange", () => document.hidden && this.release());
  }

  hold() {
    if (byId("hold").disabled) return;
    announce(true);
    const sign = { press: ++this.#press };
    this.#link.tell("hold", sign);
    clearInterval(this.#timer);
    this.#timer = setInterval(() => this.#link.tell("hold", sign), SIGN);
  }

  release() {
    announce(false);
    if (this.#timer === null) return;
    clearInterval(this.#timer);
    this.#timer = null;
    this.#link.tell("release");
  }

  #stop() {
    const stop = () => {
      this.release();
      this.#link.tell("stop");
    };
    byId("stop").onclick = stop;
    addEventListener("keydown", (event) => event.key === "Escape" && stop());
  }

  async #instruct(text) {
    if (!text) return;
    try {
      const { message } = await this.#link.ask("instruct", { instruction: text });
      this.#say(message || "");
      const kept = [text, ...this.#kept().filter((other) => other !== text)].slice(0, HISTORY);
      localStorage.setItem("instructions", JSON.stringify(kept));
      this.#history();
    } catch (error) {
      this.#say(error.message);
    }
  }

  #kept() {
    try {
      return JSON.parse(localStorage.getItem("instructions")) ?? [];
    } catch {
      return [];
    }
  }

  #history() {
    const texts = new Set([...this.#kept(), ...this.#hello.presets]);
    byId("sentences").replaceChildren(...[...texts].map((value) => make("option", { value })));
  }
}

// Tells the page's other parts whether the button is down.
const announce = (held) => document.body.dispatchEvent(new CustomEvent("hold", { detail: held }));
