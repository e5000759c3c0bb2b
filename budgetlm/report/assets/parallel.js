// Parallel coordinates: a line a trial; dragging along an axis keeps the trials that pass there, in every figure that shows trials.
"use strict";
const B = window.budgetlm;
const BINS = 10;

// Whether a trial passes all that is kept on the axes.
B.passes = trial => {
  for (const [name, [low, high]] of B.brushes) {
    const value = valueOf(trial, name);
    if (value == null || !(place(name, value) >= low && place(name, value) <= high)) return false;
  }
  return true;
};

let axes = new Map();
const valueOf = (t, name) => (name === "forecast" ? t.forecast : t.recipe[name]);
// Where on its axis a value stands, from 0 at the bottom to 1.
const place = (name, value) => axes.get(name)?.(value);

const makeAxes = () => {
  axes = new Map();
  for (const name of [...B.data.words.searched, "forecast"]) {
    const values = B.trials.map(t => valueOf(t, name)).filter(v => v != null);
    if (!values.length) continue;
    if (values.some(v => typeof v !== "number")) axes.set(name, d3.scalePoint([...new Set(values.map(String))].sort(), [0, 1]).padding(0.3));
    else {
      const domain = d3.extent(values), log = domain[0] > 0 && domain[1] / domain[0] > 8;
      if (domain[0] === domain[1]) domain[1] += Math.abs(domain[1]) || 1;
      axes.set(name, (log ? d3.scaleLog : d3.scaleLinear)(domain, [0, 1]));
    }
  }
};

B.figures.parallel = {
  frames: ["trials"],
  draw(host) {
    makeAxes();
    if (axes.size < 2 || B.trials.length < 2) return B.nothing(host, "There are too few trials.");
    const names = [...axes.keys()], wide = Math.max(host.clientWidth, 84 * names.length);
    const inner = d3.select(host).append("div").attr("class", "scroll").append("div").style("min-width", `${wide}px`).node();
    const c = B.chart(inner, { height: 380, left: 40, right: 52, top: 44, bottom: 26, label: "Parallel coordinates of all trials" });
    const x = d3.scalePoint(names, [c.left, c.right]), y = p => c.bottom - p * (c.bottom - c.top);
    const lines = c.svg.insert("g", ":first-child");
    const known = B.trials.filter(t => t.forecast != null), ranked = known.map(t => t.forecast).sort(d3.ascending);
    const draw = d3.line().defined(p => p != null);
    const way = t => draw(names.map(n => { const v = valueOf(t, n); return v == null ? null : [x(n), y(place(n, typeof v === "number" ? v : String(v)))]; }));
    const bins = d3.groups(known, t => Math.min(BINS - 1, Math.floor((BINS * d3.bisectLeft(ranked, t.forecast)) / ranked.length))).sort((a, b) => b[0] - a[0]);
    const paint = () => {
      const kept = t => B.passes(t);
      lines.selectAll("path").remove();
      lines.append("path").attr("class", "line off").attr("d", B.trials.filter(t => t.forecast == null || !kept(t)).map(way).join(""));
      for (const [bin, trials] of bins) lines.append("path").attr("class", "line in").style("stroke", d3.interpolateCividis(B.dark() ? 1 - 0.85 * (bin / (BINS - 1)) : 0.92 * (bin / (BINS - 1)))).attr("d", trials.filter(kept).map(way).join(""));
      const chosen = B.trialOf.get(B.chosen);
      if (chosen) lines.append("path").attr("class", "line chosen").attr("d", way(chosen));
    };
    for (const name of names) {
      const g = c.marks.append("g").attr("transform", `translate(${x(name)},0)`), scale = axes.get(name);
      g.append("line").attr("class", "rail").attr("y1", c.top).attr("y2", c.bottom);
      g.append("text").attr("class", "head").attr("y", 16).attr("text-anchor", "middle").text(name.replaceAll("_", " "));
      const ticks = scale.ticks ? scale.ticks(4).filter((_, i, all) => i % Math.ceil(all.length / 6) === 0) : scale.domain();
      for (const v of ticks) g.append("text").attr("class", "tick").attr("x", 6).attr("y", y(scale(v))).attr("dy", "0.32em").text(typeof v === "number" ? (Math.abs(v) >= 1000 ? B.si(v) : B.number(v)) : v);
      const brush = d3.brushY().extent([[-12, c.top - 9], [12, c.bottom + 9]]).on("brush end", event => {
        if (!event.sourceEvent) return;
        if (event.selection) B.brushes.set(name, [(c.bottom - event.selection[1]) / (c.bottom - c.top) - 1e-9, (c.bottom - event.selection[0]) / (c.bottom - c.top) + 1e-9]);
        else B.brushes.delete(name);
        paint();
        B.tell(event.type === "end" ? "brushed" : "brushing");
      });
      const place = g.append("g").attr("class", "brush").attr("data-axis", name).call(brush);
      const kept = B.brushes.get(name);
      if (kept) brush.move(place, [y(kept[1]), y(kept[0])]);
    }
    paint();
    const tools = d3.select(host).append("p").attr("class", "soft count");
    const count = () => {
      const kept = B.trials.filter(B.passes).length;
      tools.text(B.brushes.size ? `${kept} of ${B.trials.length} trials are kept, here, on the ladder and in the table. ` : B.dark() ? "The brighter, the better the forecast. " : "The darker, the better the forecast. ");
      if (B.brushes.size) tools.append("button").attr("type", "button").text("Keep all").on("click", () => { B.brushes.clear(); B.draw("parallel"); B.tell("brushed"); });
    };
    count();
    B.listeners.brushing = [count];
    B.counted = count;
  },
};
B.on("brushed", () => B.counted && B.counted());
