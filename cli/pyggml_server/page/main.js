// The page: a conversation with the server that it came from. Owns which conversation is shown, and what keys and buttons do.

import { get } from "./api.js";
import { add, choose, drop, newConversation, path } from "./conversation.js";
import { announce, sends } from "./dom.js";
import { Run } from "./run.js";
import { apiKey, asksForKey, openSettings, showDefaults } from "./settings.js";
import { Sidebar } from "./sidebar.js";
import { Conversations, load, save } from "./store.js";
import { Thread, fit } from "./thread.js";

const SAVED_EVERY = 1000; // ms between two writings of an answer under way
const THEMES = ["system", "light", "dark"];

const $ = (id) => document.getElementById(id);
const prompt = $("prompt");
const notice = $("notice");

class App {
  constructor(store) {
    this.store = store;
    this.current = newConversation();
    this.runs = new Map(); // conversation's id -> Run
    this.model = load("model", "");
    this.thread = new Thread(this);
    this.sidebar = new Sidebar(this);
    this.others = new BroadcastChannel("pyggml");
    this.others.onmessage = () => this.changedElsewhere();
  }

  running(conversation) {
    return this.runs.get(conversation.id);
  }

  /** A conversation: as it is in memory, if it is in use. */
  async whole(id) {
    if (id === this.current.id) return this.current;
    return this.runs.get(id)?.conversation ?? this.store.get(id);
  }

  // ---- conversations

  async choose(id) {
    const found = await this.whole(id);
    if (found) this.show(found);
  }

  show(conversation) {
    this.current = conversation;
    save("current", conversation.id);
    prompt.value = load(`draft.${this.draftName()}`, "");
    fit(prompt);
    this.thread.follows = true;
    this.sidebar.open(false);
    this.refresh();
    this.sidebar.refresh();
    prompt.focus();
  }

  draftName() {
    return this.current.messages.length ? this.current.id : "new";
  }

  refresh() {
    const title = this.current.title || "New chat";
    $("title").textContent = title;
    document.title = this.current.title ? `${title.slice(0, 60)} - pyggml` : "pyggml";
    const busy = Boolean(this.running(this.current));
    $("send").hidden = busy;
    $("stop").hidden = !busy;
    this.thread.refresh();
  }

  async keep(conversation) {
    try {
      await this.store.put(conversation);
    } catch (reason) {
      this.failed(`The conversation could not be kept in this browser: ${reason?.message ?? "there is no room"}`);
    }
  }

  async changed(conversation) {
    await this.keep(conversation);
    this.refresh();
    await this.sidebar.refresh();
    this.others.postMessage("changed");
  }

  async removed(id) {
    this.runs.get(id)?.stop();
    this.runs.delete(id);
    await this.store.remove(id);
    save(`draft.${id}`, null);
    if (id === this.current.id) this.show(newConversation());
    else await this.sidebar.refresh();
    this.others.postMessage("changed");
  }

  async changedElsewhere() {
    if (!this.running(this.current) && this.current.messages.length && !this.thread.box.querySelector(".editing")) {
      const found = await this.store.get(this.current.id);
      if (found) {
        this.current = found;
        this.refresh();
      }
    }
    await this.sidebar.refresh();
  }

  // ---- messages

  async send(text) {
    if (this.running(this.current)) return;
    const draft = this.draftName();
    const conversation = this.current;
    add(conversation, path(conversation).at(-1)?.id ?? null, "user", text);
    prompt.value = "";
    fit(prompt);
    save("current", conversation.id);
    this.thread.end();
    const kept = this.keep(conversation);
    this.answer(conversation);
    await kept;
    save(`draft.${draft}`, draft === this.draftName() ? prompt.value || null : null);
    await this.sidebar.refresh();
  }

  async edited(message, text) {
    const conversation = this.current;
    const made = add(conversation, message.parent, message.role, text);
    if (message.role === "user") this.answer(conversation);
    else {
      made.reasoning = message.reasoning;
      await this.changed(conversation);
    }
    prompt.focus();
  }

  again(message) {
    if (this.running(this.current)) return;
    const conversation = this.current;
    conversation.leaf = message.parent;
    if (!message.content && !message.reasoning && !conversation.messages.some((other) => other.parent === message.id)) drop(conversation, message);
    this.answer(conversation);
    prompt.focus();
  }

