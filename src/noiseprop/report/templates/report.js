"use strict";
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const one = (selector, root = document) => root.querySelector(selector);

// The theme: as the system has it, until someone says otherwise.
function theme() {
  const button = one("#theme"), modes = ["auto", "light", "dark"];
  const kept = { get: () => { try { return localStorage.getItem("noiseprop-theme"); } catch { return null; } },
                 set: (mode) => { try { localStorage.setItem("noiseprop-theme", mode); } catch { /* not kept, then */ } } };
  const show = (mode) => {
    if (mode === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = mode;
    one("span", button).textContent = mode;
  };
  let mode = modes.includes(kept.get()) ? kept.get() : "auto";
  show(mode);
  button.addEventListener("click", () => {
    mode = modes[(modes.indexOf(mode) + 1) % modes.length];
    kept.set(mode);
    show(mode);
  });
}

// The table: which rows are shown, and in which order.
function table() {
  const rows = all("#table tbody tr"), body = one("#table tbody");
  if (!body) return;
  const text = one("#filter"), state = one("#state"), each = one("#each"), count = one("#count");
  const show = () => {
    const words = text.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const fits = state.value === "all" || (state.value === "deployed" ? "deployed" in row.dataset : row.dataset.state === state.value);
      const told = row.dataset.text.toLowerCase();
      row.hidden = !(fits && words.every((word) => told.includes(word)) && (!row.matches(".member") || each.checked));
      shown += !row.hidden;
    }
    count.textContent = `${shown} of ${rows.length} rows`;
  };
  text.addEventListener("input", show);
  for (const control of [state, each]) control?.addEventListener("change", show);
  show();
  all("#table thead th").forEach((head, column) => one("button", head).addEventListener("click", () => {
    const falling = head.classList.contains("number") ? head.ariaSort !== "descending" : head.ariaSort === "ascending";
    all("#table thead th").forEach((other) => { other.ariaSort = "none"; });
    head.ariaSort = falling ? "descending" : "ascending";
    const value = (row) => row.cells[column].dataset.value;
    rows.sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      const order = isNaN(x) || isNaN(y) ? x.localeCompare(y, undefined, { numeric: true }) : x - y;
      return falling ? -order : order;
    });
    body.append(...rows);
  }));
}

// A chart: the values at the pointer, at the finger, or where the arrow keys lead. They are those of its table.
function chart(figure) {
  const plot = one(".plot", figure), svg = one("svg", plot), tip = one(".tip", plot), cursor = one(".cursor", svg);
  const rows = all("tbody tr", figure), places = rows.map((row) => Number(row.dataset.x));
  const series = all(".series", svg).map((group) => ({
    group, at: one(".at", group), name: group.dataset.name,
    points: new Map(one(".at", group).dataset.points.split(";").filter(Boolean).map((point) => {
      const [row, x, y] = point.split(",").map(Number);
      return [row, [x, y]];
    })),
  }));
  let now = -1;
  const hide = () => {
    now = -1;
    plot.classList.remove("pointed");
    tip.hidden = true;
    for (const { at } of series) at.style.visibility = "hidden";
  };
  const show = (row, aloud) => {
    now = row;
    plot.classList.add("pointed");
    cursor.setAttribute("transform", `translate(${places[row]} 0)`);
    const cells = all("td", rows[row]), head = one("th", rows[row]).textContent;
    const title = document.createElement("b");
    title.textContent = head;
    const lines = [];
    series.forEach(({ group, at, name, points }, i) => {
      const point = points.get(row), hidden = group.classList.contains("hidden");
      at.style.visibility = point && !hidden ? "visible" : "hidden";
      if (point) at.setAttribute("transform", `translate(${point[0]} ${point[1]})`);
      if (hidden) return;
      const line = document.createElement("div"), key = document.createElement("span"), value = document.createElement("span");
      line.className = [...group.classList].find((name) => /^c\d$/.test(name));
      key.textContent = name;
      value.textContent = cells[i].textContent;
      line.append(key, value);
      lines.push(line);
    });
    tip.replaceChildren(title, ...lines);
    tip.hidden = false;
    const x = places[row] / svg.viewBox.baseVal.width * plot.clientWidth, wide = tip.offsetWidth;
    const beside = x < plot.clientWidth / 2 ? x + 12 : x - 12 - wide;
    tip.style.left = `${Math.max(0, Math.min(beside, plot.clientWidth - wide))}px`;
    if (aloud) one("#live").textContent = [head, ...lines.map((line) => [...line.children].map((part) => part.textContent).join(" "))].join(", ");
  };
  const nearest = (event) => {
    const box = svg.getBoundingClientRect(), x = (event.clientX - box.left) / box.width * svg.viewBox.baseVal.width;
    let best = 0;
    places.forEach((place, row) => { if (Math.abs(place - x) < Math.abs(places[best] - x)) best = row; });
    return best;
  };
  for (const kind of ["pointermove", "pointerdown"]) plot.addEventListener(kind, (event) => show(nearest(event), false));
  plot.addEventListener("pointerleave", hide);
  plot.addEventListener("blur", hide);
  plot.addEventListener("keydown", (event) => {
    const last = rows.length - 1;
    const to = { ArrowRight: Math.min(now + 1, last), ArrowLeft: now < 0 ? last : Math.max(now - 1, 0), Home: 0, End: last }[event.key];
    if (event.key === "Escape") hide();
    if (to === undefined) return;
    event.preventDefault();
    show(to, true);
  });
}

// Legends hide and show their lines in all charts of their panel.
function legend(panel) {
  for (const key of all(".key", panel)) key.addEventListener("click", () => {
    const shown = key.ariaPressed !== "true";
    key.ariaPressed = String(shown);
    for (const group of all(".series", panel)) if (group.dataset.name === key.dataset.name) group.classList.toggle("hidden", !shown);
  });
}

// Of several networks or pairs, the chosen one is shown.
function chooser(select) {
  const choices = all(`.choice[data-of="${select.dataset.for}"]`);
  const show = () => choices.forEach((choice) => choice.classList.toggle("hidden", choice.dataset.value !== select.value));
  select.addEventListener("change", show);
  show();
}

function copying(button) {
  button.addEventListener("click", async () => {
    const text = one("pre", button.parentElement);
    try {
      await navigator.clipboard.writeText(text.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(text);
      button.textContent = "Selected";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
}

theme();
table();
all(".chart").forEach(chart);
all(".panel").forEach(legend);
all(".chooser").forEach(chooser);
all(".copy").forEach(copying);
addEventListener("beforeprint", () => all("details.run").forEach((run) => { run.open = true; }));
