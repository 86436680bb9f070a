"use strict";
(() => {
  // Light, dark, or as the system has it; kept for the next visit where the browser allows.
  const root = document.documentElement, button = document.getElementById("theme"), name = document.getElementById("theme-name");
  const order = ["auto", "light", "dark"];
  const kept = { get: () => { try { return localStorage.getItem("jpeft-theme"); } catch { return null; } },
                 set: (value) => { try { localStorage.setItem("jpeft-theme", value); } catch { /* not kept */ } } };
  const apply = (theme) => {
    if (theme === "auto") root.removeAttribute("data-theme"); else root.setAttribute("data-theme", theme);
    name.textContent = theme;
    button.setAttribute("aria-label", `Colours: ${theme === "auto" ? "as the system has them" : theme}; press to change`);
  };
  const asked = new URLSearchParams(location.search).get("theme");
  let theme = order.includes(asked) ? asked : order.includes(kept.get()) ? kept.get() : "auto";
  apply(theme);
  button.addEventListener("click", () => {
    theme = order[(order.indexOf(theme) + 1) % order.length];
    apply(theme);
    kept.set(theme);
  });

  // Sorting: first descending for numbers, then ascending, then as written. What is missing stays at the end.
  for (const table of document.querySelectorAll("table")) {
    const body = table.tBodies[0], written = [...body.rows];
    const heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
    heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
      const numeric = head.classList.contains("number"), before = head.getAttribute("aria-sort");
      const cycle = numeric ? [null, "descending", "ascending"] : [null, "ascending", "descending"];
      const now = cycle[(cycle.indexOf(before) + 1) % 3];
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      let rows = written;
      if (now) {
        head.setAttribute("aria-sort", now);
        const key = (row) => row.cells[column].dataset.sort, sign = now === "ascending" ? 1 : -1;
        const compare = (a, b) => (numeric ? Number(a) - Number(b) : a.localeCompare(b));
        rows = [...written].sort((a, b) => {
          const x = key(a), y = key(b);
          if (x === "" || y === "") return (x === "") - (y === "");
          return sign * compare(x, y);
        });
      }
      body.append(...rows);
    }));
  }
})();
