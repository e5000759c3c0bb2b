// The plain figures: verdict, hours, forecast over time, predictions, receipts, compression, finals.
"use strict";
const B = window.budgetlm, figures = B.figures;

figures.verdict = {
  frames: ["receipts"],
  draw(host) {
    const t = B.trialOf.get(B.chosen), base = B.trialOf.get(0), bars = [];
    if (t && t.forecast != null) bars.push({ name: "chosen", text: `forecast, trial ${t.trial}`, mean: t.forecast, low: t.low, high: t.high });
    if (base && base.forecast != null && base.trial !== B.chosen) bars.push({ name: "default", text: "default recipe", mean: base.forecast, low: base.low, high: base.high });
    for (const r of B.finals.filter(r => B.at("bpb", r) != null).slice(-3)) {
      const kept = B.data.facts.forecasts_kept[B.at("run", r)];
      bars.push({ name: "final", text: "final", mean: B.at("bpb", r), low: kept && kept.low, high: kept && kept.high });
    }
    if (!bars.length) return false;
    const narrow = host.clientWidth < 560;
    const c = B.chart(host, { height: 54 + 34 * bars.length, left: narrow ? 108 : 150, right: 60, bottom: 40, label: "Forecasts and outcomes in bits per byte" });
    const x = d3.scaleLinear(B.padded(bars.flatMap(b => [b.mean, b.low ?? b.mean, b.high ?? b.mean]), 0.08), [c.left, c.right]);
    const y = d3.scaleBand(bars.map((_, i) => i), [c.top, c.bottom]);
    B.axes(c, x, y, { xLabel: "bits per byte at the target", yFormat: i => bars[i].text, xFormat: d3.format(".3f") });
    bars.forEach((b, i) => {
      const at = y(i) + y.bandwidth() / 2;
      if (b.low != null) c.marks.append("line").attr("class", `interval ${b.name}`).attr("x1", x(b.low)).attr("x2", x(b.high)).attr("y1", at).attr("y2", at);
      B.mark(c, b.name === "final" ? d3.symbolStar : d3.symbolDiamond, x(b.mean), at, 130, b.name === "final" ? "star" : `diamond ${b.name}`);
      B.say(c, c.right + 6, at, b.mean.toFixed(3), b.name);
    });
  },
};

figures.spending = {
  frames: ["spending"],
  draw(host) {
    const rows = B.rowsOf("spending");
    if (!rows.length) return B.nothing(host, "Nothing was charged yet.");
    const accounts = d3.groups(rows, r => r.account).sort((a, b) => (b[0] === "search") - (a[0] === "search"));
    const c = B.chart(host, { height: 52 + 44 * accounts.length, left: 14, top: 20, bottom: 34, label: "Device time by purpose" });
    const x = d3.scaleLinear([0, 100], [c.left, c.right]);
    accounts.forEach(([account, parts], i) => {
      const total = d3.sum(parts, p => p.seconds), at = c.top + 44 * i;
      B.say(c, c.left, at - 7, `${account}, ${B.time(total)}`, "soft");
      let done = 0;
      for (const p of parts.slice().sort((a, b) => b.seconds - a.seconds)) {
        const share = (100 * p.seconds) / total, px = x(done), wide = x(done + share) - px;
        c.marks.append("rect").attr("class", `purpose ${p.purpose}`).attr("x", px).attr("y", at).attr("width", Math.max(0.5, wide - 1)).attr("height", 22)
          .on("pointermove", e => B.showTip(e, [account, `${p.purpose}: ${B.time(p.seconds)}, ${share.toFixed(1)} %`])).on("pointerleave", B.hideTip);
        if (wide > 90) B.say(c, px + 7, at + 11.5, `${p.purpose} ${share.toFixed(1)} %`, "on");
        done += share;
      }
    });
    const purposes = [...new Set(rows.slice().sort((a, b) => b.seconds - a.seconds).map(r => r.purpose))];
    c.svg.attr("height", c.height - 24).attr("viewBox", [0, 0, c.width, c.height - 24]);
    B.legend(host, purposes.map(p => [`purpose ${p}`, p]));
  },
};

