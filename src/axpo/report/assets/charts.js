// Curves of the runs over each other: raw values faint, smoothed ones strong, one shared cursor.

const charts = [];
let cursor = null;
/** Of all steps: so many without a value break a curve. */
const GAP = 0.05;

/** Exponential moving average over steps, without the pull of a zero start; steps without a value age it. */
function smooth(points, weight) {
  let total = 0, mass = 0, last = null;
  return points.map(([step, value]) => {
    const kept = last === null ? 0 : weight ** (step - last);
    total = kept * total + (1 - weight) * value;
    mass = kept * mass + (1 - weight);
    last = step;
    return [step, total / mass];
  });
}

function show(value, fraction) {
  if (value === undefined) return "–";
  if (fraction) return (100 * value).toFixed(1) + " %";
  return Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en") : String(+value.toPrecision(3));
}

/** About `count` round values that span [low, high]. */
function ticks(low, high, count) {
  const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw));
  const size = power * [1, 2, 5, 10].find((m) => m * power >= raw);
  const first = Math.ceil(low / size - 1e-9), last = Math.floor(high / size + 1e-9);
  return Array.from({ length: last - first + 1 }, (_, i) => (first + i) * size);
}

/**
 * A chart whose cursor all charts share. `kind` has its `steps`, `scale()` for the y axis
 * ({low, high, text}), `paint(chart, svg)` and `values(chart, step)` for the readout, where `step`
 * is null at the end.
 */
function addChart(holder, title, note, height, kind) {
  const readout = el("div", { class: "readout" });
  const plot = el("div", { class: "plot", tabindex: 0, role: "img", "aria-label": title + " by step" });
  holder.append(
    el("figure", { class: "chart" },
      el("figcaption", {}, el("b", {}, title), note && el("span", { class: "note" }, note)),
      readout, plot));
  const chart = { ...kind, readout, plot, height };
  chart.first = Math.min(...chart.steps);
  chart.last = Math.max(...chart.steps);
  charts.push(chart);
  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect();
    setCursor(Math.round(chart.fromX(event.clientX - box.left)));
  });
  plot.addEventListener("pointerleave", () => setCursor(null));
  plot.addEventListener("keydown", (event) => {
    const way = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!way) return;
    event.preventDefault();
    setCursor(Math.min(chart.last, Math.max(chart.first, (cursor ?? chart.last) + way)));
  });
  plot.style.height = height + "px";
  draw(chart); // at once: a busy machine may be long in coming to a frame
  new ResizeObserver(() => requestAnimationFrame(() => draw(chart))).observe(plot);
}

