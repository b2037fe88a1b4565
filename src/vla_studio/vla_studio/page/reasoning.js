// What a model that reasons thinks: its fields as they come, and whether it has come to an action.

import { byId, fill } from "./elements.js";

const FIELDS = ["plan", "subtask", "move", "subtask_reasoning", "move_reasoning", "visible_objects", "gripper_position"];

const state = ({ whole, kept }) => (kept ? "kept from an earlier image" : whole ? "whole" : "thinking");

export function showReasoning(link) {
  link.on("hello", () => (byId("reasoning-section").hidden = true));
  link.on("reasoning", (reasoning) => {
    byId("reasoning-section").hidden = !reasoning;
    if (!reasoning) return;
    const kind = reasoning.whole ? "good" : "warn";
    Object.assign(byId("reasoning-state"), { textContent: state(reasoning), className: `badge ${kind}` });
    const rows = FIELDS.map((name) => [name.replace("_", " "), reasoning[name]]);
    fill(byId("reasoning"), [["task", reasoning.task || reasoning.instruction], ...rows]);
    byId("reasoning-tokens").textContent = `${reasoning.tokens} tokens, of ${reasoning.model}`;
  });
}
