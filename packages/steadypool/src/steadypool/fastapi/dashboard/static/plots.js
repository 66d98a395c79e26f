// The plots over time. Without uPlot (it is packed at set-up) there are none, and the rest of the page works.
"use strict";

const KINDS = {
  pool_timeouts: "--plot-4", queue_full: "--plot-4", deadlines: "--plot-4", connect_errors: "--plot-4", connect_failures: "--plot-4",
  statement_timeouts: "--plot-2", connections_lost: "--plot-2", breaker: "--plot-3", wake_up: "--plot-3", alert: "--plot-4",
  leak: "--plot-2", loop: "--plot-2", gap: "--plot-3", listener: "--plot-3",
};

const add = (...columns) => (data) => data.at.map((_, i) => columns.reduce((sum, name) => sum + data[name][i], 0));
const milliseconds = (name) => (data) => data[name].map((value) => (value === null ? null : value * 1000));

const PLOTS = [
  {
    title: "Connections in use, % of pool_size", fill: true,
    series: [["in use", (data) => data.utilization.map((value) => value * 100)], ["alert above", null]],
    low: 100, unit: " %",
  },
  { title: "Callers waiting", fill: true, series: [["waiting", (data) => data.waiting]], low: 4, unit: "" },
  {
    title: "95th percentiles",
    series: [["waiting", milliseconds("p95_waiting")], ["connecting", milliseconds("p95_connecting")], ["executing", milliseconds("p95_executing")]],
    low: 100, unit: " ms", logarithmic: true,
  },
  {
    title: "Failures", steps: true,
    series: [
      ["no connection", add("pool_timeouts", "queue_full", "deadlines", "connect_errors")],
      ["statements", add("statement_timeouts", "statement_errors", "connections_lost")],
      ["attempts to connect", add("connect_failures")],
    ],
    low: 2, unit: "",
  },
];

class Plots {
  constructor(root, onPick) {
    this.root = root;
    this.onPick = onPick;
    this.plots = [];
    this.data = null;
    this.notes = [];
    this.selected = null;
    this.limit = 80;
    this.range = 900;
  }

  get available() { return typeof uPlot !== "undefined"; }

  colour(name) { return getComputedStyle(document.documentElement).getPropertyValue(name).trim(); }

  // Full columns from the service's compact ones, in which a value that never changes stands once.
  static unfold(columns) {
    const data = { at: columns.at };
    for (const [name, values] of Object.entries(columns)) {
      data[name] = Array.isArray(values) ? values : columns.at.map(() => values);
    }
    return data;
  }

  load(columns, range) {
    this.data = Plots.unfold(columns);
    this.range = range;
    this.draw();
  }

  append(columns) {
    if (!this.data || this.range > 3600) return;
    const fresh = Plots.unfold(columns), last = this.data.at.at(-1) ?? 0;
    fresh.at.forEach((at, i) => {
      if (at <= last) return;
      for (const name of Object.keys(this.data)) this.data[name].push(fresh[name][i]);
    });
    const from = this.data.at.findIndex((at) => at > (this.data.at.at(-1) ?? 0) - this.range);
    if (from > 0) for (const name of Object.keys(this.data)) this.data[name].splice(0, from);
    this.draw();
  }

  values(plot) {
    return [this.data.at, ...plot.series.map(([, make]) => (make ? make(this.data) : this.data.at.map(() => this.limit)))];
  }

  draw() {
    if (!this.available || !this.data) return;
    if (!this.plots.length) this.build();
    PLOTS.forEach((plot, index) => {
      const values = this.values(plot);
      this.plots[index].setData(values);
      const most = Math.max(0, ...values[1].filter((value) => value !== null));
      const when = most > 0 ? ` at ${clock(this.data.at[values[1].indexOf(most)])}` : "";
      this.figures[index].setAttribute("aria-label",
        `${plot.title}: ${plot.series[0][0]} now ${round(values[1].at(-1) ?? 0)}${plot.unit}, most ${round(most)}${plot.unit}${when}`);
    });
  }

  build() {
    this.figures = [];
    this.root.replaceChildren();
    for (const plot of PLOTS) {
      const figure = document.createElement("figure"), caption = document.createElement("figcaption"), box = document.createElement("div");
      figure.setAttribute("role", "img");
      const name = document.createElement("b");
      name.textContent = plot.title;
      caption.append(name, ...plot.series.map(([label], i) => {
        const key = document.createElement("span");
        key.className = `key key-${label === "alert above" ? 4 : i + 1}`;
        key.textContent = label === "alert above" ? `alert above ${round(this.limit)} %` : label;
        return key;
      }));
      figure.append(caption, box);
      this.root.append(figure);
      this.figures.push(figure);
      this.plots.push(new uPlot(this.options(plot, box), [[], ...plot.series.map(() => [])], box));
    }
    this.watcher ??= new ResizeObserver(() => this.resize());
    this.watcher.observe(this.root);
  }

