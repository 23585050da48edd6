// Click on a heading to sort a table by its column; once more for the other way round.
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0];
  if (body.rows.length < 3) continue;
  [...table.tHead.rows[0].cells].forEach((heading, column) => {
    if (heading.tagName !== "TH") return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const down = heading.ariaSort === "ascending";
      for (const other of heading.parentNode.cells) other.ariaSort = null;
      heading.ariaSort = down ? "descending" : "ascending";
      const key = (row) => row.cells[column].dataset.order;
      const compared = (a, b) =>
        key(a) === undefined
          ? a.cells[column].textContent.localeCompare(b.cells[column].textContent, "en", { numeric: true })
          : Number(key(a)) - Number(key(b));
      // What was not measured stays at the end, whichever way round.
      const known = (row) => key(row) === undefined || !Number.isNaN(Number(key(row)));
      const rows = [...body.rows];
      const sorted = rows.filter(known).sort((a, b) => (down ? -1 : 1) * compared(a, b));
      body.append(...sorted, ...rows.filter((row) => !known(row)));
    });
  });
}
