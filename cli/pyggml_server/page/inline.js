// Markdown within a paragraph, as DOM nodes: emphasis, code, links. After CommonMark's "Phase 2: inline structure", with
// what chats add: strike-through, bare addresses, a line's end as a line's end. HTML stays text, images become links.
// Each character is looked at a bounded number of times, whatever the text.

const PLAIN = /[^\\`$*_~!\[\]<&\nh]+/y;
const ADDRESS = /https?:\/\/[^\s<>"'`*|\\]{1,2000}/y;
const ANGLED = /<([a-z][a-z0-9+.-]{1,31}:[^\s<>]{0,2000})>|<([\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8})>|<br\s?\/?>/iy;
const ENTITY = /&(amp|lt|gt|quot|apos|nbsp|#39);/y;
const ENTITIES = { amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0", "#39": "'" };
const PUNCTUATION = /[!-/:-@[-`{-~]/;
const SCHEMES = ["http:", "https:", "mailto:"];
const DEEPEST = 24; // elements within each other
const LONGEST_LINK = 2000;

/** The address, if it is one that may be followed; relative ones lead nowhere here. */
export function safeAddress(text) {
  let url;
  try {
    url = new URL(text);
  } catch {
    return null;
  }
  return SCHEMES.includes(url.protocol) ? url.href : null;
}

function link(address, title) {
  const made = document.createElement("a");
  made.href = address;
  made.target = "_blank";
  made.rel = "noopener noreferrer nofollow";
  if (title) made.title = title;
  return made;
}

/** A fragment with what the text says. */
export function inline(source) {
  return new Inline(source).parse();
}

class Inline {
  constructor(source) {
    this.source = source;
    this.at = 0;
    this.text = "";
    this.made = document.createDocumentFragment();
    this.last = null; // of the delimiters, a list linked both ways
    this.brackets = [];
    this.runs = null; // length of a run of backticks -> where such runs begin
    this.depths = new WeakMap();
  }

  parse() {
    const { source } = this;
    while (this.at < source.length) this.step(source[this.at]);
    this.flush();
    this.emphasise(null);
    this.made.normalize();
    return this.made;
  }

  flush() {
    if (!this.text) return;
    this.made.append(this.text);
    this.text = "";
  }

  node(made) {
    this.flush();
    this.made.append(made);
  }

  match(pattern) {
    pattern.lastIndex = this.at;
    return pattern.exec(this.source);
  }

  take(n) {
    this.text += this.source.slice(this.at, this.at + n);
    this.at += n;
  }

  step(c) {
    if (c === "\\") this.escape();
    else if (c === "`") this.code();
    else if (c === "$") this.dollars();
    else if (c === "*" || c === "_" || c === "~") this.delimiters(c);
    else if (c === "[") this.bracket(1);
    else if (c === "!") this.source[this.at + 1] === "[" ? this.bracket(2) : this.take(1);
    else if (c === "]") this.close();
    else if (c === "<") this.angled();
    else if (c === "&") this.entity();
    else if (c === "\n") this.lineEnd();
    else if (c === "h") this.bare();
    else this.take(this.match(PLAIN)[0].length);
  }

  escape() {
    const next = this.source[this.at + 1];
    if (next === "\n") {
      this.at += 1;
      this.lineEnd();
    } else if (next === "(" || next === "[") {
      if (!this.formula(`\\${next}`, next === "(" ? "\\)" : "\\]")) this.take(2);
    } else if (next !== undefined && PUNCTUATION.test(next)) {
      this.at += 1;
      this.take(1);
    } else this.take(1);
  }

  dollars() {
    if (!this.source.startsWith("$$", this.at) || !this.formula("$$", "$$")) this.take(1);
  }

  /** Formulas are shown as they are written. */
  formula(open, close) {
    this.misses ??= new Set();
    if (this.misses.has(close)) return false;
    const end = this.source.indexOf(close, this.at + open.length);
    if (end < 0) {
      this.misses.add(close); // nor will there be one for a later one
      return false;
    }
    const made = document.createElement("code");
    made.className = "formula";
    made.textContent = this.source.slice(this.at, end + close.length);
    this.node(made);
    this.at = end + close.length;
    return true;
  }

  code() {
    const { source } = this;
    if (this.runs === null) {
      this.runs = new Map();
      for (const run of source.matchAll(/`+/g)) {
        const n = run[0].length;
        if (!this.runs.has(n)) this.runs.set(n, []);
        this.runs.get(n).push(run.index);
      }
    }
    let end = this.at;
    while (source[end] === "`") end++;
    const n = end - this.at;
    const places = this.runs.get(n) ?? []; // after an escaped backtick a run is shorter than it looks
    while (places.length && places[0] < end) places.shift();
    if (!places.length) {
      this.take(n);
      return;
    }
    let inner = source.slice(end, places[0]).replaceAll("\n", " ");
    if (inner.startsWith(" ") && inner.endsWith(" ") && inner.trim()) inner = inner.slice(1, -1);
    const made = document.createElement("code");
    made.textContent = inner;
    this.node(made);
    this.at = places[0] + n;
  }

  delimiters(c) {
    const { source } = this;
    let end = this.at;
    while (source[end] === c) end++;
    const count = end - this.at;
    const before = source[this.at - 1] ?? " ";
    const after = source[end] ?? " ";
    const open = !/\s/.test(after) && (!isMark(after) || /\s/.test(before) || isMark(before));
    const close = !/\s/.test(before) && (!isMark(before) || /\s/.test(after) || isMark(after));
    if (c === "~" && count !== 2) {
      this.take(count);
      return;
    }
    const node = document.createTextNode(source.slice(this.at, end));
    this.node(node);
    this.at = end;
    const run = { c, node, count, whole: count, before: this.last, after: null };
    run.open = c === "_" ? open && (!close || isMark(before)) : open;
    run.close = c === "_" ? close && (!open || isMark(after)) : close;
    if (this.last) this.last.after = run;
    this.last = run;
  }

  /** Pair the delimiters behind `bottom` (CommonMark's "process emphasis"). */
  emphasise(bottom) {
    const floors = new Map(); // what was sought in vain need not be sought again
    let closer = this.last;
    while (closer && closer.before !== bottom) closer = closer.before;
    while (closer) {
      if (!closer.close) {
        closer = closer.after;
        continue;
      }
      const kind = `${closer.c}${closer.open}${closer.whole % 3}`;
      const floor = floors.get(kind) ?? bottom;
      let opener = closer.before;
      while (opener && opener !== bottom && opener !== floor && !pairs(opener, closer)) opener = opener.before;
      if (!opener || opener === bottom || opener === floor) {
        floors.set(kind, closer.before);
        const next = closer.after;
        if (!closer.open) this.drop(closer);
        closer = next;
        continue;
      }
      closer = this.wrap(opener, closer);
    }
    while (this.last && this.last !== bottom) this.drop(this.last);
  }

  wrap(opener, closer) {
    const n = closer.c === "~" || (opener.count > 1 && closer.count > 1) ? 2 : 1;
    const made = document.createElement(closer.c === "~" ? "del" : n === 2 ? "strong" : "em");
    while (opener.after !== closer) this.drop(opener.after);
    if (!this.enclose(made, opener.node, closer.node)) {
      const next = closer.after;
      for (const run of [opener, closer]) this.drop(run);
      return next;
    }
    for (const run of [opener, closer]) {
      run.count -= n;
      run.node.data = run.node.data.slice(n);
    }
    const next = closer.count ? closer : closer.after;
    for (const run of [opener, closer]) if (!run.count) this.drop(run);
    return next;
  }

  drop(run) {
    if (run.before) run.before.after = run.after;
    if (run.after) run.after.before = run.before;
    else this.last = run.before;
  }

  /** Move what lies between two nodes into `made`, which takes its place; whether that was not too deep. */
  enclose(made, first, last) {
    let depth = 0;
    for (let node = first.nextSibling; node !== last; node = node.nextSibling) depth = Math.max(depth, this.depths.get(node) ?? 0);
    if (depth >= DEEPEST) return false;
    while (first.nextSibling !== last) made.append(first.nextSibling);
    first.after(made);
    this.depths.set(made, depth + 1);
    return true;
  }

  bracket(n) {
    this.flush();
    const node = document.createTextNode(this.source.slice(this.at, this.at + n));
    this.made.append(node);
    this.at += n;
    this.brackets.push({ node, image: n === 2, delimiter: this.last });
  }

  close() {
    const opened = this.brackets.pop();
    const found = opened && target(this.source.slice(this.at + 1, this.at + 1 + LONGEST_LINK));
    if (!found) {
      this.take(1);
      return;
    }
    const address = safeAddress(found.address);
    this.flush();
    this.emphasise(opened.delimiter);
    this.at += 1 + found.length;
    const end = document.createTextNode("");
    this.made.append(end);
    opened.node.data = "";
    if (address) {
      const made = link(address, found.title);
      if (!this.enclose(made, opened.node, end)) end.after(made);
      for (const inner of made.querySelectorAll("a")) inner.replaceWith(...inner.childNodes);
      if (!made.hasChildNodes()) made.append(address);
    } else if (found.address) end.data = ` (${found.address})`; // where it would lead is said, not followed
    if (!opened.image) this.brackets = this.brackets.filter((one) => one.image); // no links within links
  }

  angled() {
    const found = this.match(ANGLED);
    if (!found) {
      this.take(1);
      return;
    }
    const [whole, url, mail] = found;
    const address = url ? safeAddress(url) : mail ? `mailto:${mail}` : null;
    if (!url && !mail) this.node(document.createElement("br"));
    else if (!address) this.text += whole;
    else {
      const made = link(address);
      made.textContent = url ?? mail;
      this.node(made);
    }
    this.at += whole.length;
  }

  entity() {
    const found = this.match(ENTITY);
    if (!found) {
      this.take(1);
      return;
    }
    this.text += ENTITIES[found[1]];
    this.at += found[0].length;
  }

  lineEnd() {
    this.text = this.text.replace(/ {1,80}$/, "");
    this.node(document.createElement("br"));
    this.at += 1;
  }

  bare() {
    const found = /\w/.test(this.source[this.at - 1] ?? "") ? null : this.match(ADDRESS);
    let text = found?.[0] ?? "";
    while (/[.,;:!?)\]}_~]$/.test(text)) {
      if (text.endsWith(")") && text.split("(").length >= text.split(")").length) break;
      text = text.slice(0, -1);
    }
    const address = text && safeAddress(text);
    if (!address) {
      this.take(1);
      return;
    }
    const made = link(address);
    made.textContent = text;
    this.node(made);
    this.at += text.length;
  }
}

function isMark(c) {
  return /[\p{P}\p{S}]/u.test(c);
}

function pairs(opener, closer) {
  if (opener.c !== closer.c || !opener.open) return false;
  if (!opener.close && !closer.open) return true;
  return (opener.whole + closer.whole) % 3 !== 0 || (opener.whole % 3 === 0 && closer.whole % 3 === 0);
}

/** What stands in the `(address "title")` that a text begins with, and how long that is. */
function target(source) {
  if (source[0] !== "(") return null;
  let at = 1;
  const spaces = () => {
    while (at < source.length && /\s/.test(source[at])) at++;
  };
  spaces();
  let address = "";
  if (source[at] === "<") {
    const end = source.indexOf(">", at);
    if (end < 0 || source.slice(at, end).includes("\n")) return null;
    address = source.slice(at + 1, end);
    at = end + 1;
  } else {
    const from = at;
    for (let open = 0; at < source.length && !/\s/.test(source[at]); at++) {
      if (source[at] === "(") open++;
      else if (source[at] === ")" && open-- === 0) break;
    }
    address = source.slice(from, at);
  }
  spaces();
  let title = "";
  if (source[at] === '"' || source[at] === "'") {
    const end = source.indexOf(source[at], at + 1);
    if (end < 0) return null;
    title = source.slice(at + 1, end);
    at = end + 1;
    spaces();
  }
  return source[at] === ")" ? { address, title, length: at + 1 } : null;
}
