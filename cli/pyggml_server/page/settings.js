// The dialogs: settings, and questions with one answer. Owns what a setting is called in a request.

import { load, save } from "./store.js";

const NUMBERS = ["temperature", "top_k", "top_p", "min_p", "repeat_penalty", "max_tokens", "seed"];
const WITHOUT = { max_tokens: "no limit", seed: "random" };
const dialog = document.getElementById("settings");
const form = dialog.querySelector("form");
const fields = form.elements;

/** {system, thinking, and numbers where they are set}. */
export function settings() {
  const found = load("settings", {});
  const clean = { system: typeof found.system === "string" ? found.system : "", thinking: found.thinking !== false };
  for (const name of NUMBERS) if (typeof found[name] === "number") clean[name] = found[name];
  return clean;
}

export function apiKey() {
  const key = load("key", "");
  return typeof key === "string" ? key : "";
}

/** What the settings add to a request. */
export function requested() {
  const chosen = settings();
  const body = {};
  for (const name of NUMBERS) if (chosen[name] !== undefined) body[name] = chosen[name];
  if (!chosen.thinking) body.chat_template_kwargs = { enable_thinking: false };
  return body;
}

/** The server's own values stand where nothing is set. */
export function showDefaults(params) {
  for (const name of NUMBERS) {
    const value = params?.[name];
    const known = typeof value === "number" && !(name === "max_tokens" && value < 0) && !(name === "seed" && value > 4294967294);
    fields[name].placeholder = known ? String(Math.round(value * 1e4) / 1e4) : (WITHOUT[name] ?? "");
  }
}

let keyed = false; // whether the server asks for a key

/** From now on the settings have a field for the key. */
export function asksForKey() {
  keyed = true;
}

/** Resolves to whether something was saved. */
export function openSettings(note = "") {
  const chosen = settings();
  const key = apiKey();
  document.getElementById("key-field").hidden = !keyed && !key;
  const line = document.getElementById("settings-note");
  line.hidden = !note;
  line.textContent = note;
  fields.key.value = key;
  fields.system.value = chosen.system;
  fields.thinking.checked = chosen.thinking;
  for (const name of NUMBERS) fields[name].value = chosen[name] ?? "";
  dialog.returnValue = "";
  if (!dialog.open) dialog.showModal();
  (keyed && !key ? fields.key : fields.system).focus();
  return new Promise((resolve) => {
    dialog.onclose = () => {
      const saved = dialog.returnValue === "save";
      if (saved) keep();
      resolve(saved);
    };
  });
}

function keep() {
  const chosen = { system: fields.system.value, thinking: fields.thinking.checked };
  for (const name of NUMBERS) if (fields[name].value !== "") chosen[name] = Number(fields[name].value);
  save("settings", chosen);
  save("key", fields.key.value.trim() || null);
}

document.getElementById("cancel-settings").addEventListener("click", () => dialog.close(""));
document.getElementById("reset-settings").addEventListener("click", () => {
  for (const name of NUMBERS) fields[name].value = "";
  fields.system.value = "";
  fields.thinking.checked = true;
});

const ask = document.getElementById("ask");
const askText = document.getElementById("ask-text");
document.getElementById("ask-no").addEventListener("click", () => ask.close(""));

function question(title, yes, dangerous) {
  document.getElementById("ask-title").textContent = title;
  const button = document.getElementById("ask-yes");
  button.textContent = yes;
  button.classList.toggle("danger", dangerous);
  ask.returnValue = "";
  ask.showModal();
  return new Promise((resolve) => {
    ask.onclose = () => resolve(ask.returnValue === "yes");
  });
}

/** Resolves to whether it shall be done. */
export function confirmed(title, yes) {
  askText.hidden = true;
  const answer = question(title, yes, true);
  document.getElementById("ask-no").focus();
  return answer;
}

/** Resolves to a text, or null. */
export async function asked(title, text, yes) {
  askText.hidden = false;
  askText.value = text;
  const answer = question(title, yes, false);
  askText.select();
  return (await answer) ? askText.value.trim() : null;
}
