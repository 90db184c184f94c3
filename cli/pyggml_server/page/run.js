// One answer on its way: what is asked, what comes, how fast, and how it ended.

import { chat } from "./api.js";
import { path } from "./conversation.js";
import { apiKey, requested, settings } from "./settings.js";

export class Run {
  /** The answer goes into `message`, the last one of the conversation; `grown()` is called with each part of it. */
  constructor(conversation, message, model, grown) {
    Object.assign(this, { conversation, message, model, grown });
    this.controller = new AbortController();
    this.before = message.stats?.tokens ?? 0; // of an answer that is gone on with
    this.n = 0;
    this.began = 0; // ms, of the first token
  }

  stop() {
    this.controller.abort();
  }

  /** Resolves when the answer has ended, however that was: message.error and message.end say it. */
  async work() {
    const { message } = this;
    message.error = message.end = "";
    const body = { ...requested(), messages: this.messages() };
    if (this.model) body.model = this.model;
    try {
      await chat(body, apiKey(), this.controller.signal, (chunk) => this.got(chunk));
    } catch (reason) {
      if (reason.name === "AbortError") message.end = "stopped";
      else message.error = reason.message;
      this.status = reason.status;
    }
    if (!this.told && this.n) message.stats = { tokens: this.before + this.n, rate: this.rate(), prompt: 0, model: this.name ?? "" };
  }

  /** What was said so far. Messages of one side that follow each other, as no answer came, are one. */
  messages() {
    const { system } = settings();
    const found = system.trim() ? [{ role: "system", content: system }] : [];
    for (const { role, content } of path(this.conversation)) {
      if (!content) continue;
      const last = found.at(-1);
      if (last?.role === role) last.content += `\n\n${content}`;
      else found.push({ role, content });
    }
    return found;
  }

  got(chunk) {
    const { message } = this;
    const choice = chunk.choices?.[0];
    if (typeof chunk.model === "string") this.name = chunk.model;
    const { content, reasoning_content: reasoning } = choice?.delta ?? {};
    if (content || reasoning) {
      if (!this.n++) this.began = performance.now();
      if (content) message.content += content;
      if (reasoning) message.reasoning += reasoning;
    }
    if (choice?.finish_reason === "length") message.end = "length";
    const timings = chunk.timings;
    if (timings) {
      this.told = true;
      message.stats = { tokens: this.before + timings.predicted_n, rate: timings.predicted_per_second, prompt: timings.prompt_n + timings.cache_n, model: this.name ?? "" };
    }
    this.grown(this);
  }

  rate() {
    const seconds = (performance.now() - this.began) / 1000;
    return this.n > 1 && seconds > 0 ? (this.n - 1) / seconds : 0;
  }

  /** How fast it comes just now. */
  speed() {
    return this.n > 4 ? `${this.rate().toFixed(1)} tokens/s` : "";
  }
}
