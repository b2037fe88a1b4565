// Small helpers for the document. Text from the graph is only ever set as text.

export const byId = (id) => document.getElementById(id);

export function make(tag, given = {}, ...children) {
  const element = Object.assign(document.createElement(tag), given);
  element.append(...children);
  return element;
}

// Fills a <dl> with [name, value] pairs; empty values are left out.
export function fill(list, pairs) {
  list.replaceChildren(
    ...pairs
      .filter(([, value]) => value !== "" && value !== null && value !== undefined)
      .flatMap(([name, value]) => [
        make("dt", { textContent: name }),
        value instanceof Node ? value : make("dd", { textContent: value }),
      ]),
  );
}

// Shows an image on a canvas of its size.
export function drawn(canvas, image) {
  if (canvas.width !== image.width) canvas.width = image.width;
  if (canvas.height !== image.height) canvas.height = image.height;
  canvas.getContext("2d").drawImage(image, 0, 0);
  image.close();
}

export const fixed = (value, digits = 0) => (value === null || value === undefined ? "-" : value.toFixed(digits));
export const clock = (seconds) => new Date(1000 * seconds).toLocaleTimeString();
