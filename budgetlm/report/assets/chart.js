// What all figures are made of: axes, marks, a tip on what is pointed at, a table behind, and a file to keep.
"use strict";
const B = window.budgetlm, figures = (B.figures = {});

// One drawing: an svg of a given height in a host, with scales that know its room.
B.chart = (host, { height = 360, left = 62, right = 18, top = 14, bottom = 44, label = "" } = {}) => {
  const width = Math.max(280, host.clientWidth || 680);
  const svg = d3.select(host).append("svg").attr("viewBox", [0, 0, width, height]).attr("width", width).attr("height", height)
    .attr("role", "img").attr("aria-label", label);
  return { host, svg, width, height, left, right: width - right, top, bottom: height - bottom, marks: svg.append("g") };
};

// Places for several drawings beside one another, all there before the first is drawn, so that each knows its room.
B.cells = (host, className, count) => {
  const grid = d3.select(host).append("div").attr("class", className);
  return d3.range(count).map(() => grid.append("div").node());
};

// Lengths of time that people name.
const TIMES = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 28800, 43200, 86400, 172800, 604800];

// Ticks of a logarithmic axis, few enough to be read: whole powers and their 2 and 5, or linear ones over a short range.
const ticksOf = (scale, count, time) => {
  if (!scale.base) return scale.ticks ? scale.ticks(count) : scale.domain();
  const [low, high] = scale.domain();
  if (time) return TIMES.filter(v => v >= low && v <= high);
  const decades = Math.log10(high / low);
  if (decades < 0.7) return d3.ticks(low, high, count);
  const steps = decades > count ? [1] : decades > count / 3 ? [1, 3] : [1, 2, 5];
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high) + 1; power++)
    for (const step of steps) found.push(step * 10 ** power);
  return found.filter(v => v >= low * 0.999 && v <= high * 1.001);
};

B.axes = (c, x, y, { xLabel = "", yLabel = "", xFormat = B.number, yFormat = B.number, grid = true } = {}) => {
  const g = c.svg.insert("g", ":first-child").attr("class", "axes");
  const across = ticksOf(x, Math.max(3, (c.right - c.left) / 90), xFormat === B.time), up = ticksOf(y, Math.max(3, (c.bottom - c.top) / 55));
  const half = scale => (scale.bandwidth ? scale.bandwidth() / 2 : 0);
  for (const v of up) {
    const at = y(v) + half(y);
    if (grid) g.append("line").attr("class", "grid").attr("x1", c.left).attr("x2", c.right).attr("y1", at).attr("y2", at);
    g.append("text").attr("x", c.left - 8).attr("y", at).attr("dy", "0.32em").attr("text-anchor", "end").text(yFormat(v));
  }
  let free = -Infinity;
  for (const v of across) {
    const at = x(v) + half(x);
    if (grid) g.append("line").attr("class", "grid").attr("x1", at).attr("x2", at).attr("y1", c.top).attr("y2", c.bottom);
    const text = String(xFormat(v)), room = 3.6 * text.length + 3;
    if (at - room < free) continue;
    free = at + room;
    g.append("text").attr("x", at).attr("y", c.bottom + 17).attr("text-anchor", "middle").text(text);
  }
  g.append("text").attr("class", "axis-label").attr("x", (c.left + c.right) / 2).attr("y", c.height - 6).attr("text-anchor", "middle").text(xLabel);
  g.append("text").attr("class", "axis-label").attr("transform", `translate(13,${(c.top + c.bottom) / 2}) rotate(-90)`)
    .attr("text-anchor", "middle").text(yLabel);
};

