// The page's data: unpacked once, columns as arrays, curves as numbers again. And what the parts of the page tell each other.
"use strict";
const B = (window.budgetlm = { data: null, listeners: {}, selected: new Set(), brushes: new Map() });

const STEPS_OF_LOG = 2000, STEPS_OF_BPB = 1e5, ZERO = -1e6;

B.on = (event, listener) => (B.listeners[event] ||= []).push(listener);
B.tell = (event, value) => (B.listeners[event] || []).forEach(listener => listener(value));

B.unpack = async text => {
  const bytes = Uint8Array.from(atob(text.trim()), c => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(stream).text());
};

// A study's data as the figures want it.
B.take = data => {
  B.data = data;
  const facts = data.facts, packed = facts.records;
  B.rows = packed.rows;
  B.column = name => packed.columns[name] || (name in packed.same ? Array(packed.rows).fill(packed.same[name]) : null);
  const at = (name, row) => (packed.columns[name] ? packed.columns[name][row] : packed.same[name]);
  B.at = at;
  B.names = [...Object.keys(packed.same), ...Object.keys(packed.columns)];
  B.runsOf = new Map();
  for (let row = 0; row < packed.rows; row++) {
    if (at("kind", row) !== "rung") continue;
    const trial = at("trial", row);
    if (!B.runsOf.has(trial)) B.runsOf.set(trial, []);
    B.runsOf.get(trial).push(row);
  }
  B.finals = d3.range(packed.rows).filter(row => at("kind", row) === "final");
  B.chosen = data.words.chosen;
  B.target = facts.plan.target_seconds;
  B.curves = curvePlaces(facts.curves);
  B.trials = rowsOf("trials").map(t => ({ ...t, recipe: recipeAt(t.row), shape: shapeOf(t.row), parameters: at("parameters", t.row),
    speed: at("tokens_per_second", t.row), why: at("why", t.row), cause: at("cause", t.row), error: at("error", t.row) }));
  B.trialOf = new Map(B.trials.map(t => [t.trial, t]));
};

const recipeAt = row => {
  const recipe = {};
  for (const name of B.names) if (name.startsWith("recipe.")) recipe[name.slice(7)] = B.at(name, row);
  return recipe;
};
const shapeOf = row => {
  const depth = B.at("config.model.depth", row);
  return depth == null ? "" : `${depth} × ${B.at("config.model.width", row)}`;
};

// The rows of a frame, or an error that whoever draws it will show.
const rowsOf = (B.rowsOf = name => {
  const frame = B.data.frames[name];
  if (frame.error) throw new Error(frame.error);
  const names = Object.keys(frame.columns);
  const count = names.length ? frame.columns[names[0]].length : 0;
  return d3.range(count).map(i => Object.fromEntries(names.map(name => [name, frame.columns[name][i]])));
});

const curvePlaces = packed => {
  const places = new Map();
  let start = 0;
  packed.runs.forEach((run, i) => {
    places.set(run, [start, packed.lengths[i]]);
    start += packed.lengths[i];
  });
  return places;
};

// One quantity of a run's curve. Numbers are kept as differences, most of them of logarithms (embedded.py).
B.curve = (run, quantity) => {
  const place = B.curves.get(run);
  if (!place) return [];
  const exact = quantity === "step" || quantity === "tokens", unit = quantity === "bpb" ? STEPS_OF_BPB : STEPS_OF_LOG;
  let sum = 0;
  return B.data.facts.curves.columns[quantity].slice(place[0], place[0] + place[1]).map(n => {
    if (n === null) return null;
    sum += n;
    return exact ? sum : sum === ZERO ? 0 : Math.exp(sum / unit);
  });
};

// --- numbers for people ---

const si = d3.format(".3~s");
B.si = v => (v == null ? "" : si(v).replace("G", "B").replace("µ", "u"));
B.bpb = v => (v == null ? "" : v.toFixed(4));
B.number = v => (v == null ? "" : typeof v !== "number" ? String(v) : Number.isInteger(v) ? d3.format(",")(v) : d3.format(".4~g")(v));
B.percent = v => (v == null ? "" : `${Math.abs(v) < 0.005 ? "" : v > 0 ? "+" : "−"}${d3.format(".2~f")(Math.abs(v))} %`);
B.time = s => (s == null ? "" : s < 120 ? `${d3.format(".3~g")(s)} s` : s < 7200 ? `${d3.format(".3~g")(s / 60)} min` : `${d3.format(".4~g")(s / 3600)} h`);
B.runName = trial => `trial ${trial}`;