figures.timeline = {
  frames: ["timeline"],
  draw(host) {
    const rows = B.rowsOf("timeline");
    if (!rows.length) return B.nothing(host, "No run has ended yet.");
    const places = [...new Set(rows.map(r => r.place))].sort(d3.ascending), high = places.length > 8 ? 26 : 46;
    const c = B.chart(host, { height: 58 + high * places.length, left: 74, bottom: 42, label: "Runs over time on each device" });
    const ended = d3.max(rows, r => r.ended), hours = ended > 7200, unit = hours ? 3600 : ended > 240 ? 60 : 1;
    const x = d3.scaleLinear([0, ended / unit], [c.left, c.right]), y = d3.scaleBand(places, [c.top, c.bottom]).padding(0.16);
    B.axes(c, x, y, { xLabel: `time that the search was at work (${hours ? "hours" : unit === 60 ? "minutes" : "seconds"})`, yFormat: p => `device ${p}` });
    const stacked = rows.some(r => !r.run), top = d3.max(rows, r => r.rung);
    const stacks = new Map();
    for (const r of rows) {
      const px = x(r.began / unit), wide = x(r.ended / unit) - px, full = y.bandwidth();
      let tall = full, up = 0;
      if (stacked) {
        const key = `${r.place}/${r.began}`;
        up = stacks.get(key) || 0;
        tall = Math.min(full - up, (full * r.seconds) / (r.ended - r.began));
        stacks.set(key, up + tall);
      }
      c.marks.append("rect").attr("class", `rung rung${Math.min(4, top - r.rung)} ${r.state}`).attr("x", px).attr("y", y(r.place) + full - up - tall)
        .attr("width", Math.max(0.6, wide - (stacked ? 0 : 0.8))).attr("height", tall)
        .on("pointermove", e => B.showTip(e, [r.run || `${r.runs} runs began`, `rung ${r.rung}, ${r.state}`, `${B.time(r.seconds)} from ${B.time(r.began)}`])).on("pointerleave", B.hideTip)
        .on("click", () => r.trial != null && B.tell("open", r.trial));
    }
    const bad = rows.some(r => r.state !== "done");
    B.legend(host, [...d3.range(top + 1).map(rung => [`rung rung${Math.min(4, top - rung)}`, `rung ${rung}`]), ...(bad ? [["rung failed", "not measured"]] : [])]);
  },
};

figures.history = {
  frames: ["history"],
  draw(host) {
    const rows = B.rowsOf("history");
    if (rows.length < 2) return B.nothing(host, "No history of forecasts was kept.");
    const long = rows.at(-1).hours > 2, unit = long ? 1 : 1 / 60;
    const c = B.chart(host, { height: 340, right: 110, label: "Best forecast against hours spent" });
    const finals = B.finals.filter(r => B.at("bpb", r) != null);
    const x = d3.scaleLinear([0, rows.at(-1).hours / unit], [c.left, c.right]);
    const y = d3.scaleLinear(B.padded([...rows.flatMap(r => [r.low, r.high]), ...finals.map(r => B.at("bpb", r))]), [c.bottom, c.top]);
    B.axes(c, x, y, { xLabel: `device-${long ? "hours" : "minutes"} spent by the search`, yLabel: "forecast at the target (bits per byte)", yFormat: d3.format(".3f") });
    B.band(c, rows.map(r => [r.hours / unit, r.low, r.high]), x, y, "fan middle");
    B.lines(c, [rows.filter(r => r.default != null).map(r => [r.hours / unit, r.default])], x, y, "default");
    B.lines(c, [rows.map(r => [r.hours / unit, r.forecast])], x, y, "chosen");
    const labels = [{ y: y(rows.at(-1).forecast), text: "best forecast", name: "chosen" }];
    if (rows.at(-1).default != null && rows.at(-1).trial !== 0) labels.push({ y: y(rows.at(-1).default), text: "default recipe", name: "default" });
    for (const r of finals) {
      const at = y(B.at("bpb", r));
      c.marks.append("line").attr("class", "line final").attr("x1", c.left).attr("x2", c.right).attr("y1", at).attr("y2", at);
      labels.push({ y: at, text: "final reached", name: "final" });
    }
    B.apart(labels, 16, c.top, c.bottom).forEach(l => B.say(c, c.right + 5, l.at, l.text, l.name));
    B.tips(c, rows.map(r => ({ x: x(r.hours / unit), y: y(r.forecast), trial: r.trial, lines: [`after ${B.time(3600 * r.hours)}, ${r.trials} trials`, `trial ${r.trial}: ${B.bpb(r.forecast)} (${B.bpb(r.low)} to ${B.bpb(r.high)})`] })));
  },
};

