// What matters: importances, effects of single knobs, maps of two.
"use strict";
const B = window.budgetlm, figures = B.figures;

B.title = { depth: "depth", width: "width", batch_tokens: "batch (tokens)", peak_lr: "peak learning rate", weight_decay: "weight decay" };
const titleOf = name => B.title[name] || name.replaceAll("_", " ");
const isLog = values => values.every(v => typeof v === "number" && v > 0) && Math.max(...values) / Math.min(...values) > 8;

figures.importances = {
  frames: ["importances"],
  draw(host) {
    const rows = B.rowsOf("importances");
    if (!rows.length) return false;
    const c = B.chart(host, { height: 60 + 26 * rows.length, left: 140, label: "Importance of each parameter" });
    const x = d3.scaleLinear([0, d3.max(rows, r => Math.max(r.importance, r.high || 0)) * 1.04], [c.left, c.right]), y = d3.scaleBand(rows.map(r => r.parameter), [c.top, c.bottom]).padding(0.28);
    B.axes(c, x, y, { xLabel: "importance (share, PED-ANOVA)", yFormat: titleOf });
    for (const r of rows) {
      const at = y(r.parameter) + y.bandwidth() / 2;
      c.marks.append("rect").attr("class", "bar").attr("x", c.left).attr("y", y(r.parameter)).attr("width", x(r.importance) - c.left).attr("height", y.bandwidth())
        .on("pointermove", e => B.showTip(e, [titleOf(r.parameter), `${(100 * r.importance).toFixed(1)} %`, r.low == null ? "" : `80 %: ${(100 * r.low).toFixed(1)} to ${(100 * r.high).toFixed(1)} %`])).on("pointerleave", B.hideTip);
      if (r.low != null) c.marks.append("line").attr("class", "whisker").attr("x1", x(r.low)).attr("x2", x(r.high)).attr("y1", at).attr("y2", at);
    }
  },
};

figures.effects = {
  frames: ["effects"],
  draw(host) {
    const knobs = d3.groups(B.rowsOf("effects"), r => r.parameter);
    if (!knobs.length) return B.nothing(host, "Effects need forecasts.");
    const cells = B.cells(host, "grid-of-plots", knobs.length);
    const all = knobs.flatMap(([, rows]) => rows.map(r => r.percent));
    const tall = [Math.min(-1, d3.min(all) - 1.5), Math.max(2, Math.min(d3.max(all) + 3, 12))];
    const base = B.trialOf.get(B.chosen);
    for (const [name, rows] of knobs) {
      const c = B.chart(cells.shift(), { height: 190, left: 46, right: 10, top: 24, bottom: 40, label: `Effect of ${titleOf(name)}` });
      B.say(c, c.left, 11, titleOf(name), "head");
      const words = rows.some(r => typeof r.value !== "number"), values = rows.map(r => r.value);
      const x = words ? d3.scalePoint(values.map(String), [c.left, c.right]).padding(0.6) : (isLog(values) ? B.logScale : (d, r) => d3.scaleLinear(d, r))(d3.extent(values), [c.left, c.right]);
      const y = d3.scaleLinear(tall, [c.bottom, c.top]).clamp(true), at = v => (words ? x(String(v)) : x(v));
      B.axes(c, x, y, { xFormat: words ? v => v : v => (v >= 1000 ? B.si(v) : B.number(v)), yFormat: v => `${v} %` });
      if (words) {
        for (const r of rows) c.marks.append("line").attr("class", "whisker").attr("x1", at(r.value)).attr("x2", at(r.value)).attr("y1", y(r.low)).attr("y2", y(r.high));
        B.dots(c, rows.map(r => [r.value, r.percent]), at, y, "trial strong", 9);
      } else {
        B.band(c, rows.map(r => [r.value, r.low, r.high]), x, y, "fan plain");
        B.lines(c, [rows.map(r => [r.value, r.percent])], x, y, "trial strong");
        B.dots(c, B.trials.filter(t => t.recipe[name] != null).slice(0, 400).map(t => [t.recipe[name], tall[0]]), x, y, "rug", 3);
      }
      if (base && base.recipe[name] != null) {
        const own = base.recipe[name], px = at(own);
        if (px != null && px >= c.left - 1 && px <= c.right + 1) B.mark(c, d3.symbolDiamond, px, y(0), 60, "diamond chosen");
      }
      B.tips(c, rows.map(r => ({ x: at(r.value), y: y(r.percent), lines: [`${titleOf(name)} ${B.number(r.value)}`, `${B.percent(r.percent)} (80 %: ${B.percent(r.low)} to ${B.percent(r.high)})`] })));
    }
  },
};

