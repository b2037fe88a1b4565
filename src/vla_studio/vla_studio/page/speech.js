// Push to talk: the microphone goes to the server while the button or the key V is held.
//
// The server recognises what was said, counts down before an instruction takes effect, and stops
// the robot at the word "stop". Speech can do nothing else.

import { byId, isTyped } from "./elements.js";

const RATE = 16000;
const TAIL = 250; // ms that are still heard after a release: people let go early
const CUT_OFF = 7000; // Hz: what 16 kHz cannot carry is filtered out

export class Speech {
  #link;
  #say;
  #mine = false;
  #pressed = false;
  #talking = false;
  #tail = null;
  #opening = null; // promise of the microphone
  #close = () => {};

  constructor(link, say) {
    this.#link = link;
    this.#say = say;
    link.on("speech", (state) => this.#show(state));
    link.on("close", () => this.#end());
    document.body.addEventListener("seat", ({ detail }) => this.#operate(detail));
    byId("unsay").onclick = () => link.tell("unsay");
    this.#button();
  }

  #operate(mine) {
    this.#mine = mine;
    byId("talk").disabled = !mine;
    if (mine) return;
    this.#end();
    this.#close();
  }

  #show({ state, heard, sentence, draft, seconds, note }) {
    byId("speech").hidden = state === "off";
    byId("counting").hidden = state !== "counting";
    byId("counted").textContent = sentence;
    byId("countdown").textContent = seconds;
    const said = heard && heard !== sentence ? `Heard: ${heard} ` : "";
    const busy = { listening: "Listening ...", recognising: "Recognising ..." }[state] ?? "";
    byId("speech-state").textContent = [said, note, busy].filter(Boolean).join(" ");
    if (draft && this.#mine) byId("sentence").value = draft;
  }

  #button() {
    const button = byId("talk");
    button.onpointerdown = (event) => {
      if (event.button !== 0) return;
      button.setPointerCapture(event.pointerId);
      this.#press();
    };
    for (const name of ["pointerup", "pointercancel", "lostpointercapture", "contextmenu"])
      button.addEventListener(name, () => this.#release());
    addEventListener("keydown", (event) => {
      if (isTalkKey(event) && !event.repeat) this.#press();
    });
    addEventListener("keyup", (event) => event.code === "KeyV" && this.#release());
    addEventListener("blur", () => this.#release());
    document.addEventListener("visibilitychange", () => document.hidden && this.#release());
  }

  async #press() {
    if (!this.#mine || byId("speech").hidden) return;
    this.#pressed = true;
    clearTimeout(this.#tail);
    if (this.#talking) return;
    try {
      await (this.#opening ??= this.#open());
    } catch (error) {
      this.#opening = null;
      return this.#say(`there is no microphone (${error.message})`);
    }
    if (!this.#pressed || this.#talking) return;
    this.#talking = true;
    this.#link.tell("talk", { on: true, rate: RATE });
    byId("talk").classList.add("main");
  }

  #release() {
    if (!this.#pressed) return;
    this.#pressed = false;
    this.#tail = setTimeout(() => this.#end(), TAIL);
  }

  #end() {
    clearTimeout(this.#tail);
    this.#pressed = false;
    byId("talk").classList.remove("main");
    if (!this.#talking) return;
    this.#talking = false;
    this.#link.tell("talk", { on: false });
  }

  async #open() {
    if (!navigator.mediaDevices) throw new Error("browsers give it to https and to loopback addresses alone");
    const stream = await navigator.mediaDevices.getUserMedia({ audio: { channelCount: 1 } });
    const context = new AudioContext();
    await context.resume();
    await context.audioWorklet.addModule("/microphone.js");
    const worklet = new AudioWorkletNode(context, "microphone", { numberOfOutputs: 0, channelCount: 1 });
    worklet.port.onmessage = ({ data }) => this.#talking && this.#link.send(data);
    const filters = [1, 2].map(() => new BiquadFilterNode(context, { type: "lowpass", frequency: CUT_OFF }));
    [context.createMediaStreamSource(stream), ...filters, worklet].reduce((from, to) => from.connect(to));
    this.#close = () => {
      for (const track of stream.getTracks()) track.stop();
      context.close();
      this.#opening = null;
      this.#close = () => {};
    };
  }
}

// The key V, but for text that is typed.
function isTalkKey(event) {
  const { code, ctrlKey, metaKey, altKey } = event;
  return code === "KeyV" && !isTyped(event) && !ctrlKey && !metaKey && !altKey;
}
