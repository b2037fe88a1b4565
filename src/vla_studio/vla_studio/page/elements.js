// Small helpers for the document. Text from the graph is only ever set as text.

export const byId = (id) => document.getElementById(id);

export function make(tag, given = {}, ...children) {
  const element = Object.assign(document.createElement(tag), given);
  element.append(...children);
  return element;
}

// Fills a <dl> with [name, value] pairs; empty values are left out, and what is there stays.
export function fill(list, pairs) {
  const shown = pairs.filter(([, value]) => value !== "" && value !== null && value !== undefined);
  const rows = shown.map(([name, value]) => [
    make("dt", { textContent: name }),
    value instanceof Node ? value : make("dd", { textContent: value }),
  ]);
  const old = [...list.children];
  if (old.length !== 2 * rows.length) return list.replaceChildren(...rows.flat());
  rows.flat().forEach((element, i) => element.isEqualNode(old[i]) || old[i].replaceWith(element));
}

// Calls `work` again and again, at the same moments as all else of this period [ms]: what changes
// together is laid out and painted once.
export function onTicks(period, work) {
  const next = () =>
    setTimeout(() => {
      next();
      work();
    }, period - (performance.now() % period));
  next();
}

// Calls `show` with the newest value only, on ticks, and not while nobody sees it.
export function calmly(show, inside, period = 500) {
  let newest = null;
  onTicks(period, () => {
    if (newest === null || !isSeen(byId(inside))) return;
    const [value] = newest;
    newest = null;
    show(value);
  });
  return (value) => (newest = [value]);
}

// Whether an element can be seen, as far as pages and tabs go.
export const isSeen = (element) => !document.hidden && element.offsetParent !== null;

// Shows an image on a canvas of its size.
export function drawn(canvas, image) {
  if (canvas.width !== image.width) canvas.width = image.width;
  if (canvas.height !== image.height) canvas.height = image.height;
  canvas.getContext("2d", { alpha: false }).drawImage(image, 0, 0);
  image.close();
}

export const fixed = (value, digits = 0) => (value === null || value === undefined ? "-" : value.toFixed(digits));
export const clock = (seconds) => new Date(1000 * seconds).toLocaleTimeString();

// Whether a key's event belongs to text that is typed.
export const isTyped = ({ target }) => !!target.matches?.("input:not([type=range]), select, textarea");