figures.worth = {
  frames: ["worth"],
  draw(host) {
    const rows = B.rowsOf("worth");
    if (!rows.length) return false;
    const long = rows.at(-1).hours > 4, unit = long ? 1 : 1 / 60;
    const c = B.chart(host, { height: 260, right: 110, label: "Expected gain of more hours" });
    const x = d3.scaleLinear([0, rows.at(-1).hours / unit], [c.left, c.right]), most = d3.max(rows, r => Math.max(r.search_percent, r.final_percent));
    const y = d3.scaleLinear([0, most * 1.05 || 1], [c.bottom, c.top]);
    B.axes(c, x, y, { xLabel: `device-${long ? "hours" : "minutes"} more`, yLabel: "expected gain (%)" });
    const labels = [["search_percent", "trial strong", "in the search"], ["final_percent", "final", "in the final"]].map(([key, name, text]) => {
      B.lines(c, [[[0, 0], ...rows.map(r => [r.hours / unit, r[key]])]], x, y, name);
      return { y: y(rows.at(-1)[key]), text, name };
    });
    B.apart(labels, 16, c.top, c.bottom).forEach(l => B.say(c, c.right + 5, l.at, l.text, l.name));
    B.tips(c, rows.flatMap(r => ["search_percent", "final_percent"].map(k => ({ x: x(r.hours / unit), y: y(r[k]), lines: [`${B.time(3600 * r.hours)} more`, `in the search ${r.search_percent.toPrecision(2)} %`, `in the final ${r.final_percent.toPrecision(2)} %`] }))));
  },
};

// Two quantities that should agree, on equal axes.
const agreement = (host, pairs, title, format) => {
  const c = B.chart(host, { height: 330, label: title });
  const domain = d3.extent(pairs.flatMap(p => [p.predicted, p.measured]));
  const x = B.logScale([domain[0] * 0.9, domain[1] * 1.1], [c.left, c.right]), y = B.logScale([domain[0] * 0.9, domain[1] * 1.1], [c.bottom, c.top]);
  B.axes(c, x, y, { xLabel: `predicted ${title}`, yLabel: `measured ${title}`, xFormat: format, yFormat: format });
  B.lines(c, [x.domain().map(v => [v, v])], x, y, "law");
  B.dots(c, pairs.map(p => [p.predicted, p.measured]), x, y, "trial", pairs.length > 1000 ? 3 : 6);
  B.tips(c, pairs.map(p => ({ x: x(p.predicted), y: y(p.measured), trial: p.trial, lines: [p.run, `predicted ${format(p.predicted)}, measured ${format(p.measured)}`] })));
};

figures.oracle = {
  frames: [],
  draw(host) {
    const pairs = (predicted, measured) => d3.range(B.rows).map(r => ({ run: B.at("run", r), trial: B.at("kind", r) === "rung" ? B.at("trial", r) : null, predicted: B.at(predicted, r), measured: B.at(measured, r), steps: B.at("steps", r) }))
      .filter(p => p.predicted > 0 && p.measured > 0 && p.steps >= 5);
    const speed = pairs("predicted_tokens_per_second", "tokens_per_second"), memory = pairs("predicted_peak_bytes", "peak_bytes");
    if (!speed.length && !memory.length) return false;
    const shown = [[speed, "tokens a second"], [memory, "memory (bytes)"]].filter(([pairs]) => pairs.length);
    B.cells(host, "two", shown.length).forEach((cell, i) => agreement(cell, ...shown[i], B.si));
  },
};

