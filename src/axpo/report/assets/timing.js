// A run's phases stacked over its steps. All runs share one scale, so that heights compare.

const BINS = 48;
const sum = (values) => values.reduce((a, b) => a + b, 0);

/** Means of neighbouring steps, so that one slow step stays where it was: {step, values} each. */
function binned(run) {
  const size = Math.ceil(run.steps.length / BINS);
  return Array.from({ length: Math.ceil(run.steps.length / size) }, (_, i) => {
    const rows = run.values.slice(i * size, (i + 1) * size);
    return { step: run.steps[i * size], values: rows[0].map((_, part) => sum(rows.map((r) => r[part])) / rows.length) };
  });
}

function bandChart(bins, high) {
  const parts = DATA.timing.bands;
  return {
    steps: bins.map((bin) => bin.step),
    scale: () => ({ low: 0, high, text: (v) => +v.toPrecision(3) + " s" }),
    paint(chart, svg) {
      const edge = (part) => bins.map((bin) => [bin.step, Math.min(high, sum(bin.values.slice(0, part)))]);
      parts.forEach((part, i) => {
        const back = path(chart, edge(i).reverse()).replace("M", "L");
        svg.append(el("svg:path", { class: "band", d: path(chart, edge(i + 1)) + back + "Z", fill: part.colour }));
      });
    },
    values(chart, step) {
      const { values } = step !== null ? bins.findLast((bin) => bin.step <= step) : bins.at(-1);
      return [el("b", {}, sum(values).toFixed(2) + " s"), ...parts.map((part, i) => el("span", { class: "note" }, swatch(part.colour), values[i].toFixed(2)))];
    },
  };
}

if (byId("timing")) {
  const runs = DATA.timing.runs.map((run) => ({ name: run.name, bins: binned(run) }));
  const totals = runs.flatMap((run) => run.bins.map((bin) => sum(bin.values))).sort((a, b) => a - b);
  // One slow step (the first, mostly) must not flatten all others.
  const usual = 1.5 * totals[Math.floor(0.9 * totals.length)], highest = totals.at(-1);
  for (const run of runs) {
    const note = highest > usual ? `seconds per step, cut at ${+usual.toPrecision(2)} s` : "seconds per step";
    addChart(byId("timing-charts"), run.name, note, 190, bandChart(run.bins, Math.min(highest, usual) * 1.04));
  }
}