// A map of two knobs: cells by the surface's mean, trials on it, the chosen and the default recipe marked.
const map = (host, frame, down, across, { lines = null, units = v => v } = {}) => {
  const rows = B.rowsOf(frame);
  if (!rows.length) return false;
  const xs = [...new Set(rows.map(r => r[across]))].sort(d3.ascending), ys = [...new Set(rows.map(r => r[down]))].sort(d3.ascending);
  const c = B.chart(host, { height: Math.max(300, Math.min(430, host.clientWidth * 0.55)), right: 78, label: `Loss by ${titleOf(down)} and ${titleOf(across)}` });
  const edges = values => {
    const log = isLog(values), to = log ? Math.log : v => v, back = log ? Math.exp : v => v, t = values.map(to), step = t.length > 1 ? t[1] - t[0] : 1;
    return { scale: (range, flip) => { const d = [back(t[0] - step / 2), back(t.at(-1) + step / 2)]; return log ? d3.scaleLog(d, flip ? [range[1], range[0]] : range) : d3.scaleLinear(d, flip ? [range[1], range[0]] : range); },
      around: v => [back(to(v) - step / 2), back(to(v) + step / 2)] };
  };
  const ex = edges(xs), ey = edges(ys), x = ex.scale([c.left, c.right], false), y = ey.scale([c.top, c.bottom], true);
  const low = d3.min(rows, r => r.percent), high = Math.min(d3.max(rows, r => r.percent), low + 15);
  const colour = d3.scaleSequential(d3.interpolateCividis).domain([high, low]).clamp(true);
  for (const r of rows) {
    const [x0, x1] = ex.around(r[across]).map(x), [y1, y0] = ey.around(r[down]).map(y);
    c.marks.append("rect").attr("x", x0).attr("y", y0).attr("width", x1 - x0 + 0.4).attr("height", y1 - y0 + 0.4).attr("fill", colour(r.percent))
      .on("pointermove", e => B.showTip(e, [`${titleOf(down)} ${B.number(r[down])}, ${titleOf(across)} ${B.number(r[across])}`, `${B.percent(r.percent)} ± ${r.spread.toFixed(2)}`, r.parameters ? `${B.si(r.parameters)} parameters` : ""])).on("pointerleave", B.hideTip);
  }
  if (lines) lines(c, rows, xs, ys, x, y);
  B.axes(c, x, y, { xLabel: units(titleOf(across)), yLabel: titleOf(down), grid: false, xFormat: v => (v >= 1000 ? B.si(v) : B.number(v)), yFormat: v => (ys.every(Number.isInteger) && !Number.isInteger(v) ? "" : B.number(v)) });
  const inside = t => t.recipe[across] >= x.domain()[0] && t.recipe[across] <= x.domain()[1] && t.recipe[down] >= y.domain()[0] && t.recipe[down] <= y.domain()[1];
  const shown = B.trials.filter(inside);
  B.dots(c, shown.map(t => [t.recipe[across], t.recipe[down]]), x, y, "on-map back", 6.5);
  B.dots(c, shown.map(t => [t.recipe[across], t.recipe[down]]), x, y, "on-map", 4);
  for (const [trial, name] of [[0, "default"], [B.chosen, "chosen"]]) {
    const t = B.trialOf.get(trial);
    if (t && inside(t)) B.mark(c, d3.symbolDiamond, x(t.recipe[across]), y(t.recipe[down]), 130, `diamond ${name} solid`);
  }
  const steps = 24, tall = (c.bottom - c.top) / steps;
  for (let i = 0; i < steps; i++) c.marks.append("rect").attr("x", c.right + 16).attr("y", c.top + i * tall).attr("width", 12).attr("height", tall + 0.5).attr("fill", colour(high - ((high - low) * i) / (steps - 1)));
  B.say(c, c.right + 33, c.top + 5, `${B.percent(high)}`, "soft");
  B.say(c, c.right + 33, c.bottom - 5, `${B.percent(low)}`, "soft");
};

figures.rate_by_batch = { frames: ["rate_by_batch"], draw: host => map(host, "rate_by_batch", "peak_lr", "batch_tokens") };

// Lines of equal parameters: for each depth, the width between two cells at which a model has so many.
const equalParameters = (c, rows, xs, ys, x, y) => {
  const at = new Map(rows.map(r => [`${r.depth}/${r.width}`, r.parameters])), [low, high] = d3.extent(rows, r => r.parameters);
  const draw = d3.line().curve(d3.curveMonotoneY);
  for (const level of d3.range(1, 6).map(i => low * (high / low) ** (i / 6))) {
    const points = [];
    for (const depth of ys)
      for (let i = 1; i < xs.length; i++) {
        const a = at.get(`${depth}/${xs[i - 1]}`), b = at.get(`${depth}/${xs[i]}`);
        if (a <= level && level < b) points.push([x(xs[i - 1] + ((xs[i] - xs[i - 1]) * (level - a)) / (b - a)), y(depth)]);
      }
    if (points.length < 2) continue;
    c.marks.append("path").attr("class", "equal").attr("d", draw(points));
    if (c.width > 560) B.say(c, points.at(-1)[0] + 4, points.at(-1)[1] - 9, B.si(Number(level.toPrecision(2))), "equal-label");
  }
};
figures.depth_by_width = { frames: ["depth_by_width"], draw: host => map(host, "depth_by_width", "depth", "width", { lines: equalParameters }) };
