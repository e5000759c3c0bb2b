// The table of trials: sorted, filtered, opened, compared.
"use strict";
const B = window.budgetlm;
const PAGE = 40;
const COLUMNS = [
  ["trial", "trial", B.number], ["mark", "", v => v], ["state", "state", v => v], ["rung", "rung", v => (v < 0 ? "–" : v)], ["forecast", "forecast", B.bpb],
  ["low", "low", B.bpb], ["high", "high", B.bpb], ["best", "P(best)", v => (v == null ? "" : `${(100 * v).toFixed(v < 0.1 ? 1 : 0)} %`)], ["bpb", "measured", B.bpb], ["seconds", "cost (s)", v => v.toFixed(1)],
  ["parameters", "param.", B.si], ["speed", "tokens/s", B.si],
];
const NUMBERS = new Set(["trial", "rung", "forecast", "low", "high", "best", "bpb", "seconds", "parameters", "speed"]);
const state = { sort: "forecast", down: false, text: "", shown: PAGE, open: new Set() };
const recipeColumns = () => B.data.words.searched.map(name => [`recipe.${name}`, name.replaceAll("_", " "), v => (typeof v === "number" && v !== 0 && (Math.abs(v) < 0.01 || Math.abs(v) >= 1e5) ? d3.format(".2~e")(v) : B.number(v))]);
const value = (t, key) => (key.startsWith("recipe.") ? t.recipe[key.slice(7)] : t[key]);

// A filter is words, all of which must occur, or comparisons such as width>=64.
const COMPARISON = /^([a-z_.() /]+?)(<=|>=|=|<|>)(.+)$/i;
const matcher = text => {
  const tests = text.toLowerCase().split(/\s+/).filter(Boolean).map(word => {
    const found = word.match(COMPARISON);
    const key = found && (B.data.words.searched.includes(found[1]) ? `recipe.${found[1]}` : COLUMNS.some(([k]) => k === found[1]) ? found[1] : null);
    if (!key) return t => textOf(t).includes(word);
    const wanted = Number(found[3]), compare = { "<": (a, b) => a < b, ">": (a, b) => a > b, "<=": (a, b) => a <= b, ">=": (a, b) => a >= b, "=": (a, b) => a === b }[found[2]];
    return t => { const v = value(t, key); return v != null && (typeof v === "number" && !Number.isNaN(wanted) ? compare(v, wanted) : found[2] === "=" && String(v).toLowerCase() === found[3]); };
  });
  return t => tests.every(test => test(t));
};
const textOf = t => (t.text ||= [`trial ${t.trial}`, t.state, t.mark, t.why, t.cause, t.shape, t.error, ...Object.values(t.recipe).filter(v => typeof v === "string")].join(" ").toLowerCase());

const sorted = () => {
  const matches = matcher(state.text), rows = B.trials.filter(t => B.passes(t) && matches(t)), way = state.down ? -1 : 1;
  return rows.sort((a, b) => {
    const p = value(a, state.sort), q = value(b, state.sort);
    if (p == null || q == null) return (p == null) - (q == null) || a.trial - b.trial;
    return way * (p < q ? -1 : p > q ? 1 : 0) || a.trial - b.trial;
  });
};

