"use strict";
(function () {
  var root = document.documentElement, KEY = "compress-deploy theme";

  // Storage is refused to some pages that are opened from a file.
  function remembered() { try { return localStorage.getItem(KEY); } catch (refused) { return null; } }
  function remember(theme) { try { localStorage.setItem(KEY, theme); } catch (refused) { return; } }
  function show(theme) { if (theme === "light" || theme === "dark") root.dataset.theme = theme; }
  function isDark() {
    return root.dataset.theme ? root.dataset.theme === "dark"
      : matchMedia("(prefers-color-scheme: dark)").matches;
  }
  show(remembered());
  var button = document.getElementById("theme");
  function name() { button.textContent = isDark() ? "☀ light" : "☾ dark"; }
  button.hidden = false;
  name();
  button.addEventListener("click", function () {
    var theme = isDark() ? "light" : "dark";
    show(theme); remember(theme); name();
  });

  var tip = document.getElementById("tip");
  function hide() { tip.hidden = true; }
  document.addEventListener("pointerover", function (event) {
    var mark = event.target.closest ? event.target.closest("[data-tip]") : null;
    if (!mark) { hide(); return; }
    tip.textContent = mark.getAttribute("data-tip");
    tip.hidden = false;
    var box = mark.getBoundingClientRect(), own = tip.getBoundingClientRect();
    var left = box.left + box.width / 2 - own.width / 2, above = box.top - own.height - 8;
    tip.style.left = Math.max(4, Math.min(left, innerWidth - own.width - 4)) + "px";
    tip.style.top = (above < 4 ? box.bottom + 8 : above) + "px";
  });
  addEventListener("scroll", hide, { passive: true });

  function order(row, column) {
    var cell = row.cells[column], given = cell.getAttribute("data-order");
    var text = given === null ? cell.textContent.trim() : given;
    return text !== "" && isFinite(text) ? Number(text) : text;
  }
  function compare(a, b) {
    if (typeof a === "number" && typeof b === "number") return a - b;
    if (typeof a === typeof b) return a < b ? -1 : a > b ? 1 : 0;
    return typeof a === "number" ? -1 : 1;
  }
  function sort(table, head, column) {
    var up = head.getAttribute("aria-sort") !== "ascending", body = table.tBodies[0];
    Array.from(table.tHead.rows[0].cells).forEach(function (cell) { cell.removeAttribute("aria-sort"); });
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    Array.from(body.rows)
      .map(function (row, index) { return { row: row, by: order(row, column), index: index }; })
      .sort(function (a, b) { return (up ? 1 : -1) * compare(a.by, b.by) || a.index - b.index; })
      .forEach(function (entry) { body.appendChild(entry.row); });
  }
  document.querySelectorAll("table").forEach(function (table) {
    if (table.tBodies[0].rows.length < 2) return;
    Array.from(table.tHead.rows[0].cells).forEach(function (head, column) {
      if (!head.textContent.trim()) return;
      head.tabIndex = 0;
      head.classList.add("sorts");
      head.title = "sort by " + head.textContent;
      head.addEventListener("click", function () { sort(table, head, column); });
      head.addEventListener("keydown", function (event) {
        if (event.key === "Enter" || event.key === " ") { event.preventDefault(); sort(table, head, column); }
      });
    });
  });
})();