  goOn(message) {
    this.answer(this.current, message);
    prompt.focus();
  }

  chosen(message) {
    choose(this.current, message);
    this.changed(this.current);
  }

  /** Have the last message answered, or go on with one that was cut off. */
  async answer(conversation, message = null) {
    const run = new Run(conversation, message ?? add(conversation, conversation.leaf, "assistant", ""), this.model, () => this.grown(run));
    this.runs.set(conversation.id, run);
    this.failed("");
    this.refresh();
    this.thread.grow(run);
    announce("The answer is on its way");
    await run.work();
    if (this.runs.get(conversation.id) !== run) return; // deleted meanwhile
    this.runs.delete(conversation.id);
    conversation.updated = Date.now();
    await this.changed(conversation);
    const { error, end } = run.message;
    announce(error || (end === "stopped" ? "Stopped" : "The answer is complete"));
    if (run.status === 401) this.askForKey();
  }

  grown(run) {
    if (run.painting) return;
    run.painting = true;
    requestAnimationFrame(() => {
      run.painting = false;
      if (this.running(this.current) === run) this.thread.grow(run);
    });
    const now = performance.now();
    if (now - (run.kept ?? 0) > SAVED_EVERY) {
      run.kept = now;
      this.keep(run.conversation);
    }
  }

  stop() {
    this.running(this.current)?.stop();
  }

  // ---- the server

  /** One line above the messages; an empty one takes it away. */
  failed(text) {
    notice.hidden = !text;
    notice.textContent = text;
  }

  async connect() {
    try {
      const props = await get("props", apiKey());
      showDefaults(props.default_generation_settings?.params);
      $("model-name").textContent = props.model_alias ?? "";
      this.failed("");
      this.showModels((await get("v1/models", apiKey())).data ?? []);
    } catch (reason) {
      if (reason.status === 401) await this.askForKey();
      else this.failed(reason.message);
    }
  }

  showModels(models) {
    const names = models.map((one) => String(one.id));
    const select = $("model");
    const several = names.length > 1;
    select.hidden = !several;
    $("model-name").hidden = several;
    if (!names.includes(this.model)) this.model = "";
    if (!several) return;
    select.replaceChildren(...names.map((name) => new Option(name, name, false, name === this.model)));
    this.model ||= String((models.find((one) => one.status?.value === "loaded") ?? models[0]).id);
    select.value = this.model;
  }

  async askForKey() {
    asksForKey();
    if ($("settings").open) return;
    const saved = await openSettings(apiKey() ? "The server does not know this API key." : "This server asks for an API key.");
    if (saved) await this.connect();
  }
}

function theme(name) {
  if (name === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  save("theme", name === "system" ? null : name);
  const label = `Colours: ${{ system: "as the system has them", light: "light", dark: "dark" }[name]}`;
  $("theme").setAttribute("aria-label", label);
  $("theme").title = label;
}

function listen(app) {
  $("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    if (prompt.value.trim()) app.send(prompt.value);
  });
  prompt.addEventListener("keydown", (event) => {
    if (!sends(event)) return;
    event.preventDefault();
    $("composer").requestSubmit();
  });
  prompt.addEventListener("input", () => {
    fit(prompt);
    save(`draft.${app.draftName()}`, prompt.value || null);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
    if (app.sidebar.isOpen) app.sidebar.open(false);
    else app.stop();
  });
  $("stop").addEventListener("click", () => {
    app.stop();
    prompt.focus();
  });
  $("new").addEventListener("click", () => app.show(newConversation()));
  $("open-settings").addEventListener("click", async () => {
    if (await openSettings()) await app.connect();
  });
  $("model").addEventListener("change", (event) => {
    app.model = event.target.value;
    save("model", app.model);
  });
  $("theme").addEventListener("click", () => {
    const now = document.documentElement.dataset.theme ?? "system";
    theme(THEMES[(THEMES.indexOf(now) + 1) % THEMES.length]);
  });
  addEventListener("pagehide", () => {
    for (const run of app.runs.values()) app.keep(run.conversation);
  });
}

const app = new App(await Conversations.open());
theme(document.documentElement.dataset.theme ?? "system");
listen(app);
app.show((await app.store.get(load("current", ""))) ?? newConversation());
await app.connect();
if (!app.store.kept && notice.hidden) app.failed("This browser keeps nothing: conversations are lost when the page is closed.");
