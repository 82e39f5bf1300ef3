"use strict";
(() => {
  async function copy(text) {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      const area = document.createElement("textarea"); // older browsers, and files opened from disk
      area.value = text;
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
  }

  for (const button of document.querySelectorAll("[data-copy]")) {
    button.addEventListener("click", async () => {
      const before = button.textContent;
      await copy(button.dataset.copy);
      button.textContent = "copied";
      setTimeout(() => { button.textContent = before; }, 1200);
    });
  }
  for (const more of document.querySelectorAll("button.more")) {
    more.addEventListener("click", () => {
      document.querySelectorAll(`#${more.dataset.of} tr.more`).forEach((row) => row.classList.remove("hidden"));
      more.remove();
    });
  }
})();
