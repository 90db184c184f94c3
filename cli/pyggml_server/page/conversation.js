// A conversation as a tree of messages: editing one or asking again makes a sibling, so that nothing said is lost. Owns
// its shape, and the check of what comes from storage or from a file.

export const LONGEST_TITLE = 200;

export function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

export function newConversation() {
  const now = Date.now();
  return { id: newId(), title: "", created: now, updated: now, leaf: null, messages: [] };
}

/** Add a message below `parent` (an id, null at the beginning) and make it the end of what is shown. */
export function add(conversation, parent, role, content) {
  const message = { id: newId(), parent, role, content, reasoning: "", created: Date.now(), stats: null, error: "", end: "" };
  conversation.messages.push(message);
  conversation.leaf = message.id;
  conversation.updated = message.created;
  if (!conversation.title && role === "user") conversation.title = content.trim().replace(/\s+/g, " ").slice(0, 80);
  return message;
}

/** Take a message away that nothing depends on. */
export function drop(conversation, message) {
  conversation.messages = conversation.messages.filter((other) => other !== message);
  conversation.leaf = message.parent;
}

/** The messages from the first to the one at the end, in order. */
export function path(conversation) {
  const byId = new Map(conversation.messages.map((message) => [message.id, message]));
  const found = [];
  for (let message = byId.get(conversation.leaf); message; message = byId.get(message.parent)) found.unshift(message);
  return found;
}

export function siblings(conversation, message) {
  return conversation.messages.filter((other) => other.parent === message.parent);
}

/** Show the conversation through this message, down to the newest below it. */
export function choose(conversation, message) {
  let leaf = message;
  for (;;) {
    const below = conversation.messages.filter((other) => other.parent === leaf.id);
    if (!below.length) break;
    leaf = below[below.length - 1];
  }
  conversation.leaf = leaf.id;
}

/** A conversation made of a value that may be anything; null if it is none. */
export function checked(value) {
  if (typeof value !== "object" || value === null || !Array.isArray(value.messages)) return null;
  if (typeof value.id !== "string" || !/^[\w-]{1,64}$/.test(value.id)) return null;
  const known = new Set();
  const messages = [];
  for (const one of value.messages) {
    const message = checkedMessage(one, known);
    if (!message) return null;
    known.add(message.id);
    messages.push(message);
  }
  const leaf = known.has(value.leaf) ? value.leaf : (messages.at(-1)?.id ?? null);
  const title = text(value.title).slice(0, LONGEST_TITLE);
  return { id: value.id, title, created: number(value.created), updated: number(value.updated), leaf, messages };
}

/** Parents come before their children, so there are no circles. */
function checkedMessage(value, known) {
  if (typeof value !== "object" || value === null) return null;
  const { id, parent, role } = value;
  if (typeof id !== "string" || !/^[\w-]{1,64}$/.test(id) || known.has(id)) return null;
  if ((parent !== null && !known.has(parent)) || !["user", "assistant"].includes(role)) return null;
  const stats = typeof value.stats === "object" && value.stats !== null ? value.stats : null;
  return {
    id,
    parent,
    role,
    content: text(value.content),
    reasoning: text(value.reasoning),
    created: number(value.created),
    stats: stats && { tokens: number(stats.tokens), rate: number(stats.rate), prompt: number(stats.prompt), model: text(stats.model) },
    error: text(value.error),
    end: ["stopped", "length"].includes(value.end) ? value.end : "",
  };
}

function text(value) {
  return typeof value === "string" ? value : "";
}

function number(value) {
  return typeof value === "number" && Number.isFinite(value) ? value : 0;
}