function draw(chart) {
  const width = chart.plot.clientWidth;
  if (!width) return;
  const { height, first, last } = chart, left = 42, right = 10, top = 8, bottom = 22;
  const { low, high, text } = chart.scale();
  const range = Math.max(1, last - first);
  const x = (step) => left + ((step - first) / range) * (width - left - right);
  const y = (value) => top + (1 - (value - low) / (high - low)) * (height - top - bottom);
  chart.x = x;
  chart.y = y;
  chart.fromX = (px) => Math.min(last, Math.max(first, first + ((px - left) / (width - left - right)) * range));
  const svg = el("svg:svg", { width, height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
  for (const value of ticks(low, high, 4)) {
    svg.append(el("svg:line", { class: "grid", x1: left, x2: width - right, y1: y(value), y2: y(value) }),
      el("svg:text", { class: "tick", x: left - 6, y: y(value) + 4, "text-anchor": "end" }, text(value)));
  }
  svg.append(el("svg:text", { class: "tick", x: width - right, y: height - 5, "text-anchor": "end" }, "step"));
  for (const value of ticks(first, first + range, Math.max(2, Math.floor(width / 110)))) {
    if (value % 1 === 0 && x(value) < width - right - 42) svg.append(el("svg:text", { class: "tick", x: x(value), y: height - 5, "text-anchor": "middle" }, String(value)));
  }
  chart.paint(chart, svg);
  chart.mark = el("svg:g", {});
  svg.append(chart.mark);
  chart.plot.replaceChildren(svg);
  read(chart);
}

/** A line through the points (step, value), which breaks where more than `gap` steps have none. */
const path = (chart, points, gap = Infinity) => points.map(([s, v], i) =>
  `${i && s - points[i - 1][0] <= gap ? "L" : "M"}${chart.x(s).toFixed(1)},${chart.y(v).toFixed(1)}`).join("");

/** The values at the cursor (or the last ones) beside the title, and the cursor's line. */
function read(chart) {
  if (!chart.mark) return;
  chart.mark.replaceChildren();
  const inside = cursor !== null && cursor >= chart.first && cursor <= chart.last;
  if (inside) chart.mark.append(el("svg:line", { class: "cursor", x1: chart.x(cursor), x2: chart.x(cursor), y1: 8, y2: chart.height - 22 }));
  chart.readout.replaceChildren(...chart.values(chart, inside ? cursor : null), el("span", { class: "note" }, inside ? "step " + cursor : "at the end"));
}

function swatch(colour) {
  const key = el("span", { class: "key" });
  key.style.setProperty("--colour", colour);
  return key;
}

/** The runs' curves of one metric over each other. */
function lineChart(spec) {
  const lines = DATA.runs.map((run) => ({ ...run, raw: run.series[spec.key] })).filter((l) => l.raw.length);
  const all = lines.flatMap((l) => l.raw);
  return {
    steps: all.map((p) => p[0]),
    scale() {
      const values = all.map((p) => p[1]);
      let low = Math.min(...values, spec.fraction ? 0 : Infinity), high = Math.max(...values);
      if (spec.whole) high = 1;
      else if (spec.fraction) high = Math.min(1, Math.max(0.1, Math.ceil(high * 10 + 0.2) / 10));
      if (high - low < 1e-9) { low -= 0.5; high += 0.5; }
      const text = (v) => (spec.fraction ? Math.round(100 * v) + " %" : Math.abs(v) >= 1e4 ? v / 1000 + "k" : String(+v.toPrecision(3)));
      return { low, high, text };
    },
    paint(chart, svg) {
      const weight = spec.sparse ? 0 : Number(byId("smoothing").value);
      const gap = spec.sparse ? Infinity : Math.max(2, GAP * (chart.last - chart.first));
      for (const line of lines) {
        line.smooth = smooth(line.raw, weight);
        if (weight) svg.append(el("svg:path", { class: "raw", d: path(chart, line.raw, gap), stroke: line.colour }));
        svg.append(el("svg:path", { class: "curve", d: path(chart, line.smooth, gap), stroke: line.colour }));
        const alone = (i) => i < 0 || i >= line.raw.length, far = (i, j) => alone(j) || Math.abs(line.raw[i][0] - line.raw[j][0]) > gap;
        line.smooth.forEach(([s, v], i) => {
          if (spec.sparse || (far(i, i - 1) && far(i, i + 1))) svg.append(el("svg:circle", { cx: chart.x(s), cy: chart.y(v), r: 2.5, fill: line.colour }));
          if (spec.sparse && s === line.best) svg.append(el("svg:circle", { class: "best", cx: chart.x(s), cy: chart.y(v), r: 6, stroke: line.colour }));
        });
      }
    },
    values(chart, step) {
      return lines.map((line) => {
        const at = step !== null ? line.raw.findLastIndex((p) => p[0] <= step) : line.raw.length - 1;
        const raw = line.raw[at], level = line.smooth[at];
        if (step !== null && level) chart.mark.append(el("svg:circle", { cx: chart.x(level[0]), cy: chart.y(level[1]), r: 4, fill: line.colour }));
        return el("span", { class: "value" }, swatch(line.colour), el("b", {}, show(level?.[1], spec.fraction)),
          step !== null ? el("span", { class: "note" }, " raw " + show(raw?.[1], spec.fraction)) : null);
      });
    },
  };
}

function setCursor(step) {
  cursor = step;
  charts.forEach(read);
}

if (byId("curves")) {
  for (const run of DATA.runs) byId("legend").append(el("span", {}, swatch(run.colour), run.name));
  const add = (id, spec, height) => addChart(byId(id), spec.title, spec.note, height, lineChart(spec));
  DATA.families.forEach((spec) => add("family-charts", spec, 180));
  DATA.main.forEach((spec) => add("main-charts", spec, 210));
  DATA.validation.forEach((spec) => add("validation-charts", spec, 180));
  DATA.more.forEach((spec) => add("more-charts", spec, 150));
  byId("more").hidden = !DATA.more.length;
  byId("smoothing").addEventListener("input", () => charts.forEach(draw));
}
