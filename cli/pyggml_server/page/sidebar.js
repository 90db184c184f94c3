// The list of conversations: choose, rename, export, delete; and all of them to a file and back.

import { LONGEST_TITLE, checked, newId } from "./conversation.js";
import { el, iconButton } from "./dom.js";
import { asked, confirmed } from "./settings.js";

const LARGEST_FILE = 256 * 1024 * 1024;
const FORMAT = "pyggml-conversations";

export class Sidebar {
  /** `app` has store, current, choose(id), whole(id), changed(conversation), removed(id), failed(text). */
  constructor(app) {
    this.app = app;
    this.list = document.getElementById("history");
    this.box = document.getElementById("sidebar");
    this.backdrop = document.getElementById("backdrop");
    this.opener = document.getElementById("open-sidebar");
    this.opener.addEventListener("click", () => this.open(true));
    document.getElementById("close-sidebar").addEventListener("click", () => this.open(false));
    this.backdrop.addEventListener("click", () => this.open(false));
    document.getElementById("export-all").addEventListener("click", async () => download(await app.store.all(), "conversations"));
    const file = document.getElementById("import-file");
    document.getElementById("import").addEventListener("click", () => file.click());
    file.addEventListener("change", async () => {
      if (file.files.length) await this.take(file.files[0]);
      file.value = "";
    });
  }

  get isOpen() {
    return this.box.classList.contains("open");
  }

  /** On a narrow screen the list lies over the conversation. */
  open(on) {
    if (on === this.isOpen) return;
    this.box.classList.toggle("open", on);
    this.backdrop.hidden = !on;
    this.opener.setAttribute("aria-expanded", String(on));
    (on ? document.getElementById("close-sidebar") : this.opener).focus();
  }

  async refresh() {
    const { app } = this;
    const found = await app.store.titles();
    this.list.replaceChildren(...found.map((one) => this.row(one, one.id === app.current.id)));
  }

  row(conversation, current) {
    const title = conversation.title || "New chat";
    const choose = el(
      "button",
      { type: "button", class: "title", title, "aria-current": current ? "true" : null, onclick: () => this.app.choose(conversation.id) },
      title,
    );
    const tools = el(
      "span",
      { class: "tools" },
      iconButton("edit", `Rename: ${title}`, () => this.rename(conversation)),
      iconButton("save", `Export: ${title}`, async () => download([await this.app.whole(conversation.id)], title)),
      iconButton("trash", `Delete: ${title}`, () => this.remove(conversation)),
    );
    return el("li", { class: current ? "current" : null }, choose, tools);
  }

  async rename(conversation) {
    const title = await asked("Rename this chat", conversation.title, "Rename");
    if (title === null) return;
    const whole = await this.app.whole(conversation.id);
    if (!whole) return;
    whole.title = title.slice(0, LONGEST_TITLE);
    await this.app.changed(whole);
  }

  async remove(conversation) {
    if (!(await confirmed(`Delete “${(conversation.title || "New chat").slice(0, 60)}”?`, "Delete"))) return;
    await this.app.removed(conversation.id);
  }

  /** Add what a file has; conversations that are here already are not written over. */
  async take(file) {
    let found = [];
    try {
      if (file.size > LARGEST_FILE) throw new Error("the file is too large");
      const value = JSON.parse(await file.text());
      if (value?.format !== FORMAT || !Array.isArray(value.conversations)) throw new Error("it was not exported by this page");
      found = value.conversations.map(checked);
      if (found.includes(null)) throw new Error("a conversation in it is damaged");
      const here = new Set((await this.app.store.titles()).map((one) => one.id));
      for (const one of found) await this.app.store.put(here.has(one.id) ? { ...one, id: newId() } : one);
    } catch (reason) {
      this.app.failed(`${file.name} cannot be imported: ${reason.message}`);
    }
    await this.refresh();
  }
}

function download(conversations, name) {
  const text = JSON.stringify({ format: FORMAT, version: 1, conversations }, null, 1);
  const url = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  const file = `${name.replace(/[^\p{L}\p{N} ._-]/gu, "_").slice(0, 60) || "chat"}.json`;
  const link = el("a", { href: url, download: file });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}
