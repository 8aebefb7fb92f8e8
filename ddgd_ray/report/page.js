// Sorts a table of numbers by the column whose head is clicked. The page reads as well without.
for (const table of document.querySelectorAll("table.numbers")) {
  const heads = [...table.tHead.rows[0].cells];
  const worth = (row, column) => parseFloat(row.cells[column].textContent.replace(/^[<[]/, ""));
  const sort = (column) => {
    const down = heads[column].getAttribute("aria-sort") !== "descending";
    heads.forEach((head, place) => head.setAttribute("aria-sort", place !== column ? "none" : down ? "descending" : "ascending"));
    const rows = [...table.tBodies[0].rows].map((row) => [worth(row, column), row.cells[column].textContent, row]);
    rows.sort(([a, s], [b, t]) => (isNaN(a) || isNaN(b) ? isNaN(a) - isNaN(b) || s.localeCompare(t) : a - b) * (down ? -1 : 1));
    table.tBodies[0].append(...rows.map(([, , row]) => row));
  };
  heads.forEach((head, column) => {
    head.tabIndex = 0;
    head.setAttribute("aria-sort", "none");
    head.addEventListener("click", () => sort(column));
    head.addEventListener("keydown", (event) => event.key === "Enter" && sort(column));
  });
}
