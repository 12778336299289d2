"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const examples = data.examples;
  const page = (name) => document.getElementById(name);
  const AT_ONCE = 48;
  let order = [];
  let shown = 0;

  function element(kind, text, name) {
    const node = document.createElement(kind);
    if (text !== undefined) node.textContent = text;
    if (name) node.className = name;
    return node;
  }

  function tile(number) {
    const example = examples[number];
    const button = element("button", undefined, example.right ? "tile" : "tile wrong");
    button.dataset.example = number;
    const pictures = element("span", undefined, "pictures");
    const image = element("img");
    image.alt = "";
    image.src = example.image;
    pictures.append(image);
    const words = element("span", undefined, "words");
    words.append(element("b", example.prediction), element("br"), element("span", example.label), element("small", example.id));
    button.append(pictures, words);
    return button;
  }

  function showMore() {
    const next = order.slice(shown, shown + AT_ONCE).map(tile);
    page("gallery").append(...next);
    shown += next.length;
    page("gallery-more").hidden = shown >= order.length;
    return next[0];
  }

  function show(numbers, what) {
    order = numbers;
    shown = 0;
    page("gallery").replaceChildren();
    showMore();
    page("gallery-count").textContent = `${numbers.length} ${numbers.length === 1 ? "image" : "images"}: ${what}`;
  }

  function choose(button) {
    for (const other of document.querySelectorAll("[aria-pressed]")) other.setAttribute("aria-pressed", String(other === button));
    if (button.dataset.show !== undefined) return show(data.orders[button.dataset.show], button.textContent.trim());
    const label = Number(button.dataset.label);
    const predicted = Number(button.dataset.predicted);
    const numbers = data.orders.errors.concat(data.orders.all.filter((k) => examples[k].right));
    const cell = numbers.filter((k) => examples[k].classes[0] === label && examples[k].classes[1] === predicted);
    show(cell, `${data.class_names[label]} classified as ${data.class_names[predicted]}`);
    page("gallery-title").scrollIntoView({ block: "start" });
  }

  const viewer = page("viewer");
  let path = [];
  let place = 0;

  function view() {
    const example = examples[path[place]];
    page("viewer-title").textContent = example.id;
    page("viewer-image").src = example.image;
    page("viewer-image").alt = `${example.id}: ${example.prediction}, ${example.label}`;
    page("viewer-heat-box").hidden = !example.heat;
    if (example.heat) page("viewer-heat").src = example.heat;
    page("viewer-facts").replaceChildren(...example.facts.flatMap(([name, value]) => [element("dt", name), element("dd", value)]));
    page("viewer-previous").disabled = place === 0;
    page("viewer-next").disabled = place === path.length - 1;
  }

  function step(by) {
    const next = place + by;
    if (next < 0 || next >= path.length) return;
    place = next;
    view();
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    if (button.dataset.show !== undefined || button.dataset.label !== undefined) choose(button);
    else if (button.dataset.example !== undefined) {
      const number = Number(button.dataset.example);
      const inGallery = page("gallery") && page("gallery").contains(button);
      const around = [...button.parentElement.querySelectorAll("[data-example]")].map((tile) => Number(tile.dataset.example));
      path = inGallery ? order : around;
      place = path.indexOf(number);
      view();
      viewer.showModal();
    } else if (button.id === "gallery-more") {
      const first = showMore();
      if (first) first.focus();
    } else if (button.id === "viewer-previous") step(-1);
    else if (button.id === "viewer-next") step(1);
    else if (button.closest(".sortable thead")) sort(button.closest("th"));
  });

  viewer.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });

  // Arrow keys move through the confusion matrix, from one cell with a number to the next.
  document.addEventListener("keydown", (event) => {
    const cell = event.target.closest && event.target.closest(".confusion td");
    const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    if (!cell || !moves[event.key]) return;
    const rows = [...cell.closest("tbody").rows];
    let row = rows.indexOf(cell.parentElement);
    let column = cell.cellIndex;
    for (;;) {
      row += moves[event.key][0];
      column += moves[event.key][1];
      const next = rows[row] && rows[row].cells[column];
      if (!next) return;
      const button = next.querySelector("button");
      if (button) {
        event.preventDefault();
        return button.focus();
      }
    }
  });

  function sort(heading) {
    const table = heading.closest("table");
    const column = heading.cellIndex;
    const down = heading.getAttribute("aria-sort") === "ascending";
    for (const other of table.querySelectorAll("th[aria-sort]")) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = (row) => row.cells[column].dataset.value;
    const rows = [...table.tBodies[0].rows].sort((a, b) =>
      key(a) === undefined ? a.cells[column].textContent.localeCompare(b.cells[column].textContent, undefined, { numeric: true }) : key(a) - key(b));
    table.tBodies[0].append(...(down ? rows.reverse() : rows));
  }

  const first = document.querySelector("[data-show]");
  if (first) choose(first);
})();