  options(plot, box) {
    const ink = this.colour("--soft"), line = this.colour("--line");
    const axis = { stroke: ink, grid: { stroke: line, width: 1 }, ticks: { stroke: line, width: 1 }, font: "12px system-ui, sans-serif" };
    return {
      width: Math.max(200, box.clientWidth), height: 130, padding: [8, 26, 0, 0], legend: { show: false },
      cursor: { sync: { key: "pool" }, drag: { x: false, y: false }, points: { size: 6 } },
      scales: {
        y: plot.logarithmic
          ? { distr: 3, range: (_u, _low, high) => [0.1, 10 ** Math.ceil(Math.log10(Math.max(plot.low, high ?? 0)))] }
          : { range: (_u, _low, high) => [0, Math.max(plot.low, (high ?? 0) * 1.08)] },
      },
      axes: [
        { ...axis, size: 34, space: 80, values: (_u, ticks) => ticks.map((at) => clock(at, ticks[1] - ticks[0] < 60)) },
        plot.logarithmic
          ? { ...axis, size: 62, grid: { ...axis.grid, filter: decades }, ticks: { ...axis.ticks, filter: decades },
              filter: decades, values: (_u, ticks) => ticks.map((value) => (value === null ? null : value < 1000 ? `${round(value)} ms` : `${value / 1000} s`)) }
          : { ...axis, size: 62 },
      ],
      series: [{}, ...plot.series.map(([label, make], i) => ({
        label, width: make ? 2 : 1, dash: make ? undefined : [6, 4], points: make ? { size: 4 } : { show: false }, spanGaps: false,
        stroke: this.colour(make ? `--plot-${i + 1}` : "--plot-4"),
        fill: plot.fill && make ? this.colour("--fill") : undefined,
        paths: plot.steps ? uPlot.paths.stepped({ align: 1 }) : undefined,
      }))],
      hooks: {
        draw: [(u) => this.marks(u)],
        ready: [(u) => u.over.addEventListener("click", () => {
          if (u.cursor.left >= 0) this.onPick(Math.round(u.posToVal(u.cursor.left, "x")));
        })],
      },
    };
  }

  // What the journal notes, as ticks along the upper edge; and the moment that is being looked at.
  marks(u) {
    const { ctx, bbox } = u, shown = (at) => at >= u.scales.x.min && at <= u.scales.x.max;
    ctx.save();
    for (const note of this.notes) {
      if (!shown(note.at)) continue;
      ctx.fillStyle = this.colour(KINDS[note.kind] ?? "--soft");
      ctx.fillRect(u.valToPos(note.at, "x", true) - 1, bbox.top, 3, 8);
    }
    if (this.selected && this.selected[1] >= u.scales.x.min && this.selected[0] <= u.scales.x.max) {
      const left = u.valToPos(this.selected[0], "x", true), right = u.valToPos(this.selected[1], "x", true);
      ctx.fillStyle = this.colour("--accent");
      ctx.globalAlpha = 0.25;
      ctx.fillRect(left, bbox.top, Math.max(2, right - left), bbox.height);
    }
    ctx.restore();
  }

  resize() {
    for (const [index, plot] of this.plots.entries()) {
      const width = Math.max(200, this.figures[index].clientWidth);
      if (width !== plot.width) plot.setSize({ width, height: 130 });
    }
  }

  rebuild() {
    for (const plot of this.plots) plot.destroy();
    this.plots = [];
    this.draw();
  }

  redraw() { for (const plot of this.plots) plot.redraw(false); }
}

function decades(_u, ticks) { return ticks.map((value) => (Number.isInteger(Math.round(Math.log10(value) * 1e6) / 1e6) ? value : null)); }

function clock(at, seconds = true) {
  const when = new Date(at * 1000), two = (number) => String(number).padStart(2, "0");
  return `${two(when.getHours())}:${two(when.getMinutes())}${seconds ? `:${two(when.getSeconds())}` : ""}`;
}

function round(value) { return value >= 10 ? Math.round(value) : Math.round(value * 10) / 10; }