B.figures.trials = {
  frames: null,
  draw(host) {
    const tools = d3.select(host).append("div").attr("class", "filter");
    const id = "trial-filter";
    tools.append("label").attr("for", id).text("Filter ");
    tools.append("input").attr("id", id).attr("type", "search").attr("placeholder", "muon width>=64 forecast<1.4").attr("autocomplete", "off").property("value", state.text)
      .on("input", event => { state.text = event.target.value; state.shown = PAGE; body(); });
    tools.append("span").attr("class", "soft").attr("id", "trial-count").attr("role", "status");
    const scroll = d3.select(host).append("div").attr("class", "scroll table").attr("tabindex", 0).attr("role", "region").attr("aria-label", "Trials");
    const table = scroll.append("table").attr("class", "trials"), columns = [...COLUMNS, ...recipeColumns()];
    const head = table.append("thead").append("tr");
    head.append("th").attr("scope", "col").text("compare");
    for (const [key, title] of columns) {
      const th = head.append("th").attr("scope", "col").attr("data-key", key).attr("class", NUMBERS.has(key) ? "number" : null);
      if (title) th.append("button").attr("type", "button").text(title).on("click", () => {
        state.down = state.sort === key ? !state.down : false;
        state.sort = key;
        body();
      });
    }
    const tbody = table.append("tbody"), more = d3.select(host).append("p");
    const body = (B.trialsBody = () => {
      const rows = sorted(), shown = rows.slice(0, state.shown);
      head.selectAll("th").attr("aria-sort", function () { return this.dataset.key === state.sort ? (state.down ? "descending" : "ascending") : null; });
      d3.select("#trial-count").text(` ${rows.length} of ${B.trials.length} trials`);
      tbody.selectAll("*").remove();
      for (const t of shown) {
        const tr = tbody.append("tr").attr("data-trial", t.trial).attr("data-mark", t.mark);
        tr.append("td").append("input").attr("type", "checkbox").attr("aria-label", `compare trial ${t.trial}`).property("checked", B.selected.has(t.trial))
          .on("change", event => { B.selected[event.target.checked ? "add" : "delete"](t.trial); B.tell("selected"); });
        columns.forEach(([key, , format], i) => {
          const v = value(t, key), td = tr.append(i ? "td" : "th").attr("class", typeof v === "number" ? "number" : null);
          if (i) td.text(v == null ? "" : format(v));
          else td.attr("scope", "row").append("button").attr("type", "button").attr("class", "open").attr("aria-expanded", state.open.has(t.trial)).text(t.trial).on("click", () => toggle(t.trial));
        });
        if (state.open.has(t.trial)) details(tbody.append("tr").attr("class", "details").append("td").attr("colspan", columns.length + 1), t);
      }
      more.selectAll("*").remove();
      if (rows.length > shown.length) more.append("button").attr("type", "button").text(`Show ${Math.min(PAGE * 5, rows.length - shown.length)} more of ${rows.length - shown.length}`).on("click", () => { state.shown += PAGE * 5; body(); });
    });
    const toggle = trial => { state.open[state.open.has(trial) ? "delete" : "add"](trial); body(); };
    body();
  },
};

B.on("open", trial => {
  if (!B.trialOf.has(trial)) return;
  state.open.add(trial);
  const place = sorted().findIndex(t => t.trial === trial);
  if (place < 0) { state.text = ""; B.brushes.clear(); B.draw("trials"); B.draw("parallel"); }
  state.shown = Math.max(state.shown, sorted().findIndex(t => t.trial === trial) + 1);
  B.trialsBody();
  document.querySelector(`tr[data-trial="${trial}"]`).scrollIntoView({ block: "center" });
});
B.on("brushed", () => B.trialsBody && B.trialsBody());

const KINDS = [["loss", "training loss (nats)", B.number], ["lr", "learning rate", d3.format(".1~e")], ["tokens_per_second", "tokens a second", B.si], ["gradient_norm", "gradient norm", B.number]];
const details = (cell, t) => {
  const rows = B.runsOf.get(t.trial), box = cell.append("div").attr("class", "trial-details").style("max-width", `${Math.max(260, document.querySelector("main").clientWidth - 40)}px`);
  box.append("p").text(Object.entries(t.recipe).map(([k, v]) => `${k} ${typeof v === "number" ? B.number(v) : v}`).join(", "));
  const table = box.append("div").attr("class", "scroll").append("table"), names = ["rung", "paid for as", "state", "shape", "steps", "tokens", "seconds", "bits per byte", "cost by purpose"];
  table.append("caption").text(`Runs of trial ${t.trial}`);
  table.append("thead").append("tr").selectAll("th").data(names).join("th").attr("scope", "col").text(d => d);
  const body = table.append("tbody");
  for (const r of rows) {
    const at = name => B.at(name, r), purposes = B.names.filter(n => n.startsWith("by_purpose.") && at(n)).map(n => `${n.slice(11)} ${at(n).toFixed(1)} s`).join(", ");
    body.append("tr").selectAll("td").data([at("rung"), at("why"), at("state"), `${at("config.model.depth") ?? ""} × ${at("config.model.width") ?? ""}`, B.number(at("steps")), B.si(at("tokens")), at("seconds").toFixed(1), B.bpb(at("bpb")), purposes]).join("td").text(d => d);
    if (at("inherited_from")) box.append("p").text(`${at("run")} began from the trunk of ${at("inherited_from")}, which had paid for ${at("inherited_seconds").toFixed(1)} s.`);
    if (at("error")) box.append("pre").attr("class", "error").text(`${at("run")}: ${at("cause")}\n${at("error")}`);
  }
  const runs = rows.map(r => B.at("run", r)).filter((run, i, all) => all.indexOf(run) === i);
  const cells = B.cells(box.node(), "grid-of-plots", KINDS.length);
  for (const [key, title, format] of KINDS) curvesOf(cells.shift(), runs.map(run => ({ run, name: `rung ${run.match(/rung(\d+)/)?.[1] ?? ""}` })), "seconds", key, title, format, 190);
};

