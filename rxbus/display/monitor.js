// The browser's side of `bus.monitor()`. Whatever comes from the bus is set as text, never as markup.
// Pause, filter and choice hold here at once, as the kernel may be busy with a cell, and there as soon as it listens.

const COLUMNS = [
  { key: "topic", title: "topic", show: (row) => printable(row.topic) },
  { key: "events", title: "events", number: true, show: (row) => COUNT.format(row.events) },
  { key: "rate", title: "rate /s", number: true, show: (row) => RATE.format(row.rate) },
  { key: "trend", title: "last minute" },
  { key: "p50_ms", title: "p50 ms", number: true, show: (row) => milliseconds(row.p50_ms) },
  { key: "p99_ms", title: "p99 ms", number: true, show: (row) => milliseconds(row.p99_ms) },
  { key: "failures", title: "failures", number: true, show: (row) => COUNT.format(row.failures) },
  { key: "slowest", title: "slowest observer", show: (row) => slowest(row) },
  { key: "pending", title: "pending", number: true, show: (row) => COUNT.format(row.pending) },
  { key: "observers", title: "observers", number: true, show: (row) => COUNT.format(row.observers) },
];
const COUNT = new Intl.NumberFormat("en-US");
const RATE = new Intl.NumberFormat("en-US", { minimumFractionDigits: 1, maximumFractionDigits: 1 });
const MINUTE = 60; // seconds that a sparkline covers
const [WIDTH, HEIGHT] = [120, 20]; // of a sparkline

function milliseconds(number) {
  return number === null ? "" : number.toFixed(number < 1 ? 3 : 2);
}

function slowest(row) {
  return row.slowest === null ? "" : `${milliseconds(row.slowest_ms)} ms ${printable(row.slowest)}`;
}

/** As in `bus.top()`, a sign stands for what would turn a text round, or cannot be seen. */
function printable(name) {
  return name.replace(/(?! )[\p{C}\p{Z}]/gu, "\ufffd");
}

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text) made.textContent = text;
  return made;
}

function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** The rates of each topic in the last minute, for all views of a widget. */
class History {
  #topics = new Map();
  #last = 0; // when the last frame came

  /** Takes in a frame, which tells what has happened `since` the bus was looked at before. */
  add({ since, time, rows }) {
    for (const row of rows) {
      const known = this.#topics.get(row.topic) ?? { events: row.events, time: since, points: [] };
      this.#topics.set(row.topic, known);
      // Frames that came without it say nothing of it; where none came, nothing had changed.
      const begin = known.time < this.#last ? known.time : since;
      if (begin > known.time) known.points.push([begin, 0]);
      if (time > begin) known.points.push([time, Math.max(0, row.events - known.events) / (time - begin)]);
      known.events = row.events;
      known.time = time;
      while (known.points.length > 1 && known.points[1][0] < time - MINUTE) known.points.shift();
    }
    for (const [topic, known] of this.#topics) {
      if (known.time < time - MINUTE) this.#topics.delete(topic);
    }
    this.#last = time;
  }

  /** A topic's sparkline, as the points of an SVG polyline. */
  line(topic, now) {
    const points = this.#topics.get(topic)?.points ?? [];
    const most = Math.max(1e-9, ...points.map(([, rate]) => rate));
    const place = ([time, rate]) => {
      const x = WIDTH * Math.max(0, 1 - (now - time) / MINUTE);
      return `${x.toFixed(1)},${(HEIGHT - 1 - (HEIGHT - 2) * (rate / most)).toFixed(1)}`;
    };
    return points.map(place).join(" ");
  }
}

/** One row of the table; it changes only the cells in which something has changed. */
class Row {
  constructor(topic, choose) {
    this.node = element("tr");
    this.node.dataset.topic = topic;
    this.box = element("input", "rxbus-monitor-choose");
    this.box.type = "checkbox";
    this.box.setAttribute("aria-label", `choose ${printable(topic)}`);
    this.box.addEventListener("change", () => choose(topic, this.box.checked));
    this.node.append(element("td"));
    this.node.firstChild.append(this.box);
    this.cells = COLUMNS.map(({ key, number }) => {
      const cell = element("td", number ? "rxbus-monitor-number" : "");
      cell.dataset.column = key;
      this.node.append(cell);
      return cell;
    });
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    this.line = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
    svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
    svg.setAttribute("class", "rxbus-monitor-trend");
    svg.setAttribute("aria-hidden", "true");
    svg.append(this.line);
    this.cells[COLUMNS.findIndex(({ key }) => key === "trend")].append(svg);
  }

