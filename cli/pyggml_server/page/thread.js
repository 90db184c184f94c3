// The messages of a conversation as they are shown, and what can be done with each of them.

import { path, siblings } from "./conversation.js";
import { copyButton, el, iconButton, sends } from "./dom.js";
import { show } from "./markdown.js";

const NEAR = 80; // pixels from the end within which the view follows an answer

export class Thread {
  /** `app` has current, running(conversation), edited(message, text), again(message), goOn(message), chosen(message). */
  constructor(app) {
    this.app = app;
    this.box = document.getElementById("thread");
    this.scroller = document.getElementById("scroller");
    this.toEnd = document.getElementById("to-end");
    this.views = new Map();
    this.follows = true;
    this.scroller.addEventListener("scroll", () => this.scrolled());
    this.toEnd.addEventListener("click", () => this.end());
    new ResizeObserver(() => this.follow()).observe(this.box);
  }

  /** Show the conversation as it is now. */
  refresh() {
    const { app } = this;
    const shown = path(app.current);
    const views = new Map(shown.map((message) => [message.id, this.views.get(message.id) ?? new View(app)]));
    const running = app.running(app.current);
    for (const [i, message] of shown.entries()) {
      views.get(message.id).update(message, app.current, { last: i === shown.length - 1, running: running?.message === message, busy: Boolean(running) });
    }
    const nodes = [...views.values()].map((view) => view.node);
    if (nodes.length !== this.box.children.length || nodes.some((node, i) => this.box.children[i] !== node)) this.box.replaceChildren(...nodes);
    this.views = views;
    document.getElementById("empty").hidden = shown.length > 0;
    this.follow();
  }

  /** Show what has come of the answer under way. */
  grow(run) {
    this.views.get(run.message.id)?.grow(run.message, run);
    this.follow();
  }

  scrolled() {
    const { scrollHeight, scrollTop, clientHeight } = this.scroller;
    this.follows = scrollHeight - scrollTop - clientHeight < NEAR;
    this.toEnd.hidden = this.follows;
  }

  follow() {
    if (this.follows) this.scroller.scrollTop = this.scroller.scrollHeight;
  }

  end() {
    this.follows = true;
    this.toEnd.hidden = true;
    this.follow();
  }
}

class View {
  constructor(app) {
    this.app = app;
    this.thought = el("div", { class: "prose" });
    this.summary = el("summary");
    this.reasoning = el("details", { class: "reasoning", hidden: true }, this.summary, this.thought);
    this.text = el("div", { class: "text" });
    this.error = el("p", { class: "error", role: "alert", hidden: true });
    this.stats = el("span", { class: "stats" });
    this.tools = el("div", { class: "tools" });
    this.node = el("article", {}, this.reasoning, this.text, this.error, el("footer", {}, this.tools, this.stats));
    this.editing = false;
  }

  update(message, conversation, { last, running, busy }) {
    const mine = message.role === "user";
    this.message = message;
    this.node.className = `message ${message.role}`;
    this.node.setAttribute("aria-label", mine ? "You" : "Answer");
    this.node.toggleAttribute("data-running", running);
    this.node.setAttribute("aria-busy", String(running));
    this.error.hidden = !message.error;
    this.error.replaceChildren(message.error);
    if (message.error && !busy && last) {
      this.error.append(" ", el("button", { type: "button", class: "link", onclick: () => this.app.again(message) }, "Try again"));
    }
    if (!this.editing) this.grow(message, null);
    this.tools.replaceChildren(...(running || this.editing ? [] : this.buttons(message, conversation, last, busy)));
  }

  /** The text, what was thought, and how fast it came. */
  grow(message, run) {
    if (message.role === "user") this.text.textContent = message.content;
    else {
      this.text.classList.add("prose");
      show(this.text, message.content);
      this.text.classList.toggle("waiting", Boolean(run) && !message.content && !message.reasoning);
    }
    this.reasoning.hidden = !message.reasoning;
    if (message.reasoning) {
      show(this.thought, message.reasoning);
      this.summary.textContent = run && !message.content ? "Thinking …" : "What was thought";
    }
    this.stats.textContent = run ? run.speed() : told(message);
  }

  buttons(message, conversation, last, busy) {
    const { app } = this;
    const mine = message.role === "user";
    const made = [];
    const all = siblings(conversation, message);
    if (all.length > 1) {
      const i = all.indexOf(message);
      made.push(
        iconButton("left", "The version before", () => app.chosen(all[i - 1]), { disabled: busy || i === 0 }),
        el("span", { class: "count", "aria-label": `Version ${i + 1} of ${all.length}` }, `${i + 1}/${all.length}`),
        iconButton("right", "The version after", () => app.chosen(all[i + 1]), { disabled: busy || i === all.length - 1 }),
      );
    }
    if (message.content) made.push(copyButton("Copy message", () => message.content));
    if (message.content || mine) made.push(iconButton("edit", mine ? "Edit and ask again" : "Edit answer", () => this.edit(), { disabled: busy }));
    if (!mine) made.push(iconButton("again", "Answer again", () => app.again(message), { disabled: busy }));
    if (!mine && last && message.content && (message.end || message.error)) {
      made.push(iconButton("on", "Go on with this answer", () => app.goOn(message), { disabled: busy }));
    }
    return made;
  }

  edit() {
    const { message } = this;
    const mine = message.role === "user";
    const box = el("textarea", { class: "edit", "aria-label": mine ? "Edit your message" : "Edit the answer", rows: 3 });
    box.value = message.content;
    const end = () => {
      this.editing = false;
      this.text.replaceChildren();
      this.text.blocks = [];
      this.node.classList.remove("editing");
    };
    const cancel = () => {
      end();
      this.app.refresh();
      this.node.querySelector(".tools button")?.focus();
    };
    const save = () => {
      if (!box.value.trim()) return;
      end();
      this.app.edited(message, box.value);
    };
    box.addEventListener("keydown", (event) => {
      if (event.key === "Escape") {
        event.stopPropagation();
        cancel();
      } else if (mine && sends(event)) {
        event.preventDefault();
        save();
      }
    });
    box.addEventListener("input", () => fit(box));
    this.editing = true;
    this.node.classList.add("editing");
    this.text.classList.remove("prose");
    this.text.replaceChildren(
      box,
      el(
        "div",
        { class: "actions" },
        el("button", { type: "button", class: "quiet", onclick: cancel }, "Cancel"),
        el("button", { type: "button", class: "main", onclick: save }, mine ? "Send" : "Save"),
      ),
    );
    this.tools.replaceChildren();
    fit(box);
    box.focus();
  }
}

/** As high as its text is, up to a part of the window. */
export function fit(box) {
  box.style.height = "auto";
  box.style.height = `${Math.min(box.scrollHeight + 2, window.innerHeight * 0.4)}px`;
}

function told({ stats, end }) {
  const parts = [];
  if (end === "stopped") parts.push("stopped");
  if (end === "length") parts.push("cut off: no more tokens allowed");
  if (stats?.tokens) parts.push(`${stats.tokens} tokens`);
  if (stats?.rate) parts.push(`${stats.rate.toFixed(1)} tokens/s`);
  if (stats?.model) parts.push(stats.model);
  return parts.join(" · ");
}
