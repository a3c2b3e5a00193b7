// The list of episodes: filters, order, and a card with a picture strip for each.

import { askBlob } from "./server.js";

const PER_SCREEN = 24;
const at = (id) => document.getElementById(id);
const cards = at("cards");
const strips = new Map(); // position: promise of an address for the picture
let episodes = [];
let chosen = []; // positions, filtered and ordered
let shown = 0;

const ORDERS = {
  index: () => 0, // as they come
  best: (left, right) => (right.return ?? -Infinity) - (left.return ?? -Infinity),
  worst: (left, right) => (left.return ?? Infinity) - (right.return ?? Infinity),
  longest: (left, right) => right.length - left.length,
  shortest: (left, right) => left.length - right.length,
};
export const ENDS = { terminated: "terminated", truncated: "truncated", none: "without an end" };

/** An episode's numbers in words. */
export function describe(episode, stepS) {
  const lasted = stepS > 0 ? ` (${(episode.length * stepS).toFixed(1)} s)` : "";
  return [episode.behaviour, `return ${episode.return === null ? "unknown" : episode.return.toFixed(1)}`,
    `${episode.length} steps${lasted}`, ENDS[episode.end], episode.seed >= 0 ? `seed ${episode.seed}` : "seed unknown"];
}

/** Make filters and cards; `problems` are sentences by file name. */
export function makeList(dataset) {
  episodes = dataset.episodes;
  fill("behaviour", "any", counts((episode) => episode.behaviour), (name) => name);
  fill("end", "any", counts((episode) => episode.end), (name) => ENDS[name]);
  for (const id of ["behaviour", "end", "order"]) at(id).onchange = () => choose(dataset.step_s);
  for (const id of ["lowest", "highest"]) at(id).oninput = () => choose(dataset.step_s);
  at("more").onclick = () => show(dataset.step_s);
  const damaged = Object.values(dataset.problems);
  at("damaged").hidden = damaged.length === 0;
  at("damaged").querySelector("ul").replaceChildren(...damaged.map((sentence) => {
    const item = document.createElement("li");
    item.textContent = sentence;
    return item;
  }));
  choose(dataset.step_s);
}

/** The position of the episode that is `by` further on in the list than this one; `null` where there is none. */
export function neighbour(position, by) {
  const place = chosen.indexOf(position);
  const all = place < 0 ? episodes.map((_, number) => number) : chosen;
  return all[(place < 0 ? position : place) + by] ?? null;
}

function counts(name) {
  const found = new Map();
  for (const episode of episodes) found.set(name(episode), (found.get(name(episode)) ?? 0) + 1);
  return [...found].sort();
}

function fill(id, any, options, words) {
  at(id).replaceChildren(new Option(any, ""), ...options.map(([name, count]) => new Option(`${words(name)} (${count})`, name)));
}

function choose(stepS) {
  const [lowest, highest] = ["lowest", "highest"].map((id) => (at(id).value === "" ? null : Number(at(id).value)));
  const fits = (episode) =>
    (at("behaviour").value === "" || episode.behaviour === at("behaviour").value)
    && (at("end").value === "" || episode.end === at("end").value)
    && (lowest === null || episode.return >= lowest)
    && (highest === null || (episode.return !== null && episode.return <= highest));
  const order = ORDERS[at("order").value];
  chosen = episodes.map((_, position) => position).filter((position) => fits(episodes[position]))
    .sort((left, right) => order(episodes[left], episodes[right]) || left - right);
  at("count").textContent = `${chosen.length} of ${episodes.length} episodes`;
  cards.replaceChildren();
  shown = 0;
  show(stepS);
}

function show(stepS) {
  const further = chosen.slice(shown, shown + PER_SCREEN);
  cards.append(...further.map((position) => card(position, stepS)));
  shown += further.length;
  at("more").hidden = shown >= chosen.length;
}

// A strip is asked for when its card comes near the screen: of a dataset elsewhere that is a download.
const watcher = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    watcher.unobserve(target);
    fetchStrip(target);
  }
}, { rootMargin: "300px" });

async function fetchStrip(item) {
  const position = Number(item.dataset.position);
  if (!strips.has(position)) {
    strips.set(position, askBlob(`episodes/${position}/strip`).then((blob) => URL.createObjectURL(blob)));
  }
  try {
    const picture = item.querySelector(".strip");
    picture.onload = () => { item.dataset.state = "shown"; };
    picture.src = await strips.get(position);
  } catch (error) {
    strips.delete(position); // what the network refused may be had later
    item.querySelector(".strip").remove();
    const problem = document.createElement("p");
    problem.className = "problem";
    problem.textContent = error.message;
    item.querySelector("a").append(problem);
    item.dataset.state = "damaged";
  }
}

function card(position, stepS) {
  const episode = episodes[position];
  const item = document.createElement("li");
  item.dataset.position = position;
  item.dataset.episode = episode.index;
  const link = document.createElement("a");
  link.href = `#episode=${episode.index}`;
  const picture = new Image();
  picture.className = "strip";
  picture.alt = "";
  const line = document.createElement("span");
  line.className = "line";
  const name = document.createElement("b");
  name.textContent = `Episode ${episode.index}`;
  line.append(name, ...describe(episode, stepS).map((words) => {
    const span = document.createElement("span");
    span.textContent = words;
    return span;
  }));
  link.append(picture, line);
  item.append(link);
  watcher.observe(item);
  return item;
}