const PALETTE = 8;
const curvesOf = (host, runs, across, key, title, format, height) => {
  const ways = runs.map(r => ({ ...r, points: d3.zip(B.curve(r.run, across === "flops" ? "tokens" : across), B.curve(r.run, key)).filter(p => p[1] != null && p[0] > 0).map(([a, b]) => [across === "flops" ? a * r.flops : a, b]) })).filter(w => w.points.length);
  if (!ways.length) return d3.select(host).remove();
  const c = B.chart(host, { height, left: 54, right: 12, top: 22, bottom: 40, label: title }), points = ways.flatMap(w => w.points);
  B.say(c, c.left, 10, title, "head");
  const log = key === "loss", x = B.logScale(d3.extent(points, p => p[0]), [c.left, c.right]), domain = d3.extent(points, p => p[1]);
  const y = log && domain[0] > 0 ? B.logScale([domain[0] * 0.97, domain[1] * 1.03], [c.bottom, c.top]) : d3.scaleLinear(key === "loss" ? domain : [0, domain[1] * 1.05 || 1], [c.bottom, c.top]);
  B.axes(c, x, y, { xLabel: { seconds: "device-seconds", tokens: "tokens", flops: "FLOP", step: "steps" }[across], xFormat: across === "seconds" ? B.number : across === "flops" ? d3.format(".0e") : B.si, yFormat: format });
  ways.forEach((w, i) => B.lines(c, [w.points], x, y, `curve${i % PALETTE}`));
  B.tips(c, ways.flatMap(w => w.points.map(p => ({ x: x(p[0]), y: y(p[1]), lines: [w.run, `${format(p[1])} at ${B.number(Number(p[0].toPrecision(3)))}`] }))));
  return ways;
};

const compared = { across: "seconds", key: "loss" };
B.figures.compare = {
  frames: [],
  draw(host) {
    const picked = [...B.selected];
    const best = B.trials.filter(t => t.forecast != null || t.bpb != null).sort((a, b) => (a.forecast ?? a.bpb) - (b.forecast ?? b.bpb)).slice(0, 5).map(t => t.trial);
    const trials = picked.length ? picked : best;
    const top = trial => B.runsOf.get(trial).filter(r => B.curves.has(B.at("run", r))).sort((a, b) => B.at("rung", b) - B.at("rung", a))[0];
    const rows = [...trials.filter(t => B.runsOf.has(t)).map(top).filter(r => r != null), ...(picked.length ? [] : B.finals.slice(-1))];
    const tools = d3.select(host).append("div").attr("class", "filter");
    const choice = (label, key, options) => {
      const box = tools.append("label").text(`${label} `);
      box.append("select").attr("data-choice", key).on("change", e => { compared[key] = e.target.value; B.draw("compare"); }).selectAll("option").data(options).join("option").attr("value", o => o[0]).property("selected", o => compared[key] === o[0]).text(o => o[1]);
    };
    choice("Show", "key", [...KINDS.map(([k, t]) => [k, t]), ["bpb", "validation loss (bits per byte)"]]);
    choice("against", "across", [["seconds", "device-seconds"], ["tokens", "tokens"], ["flops", "FLOP"], ["step", "steps"]]);
    tools.append("span").attr("class", "soft").text(picked.length ? ` ${picked.length} selected` : " the best five and the final; tick others in the table");
    if (picked.length) tools.append("button").attr("type", "button").text("Clear").on("click", () => { B.selected.clear(); B.trialsBody(); B.tell("selected"); });
    const [, title, format] = KINDS.find(([k]) => k === compared.key) || [0, "validation loss (bits per byte)", B.bpb];
    const runs = rows.map(r => ({ run: B.at("run", r), name: B.at("run", r), flops: B.at("flops", r) / Math.max(1, B.at("tokens", r)) }));
    const ways = curvesOf(d3.select(host).append("div").node(), runs, compared.across, compared.key, title, format, 400);
    if (!Array.isArray(ways)) return B.nothing(host, "No curve of these was kept.");
    B.legend(host, ways.map((w, i) => [`line curve${i % PALETTE}`, w.name]));
  },
};
B.on("selected", () => { B.draw("compare"); B.draw("ladder"); });
B.on("brushed", () => B.draw("ladder"));
