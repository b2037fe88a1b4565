// In the audio thread: what the microphone hears, as 16-bit PCM of 16 kHz, 50 ms at a time.

const RATE = 16000;
const LENGTH = 800;

class Microphone extends AudioWorkletProcessor {
  #chunk = new Int16Array(LENGTH);
  #filled = 0;
  #at = 0; // of the next sample, in the samples of this block
  #last = 0; // sample of the block before

  process([[input]]) {
    if (!input) return true;
    for (; this.#at < input.length; this.#at += sampleRate / RATE) {
      const index = Math.floor(this.#at);
      const before = index ? input[index - 1] : this.#last;
      this.#add(before + (input[index] - before) * (this.#at - index));
    }
    this.#at -= input.length;
    this.#last = input[input.length - 1];
    return true;
  }

  #add(value) {
    this.#chunk[this.#filled++] = 32767 * Math.max(-1, Math.min(1, value));
    if (this.#filled < LENGTH) return;
    this.port.postMessage(this.#chunk.buffer, [this.#chunk.buffer]);
    this.#chunk = new Int16Array(LENGTH);
    this.#filled = 0;
  }
}

registerProcessor("microphone", Microphone);
