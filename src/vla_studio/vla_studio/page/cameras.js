// Camera images: each is drawn as it comes, with its age, rate and what was left out. While nobody
// can see them they are not drawn; the server waits for that, and sends no more.

import { byId, drawn, fixed, isSeen, make, onTicks } from "./elements.js";

const STALE = 1000; // ms

export class Cameras {
  #link;
  #cameras = new Map();
  #unseen = []; // images that came while nobody could see them

  constructor(link) {
    this.#link = link;
    link.on("hello", ({ cameras }) => this.#set(cameras));
    link.on("close", () => (this.#unseen = []));
    link.on("image", ({ about, jpeg }) => this.#draw(about, jpeg));
    onTicks(500, () => this.#tell());
    const look = () => this.#unseen.splice(0).forEach(({ about, jpeg }) => this.#draw(about, jpeg));
    document.addEventListener("visibilitychange", look);
    addEventListener("resize", look); // also when another page is shown
  }

  #set(names) {
    if (names.join() === [...this.#cameras.keys()].join()) return;
    this.#cameras.clear();
    byId("cameras").replaceChildren(
      ...names.map((name) => {
        const canvas = make("canvas", { width: 224, height: 224 });
        const caption = make("figcaption", { textContent: `${name}: no image yet` });
        const figure = make("figure", {}, canvas, caption);
        figure.dataset.camera = name;
        this.#cameras.set(name, { canvas, caption, figure, about: null, taken: 0 });
        return figure;
      }),
    );
  }

  async #draw(about, jpeg) {
    if (!isSeen(byId("cameras"))) return this.#unseen.push({ about, jpeg });
    const camera = this.#cameras.get(about.camera);
    const taken = performance.now() - about.age_ms;
    try {
      drawn(camera.canvas, await createImageBitmap(new Blob([jpeg], { type: "image/jpeg" })));
      Object.assign(camera, { about, taken });
      camera.figure.dataset.stamp = about.stamp;
    } finally {
      this.#link.tell("drawn", { camera: about.camera });
    }
  }

  #tell() {
    if (!isSeen(byId("cameras"))) return;
    for (const [name, { about, taken, caption, figure }] of this.#cameras) {
      if (!about) continue;
      const age = performance.now() - taken;
      const said = age < STALE ? `${fixed(age)} ms` : `${fixed(age / 1000, 1)} s`;
      caption.replaceChildren(
        make("b", { textContent: name }),
        ...[`${said} old`, `${fixed(about.rate, 1)} images/s`, `${about.dropped} not shown`].map((textContent) =>
          make("span", { textContent }),
        ),
      );
      // Simulated time stands still while nobody holds the button: then there are no new images.
      figure.classList.toggle("stale", age >= STALE && !document.body.classList.contains("still"));
    }
  }
}
