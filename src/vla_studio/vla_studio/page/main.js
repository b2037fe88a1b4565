// The page: connects, and wires its parts together.

import { Cameras } from "./cameras.js";
import { byId } from "./elements.js";
import { Hand } from "./hand.js";
import { Jobs } from "./jobs.js";
import { Library } from "./library.js";
import { Link } from "./link.js";
import { Operate } from "./operate.js";
import { showPages } from "./pages.js";
import { showPanels } from "./panels.js";
import { showReasoning } from "./reasoning.js";
import { Speech } from "./speech.js";
import { Strips } from "./strips.js";
import { Trials } from "./trials.js";
import { Verdicts } from "./verdicts.js";

const link = new Link();
let services = {};
let keepsVerdicts = false;
let estimated = false; // whether the task is
let mine = false;

function say(text) {
  Object.assign(byId("message"), { textContent: text, hidden: !text });
}

async function ask(name, given) {
  try {
    const answer = await link.ask(name, given);
    say("");
    return answer;
  } catch (error) {
    say(error.message);
    return null;
  }
}

function arrange() {
  byId("sim-section").hidden = !services.pause;
  byId("jobs-section").hidden = !services.jobs;
  byId("jobs-none").hidden = !!services.jobs;
  byId("load").hidden = !services.load_model;
  byId("recorder").hidden = !services.record;
  byId("verdicts").hidden = !keepsVerdicts;
  byId("episode-section").hidden = !services.record && !keepsVerdicts && !estimated;
  const sections = ["#sim-section", "#episode-section", "#trials", "#load", "#start", "#compare", "#tag"];
  const buttons = sections.map((section) => `${section} button`).join();
  for (const button of document.querySelectorAll(buttons)) button.disabled = !mine;
  for (const id of ["delete", "delete-sure", "restore"]) byId(id).disabled = !mine;
  byId("convert").hidden = !services.jobs;
  byId("step").disabled = !mine || byId("pause").dataset.paused !== "true";
}

link.on("open", () => Object.assign(byId("link"), { textContent: "connected", className: "badge good" }));
link.on("close", (reason) => {
  Object.assign(byId("link"), { textContent: "not connected", className: "badge bad" });
  say(reason || "the connection to the studio was lost; trying again");
});
link.on("hello", (hello) => {
  say("");
  keepsVerdicts = hello.verdicts;
  byId("title").textContent = document.title = hello.title || "Studio";
  byId("invite").hidden = !(hello.log_in && hello.role === "operator");
  byId("events").replaceChildren();
  arrange();
});
link.on("refused", say);
link.on("services", (found) => {
  services = found;
  arrange();
});
document.body.addEventListener("seat", ({ detail }) => {
  mine = detail;
  arrange();
});

new Cameras(link);
new Hand(link, ask, new Operate(link, say));
new Speech(link, say);
new Jobs(link, say);
new Strips(link);
new Trials(link, ask);
new Verdicts(link, ask);
new Library(link, ask);
showPages();
showPanels(link);
showReasoning(link);
link.on("sim", arrange);
link.on("estimate", (estimate) => {
  if (estimated === !!estimate) return;
  estimated = !!estimate;
  arrange();
});

byId("reset").onclick = () => ask("reset", {});
byId("pause").onclick = () => ask("pause", { paused: byId("pause").dataset.paused !== "true" });
byId("step").onclick = () => ask("step", {});
byId("record-on").onclick = () => ask("record", { on: true });
byId("record-off").onclick = () => ask("record", { on: false });
byId("load").onsubmit = (event) => {
  event.preventDefault();
  say("loading ...");
  ask("load_model", { model: byId("folder").value.trim() });
};
for (const button of document.querySelectorAll("[data-role]"))
  button.onclick = async () => {
    const answer = await ask("invite", { role: button.dataset.role });
    if (answer) byId("invitation").textContent = answer.link;
  };

link.connect();
