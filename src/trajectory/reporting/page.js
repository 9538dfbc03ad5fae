"use strict";
// Headers become buttons that sort their table: by the numbers behind the cells (data-value), else by their words.
// What has no number stays at the end, whichever way the others go.
const words = new Intl.Collator(undefined, { numeric: true });

function compare(first, second, direction) {
  const [a, b] = [first, second].map((cell) => cell.dataset.value);
  if (a !== undefined && b !== undefined) return direction * (Number(a) - Number(b));
  if (a !== undefined || b !== undefined) return a === undefined ? 1 : -1;
  return direction * words.compare(first.textContent, second.textContent);
}

function sort(table, column, direction) {
  const body = table.tBodies[0];
  const rows = [...body.rows];
  rows.sort((a, b) => compare(a.cells[column], b.cells[column], direction));
  body.append(...rows);
}

for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const upwards = head.getAttribute("aria-sort") !== "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", upwards ? "ascending" : "descending");
      sort(table, column, upwards ? 1 : -1);
    });
  });
}
