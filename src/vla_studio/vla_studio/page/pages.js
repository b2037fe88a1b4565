// The pages: which is shown, by the address's #name.

import { byId } from "./elements.js";

export function showPages() {
  const turn = () => {
    const pages = [...document.querySelectorAll("main")];
    const name = location.hash.slice(1);
    const shown = pages.find((page) => page.dataset.page === name) ?? pages[0];
    for (const page of pages) page.hidden = page !== shown;
    for (const link of document.querySelectorAll("nav a"))
      link.toggleAttribute("aria-current", link.hash === `#${shown.dataset.page}`);
    byId("title").scrollIntoView();
    dispatchEvent(new Event("resize"));
  };
  addEventListener("hashchange", turn);
  turn();
}
