// Choose, filter and sort. Without this script the page shows all tables, sorted by area.
(() => {
  "use strict";
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const remembered = {
    get() { try { return localStorage.getItem("razorbench-theme"); } catch { return null; } },
    set(value) { try { localStorage.setItem("razorbench-theme", value); } catch { /* a private window: not remembered */ } },
  };
  if (remembered.get()) root.dataset.theme = remembered.get(); // before anything is painted
  root.classList.add("script");

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

  // Tables: every cell knows its heading, for small screens; every line knows the values that filters ask for.
  const value = (cell) => cell.dataset.value ?? cell.textContent.trim();
  const titles = (table) => all("tr.titles > th", table);

  function prepare(table) {
    const headings = titles(table);
    for (const line of table.tBodies[0].rows) {
      headings.forEach((heading, k) => {
        line.cells[k].dataset.label = heading.dataset.label;
        if (heading.dataset.key) line.dataset[heading.dataset.key] = value(line.cells[k]);
      });
    }
    headings.forEach((heading, place) => {
      const button = document.createElement("button");
      button.type = "button";
      button.dataset.label = heading.dataset.label;
      button.append(...heading.childNodes);
      heading.append(button);
      const other = { ascending: "descending", descending: "ascending" };
      button.addEventListener("click", () => sort(table, place, other[heading.getAttribute("aria-sort")] || heading.dataset.first));
    });
  }

  // Missing values come last in both directions; equal values keep their order.
  function compare(a, b, sign, words) {
    const [none, other] = [a, b].map((one) => one === "" || one === "–");
    if (none || other) return none - other;
    return sign * (words ? a.localeCompare(b, "en", { numeric: true }) : Number(a) - Number(b));
  }

  function sort(table, place, direction) {
    for (const th of all("th[aria-sort]", table)) th.removeAttribute("aria-sort");
    const heading = titles(table)[place];
    heading.setAttribute("aria-sort", direction);
    const sign = direction === "ascending" ? 1 : -1;
    const words = heading.classList.contains("text");
    const lines = [...table.tBodies[0].rows].map((line) => [value(line.cells[place]), line]);
    lines.sort((a, b) => compare(a[0], b[0], sign, words));
    table.tBodies[0].append(...lines.map(([, line]) => line));
  }

  // A table that is wider than its box fades out at the right, because some systems hide scroll bars.
  function fading(box) {
    const look = () => box.classList.toggle("more", box.scrollLeft + box.clientWidth < box.scrollWidth - 4);
    box.addEventListener("scroll", look, { passive: true });
    new ResizeObserver(look).observe(box);
  }

  // Choices: what the form says, kept in the address after #.
  const NAMES = ["track", "tuning", "dataset", "architecture", "block", "method"];

  function chosen(form) {
    const data = new FormData(form);
    return Object.fromEntries(NAMES.filter((name) => data.get(name)).map((name) => [name, data.get(name)]));
  }

  function restore(form) {
    form.reset(); // some browsers restore the form of a reloaded page
    for (const [name, wanted] of new URLSearchParams(location.hash.slice(1))) {
      const field = NAMES.includes(name) && form.elements[name];
      if (!field) continue;
      const before = field.value;
      field.value = wanted;
      if (field.value !== wanted) field.value = before; // a choice that this leaderboard does not have
    }
  }

  function remember(form) {
    const now = chosen(form);
    const usual = new Map(all("input[type=radio]", form).filter((one) => one.defaultChecked).map((one) => [one.name, one.value]));
    const said = new URLSearchParams(Object.entries(now).filter(([name, text]) => usual.get(name) !== text));
    history.replaceState(null, "", `${location.href.split("#")[0]}${String(said) ? "#" : ""}${said}`);
  }

  function matches(line, now) {
    const of = line.dataset;
    const words = (now.method || "").trim().toLowerCase().split(/\s+/);
    return (of.dataset === undefined
        || ((!now.dataset || of.dataset === now.dataset) && (!now.architecture || of.architecture === now.architecture)
          && (!now.block || `${of.dataset} / ${of.architecture}` === now.block)))
      && words.every((word) => (of.method || "").toLowerCase().includes(word));
  }

  function cell(tag, text, attributes = {}) {
    const made = document.createElement(tag);
    made.textContent = text;
    for (const [name, content] of Object.entries(attributes)) if (content !== undefined) made.setAttribute(name, content);
    return made;
  }

  const FORMATS = { percent: (v) => (100 * v).toFixed(1), area: (v) => v.toFixed(3), count: String };

  // A table of [{title, kind, key, mean, cells}], one cell per line; texts, numbers (by their format), or ready elements.
  function build(id, name, columns) {
    const table = document.createElement("table");
    table.id = id;
    const [head, body] = [table.createTHead().insertRow(), table.createTBody()];
    table.prepend(cell("caption", name, { class: "unseen" }));
    head.className = "titles";
    for (const { title, kind = "text", key, mean } of columns) {
      const first = kind === "text" ? "ascending" : "descending";
      const th = cell("th", "", { scope: "col", class: kind, "data-first": first, "data-label": title, "data-key": key, "data-mean": mean });
      th.append(cell("span", title, { class: "head" }));
      head.append(th);
    }
    columns[0].cells.forEach((_, k) => {
      const line = body.insertRow();
      for (const { cells: { [k]: one }, mean } of columns) {
        if (one instanceof Element) line.append(one);
        else if (!mean) line.append(cell("td", one, { class: "text" }));
        else line.append(Number.isFinite(one) ? cell("td", FORMATS[mean](one), { "data-value": one }) : cell("td", "–", { "data-value": "" }));
      }
    });
    prepare(table);
    const box = cell("div", "", { class: "scroll", role: "region", "aria-label": name, tabindex: 0 });
    box.append(table);
    fading(box);
    return box;
  }

  const mean = (numbers) => numbers.reduce((sum, one) => sum + one, 0) / numbers.length;

  // With chosen blocks, a leaderboard shows means over these blocks, from its table of blocks.
  function narrow(board, k, now) {
    const box = board.querySelector(".narrowed"), whole = board.querySelector(".whole");
    const source = document.getElementById(`block-${k + 1}`), leaders = document.getElementById(`board-${k + 1}`);
    const some = Boolean((now.dataset || now.architecture || now.block) && source);
    [box.hidden, whole.hidden] = [!some, some];
    box.replaceChildren();
    if (!some) return sort(leaders, titles(leaders).findIndex((th) => th.classList.contains("area")), "descending");
    const lines = [...source.tBodies[0].rows];
    const inside = lines.filter((line) => matches(line, { ...now, method: "" }));
    const blocks = new Set(inside.map((line) => `${line.dataset.dataset} / ${line.dataset.architecture}`));
    const every = new Set(lines.map((line) => `${line.dataset.dataset} / ${line.dataset.architecture}`));
    const named = [...leaders.tBodies[0].rows].map((line) => line.querySelector("th"));
    const methods = named.filter((th) => inside.some((line) => line.dataset.method === th.dataset.value));
    const of = methods.map((th) => inside.filter((line) => line.dataset.method === th.dataset.value));
    const columns = [{ title: "Method", key: "method", cells: methods.map((th) => th.cloneNode(true)) }];
    titles(source).forEach((heading, place) => {
      if (!heading.dataset.mean) return;
      const cells = of.map((own) => mean(own.map((line) => value(line.cells[place])).filter((v) => v && v !== "–").map(Number)));
      columns.push({ title: heading.dataset.label, kind: "number", mean: heading.dataset.mean, cells });
    });
    columns.push({ title: "Blocks", kind: "number", mean: "count", cells: of.map((own) => own.length) });
    box.append(build(`narrow-${k + 1}`, `Chosen blocks: ${board.querySelector("h3").textContent}`, columns));
    const said = `Means over ${blocks.size} of ${every.size} blocks. Ranks and intervals are those of all blocks: clear the choice to see them.`;
    box.append(cell("p", said, { class: "note" }));
    sort(box.querySelector("table"), columns.findIndex((one) => one.mean === "area"), "descending");
  }

  function filter(now) {
    for (const table of all("table[id]")) {
      const lines = [...table.tBodies[0].rows];
      for (const line of lines) line.hidden = !matches(line, now);
      table.parentElement.classList.toggle("none", lines.every((line) => line.hidden));
    }
    for (const recipe of all(".recipes > details")) recipe.hidden = !matches(recipe, now);
    const board = all("#results .board").find((one) => !one.hidden);
    const lines = board ? all(":scope > div:not([hidden]) tbody tr", board) : [];
    const shown = lines.filter((line) => !line.hidden).length;
    document.getElementById("count").textContent = `${shown} of ${lines.length} methods`;
  }

  function choose(form, switched) {
    const now = chosen(form);
    for (const part of all("#results, #plots, #blocks")) {
      let any = false;
      for (const board of all(".board", part)) {
        board.hidden = ["track", "tuning"].some((name) => now[name] && now[name] !== board.dataset[name]);
        any ||= !board.hidden;
      }
      const none = part.querySelector("[data-empty]");
      if (none) none.hidden = any;
    }
    if (switched) all("#results .board").forEach((board, k) => { if (!board.hidden) narrow(board, k, now); });
    filter(now);
  }

  // blocks.csv, for leaderboards whose blocks are too many for the page. A page that is a file may not read other files.
  function parsed(text) {
    const lines = [[""]];
    for (const [, quoted, plain, end] of text.matchAll(/(?:"((?:[^"]|"")*)"|([^",\n]*))(,|\r?\n|$)/g)) {
      const line = lines.at(-1);
      line[line.length - 1] = quoted === undefined ? plain : quoted.replaceAll('""', '"');
      if (end === ",") line.push(""); else lines.push([""]);
    }
    const [names, ...rest] = lines.filter((line) => line.length > 1);
    return rest.map((line) => Object.fromEntries(names.map((name, k) => [name, line[k]])));
  }

  function blockTable(id, name, lines) {
    const sparsities = [...new Set(lines.map((line) => line.sparsity))].sort((a, b) => a - b);
    const by = Map.groupBy(lines, (line) => JSON.stringify([line.method, line.dataset, line.architecture, line.granularity, line.match]));
    const own = [...by.values()];
    const number = (text) => (text === "" || text === undefined ? NaN : Number(text));
    const at = (s) => own.map((one) => number(one.find((line) => line.sparsity === s)?.accuracy));
    const heads = own.map(([first]) => {
      const th = cell("th", "", { scope: "row", class: "method", "data-value": first.method });
      th.append(cell("code", first.method));
      return th;
    });
    return build(id, name, [
      { title: "Method", key: "method", cells: heads },
      { title: "Data set", key: "dataset", cells: own.map(([first]) => first.dataset) },
      { title: "Architecture", key: "architecture", cells: own.map(([first]) => first.architecture) },
      { title: "Dense", kind: "number", mean: "percent", cells: own.map(([first]) => number(first.dense_accuracy)) },
      { title: "Area", kind: "number", mean: "area", cells: own.map(([first]) => number(first.relative_area)) },
      ...sparsities.map((s) => ({ title: `${+(100 * s).toPrecision(4)} %`, kind: "number", mean: "percent", cells: at(s) })),
    ]);
  }

  function loadable(form) {
    for (const place of location.protocol === "file:" ? [] : all("[data-load]")) {
      const button = place.appendChild(cell("button", "Show them here", { type: "button", class: "load" }));
      button.addEventListener("click", async () => {
        const answer = await fetch("blocks.csv");
        if (!answer.ok) return button.replaceWith("blocks.csv cannot be read.");
        const lines = parsed(await answer.text());
        for (const one of all("[data-load]")) {
          const { track, tuning } = one.closest(".board").dataset;
          const own = lines.filter((line) => line.track === track && line.tuning === tuning);
          one.replaceWith(own.length ? blockTable(one.dataset.load, `By block: ${track}, ${tuning}`, own) : "");
        }
        choose(form, true);
      });
    }
  }

  addEventListener("error", (event) => {
    if (event.target.tagName === "IMG") document.getElementById("missing").hidden = false;
  }, true);

  addEventListener("DOMContentLoaded", () => {
    theme();
    all("table[id]").forEach(prepare);
    all(".scroll").forEach(fading);
    if (location.protocol === "file:") { // a checkout: the documentation is where `mkdocs build` writes it
      for (const link of all("a[data-docs]")) link.setAttribute("href", link.getAttribute("href").replace(/^(\.\.\/)+/, "$&site/"));
    }
    addEventListener("beforeprint", () => all("details").forEach((one) => { one.open = true; }));
    const form = document.getElementById("tools");
    if (!form) return;
    form.hidden = false;
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("input", (event) => {
      remember(form);
      choose(form, event.target.name !== "method");
    });
    addEventListener("hashchange", () => {
      if (!location.hash.includes("=")) return;
      restore(form);
      choose(form, true);
    });
    loadable(form);
    restore(form);
    choose(form, true);
  });
})();
