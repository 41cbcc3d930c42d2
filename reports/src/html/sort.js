"use strict";
(() => {
  const table = document.getElementById("leaderboard");
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  const value = (row, nth) => {
    const cell = row.cells[nth];
    if (heads[nth].classList.contains("n")) {
      return cell.dataset.v === undefined ? null : Number(cell.dataset.v);
    }
    return cell.textContent.trim().toLowerCase();
  };
  const sort = (nth) => {
    const head = heads[nth];
    const isNumber = head.classList.contains("n");
    const before = head.getAttribute("aria-sort");
    // Numbers begin with the best: the greatest where an arrow points up or where there is none.
    const first = isNumber && nth > 0 && !head.textContent.includes("↓") ? "descending" : "ascending";
    const other = first === "ascending" ? "descending" : "ascending";
    const order = before === first ? other : first;
    heads.forEach((it) => it.setAttribute("aria-sort", "none"));
    head.setAttribute("aria-sort", order);
    const sign = order === "ascending" ? 1 : -1;
    // What is absent comes last either way; equals keep the order of the leaderboard.
    const sorted = rows.map((row, place) => [value(row, nth), place, row]).sort(([a, i], [b, j]) => {
      if (a === null || b === null) return (a === null) - (b === null) || i - j;
      return (a < b ? -sign : a > b ? sign : 0) || i - j;
    });
    body.append(...sorted.map(([, , row]) => row));
  };
  heads.forEach((head, nth) => {
    head.setAttribute("aria-sort", "none");
    head.tabIndex = 0;
    head.title = "sort";
    head.addEventListener("click", () => sort(nth));
    head.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") {
        event.preventDefault();
        sort(nth);
      }
    });
  });
  const search = document.createElement("input");
  search.type = "search";
  search.placeholder = "filter methods";
  search.setAttribute("aria-label", "filter methods");
  search.addEventListener("input", () => {
    const wanted = search.value.trim().toLowerCase();
    rows.forEach((row) => {
      row.hidden = !row.cells[1].textContent.toLowerCase().includes(wanted);
    });
  });
  document.querySelector(".toggles").append(search);
  const open = () => {
    const target = document.getElementById(location.hash.slice(1));
    const details = target && target.closest("details");
    if (details) {
      details.open = true;
      target.scrollIntoView();
    }
  };
  addEventListener("hashchange", open);
  open();
})();
