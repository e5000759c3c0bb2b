// Puts the page together, and keeps it up to date where somebody serves it.
"use strict";
const B = window.budgetlm, EVERY_SECONDS = 5;

const root = document.documentElement, dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches);
B.dark = dark;
document.getElementById("theme").addEventListener("click", () => {
  root.dataset.theme = dark() ? "light" : "dark";
  B.draw("parallel");
});

const drawAll = () => {
  for (const figure of document.querySelectorAll("figure[data-figure]")) B.draw(figure.dataset.figure);
};

// The words of the page where they have changed, as text.
const say = words => {
  for (const place of document.querySelectorAll("[data-words]")) place.textContent = words[place.dataset.words] ?? "";
  d3.select("#cards").selectAll(".card").data(words.cards).join(enter => enter.append("div").call(d => { d.append("b"); d.append("span"); }))
    .attr("class", c => `card ${c.tone}`).call(card => { card.select("b").text(c => c.value); card.select("span").text(c => c.label); });
  d3.select("#sentences").selectAll("p").data(words.verdict).join("p").text("").each(function ([head, text]) {
    d3.select(this).append("b").text(`${head}:`);
    d3.select(this).append("span").text(` ${text}`);
  });
};

const follow = async version => {
  const note = d3.select("header").append("p").attr("class", "live").attr("role", "status").text("live");
  for (;;) {
    await new Promise(resolve => setTimeout(resolve, 1000 * EVERY_SECONDS));
    try {
      const answer = await fetch(`data?after=${encodeURIComponent(version)}`);
      if (answer.status === 200) {
        version = answer.headers.get("ETag");
        B.take(await B.unpack(await answer.text()));
        say(B.data.words);
        drawAll();
      }
      note.text("live").classed("lost", false);
    } catch (error) {
      note.text("no longer live").classed("lost", true);
    }
  }
};

const start = async () => {
  B.take(await B.unpack(document.getElementById("study").textContent));
  drawAll();
  let width = innerWidth, waiting = 0;
  addEventListener("resize", () => {
    if (innerWidth === width) return;
    width = innerWidth;
    clearTimeout(waiting);
    waiting = setTimeout(drawAll, 150);
  });
  const links = new Map([...document.querySelectorAll("nav a")].map(a => [a.hash.slice(1), a]));
  const seen = new IntersectionObserver(entries => entries.filter(e => e.isIntersecting).forEach(e => links.forEach((a, key) => a.classList.toggle("here", key === e.target.id))), { rootMargin: "-20% 0px -70% 0px" });
  document.querySelectorAll("section").forEach(section => seen.observe(section));
  document.body.dataset.ready = "yes";
  if (root.hasAttribute("data-live")) follow("");
};
start().catch(error => {
  const said = document.createElement("pre");
  said.className = "error";
  said.textContent = `The figures could not be drawn: ${error.message}`;
  document.querySelector("main").prepend(said);
  throw error;
});
