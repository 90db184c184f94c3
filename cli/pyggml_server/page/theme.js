// Before anything is drawn: the colours that were chosen here, so that the other ones do not flash up.
"use strict";
try {
  const theme = JSON.parse(localStorage.getItem("pyggml.theme"));
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // a browser that stores nothing has the system's colours
}
