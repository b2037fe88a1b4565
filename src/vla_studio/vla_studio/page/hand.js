// By hand: who commands, take over and give back, and what keys and a gamepad move meanwhile.
//
// Nothing is moved but while the button is held and a person commands: the server sees to both. The
// page says at once where a key is let go, and the server halts what the page says no more.

import { byId, isTyped } from "./elements.js";

const SAY = 40; // ms between two sayings of how it is to move
const AXES = ["x", "y", "z", "rx", "ry", "rz"];
const KEYS = {
  KeyW: ["x", 1], KeyS: ["x", -1], KeyA: ["y", 1], KeyD: ["y", -1], KeyR: ["z", 1], KeyF: ["z", -1],
  KeyL: ["rx", 1], KeyJ: ["rx", -1], KeyI: ["ry", 1], KeyK: ["ry", -1], KeyU: ["rz", 1], KeyO: ["rz", -1],
};
// The browsers' standard layout: sticks are positive to the right and down.
const STICKS = { x: [1, -1], y: [0, -1], z: [3, -1], rz: [2, -1] };
const PADS = { ry: [13, 12], rx: [15, 14] }; // buttons, plus and minus
const GRIPPER = 0, HOLD = 4, GIVE = 8, TAKE = 9;
const DEADZONE = 0.1;

export class Hand {
  #link;
  #ask;
  #mine = false;
  #held = false; // whether the button is
  #byHand = false;
  #down = new Set(); // keys
  #pressed = []; // a gamepad's buttons, when looked at last
  #acts = [];

  constructor(link, ask, operate) {
    this.#link = link;
    this.#ask = ask;
    link.on("services", ({ take_over }) => (byId("by-hand").hidden = !take_over));
    link.on("source", (source) => this.#commands(source));
    link.on("close", () => this.#letGo());
    document.body.addEventListener("seat", ({ detail }) => this.#operate(detail));
    document.body.addEventListener("hold", ({ detail }) => this.#hold(detail));
    byId("take-over").onclick = () => this.#takeOver(true);
    byId("give-back").onclick = () => this.#takeOver(false);
    addEventListener("keydown", (event) => this.#key(event));
    addEventListener("keyup", ({ code }) => this.#down.delete(code) && this.#say());
    addEventListener("blur", () => this.#letGo());
    document.addEventListener("visibilitychange", () => document.hidden && this.#letGo());
    setInterval(() => {
      this.#look(operate);
      this.#say();
    }, SAY);
  }

  #commands(source) {
    this.#byHand = source === "human";
    byId("source").textContent = this.#byHand ? "person" : source;
    byId("source").className = `badge ${this.#byHand ? "warn" : ""}`;
    byId("source").hidden = !source;
    byId("hand-keys").hidden = !this.#byHand;
    this.#allow();
    this.#letGo();
  }

  #operate(mine) {
    this.#mine = mine;
    this.#allow();
  }

  #allow() {
    byId("take-over").disabled = !this.#mine || this.#byHand;
    byId("give-back").disabled = !this.#mine || !this.#byHand;
  }

  #takeOver(human) {
    if (this.#mine) this.#ask("take_over", { human });
  }

  #hold(held) {
    this.#held = held;
    if (!held) this.#letGo();
  }

  #letGo() {
    this.#down.clear();
    this.#acts = [];
  }

  #key(event) {
    const { code, ctrlKey, metaKey, altKey, repeat } = event;
    if (!this.#mine || repeat || ctrlKey || metaKey || altKey || isTyped(event)) return;
    if (code === "KeyT" || code === "KeyB") this.#takeOver(code === "KeyT");
    else if (code === "KeyG") this.#acts.push("gripper");
    else if (KEYS[code]) this.#down.add(code);
    else return;
    this.#say();
  }

  #say() {
    if (!this.#held || !this.#byHand) return;
    const shares = this.#shares();
    this.#link.tell("move", { shares: AXES.map((axis) => Math.max(-1, Math.min(1, shares[axis]))), acts: this.#acts });
    this.#acts = [];
  }

  #shares() {
    const shares = Object.fromEntries(AXES.map((axis) => [axis, 0]));
    for (const code of this.#down) shares[KEYS[code][0]] += KEYS[code][1];
    const pad = gamepad();
    if (!pad) return shares;
    for (const [axis, [index, sign]] of Object.entries(STICKS)) shares[axis] += sign * beyond(pad.axes[index]);
    for (const [axis, [plus, minus]] of Object.entries(PADS))
      shares[axis] += isDown(pad, plus) - isDown(pad, minus);
    return shares;
  }

  // A gamepad's buttons: the left shoulder holds, others take over, give back, open and close.
  #look(operate) {
    const pad = gamepad();
    const before = this.#pressed;
    this.#pressed = pad ? pad.buttons.map((_, index) => isDown(pad, index)) : [];
    if (before[HOLD] && !this.#pressed[HOLD]) operate.release();
    if (!pad || !before.length || !this.#mine) return;
    const goesDown = (index) => this.#pressed[index] && !before[index];
    if (goesDown(HOLD)) operate.hold();
    if (goesDown(TAKE)) this.#takeOver(true);
    if (goesDown(GIVE)) this.#takeOver(false);
    if (goesDown(GRIPPER)) this.#acts.push("gripper");
  }
}

// The first gamepad whose layout is known.
const gamepad = () => [...(navigator.getGamepads?.() ?? [])].find((pad) => pad?.connected && pad.mapping === "standard");

const isDown = (pad, index) => !!pad.buttons[index]?.pressed;

// A deflection beyond the zone around rest; what is no number is none.
function beyond(value) {
  const size = (Math.min(Math.abs(value), 1) - DEADZONE) / (1 - DEADZONE);
  return size > 0 ? Math.sign(value) * size : 0;
}