  update(row, chosen, line) {
    this.box.checked = chosen;
    this.node.classList.toggle("rxbus-monitor-failed", row.failures > 0);
    COLUMNS.forEach(({ show, number }, index) => {
      if (!show) return;
      setText(this.cells[index], show(row));
      if (!number) this.cells[index].title = this.cells[index].textContent;
    });
    if (this.line.getAttribute("points") !== line) this.line.setAttribute("points", line);
  }
}

/** One view of the widget: what a cell of the notebook shows. */
class View {
  constructor(model, history, el) {
    this.model = model;
    this.history = history;
    this.rows = new Map();
    this.root = element("div", "rxbus-monitor");
    this.pause = element("button", "rxbus-monitor-pause");
    this.filter = element("input", "rxbus-monitor-filter");
    this.only = element("button", "rxbus-monitor-only", "only chosen");
    this.status = element("span", "rxbus-monitor-status");
    this.body = element("tbody");
    this.pause.type = this.only.type = "button";
    this.filter.type = "search";
    this.filter.placeholder = "filter topics";
    this.filter.setAttribute("aria-label", "filter topics");
    this.pause.addEventListener("click", () => this.set("paused", !model.get("paused")));
    this.only.addEventListener("click", () => this.set("only_chosen", !model.get("only_chosen")));
    this.filter.addEventListener("input", () => this.set("text", this.filter.value));
    const bar = element("div", "rxbus-monitor-bar");
    bar.append(this.pause, this.filter, this.only, this.status);
    const head = element("tr");
    head.append(element("th"));
    for (const { key, title, number } of COLUMNS) {
      const cell = element("th", number ? "rxbus-monitor-number" : "", title);
      cell.dataset.column = key;
      head.append(cell);
    }
    const [table, top, frame] = [element("table"), element("thead"), element("div", "rxbus-monitor-table")];
    top.append(head);
    table.append(top, this.body);
    frame.append(table);
    this.root.append(bar, frame);
    el.append(this.root);
    this.draw();
  }

  set(name, value) {
    this.model.set(name, value);
    this.model.save_changes();
  }

  choose(topic, chosen) {
    const others = this.model.get("chosen").filter((other) => other !== topic);
    this.set("chosen", chosen ? [...others, topic] : others);
  }

  draw() {
    const paused = this.model.get("paused");
    if (!paused || !this.frame) this.frame = this.model.get("frame");
    const { rows = [], hidden = 0, running = true, time = 0 } = this.frame;
    const text = this.model.get("text");
    const chosen = new Set(this.model.get("chosen"));
    const only = this.model.get("only_chosen") && chosen.size > 0;
    const shown = rows.filter(({ topic }) => topic.includes(text) && (!only || chosen.has(topic)));
    this.place(shown.map(({ topic }) => topic));
    for (const row of shown) this.rows.get(row.topic).update(row, chosen.has(row.topic), this.history.line(row.topic, time));
    setText(this.pause, paused ? "resume" : "pause");
    this.pause.setAttribute("aria-pressed", String(paused));
    this.only.setAttribute("aria-pressed", String(only));
    this.only.disabled = chosen.size === 0;
    if (this.filter.value !== text) this.filter.value = text;
    const more = hidden ? `, and ${COUNT.format(hidden)} less lively` : "";
    setText(this.status, `${COUNT.format(shown.length)} topics${more}${running ? "" : ", ended"}`);
    this.root.dataset.state = running ? (paused ? "paused" : "running") : "ended";
  }

  /** Gives each topic its row, in this order; moves only what stands elsewhere. */
  place(topics) {
    const wanted = new Set(topics);
    for (const [topic, row] of this.rows) {
      if (wanted.has(topic)) continue;
      row.node.remove();
      this.rows.delete(topic);
    }
    topics.forEach((topic, index) => {
      if (!this.rows.has(topic)) this.rows.set(topic, new Row(topic, (...choice) => this.choose(...choice)));
      const { node } = this.rows.get(topic);
      if (this.body.children[index] !== node) this.body.insertBefore(node, this.body.children[index] ?? null);
    });
  }
}

export default () => {
  const history = new History();
  return {
    initialize({ model }) {
      history.add({ since: 0, time: 0, rows: [], ...model.get("frame") });
      model.on("change:frame", () => history.add(model.get("frame")));
    },
    render({ model, el }) {
      const view = new View(model, history, el);
      const draw = () => view.draw();
      const events = ["frame", "paused", "text", "chosen", "only_chosen"].map((name) => `change:${name}`);
      for (const event of events) model.on(event, draw);
      return () => {
        for (const event of events) model.off(event, draw);
      };
    },
  };
};
