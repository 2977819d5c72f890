"""What the pages do in a browser: tables sort by a click on a heading and filter by a word."""

SCRIPT = """
for (const box of document.querySelectorAll(".sorts")) {
  const table = box.querySelector("table"), body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const value = row => row.cells[column].dataset.value;
    const order = (a, b) => {
      const x = value(a), y = value(b);
      if (x === "" || y === "") return (x !== "") - (y !== "");
      return Number.isNaN(x - y) ? x.localeCompare(y) : x - y;
    };
    body.append(...[...body.rows].sort((a, b) => up ? order(a, b) : order(b, a)));
  }));
  const tools = box.querySelector(".tools"), said = tools.querySelector("[role=status]");
  tools.hidden = false;
  tools.querySelector("input").addEventListener("input", event => {
    const word = event.target.value.trim().toLowerCase();
    // A whole number is a client or a cluster, not part of a share.
    const fits = /^[0-9]+$/.test(word) ? text => text === word : text => text.includes(word);
    let shown = 0;
    for (const row of body.rows) {
      row.hidden = !!word && ![...row.cells].some(c => fits(c.textContent.trim().toLowerCase()));
      shown += !row.hidden;
    }
    said.textContent = word ? `${shown} of ${body.rows.length} rows` : "";
  });
}
"""
