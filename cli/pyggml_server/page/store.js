// What the browser keeps: conversations in IndexedDB, settings and drafts in localStorage. A browser that keeps nothing
// has them until the page is closed. Nothing of it is sent anywhere.

import { checked } from "./conversation.js";

const NAME = "pyggml";
const VERSION = 2;
const TABLE = "conversations";
const TITLES = "titles"; // an index whose keys are all that the list shows: conversations themselves need not be read
const PREFIX = "pyggml.";

/** Conversations by id. `kept` says whether they outlive the page. */
export class Conversations {
  static async open() {
    try {
      const request = indexedDB.open(NAME, VERSION);
      request.onupgradeneeded = () => {
        const there = request.result.objectStoreNames.contains(TABLE);
        const table = there ? request.transaction.objectStore(TABLE) : request.result.createObjectStore(TABLE, { keyPath: "id" });
        if (!table.indexNames.contains(TITLES)) table.createIndex(TITLES, ["updated", "title"]);
      };
      return new Conversations(await result(request));
    } catch {
      return new Conversations(null);
    }
  }

  constructor(database) {
    this.database = database;
    this.memory = new Map();
    this.kept = database !== null;
  }

  table(mode) {
    return this.database.transaction(TABLE, mode).objectStore(TABLE);
  }

  /** All that are sound, the newest first. */
  async all() {
    const found = this.database ? await result(this.table("readonly").getAll()) : [...this.memory.values()];
    return found
      .map(checked)
      .filter((one) => one !== null)
      .sort((a, b) => b.updated - a.updated);
  }

  /** {id, title} of all, the newest first. */
  async titles() {
    if (!this.database) return (await this.all()).map(({ id, title }) => ({ id, title }));
    const found = [];
    const request = this.table("readonly").index(TITLES).openKeyCursor(null, "prev");
    for (;;) {
      const cursor = await result(request);
      if (!cursor) return found;
      found.push({ id: String(cursor.primaryKey), title: String(cursor.key[1]) });
      cursor.continue();
    }
  }

  async get(id) {
    return checked(this.database ? await result(this.table("readonly").get(id)) : this.memory.get(id));
  }

  /** Rejects where there is no room. */
  async put(conversation) {
    if (this.database) await result(this.table("readwrite").put(conversation));
    else this.memory.set(conversation.id, structuredClone(conversation));
  }

  async remove(id) {
    if (this.database) await result(this.table("readwrite").delete(id));
    else this.memory.delete(id);
  }
}

function result(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
    request.onblocked = () => reject(new Error("another page holds the database"));
  });
}

/** A value that was put away, or `otherwise`. */
export function load(name, otherwise) {
  try {
    return JSON.parse(localStorage.getItem(PREFIX + name)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

/** Put a value away; null removes it. */
export function save(name, value) {
  try {
    if (value === null) localStorage.removeItem(PREFIX + name);
    else localStorage.setItem(PREFIX + name, JSON.stringify(value));
  } catch {
    // it is forgotten with the page
  }
}