figures.receipts = {
  frames: ["receipts"],
  draw(host) {
    const rows = B.rowsOf("receipts").filter(r => r.forecast != null).slice(-30);
    if (!rows.length) return false;
    const wide = host.clientWidth > 560;
    const c = B.chart(host, { height: 60 + 24 * rows.length, left: wide ? 210 : 110, label: "Forecasts of finals and their outcomes" });
    const x = d3.scaleLinear(B.padded(rows.flatMap(r => [r.low, r.high, r.outcome])), [c.left, c.right]), y = d3.scaleBand(rows.map((_, i) => i), [c.top, c.bottom]);
    const short = s => (s.length > (wide ? 30 : 14) ? `${s.slice(0, wide ? 29 : 13)}…` : s);
    B.axes(c, x, y, { xLabel: "bits per byte", yFormat: i => short(rows[i].study), xFormat: d3.format(".2f") });
    rows.forEach((r, i) => {
      const at = y(i) + y.bandwidth() / 2;
      c.marks.append("line").attr("class", "interval chosen").attr("x1", x(r.low)).attr("x2", x(r.high)).attr("y1", at).attr("y2", at);
      B.mark(c, d3.symbolStar, x(r.outcome), at, 110, r.inside ? "star" : "star missed");
    });
    B.tips(c, rows.map((r, i) => ({ x: x(r.outcome), y: y(i) + y.bandwidth() / 2, lines: [`${r.study}: ${r.final}`, `forecast ${B.bpb(r.forecast)} (${B.bpb(r.low)} to ${B.bpb(r.high)})`, `outcome ${B.bpb(r.outcome)}, ${r.inside ? "inside" : "outside"}`] })));
  },
};

figures.compression = {
  frames: ["compression"],
  draw(host) {
    const rows = B.rowsOf("compression");
    if (!rows.length) return false;
    const shown = [["megabytes", "megabytes on disk", B.number], ["milliseconds", "milliseconds a token", B.number]].filter(([key]) => rows.some(r => r[key] > 0));
    const cells = B.cells(host, "two", shown.length), counts = B.data.facts.plan.world.objectives === "loss,latency" ? "milliseconds" : "megabytes";
    for (const [key, title, format] of shown) {
      const known = rows.filter(r => r[key] > 0);
      const c = B.chart(cells.shift(), { height: 330, label: `Loss against ${title}` });
      const x = B.logScale(d3.extent(known, r => r[key]), [c.left, c.right]).nice(), y = d3.scaleLinear(B.padded(known.map(r => r.bpb)), [c.bottom, c.top]);
      B.axes(c, x, y, { xLabel: `${title} (log scale)`, yLabel: "bits per byte", xFormat: format, yFormat: d3.format(".3f") });
      B.dots(c, known.filter(r => !r.front && r.kind === "trial").map(r => [r[key], r.bpb]), x, y, "trial", 6);
      const front = known.filter(r => r.front).sort((a, b) => a[key] - b[key]);
      if (key === counts) B.lines(c, [front.map(r => [r[key], r.bpb])], x, y, "chosen");
      B.dots(c, front.map(r => [r[key], r.bpb]), x, y, "chosen", 9);
      for (const r of known) if (r.kind === "final") B.mark(c, d3.symbolStar, x(r[key]), y(r.bpb), 110, "star");
      const said = r => r.kind === "final" ? `final of trial ${r.trial}, ${r.compression}` : `trial ${r.trial}, ${r.compression}`;
      B.tips(c, known.map(r => ({ x: x(r[key]), y: y(r.bpb), trial: r.trial, lines: [said(r), `${B.bpb(r.bpb)} bits per byte${r.low ? ` (${B.bpb(r.low)} to ${B.bpb(r.high)})` : ""}, ${format(r[key])} ${title}`, r.dense_bpb ? `${B.bpb(r.dense_bpb)} before compression` : ""] })));
    }
  },
};

const finalsNow = () => [...new Set([...B.finals.map(r => B.at("run", r)), ...B.data.facts.running.filter(r => r.rung < 0).map(r => r.run)])].slice(-4);
const FINAL_NAMES = ["final", "second", "third", "fourth"];

