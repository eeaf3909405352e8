"use strict";
document.documentElement.classList.add("js");
const table = document.getElementById("sortable");
const body = table.tBodies[0];
const rows = Array.from(body.rows);
const number = (text) => (text === "-" || text === "" ? NaN : Number(text));
for (const [column, head] of Array.from(table.tHead.rows[0].cells).entries()) {
  head.querySelector("button").addEventListener("click", () => {
    const way = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", way === 1 ? "ascending" : "descending");
    const key = (row) => row.cells[column].textContent;
    const numeric = rows.every((row) => key(row) === "-" || !Number.isNaN(number(key(row))));
    rows.sort((a, b) => {
      if (!numeric) return way * key(a).localeCompare(key(b), "en", { numeric: true });
      const [x, y] = [number(key(a)), number(key(b))];
      if (Number.isNaN(x)) return 1;
      return Number.isNaN(y) ? -1 : way * (x - y);
    });
    body.append(...rows);
  });
}
const filter = document.getElementById("filter");
filter.addEventListener("input", () => {
  const wanted = filter.value.toLowerCase();
  let count = 0;
  for (const row of rows) {
    row.hidden = !row.textContent.toLowerCase().includes(wanted);
    count += row.hidden ? 0 : 1;
  }
  document.getElementById("shown").textContent = `${count} of ${rows.length} rows`;
});
addEventListener("beforeprint", () => {
  for (const one of document.querySelectorAll("details")) one.open = true;
});