// Thousands of lines or dots are one path: they are drawn, printed and kept as fast as one.
B.lines = (c, lines, x, y, className) => {
  const draw = d3.line(p => x(p[0]), p => y(p[1]));
  return c.marks.append("path").attr("class", `line ${className}`).attr("d", lines.map(line => draw(line)).join(""));
};
B.dots = (c, points, x, y, className, size = 6) => {
  const d = points.map(p => `M${x(p[0]).toFixed(1)},${y(p[1]).toFixed(1)}h0`).join("");
  return c.marks.append("path").attr("class", `dots ${className}`).attr("stroke-width", size).attr("d", d);
};
B.band = (c, rows, x, y, className) =>
  c.marks.append("path").attr("class", `band ${className}`).attr("d", d3.area(p => x(p[0]), p => y(p[1]), p => y(p[2]))(rows));
B.mark = (c, symbol, px, py, size, className) =>
  c.marks.append("path").attr("class", className).attr("d", d3.symbol(symbol, size)()).attr("transform", `translate(${px},${py})`);
B.say = (c, px, py, text, className = "", anchor = "start") =>
  c.marks.append("text").attr("class", `direct ${className}`).attr("x", px).attr("y", py).attr("dy", "0.32em").attr("text-anchor", anchor).text(text);

// Texts beside one another that would overlap are moved apart, in their order.
B.apart = (places, gap, low, high) => {
  const sorted = places.slice().sort((a, b) => a.y - b.y);
  sorted.forEach((p, i) => (p.at = Math.max(p.y, i ? sorted[i - 1].at + gap : low)));
  for (let i = sorted.length - 1; i >= 0; i--) sorted[i].at = Math.min(sorted[i].at, i < sorted.length - 1 ? sorted[i + 1].at - gap : high);
  return places;
};

B.legend = (host, entries) => {
  const list = d3.select(host).append("ul").attr("class", "legend");
  for (const [className, text] of entries) list.append("li").call(li => li.append("span").attr("class", `key ${className}`)).append("span").text(text);
};

// The nearest of points {x, y, lines, trial?} to the pointer is told in a tip; a click opens its trial.
B.tips = (c, points) => {
  if (!points.length) return;
  const tree = d3.Delaunay.from(points, p => p.x, p => p.y), tip = theTip();
  const ring = c.svg.append("circle").attr("class", "ring").attr("r", 7).style("display", "none");
  const near = event => {
    const [px, py] = d3.pointer(event, c.svg.node()), point = points[tree.find(px, py)];
    return point && Math.hypot(point.x - px, point.y - py) < 40 ? point : null;
  };
  const hide = () => { ring.style("display", "none"); tip.style("display", "none"); };
  c.svg.on("pointermove", event => {
    const point = near(event);
    if (!point) return hide();
    ring.style("display", null).attr("cx", point.x).attr("cy", point.y);
    c.svg.style("cursor", point.trial == null ? null : "pointer");
    B.showTip(event, point.lines);
  }).on("pointerleave", hide).on("click", event => {
    const point = near(event);
    if (point && point.trial != null) B.tell("open", point.trial);
  });
};
const theTip = () => {
  let tip = d3.select("#tip");
  if (tip.empty()) tip = d3.select("body").append("div").attr("id", "tip").attr("role", "status");
  return tip;
};
B.showTip = (event, lines) => {
  const tip = theTip().style("display", "block");
  tip.selectAll("div").data(lines.filter(line => line)).join("div").text(line => line);
  const box = tip.node().getBoundingClientRect();
  tip.style("left", `${Math.max(4, Math.min(event.clientX + 14, innerWidth - box.width - 8))}px`)
    .style("top", `${Math.max(4, event.clientY + 18 + box.height > innerHeight ? event.clientY - box.height - 12 : event.clientY + 18)}px`);
};
B.hideTip = () => theTip().style("display", "none");

B.tellTrial = trial => {
  const t = B.trialOf.get(trial);
  if (!t) return [`trial ${trial}`];
  const r = t.recipe, rate = r.peak_lr == null ? "" : `, lr ${d3.format(".2~e")(r.peak_lr)}`;
  return [`trial ${trial}${t.mark ? ` (${t.mark})` : ""}`, `${r.depth} × ${r.width}, batch ${B.number(r.batch_tokens)}${rate}`,
    t.forecast == null ? "" : `forecast ${B.bpb(t.forecast)} (${B.bpb(t.low)} to ${B.bpb(t.high)})`];
};

