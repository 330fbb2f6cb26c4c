// Choose, filter and sort. Without this script the page shows all tables, sorted by area.
(() => {
  "use strict";
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const remembered = {
    get() { try { return localStorage.getItem("razorbench-theme"); } catch { return null; } },
    set(value) { try { localStorage.setItem("razorbench-theme", value); } catch { /* a private window: not remembered */ } },
  };
  if (remembered.get()) root.dataset.theme = remembered.get(); // before anything is painted

  const isDark = () => (root.dataset.theme || (dark.matches ? "dark" : "light")) === "dark";

  function theme() {
    const button = document.getElementById("theme");
    const show = () => button.setAttribute("aria-pressed", String(isDark()));
    button.hidden = false;
    button.addEventListener("click", () => {
      root.dataset.theme = isDark() ? "light" : "dark";
      remembered.set(root.dataset.theme);
      show();
    });
    dark.addEventListener("change", show);
    show();
  }

  // Missing values come last in both directions; equal values keep their order.
  function compare(a, b, sign, words) {
    if (a === "" || b === "") return (a === "") - (b === "");
    return sign * (words ? a.localeCompare(b, "en", { numeric: true }) : Number(a) - Number(b));
  }

  function sort(table, heading, place) {
    const was = heading.getAttribute("aria-sort");
    const other = { ascending: "descending", descending: "ascending" };
    const now = was ? other[was] : heading.dataset.first;
    for (const th of table.querySelectorAll("th[aria-sort]")) th.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", now);
    const sign = now === "ascending" ? 1 : -1;
    const body = table.tBodies[0], words = heading.classList.contains("text");
    const lines = [...body.rows].sort((a, b) => compare(a.cells[place].dataset.value, b.cells[place].dataset.value, sign, words));
    body.append(...lines);
  }

  function sortable(table) {
    [...table.querySelectorAll("tr.titles > th")].forEach((heading, place) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...heading.childNodes);
      heading.append(button);
      button.addEventListener("click", () => sort(table, heading, place));
    });
  }

  // A table that is wider than its box fades out at the right, because some systems hide scroll bars.
  function fading(box) {
    const look = () => box.classList.toggle("more", box.scrollLeft + box.clientWidth < box.scrollWidth - 4);
    box.addEventListener("scroll", look, { passive: true });
    new ResizeObserver(look).observe(box);
  }

  function filter(tools) {
    const wanted = (tools.elements.method.value || "").trim().toLowerCase().split(/\s+/);
    const named = (node) => wanted.every((word) => node.dataset.method.toLowerCase().includes(word));
    for (const table of document.querySelectorAll("table[id]")) {
      const by = {};
      for (const box of document.querySelectorAll(`[data-filters="${table.id}"] select`)) by[box.dataset.by] = box.value;
      for (const line of table.tBodies[0].rows) {
        const inside = Object.entries(by).every(([name, value]) => !value || line.dataset[name] === value);
        line.hidden = !(inside && named(line));
      }
    }
    for (const recipe of document.querySelectorAll(".recipes > details")) recipe.hidden = !named(recipe);
    const board = document.querySelector("#results .board:not([hidden]) tbody");
    const lines = board ? [...board.rows] : [];
    const shown = lines.filter((line) => !line.hidden).length;
    document.getElementById("count").textContent = `${shown} of ${lines.length} methods`;
  }

  function choose(tools) {
    const chosen = new FormData(tools);
    for (const part of document.querySelectorAll("#results, #plots, #blocks")) {
      let any = false;
      for (const board of part.querySelectorAll(".board")) {
        board.hidden = ["track", "tuning"].some((name) => chosen.has(name) && chosen.get(name) !== board.dataset[name]);
        any ||= !board.hidden;
      }
      const none = part.querySelector("[data-empty]");
      if (none) none.hidden = any;
    }
    filter(tools);
  }

  addEventListener("DOMContentLoaded", () => {
    const tools = document.getElementById("tools");
    theme();
    document.querySelectorAll("table[id]").forEach(sortable);
    document.querySelectorAll(".scroll").forEach(fading);
    for (const box of document.querySelectorAll("[data-filters]")) {
      box.hidden = false;
      box.addEventListener("change", () => filter(tools));
    }
    addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((one) => { one.open = true; }));
    tools.hidden = false;
    tools.addEventListener("submit", (event) => event.preventDefault());
    tools.addEventListener("input", () => choose(tools));
    tools.reset(); // some browsers restore the form of a reloaded page; the tables would not match it
    choose(tools);
  });
})();
