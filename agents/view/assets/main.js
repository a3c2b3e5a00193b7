// Puts the parts of the page together: which episode is open stands in the address, after the #.

import { EpisodeView } from "./episode.js";
import { makeList, neighbour } from "./list.js";
import { askJson } from "./server.js";
import { say } from "./shared/live.js";

const at = (id) => document.getElementById(id);
let dataset = null;
let view = null;
let addressDue = 0;

async function begin() {
  try {
    dataset = await askJson("dataset.json");
  } catch (error) {
    at("status").textContent = "Nothing could be read.";
    say(error.message, true);
    return;
  }
  const steps = dataset.episodes.reduce((sum, episode) => sum + episode.length, 0);
  at("simulator").textContent = dataset.simulator;
  at("status").textContent = `${dataset.path}: ${dataset.episodes.length} episodes, ${steps.toLocaleString("en")} steps`;
  at("model-name").textContent = dataset.model.is_there ? dataset.model.name : `none; ${dataset.model.name}`;
  for (const id of ["reconstruct", "dream", "steps"]) at(id).disabled = !dataset.model.is_there;
  at("steps").max = dataset.most_dream_steps;
  makeList(dataset);
  addEventListener("hashchange", follow);
  follow();
}

const address = (position, frame) =>
  `#episode=${dataset.episodes[position].index}${frame ? `&frame=${frame}` : ""}`;

/** Show what the address says. */
function follow() {
  const told = new URLSearchParams(location.hash.slice(1));
  const index = told.get("episode");
  const position = index === null ? -1 : dataset.episodes.findIndex((episode) => String(episode.index) === index);
  if (index !== null && position < 0) say(`There is no episode ${index} here that can be read.`, true);
  const frame = Number(told.get("frame")) || 0;
  if (view && view.position === position) {
    if (view.frame !== frame) view.moveTo(frame);
    return;
  }
  if (view) say("");
  view?.close();
  clearTimeout(addressDue);
  view = null;
  at("list").hidden = position >= 0;
  at("episode").hidden = position < 0;
  for (const name of ["frame", "plots", "dream"]) delete document.body.dataset[name];
  document.body.dataset.open = position < 0 ? "" : index;
  if (position < 0) return;
  at("previous").disabled = neighbour(position, -1) === null;
  at("next").disabled = neighbour(position, 1) === null;
  view = new EpisodeView(dataset, position, remember);
  view.open(frame);
  at("title").focus({ preventScroll: true });
  scrollTo(0, 0);
}

/** Let the address name the frame, once it stays. */
function remember(frame) {
  clearTimeout(addressDue);
  addressDue = setTimeout(() => view && history.replaceState(null, "", address(view.position, frame)), 300);
}

function walk(by) {
  const position = neighbour(view.position, by);
  if (position === null) say(by > 0 ? "This is the last episode of the list." : "This is the first episode of the list.");
  else location.hash = address(position, 0);
}

const move = (by) => {
  view.setPlaying(false);
  view.moveTo(view.frame + by);
};
const ACTS = {
  back: () => { location.hash = ""; },
  previous: () => walk(-1),
  next: () => walk(1),
  play: () => view.setPlaying(!view.isPlaying),
  earlier: () => move(-1),
  later: () => move(1),
  reconstruct: () => view.toggleReconstruction(),
  dream: () => view.dream(),
  redraw: () => view.redraw(),
  say: () => say(view.spoken()),
  first: () => move(-Infinity),
  last: () => move(Infinity),
};
const KEYS = {
  Space: "play", KeyJ: "next", KeyK: "previous", KeyL: "back", Escape: "back", KeyR: "reconstruct", KeyD: "dream",
  KeyO: "redraw", KeyI: "say", Home: "first", End: "last",
};

for (const id of ["back", "previous", "next", "play", "earlier", "later", "reconstruct", "dream", "redraw"]) {
  at(id).onclick = () => view && ACTS[id]();
}
at("frame").oninput = ({ target }) => {
  view?.setPlaying(false);
  view?.moveTo(Number(target.value));
};
at("speed").onchange = ({ target }) => target.blur(); // or keys would choose a speed
at("steps").onkeydown = ({ key, target }) => key === "Enter" && target.blur();

addEventListener("keydown", (event) => {
  const { target } = event;
  if (!view || event.ctrlKey || event.altKey || event.metaKey || target.matches("select, input[type=number]")) return;
  if (event.code === "Space" && target.matches("button, summary, a")) return;
  if (event.code === "ArrowLeft" || event.code === "ArrowRight") {
    move((event.code === "ArrowLeft" ? -1 : 1) * (event.shiftKey ? 10 : 1));
  } else if (event.code in KEYS) {
    if (!event.repeat) ACTS[KEYS[event.code]]();
  } else return;
  event.preventDefault();
});

at("further").ontoggle = () => view?.redrawPlots();
addEventListener("resize", () => view?.redrawPlots());
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => view?.redrawPlots());
begin();