figures.final = {
  frames: ["final_parts"],
  draw(host) {
    const runs = finalsNow();
    if (!runs.length) return false;
    const ways = runs.map(run => d3.zip(B.curve(run, "seconds"), B.curve(run, "bpb")).filter(p => p[1] != null));
    const kept = runs.map(run => B.data.facts.forecasts_kept[run]);
    const losses = [...ways.flat().map(p => p[1]), ...kept.filter(k => k).flatMap(k => [k.low, k.high])];
    if (!losses.length) return B.nothing(host, "No final has been evaluated yet.");
    const seconds = B.target, c = B.chart(host, { height: 360, right: 120, label: "Validation loss of finals over time" });
    const most = Math.max(seconds, ...ways.flat().map(p => p[0])), unit = most > 7200 ? 3600 : most > 240 ? 60 : 1;
    const x = d3.scaleLinear([0, (most * 1.02) / unit], [c.left, c.right]), y = d3.scaleLinear(B.padded(losses), [c.bottom, c.top]);
    B.axes(c, x, y, { xLabel: `device time of the final (${unit === 3600 ? "hours" : unit === 60 ? "minutes" : "seconds"})`, yLabel: "validation loss (bits per byte)", yFormat: d3.format(".2f") });
    const labels = [];
    runs.forEach((run, i) => {
      const way = ways[i].map(([s, b]) => [s / unit, b]);
      B.lines(c, [way], x, y, FINAL_NAMES[i]);
      B.dots(c, way, x, y, FINAL_NAMES[i], 7);
      if (kept[i]) {
        const at = x(seconds / unit);
        c.marks.append("line").attr("class", "interval chosen").attr("x1", at).attr("x2", at).attr("y1", y(kept[i].low)).attr("y2", y(kept[i].high));
        B.mark(c, d3.symbolDiamond, at, y(kept[i].mean), 120, "diamond chosen");
        labels.push({ y: y(kept[i].mean), text: `forecast ${kept[i].mean.toFixed(3)}`, name: "chosen" });
      }
      if (way.length) labels.push({ y: y(way.at(-1)[1]), text: `reached ${way.at(-1)[1].toFixed(3)}`, name: FINAL_NAMES[i] });
    });
    B.apart(labels, 16, c.top, c.bottom).forEach(l => B.say(c, c.right + 6, l.at, l.text, l.name));
    B.tips(c, ways.flatMap((way, i) => way.map(([s, b]) => ({ x: x(s / unit), y: y(b), lines: [runs[i], `${B.bpb(b)} bits per byte after ${B.time(s)}`] }))));
    samples(host, runs.at(-1));
  },
};

const samples = (host, run) => {
  const made = B.data.facts.samples[run];
  if (!made || !made.length) return;
  const details = d3.select(host).append("details").attr("open", "");
  details.attr("class", "samples").append("summary").text("What it writes: beginnings of validation text in bold, continued by the model");
  for (const s of made) details.append("pre").call(pre => { pre.append("b").text(s.prompt); pre.append("span").text(s.continuation); });
};

figures.throughput = {
  frames: ["final_parts"],
  draw(host) {
    const runs = finalsNow().filter(run => B.curve(run, "seconds").length > 1);
    if (!runs.length) return false;
    const parts = B.rowsOf("final_parts");
    const uses = new Map(parts.map(p => [p.run, p.use_of_a_token]));
    const valuesOf = (run, key) => (key === "use" ? B.curve(run, "tokens_per_second").map(v => (v == null || uses.get(run) == null ? null : v * uses.get(run))) : B.curve(run, key));
    const waysOf = key => runs.map(run => d3.zip(B.curve(run, "seconds"), valuesOf(run, key)).filter(p => p[1] != null));
    const shown = [["tokens_per_second", "tokens a second", B.si], ["use", "share of the device's ceiling", d3.format(".0%")], ["lr", "learning rate", d3.format(".1~e")], ["gradient_norm", "gradient norm", B.number]].filter(([key]) => waysOf(key).flat().length);
    const cells = B.cells(host, "two", shown.length);
    for (const [key, title, format] of shown) {
      const ways = waysOf(key), c = B.chart(cells.shift(), { height: 220, label: `${title} of finals over time` });
      const x = d3.scaleLinear([0, d3.max(ways.flat(), p => p[0])], [c.left, c.right]), y = d3.scaleLinear([0, d3.max(ways.flat(), p => p[1]) * 1.05], [c.bottom, c.top]);
      B.axes(c, x, y, { xLabel: "seconds", yLabel: title, yFormat: format });
      ways.forEach((way, i) => B.lines(c, [way], x, y, FINAL_NAMES[i]));
      for (const p of parts.filter(p => p.state !== "done")) c.marks.append("line").attr("class", "cut").attr("x1", x(p.ended)).attr("x2", x(p.ended)).attr("y1", c.top).attr("y2", c.bottom);
      B.tips(c, ways.flatMap((way, i) => way.map(([s, v]) => ({ x: x(s), y: y(v), lines: [runs[i], `${format(v)} after ${B.time(s)}`] }))));
    }
  },
};
