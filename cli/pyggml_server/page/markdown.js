// Markdown as DOM nodes: paragraphs, headings, lists, tables, quotations, code. After CommonMark's "Phase 1: block
// structure" and GitHub's tables, read as chats write them: HTML is text, a list may be indented by two, --- is always a line.

import { copyButton, el } from "./dom.js";
import { inline } from "./inline.js";

const FENCE = /^(\s{0,40})(`{3,}|~{3,})\s*([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?:\s+(.*))?$/;
const RULE = /^ {0,3}([-*_])(?: *\1){2,} *$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])(?:\s+|$)/;
const TASK = /^\[([ xX])\]\s+/;
const DEEPEST = 12; // lists and quotations within each other
const WIDEST = 64; // columns of a table

/** Show a text in an element. What is there already from the text's beginning stays, so that it can be selected. */
export function show(box, text) {
  const lines = text.replaceAll("\r\n", "\n").split("\n");
  const before = box.blocks ?? [];
  const now = split(lines, 0).map((block) => ({ ...block, source: lines.slice(block.start, block.end).join("\n") }));
  let same = 0;
  while (same < now.length && same < before.length && before[same].source === now[same].source) {
    now[same].node = before[same].node;
    same++;
  }
  for (const [i, block] of now.entries()) {
    if (i < same) continue;
    const old = before[i];
    if (old && grow(old, block)) block.node = old.node;
    else {
      block.node = block.make();
      if (old) old.node.replaceWith(block.node);
      else box.append(block.node);
    }
  }
  for (const block of before.slice(now.length)) block.node.remove();
  box.blocks = now.map(({ kind, source, node, head }) => ({ kind, source, node, head }));
}

/** Code that only goes on keeps its element, and how far it is scrolled. */
function grow(old, block) {
  if (old.kind !== "code" || block.kind !== "code" || old.head !== block.head) return false;
  old.node.querySelector("code").textContent = block.body;
  return true;
}

/** Blocks of lines: {kind, start, end, make}, which cover all but blank lines. */
function split(lines, depth) {
  const found = [];
  let at = 0;
  while (at < lines.length) {
    if (!lines[at].trim()) {
      at++;
      continue;
    }
    const block = fenced(lines, at) ?? indented(lines, at) ?? oneLine(lines, at) ?? nested(lines, at, depth) ?? table(lines, at) ?? paragraph(lines, at, depth);
    found.push(block);
    at = block.end;
  }
  return found;
}

function fenced(lines, start) {
  const found = FENCE.exec(lines[start]);
  if (!found) return null;
  const [, indent, fence, info] = found;
  let end = start + 1;
  const body = [];
  for (; end < lines.length; end++) {
    const line = lines[end].trim();
    if (line.length >= fence.length && line === fence[0].repeat(line.length)) break;
    body.push(outdented(lines[end], indent.length));
  }
  return code(lines[start], info.trim().split(/\s/)[0], body.join("\n"), start, Math.min(end + 1, lines.length));
}

function indented(lines, start) {
  if (!/^( {4}|\t)/.test(lines[start]) || ITEM.test(lines[start])) return null;
  let end = start;
  while (end < lines.length && (/^( {4}|\t)/.test(lines[end]) || !lines[end].trim())) end++;
  while (!lines[end - 1].trim()) end--;
  const body = lines.slice(start, end).map((line) => line.replace(/^( {4}|\t)/, ""));
  return code("", "", body.join("\n"), start, end);
}

function code(head, language, body, start, end) {
  const make = () => {
    const shown = el("code", {}, body);
    const name = language.slice(0, 40) || "text";
    return el(
      "figure",
      { class: "code" },
      el("figcaption", {}, el("span", {}, name), copyButton("Copy code", () => shown.textContent)),
      el("pre", { tabindex: 0, "aria-label": `Code: ${name}` }, shown),
    );
  };
  return { kind: "code", head, body, start, end, make };
}

function oneLine(lines, start) {
  const line = lines[start];
  if (RULE.test(line)) return { kind: "rule", start, end: start + 1, make: () => el("hr") };
  const found = HEADING.exec(line);
  if (!found) return null;
  const level = found[1].length;
  const text = (found[2] ?? "").replace(/(^|\s)#{1,80}\s*$/, "");
  // below the page's own headings
  return { kind: "heading", start, end: start + 1, make: () => el(`h${Math.min(6, level + 2)}`, { class: `level${level}` }, inline(text)) };
}

function nested(lines, start, depth) {
  if (depth >= DEEPEST) return null;
  return quotation(lines, start, depth) ?? list(lines, start, depth);
}

function quotation(lines, start, depth) {
  if (!QUOTE.test(lines[start])) return null;
  let end = start;
  while (end < lines.length && (QUOTE.test(lines[end]) || (lines[end].trim() && !begins(lines, end, depth)))) end++;
  const inner = lines.slice(start, end).map((line) => line.replace(QUOTE, ""));
  return { kind: "quote", start, end, make: () => el("blockquote", {}, nodes(inner, depth + 1)) };
}

function list(lines, start, depth) {
  const first = ITEM.exec(lines[start]);
  if (!first) return null;
  const ordered = /\d/.test(first[2]);
  const base = first[1].length;
  const items = [];
  let at = start;
  let loose = false;
  while (at < lines.length) {
    const marker = ITEM.exec(lines[at]);
    if (!marker || marker[1].length > base + 1 || /\d/.test(marker[2]) !== ordered || RULE.test(lines[at])) break;
    if (marker[1].length < base) break;
    const width = marker[0].length;
    const inner = [lines[at].slice(width)];
    let blank = false;
    for (at++; at < lines.length; at++) {
      const line = lines[at];
      if (!line.trim()) {
        blank = true;
        inner.push("");
        continue;
      }
      const indent = line.length - line.trimStart().length;
      if (indent < base + 2 && (blank || ITEM.test(line) || begins(lines, at, depth))) break;
      loose ||= blank && indent >= base + 2 && !ITEM.test(line) && !FENCE.test(line);
      blank = false;
      inner.push(outdented(line, width));
    }
    items.push(inner);
    if (blank && at < lines.length && ITEM.test(lines[at])) loose = true;
  }
  const make = () => {
    const props = ordered ? { start: Number.parseInt(first[2], 10) } : {};
    return el(ordered ? "ol" : "ul", props, items.map((inner) => item(inner, loose, depth)));
  };
  return { kind: "list", start, end: at, make };
}

function item(lines, loose, depth) {
  const task = TASK.exec(lines[0]);
  if (task) lines = [lines[0].slice(task[0].length), ...lines.slice(1)];
  const inner = split(lines, depth + 1).flatMap((block) => {
    const node = block.make();
    return block.kind === "paragraph" && !loose ? [...node.childNodes] : [node];
  });
  if (!task) return el("li", {}, inner);
  const done = task[1] !== " ";
  return el("li", { class: "task" }, el("input", { type: "checkbox", disabled: true, checked: done, "aria-label": done ? "done" : "to do" }), " ", inner);
}

function table(lines, start) {
  if (!lines[start].includes("|") || !lines[start + 1]?.includes("-")) return null;
  const head = cells(lines[start]);
  const rules = cells(lines[start + 1]);
  if (rules.length !== head.length || head.length > WIDEST || !rules.every((rule) => /^:?-+:?$/.test(rule))) return null;
  const sides = rules.map((rule) => (rule.endsWith(":") ? (rule.startsWith(":") ? "center" : "right") : null));
  let end = start + 2;
  while (end < lines.length && lines[end].includes("|") && lines[end].trim()) end++;
  const row = (tag, texts) =>
    el("tr", {}, head.map((_, i) => el(tag, { class: sides[i], scope: tag === "th" ? "col" : null }, inline(texts[i] ?? ""))));
  const make = () => {
    const rows = lines.slice(start + 2, end).map((line) => row("td", cells(line)));
    return el("div", { class: "table", tabindex: 0, role: "region", "aria-label": "Table" }, el("table", {}, el("thead", {}, row("th", head)), el("tbody", {}, rows)));
  };
  return { kind: "table", start, end, make };
}

function cells(line) {
  const found = [""];
  let ticks = false;
  const text = line.trim();
  for (let i = 0; i < text.length; i++) {
    if (text[i] === "\\" && text[i + 1] === "|") {
      found[found.length - 1] += "|";
      i++;
    } else if (text[i] === "|" && !ticks) found.push("");
    else {
      if (text[i] === "`") ticks = !ticks;
      found[found.length - 1] += text[i];
    }
  }
  if (text.startsWith("|")) found.shift();
  if (found.length > 1 && !found[found.length - 1].trim()) found.pop();
  return found.map((cell) => cell.trim());
}

function paragraph(lines, start, depth) {
  let end = start + 1;
  while (end < lines.length && lines[end].trim() && !begins(lines, end, depth)) end++;
  const text = lines.slice(start, end).map((line) => line.trimStart()).join("\n").trimEnd();
  return { kind: "paragraph", start, end, make: () => el("p", {}, inline(text)) };
}

/** Whether something other than more of a paragraph begins here. */
function begins(lines, at, depth) {
  const line = lines[at];
  if (FENCE.test(line) || RULE.test(line) || HEADING.test(line)) return true;
  if (depth < DEEPEST && (QUOTE.test(line) || ITEM.test(line))) return true;
  return table(lines, at) !== null;
}

function nodes(lines, depth) {
  return split(lines, depth).map((block) => block.make());
}

/** A line without up to so many of its first spaces. */
function outdented(line, width) {
  let n = 0;
  while (n < width && (line[n] === " " || line[n] === "\t")) n++;
  return line.slice(n);
}
