// The websocket to the studio's server: values, images, answers; it connects again by itself.

const AGAIN = 1000; // ms until the next try

export class Link extends EventTarget {
  #socket = null;
  #asked = new Map(); // id -> what to do with the answer
  #count = 0;

  connect() {
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    const socket = new WebSocket(`${scheme}://${location.host}/socket`);
    socket.binaryType = "arraybuffer";
    socket.onopen = () => this.#emit("open");
    socket.onmessage = ({ data }) => this.#receive(data);
    socket.onclose = ({ reason }) => {
      for (const { reject } of this.#asked.values()) reject(new Error("the connection was lost"));
      this.#asked.clear();
      this.#emit("close", reason);
      setTimeout(() => this.connect(), AGAIN);
    };
    this.#socket = socket;
  }

  get open() {
    return this.#socket?.readyState === WebSocket.OPEN;
  }

  // Tells the server something; a refusal comes as event "refused".
  tell(name, given = {}) {
    if (this.open) this.#socket.send(JSON.stringify({ do: name, id: 0, ...given }));
  }

  // Sends audio.
  send(bytes) {
    if (this.open) this.#socket.send(bytes);
  }

  // Asks for something; the promise is its answer.
  ask(name, given = {}) {
    if (!this.open) return Promise.reject(new Error("not connected"));
    const id = ++this.#count;
    const answer = new Promise((resolve, reject) => this.#asked.set(id, { resolve, reject }));
    this.#socket.send(JSON.stringify({ do: name, id, ...given }));
    return answer;
  }

  #receive(data) {
    if (typeof data !== "string") return this.#image(new Uint8Array(data));
    const message = JSON.parse(data);
    for (const { type, data: value } of message.type === "several" ? message.data : [message]) {
      if (type === "answer") this.#answered(value);
      else this.#emit(type, value);
    }
  }

  #answered({ id, error, ...rest }) {
    const asked = this.#asked.get(id);
    this.#asked.delete(id);
    if (!asked) error && this.#emit("refused", error);
    else if (error) asked.reject(new Error(error));
    else asked.resolve(rest);
  }

  #image(bytes) {
    const end = bytes.indexOf(10);
    const about = JSON.parse(new TextDecoder().decode(bytes.subarray(0, end)));
    this.#emit("image", { about, jpeg: bytes.subarray(end + 1) });
  }

  #emit(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }

  on(name, callback) {
    this.addEventListener(name, ({ detail }) => callback(detail));
  }
}
