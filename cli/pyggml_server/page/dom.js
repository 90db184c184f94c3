// Elements out of values. Text is only ever text: nothing on this page reads HTML.

const SVG = "http://www.w3.org/2000/svg";

/** An element: `on...` are listeners, true is an attribute without value, false and null are none; strings are text. */
export function el(tag, props = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, String(value));
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

/** Whether a key sends what is written: Enter, but where fingers type it begins a line, as there is no Shift to hold. */
export function sends(event) {
  return event.key === "Enter" && !event.shiftKey && !event.isComposing && !matchMedia("(pointer: coarse)").matches;
}

/** A drawing of index.html's, by its name there. */
export function icon(name) {
  const made = document.createElementNS(SVG, "svg");
  made.setAttribute("class", "icon");
  made.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#i-${name}`);
  made.append(use);
  return made;
}

/** A button that shows a drawing and is called `label`. */
export function iconButton(name, label, onclick, props = {}) {
  return el("button", { type: "button", class: "plain", "aria-label": label, title: label, onclick, ...props }, icon(name));
}

/** Put a text on the clipboard; resolves to whether it is there. */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // pages that came over plain HTTP from another machine have no clipboard, but this old way
    const box = el("textarea", { readonly: true, class: "unseen" });
    box.value = text;
    document.body.append(box);
    box.select();
    const done = document.execCommand("copy");
    box.remove();
    return done;
  }
}

/** A button that copies what `text()` gives, and says so for a moment. */
export function copyButton(label, text) {
  const button = iconButton("copy", label, async () => {
    const done = await copy(text());
    button.replaceChildren(icon(done ? "check" : "cross"));
    announce(done ? "Copied" : "It could not be copied");
    setTimeout(() => button.replaceChildren(icon("copy")), 1500);
  });
  return button;
}

/** Tell those who listen instead of looking. */
export function announce(text) {
  document.getElementById("status").textContent = text;
}