// --- a figure in its place: its error if it fails, the numbers behind it, a file of it ---

B.draw = name => {
  const figure = document.getElementById(`figure-${name}`), host = figure.querySelector(".plot");
  const height = host.offsetHeight;
  host.style.minHeight = `${height > 40 ? height : 0}px`;
  host.replaceChildren();
  try {
    const shown = figures[name].draw(host);
    figure.hidden = shown === false;
  } catch (error) {
    figure.hidden = false;
    const said = document.createElement("pre");
    said.className = "error";
    said.textContent = `This figure failed:\n${error.message}`;
    host.replaceChildren(said);
    figure.dataset.failed = "yes";
  }
  host.style.minHeight = "";
  if (!figure.querySelector(".tools") && figures[name].frames) addTools(figure, name);
};

const addTools = (figure, name) => {
  const tools = d3.select(figure).append("div").attr("class", "tools");
  tools.append("button").attr("type", "button").text("Save as SVG").on("click", () => keep(B.svgText(figure), `${name}.svg`, "image/svg+xml"));
  if (!figures[name].frames.length) return;
  const details = tools.append("details");
  details.append("summary").text("The numbers");
  details.on("toggle", () => {
    if (!details.property("open")) return;
    details.selectAll(".scroll").remove();
    for (const frame of figures[name].frames) details.append("div").attr("class", "scroll").call(place => numbers(place, frame));
  });
};
const MOST_NUMBERS = 300;
const numbers = (place, frame) => {
  const rows = B.rowsOf(frame), names = rows.length ? Object.keys(rows[0]) : [];
  const table = place.append("table");
  const more = rows.length > MOST_NUMBERS ? `, the first ${MOST_NUMBERS} of ${rows.length} rows; all of them with budgetlm report --csv` : "";
  table.append("caption").text(`${frame}${more}`);
  table.append("thead").append("tr").selectAll("th").data(names).join("th").attr("scope", "col").text(d => d);
  table.append("tbody").selectAll("tr").data(rows.slice(0, MOST_NUMBERS)).join("tr").selectAll("td")
    .data(row => names.map(n => row[n])).join("td").attr("class", v => (typeof v === "number" ? "number" : null)).text(B.number);
};

// A figure's drawings under one another, with the looks that the style sheet gives them written into them.
const LOOKS = ["fill", "stroke", "stroke-width", "stroke-dasharray", "stroke-linecap", "opacity", "fill-opacity", "stroke-opacity", "font-size", "font-weight", "text-anchor"];
B.svgText = figure => {
  const parts = [...figure.querySelectorAll(".plot svg")], copies = [];
  let height = 0, width = 0;
  for (const part of parts) {
    const copy = part.cloneNode(true), from = part.querySelectorAll("*"), to = copy.querySelectorAll("*");
    from.forEach((node, i) => {
      const look = getComputedStyle(node);
      for (const name of LOOKS) to[i].setAttribute(name, look.getPropertyValue(name));
      to[i].removeAttribute("class");
    });
    copy.setAttribute("y", height);
    height += +part.getAttribute("height");
    width = Math.max(width, +part.getAttribute("width"));
    copies.push(new XMLSerializer().serializeToString(copy));
  }
  const back = getComputedStyle(document.body).backgroundColor;
  return `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}" font-family="system-ui, sans-serif"><rect width="100%" height="100%" fill="${back}"/>${copies.join("")}</svg>`;
};
const keep = (content, name, type) => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([content], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
};

B.nothing = (host, text) => d3.select(host).append("p").attr("class", "soft").text(text);
B.logScale = (domain, range) => d3.scaleLog(domain[0] === domain[1] ? [domain[0] * 0.9, domain[1] * 1.1] : domain, range);
B.padded = (values, share = 0.06) => {
  const [low, high] = d3.extent(values), room = (high - low) * share || Math.abs(high) * 0.05 || 1;
  return [low - room, high + room];
};
