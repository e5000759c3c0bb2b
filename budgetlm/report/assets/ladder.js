// The ladder: loss against compute, and where it leads.
"use strict";
const B = window.budgetlm;
const FLOOR_SHARE = 0.98;

// Losses over so wide a range that a diverged run would squeeze all others are cut off above.
const highest = values => {
  const sorted = values.slice().sort(d3.ascending), most = d3.quantileSorted(sorted, 0.98);
  return Math.min(sorted.at(-1), most + 0.5 * (most - sorted[0]) || sorted.at(-1));
};

B.figures.ladder = {
  frames: ["trials", "paths", "law"],
  draw(host) {
    const paths = B.rowsOf("paths"), law = B.rowsOf("law");
    const lines = new Map();
    for (const [trial, rows] of B.runsOf) {
      const rungs = d3.rollups(rows.filter(r => B.at("bpb", r) != null && B.at("state", r) === "done"), v => v, r => B.at("rung", r));
      if (rungs.length) lines.set(trial, rungs.map(([rung, at]) => ({ rung, rows: at, x: B.at("planned_seconds", at[0]), y: d3.mean(at, r => B.at("bpb", r)) })).sort((a, b) => a.x - b.x));
    }
    const finals = B.finals.filter(r => B.at("bpb", r) != null);
    if (!lines.size && !finals.length) return B.nothing(host, "No run has been measured yet.");
    const all = [...lines.values()].flat();
    const fan = paths.filter(p => p.q05 != null);
    const c = B.chart(host, { height: Math.max(420, Math.min(620, host.clientWidth * 0.62)), right: host.clientWidth > 640 ? 132 : 104, label: "Loss against compute, a line a trial, with forecasts to the target" });
    const losses = [...all.map(p => p.y), ...paths.map(p => p.mean), ...finals.map(r => B.at("bpb", r)), ...fan.flatMap(p => [p.q05, p.q95])];
    const seconds = [...all.map(p => p.x), B.target, ...finals.map(r => B.at("planned_seconds", r))];
    const x = B.logScale([d3.min(seconds) * 0.86, d3.max(seconds) * 1.06], [c.left, c.right]);
    const y = B.logScale([d3.min(losses) * FLOOR_SHARE, highest(losses) * 1.01], [c.bottom, c.top]).clamp(true);
    B.axes(c, x, y, { xLabel: "compute of the run (device time, log scale)", yLabel: "validation loss (bits per byte, log scale)", xFormat: B.time });
    c.marks.append("line").attr("class", "target").attr("x1", x(B.target)).attr("x2", x(B.target)).attr("y1", c.top).attr("y2", c.bottom);

    const band = (low, high) => fan.map(p => [p.seconds, p[low], p[high]]);
    if (fan.length > 1) for (const [low, high, name] of [["q05", "q95", "wide"], ["q10", "q90", "middle"], ["q25", "q75", "narrow"]]) B.band(c, band(low, high), x, y, `fan ${name}`);
    const special = trial => trial === B.chosen || trial === 0 || B.selected.has(trial);
    const points = trial => lines.get(trial).map(p => [p.x, p.y]);
    const plain = [...lines.keys()].filter(t => !special(t));
    const dim = trial => B.brushes.size > 0 && !B.passes(B.trialOf.get(trial));
    B.lines(c, plain.filter(t => !dim(t)).map(points), x, y, "trial");
    B.dots(c, plain.filter(t => !dim(t)).flatMap(points), x, y, "trial", plain.length > 1000 ? 3 : 5.5);
    B.dots(c, plain.filter(dim).flatMap(points), x, y, "dim", 3);
    const ways = d3.groups(paths, p => p.trial);
    B.lines(c, ways.filter(([t]) => !special(t) && !dim(t)).map(([, rows]) => rows.map(p => [p.seconds, p.mean])), x, y, "way");
    B.lines(c, [law.map(p => [p.seconds, p.mean])].filter(l => l.length), x, y, "law");
    const labels = [];
    for (const trial of [...lines.keys()].filter(special).sort((a, b) => (a === B.chosen) - (b === B.chosen))) {
      const name = trial === B.chosen ? "chosen" : B.selected.has(trial) ? "picked" : "default";
      const way = (ways.find(([t]) => t === trial) || [0, []])[1];
      B.lines(c, [way.map(p => [p.seconds, p.mean])].filter(l => l.length), x, y, `way ${name}`);
      B.lines(c, [points(trial)], x, y, name);
      B.dots(c, points(trial), x, y, name, 9);
      const t = B.trialOf.get(trial);
      if (t && t.forecast != null) labels.push({ y: y(t.forecast), value: t.forecast, trial, name, text: trial === B.chosen ? `chosen ${t.forecast.toFixed(3)}` : trial === 0 ? `default ${t.forecast.toFixed(3)}` : `trial ${trial} ${t.forecast.toFixed(3)}` });
    }
    for (const l of labels) B.mark(c, d3.symbolDiamond, x(B.target), l.y, 110, `diamond ${l.name}`);
    const stars = finals.map(r => ({ row: r, x: x(B.at("planned_seconds", r)), y: y(B.at("bpb", r)) }));
    for (const r of finals) {
      const way = d3.zip(B.curve(B.at("run", r), "seconds"), B.curve(B.at("run", r), "bpb")).filter(p => p[1] != null && p[0] >= x.domain()[0]);
      B.lines(c, [way], x, y, "final");
    }
    for (const s of stars) {
      B.mark(c, d3.symbolStar, s.x, s.y, 240, "star");
      labels.push({ y: s.y, text: `final ${B.at("bpb", s.row).toFixed(3)}`, name: "final" });
    }
    B.apart(labels, 17, c.top + 8, c.bottom - 6);
    for (const l of labels) B.say(c, c.right + (host.clientWidth > 640 ? 9 : 5), l.at, l.text, l.name);
    B.say(c, x(B.target) - 6, c.top + 8, "target", "soft", "end");
    B.tips(c, [
      ...[...lines].flatMap(([trial, at]) => at.map(p => ({ x: x(p.x), y: y(p.y), trial, lines: [...B.tellTrial(trial), `${B.bpb(p.y)} bits per byte in ${B.time(p.x)}${p.rows.length > 1 ? `, mean of ${p.rows.length}` : ""}`] }))),
      ...labels.filter(l => l.trial != null).map(l => ({ x: x(B.target), y: l.y, trial: l.trial, lines: B.tellTrial(l.trial) })),
      ...stars.map(s => ({ x: s.x, y: s.y, lines: [B.at("run", s.row), `${B.bpb(B.at("bpb", s.row))} bits per byte`] })),
    ]);
    B.legend(host, [["line chosen", "chosen"], ["line default", "default recipe"], ["line trial", "other trials"], ["line law", "what all runs have in common"], ["fan", "forecast: 50, 80 and 90 %"], ...(finals.length ? [["star", "final"]] : [])]);
  },
};
