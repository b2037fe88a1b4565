// What the nodes say of themselves: command node, model, simulation, diagnostics.

import { byId, calmly, clock, fill, fixed, make } from "./elements.js";

const STATES = { enabled: "good", stopped: "bad", inactive: "bad", disabled: "warn" };
const LEVELS = ["good", "warn", "bad", "bad"];
const LEVEL_NAMES = ["OK", "warning", "error", "stale"];

export function showPanels(link) {
  link.on("command", showState);
  link.on("command", calmly(showCommand, "command"));
  link.on("inference", calmly(showInference, "model"));
  link.on("model", (model) => (modelInfo = model));
  link.on("sim", showPause);
  link.on("sim", calmly(showSim, "sim"));
  link.on("diagnostics", calmly(showHealth, "health"));
  link.on("event", showEvent);
}

let modelInfo = null;
let simulated = false;

// A time of the graph: of a clock, or seconds of a simulation.
const when = (time) => (time < 1e9 ? `at ${fixed(time, 1)} s` : clock(time));

function badge(text, kind) {
  return make("dd", {}, make("span", { textContent: text, className: `badge ${kind ?? ""}` }));
}

function showState({ state }) {
  if (byId("robot").textContent !== state)
    Object.assign(byId("robot"), { textContent: state, className: `badge ${STATES[state] ?? ""}` });
  document.body.classList.toggle("still", simulated && state !== "enabled");
}

function showPause({ state }) {
  simulated = true;
  if (byId("pause").dataset.paused === String(state === "paused")) return;
  byId("pause").textContent = state === "paused" ? "Go on" : "Pause";
  byId("pause").dataset.paused = state === "paused";
}

function showCommand(status) {
  const kind = STATES[status.state];
  const stopped = status.stop_kind && `${status.stop_reason} (${status.stop_kind}, ${when(status.stop_time)})`;
  fill(byId("command"), [
    ["state", badge(status.state, kind)],
    ["commanded by", status.source === "human" ? `a person, silent ${status.silences} times` : status.source],
    ["last stop", stopped],
    ["would stop it", status.warning],
    ["commands", `${status.commands}, ${fixed(status.command_rate, 1)} of ${fixed(status.nominal_rate, 1)} Hz`],
    ["scale", fixed(status.scale, 2)],
    ["image behind the chunk", status.image_age_ms === null ? "" : `${fixed(status.image_age_ms)} ms old`],
    ["chunks", `${status.chunks}, refused ${status.refused}, stale steps ${status.stale_steps}`],
    ["last refusal", status.last_refusal],
    ["remark", status.message],
  ]);
  const clips = status.clip_kinds.map((name, i) => [name, status.clip_counts[i]]).filter(([, n]) => n);
  byId("clips").hidden = !clips.length;
  byId("clips").tBodies[0].replaceChildren(
    ...clips.map(([name, count]) =>
      make("tr", {}, make("td", { textContent: name }), make("td", { textContent: count })),
    ),
  );
}

function showInference(status) {
  const parts = modelInfo?.parts.map((part) => `${part.name} (${part.kind})`).join(", ");
  fill(byId("model"), [
    ["model", status.model],
    ["state", badge(status.state, status.state === "active" ? "good" : "bad")],
    ["answers", `${fixed(status.rate, 1)}/s`],
    ["image to chunk", `${fixed(status.latency_ms)} ms, p95 ${fixed(status.latency_p95_ms)} ms`],
    ["images", `${status.received}, not answered ${status.dropped}, refused ${status.refused}`],
    ["chunk", modelInfo ? `${modelInfo.chunk} steps of ${modelInfo.dt} s` : ""],
    ["parts", parts],
    ["last refusal", status.last_refusal],
    ["remark", status.message],
  ]);
  const total = Math.max(...status.stage_ms, 0.001);
  byId("stages").replaceChildren(
    ...status.stage_names.flatMap((name, i) => [
      make("span", { textContent: name }),
      make("progress", { max: total, value: status.stage_ms[i] ?? 0 }),
      make("span", { textContent: `${fixed(status.stage_ms[i], 1)} ms` }),
    ]),
  );
}

function showSim(status) {
  const { episode } = status;
  const done = status.episodes_done;
  fill(byId("sim"), [
    ["state", badge(status.state, { running: "good", error: "bad" }[status.state] ?? "warn")],
    ["task", `${episode.task}, seed ${episode.seed}`],
    ["episode", `${episode.index}, step ${episode.step} of ${episode.horizon}: ${episode.outcome}`],
    ["successes", done ? `${status.successes} of ${done} (${interval(status.successes, done)})` : "0 of 0"],
    ["rate", `${fixed(status.action_rate, 1)} actions/s`],
    ["remark", status.message],
  ]);
}

// Wilson's 95 % interval.
export function interval(successes, trials) {
  const z = 1.959964;
  const p = successes / trials;
  const middle = (p + (z * z) / (2 * trials)) / (1 + (z * z) / trials);
  const half = (z * Math.sqrt((p * (1 - p)) / trials + (z * z) / (4 * trials * trials))) / (1 + (z * z) / trials);
  const percent = (share) => fixed(100 * Math.min(Math.max(share, 0), 1));
  return `95 %: ${percent(middle - half)} to ${percent(middle + half)} %`;
}

function showHealth(nodes) {
  const entries = Object.entries(nodes).sort(([a], [b]) => a.localeCompare(b));
  fill(
    byId("health"),
    entries.map(([name, { level, message }]) => [
      name,
      make("dd", { textContent: `${LEVEL_NAMES[level] ?? level}: ${message}`, className: LEVELS[level] ?? "" }),
    ]),
  );
}

function showEvent({ time, text }) {
  const list = byId("events");
  list.prepend(make("li", {}, make("time", { textContent: clock(time) }), text));
  while (list.children.length > 200) list.lastChild.remove();
}
