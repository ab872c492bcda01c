"use strict";
// Tables that sort by a click on a header and that a box above them filters.
const number = (text) => {
  const found = text.replace(/,/g, "").match(/[-+]?\d+(\.\d+)?/);
  return found ? Number(found[0]) : null;
};

const sort = (table, column, ascending) => {
  const body = table.tBodies[0];
  const key = (row) => row.cells[column].textContent.trim();
  const numeric = table.tHead.rows[0].cells[column].classList.contains("number");
  const rows = Array.from(body.rows).map((row) => ({ row, text: key(row), value: number(key(row)) }));
  rows.sort((a, b) => {
    if (numeric) {
      // What is missing stands last, whichever way.
      if (a.value === null || b.value === null) return (a.value === null) - (b.value === null);
      return ascending ? a.value - b.value : b.value - a.value;
    }
    return ascending ? a.text.localeCompare(b.text) : b.text.localeCompare(a.text);
  });
  rows.forEach(({ row }) => body.append(row));
  Array.from(table.tHead.rows[0].cells).forEach((cell) => cell.removeAttribute("aria-sort"));
  table.tHead.rows[0].cells[column].setAttribute("aria-sort", ascending ? "ascending" : "descending");
};

document.querySelectorAll("table.sortable").forEach((table) => {
  Array.from(table.tHead.rows[0].cells).forEach((cell, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...cell.childNodes);
    cell.append(button);
    button.addEventListener("click", () => sort(table, column, cell.getAttribute("aria-sort") !== "ascending"));
  });
});

const filters = [];
document.querySelectorAll("table.filterable").forEach((table) => {
  const box = document.createElement("p");
  box.className = "filter";
  const input = document.createElement("input");
  input.type = "search";
  input.placeholder = "Filter: all of these words";
  input.setAttribute("aria-label", "Filter the rows of the table below");
  box.append(input);
  const absent = document.createElement("input");
  absent.type = "checkbox";
  if (table.querySelector("tr.absent")) {
    const label = document.createElement("label");
    label.append(absent, " hide what is missing");
    box.append(label);
  }
  table.parentElement.before(box);
  const apply = () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    Array.from(table.tBodies).forEach((body) => {
      // A title belongs to the rows below it: it is searched with each of them and shown with any of them.
      const title = body.querySelector("tr.title");
      let shown = 0;
      Array.from(body.rows).forEach((row) => {
        if (row === title) return;
        const text = `${title ? title.textContent : ""} ${row.textContent}`.toLowerCase();
        row.hidden = !words.every((word) => text.includes(word)) || (absent.checked && row.classList.contains("absent"));
        shown += !row.hidden;
      });
      if (title) title.hidden = shown === 0;
    });
  };
  input.addEventListener("input", apply);
  absent.addEventListener("change", apply);
  filters.push({ table, input, apply });
});

// A link to rows that a filter hides shows them again.
const reveal = () => {
  const target = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!target) return;
  filters.filter(({ table }) => table.contains(target)).forEach(({ input, apply }) => {
    input.value = "";
    apply();
  });
  target.scrollIntoView();
};
window.addEventListener("hashchange", reveal);
