// Puts the parts of the page together, and drives the dream at its pace.

import { Dream, toAction } from "./dream.js";
import { Input } from "./shared/input.js";
import { say } from "./shared/live.js";
import { clearMeters, makeRows, showNumbers, spokenNumbers } from "./shared/meters.js";
import { makeStarts, mark } from "./shared/starts.js";

const SLOW = 0.25;
const GOES_ON = 0.5; // below it the model expects that the drive ends here
const WAITING = "Ready. Gas or brake, steer, or let the agent drive: then it goes.";
const OVER = "The model expects the drive to end here.";
const at = (id) => document.getElementById(id);
const figure = at("figure-dream");
const radio = (who) => document.querySelector(`input[name=who][value=${who}]`);

const backend = new URLSearchParams(location.search).get("backend") === "webgpu" ? "webgpu" : "wasm";
let dream = null;
let numbers = null; // of the last step
let startNumber = 0;
let isRestarted = true; // the next frame begins anew
let isPaused = false;
let isStep = false; // a single step is wanted
let waits = true;
let ended = false;
let speedBefore = 1;
let dueAt = 0;
const shownAt = [];

const who = () => (radio("agent").checked ? "agent" : "hand");
const speed = () => Number(at("speed").value);

function restart(number) {
  startNumber = number;
  isRestarted = true;
}

function choose(name) {
  radio(name).checked = true;
  say(name === "agent" ? "The agent drives." : "Your hand drives.");
}

function pause(on) {
  isPaused = on;
  at("pause").setAttribute("aria-pressed", String(on));
  say(on ? "Paused." : "Goes on.");
}

const ACTS = {
  change: () => (dream.hasAgent ? choose(who() === "hand" ? "agent" : "hand") : say("There is no agent here.")),
  pause: () => pause(!isPaused),
  single: () => {
    isStep = true;
    if (!isPaused) pause(true);
  },
  again: () => restart(startNumber),
  next: () => restart((startNumber + 1) % dream.manifest.page.start_states),
  reverse: () => say(input.reverse ? "Reverse gear." : "Forward gear."),
  say: () => say(spokenNumbers()),
  slow: () => {
    const isSlow = speed() < 1;
    if (!isSlow) speedBefore = speed();
    at("speed").value = String(isSlow ? speedBefore : SLOW);
    say(isSlow ? "Slow motion is off." : "Slow motion.");
  },
};
const input = new Input((name) => dream && ACTS[name]?.());
for (const name of ["pause", "single", "again", "next"]) at(name).onclick = () => dream && ACTS[name]();
for (const name of ["hand", "agent"]) {
  radio(name).onchange = () => {
    choose(name);
    radio(name).blur(); // or the arrow keys would choose
  };
}
at("speed").onchange = ({ target }) => target.blur();
navigator.gpu?.requestAdapter().then((adapter) => { at("backend-field").hidden = !adapter && backend === "wasm"; });
at("backend").value = backend;
at("backend").onchange = ({ target }) => { location.search = `?backend=${target.value}`; };

/** Draw the state's picture: channels first in [-1, 1] to bytes. */
async function showPicture() {
  const canvas = figure.querySelector("canvas");
  const frames = await dream.picture();
  const size = canvas.width * canvas.height;
  const image = new ImageData(canvas.width, canvas.height);
  for (let pixel = 0; pixel < size; pixel += 1) {
    for (let channel = 0; channel < 3; channel += 1) {
      image.data[4 * pixel + channel] = (frames[channel * size + pixel] + 1) * 127.5;
    }
    image.data[4 * pixel + 3] = 255;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

async function show(action) {
  await showPicture();
  showNumbers({ action, worlds: { dream: { ...numbers, vector: await dream.vector() } } });
  figure.querySelector(".caption").textContent = `step ${numbers.steps}`;
  const standing = ended ? OVER : waits ? WAITING : null;
  figure.querySelector(".end").hidden = standing === null;
  figure.querySelector(".end").textContent = standing ?? "";
  Object.assign(document.body.dataset, { steps: numbers.steps, start: startNumber, waits, ended });
}

async function begin() {
  [isRestarted, isStep] = [false, false];
  dream.start(startNumber);
  numbers = { steps: 0, reward: 0, return: 0, continuation: 1 };
  [waits, ended] = [true, false];
  clearMeters();
  mark(startNumber);
  say(WAITING);
  await show(null);
}

async function advance(controls) {
  const action = who() === "agent" ? await dream.agentAction() : toAction(controls, dream.simulator.action);
  const { reward, continuation } = await dream.step(action);
  numbers = { steps: numbers.steps + 1, reward, return: numbers.return + reward, continuation };
  if (waits) say("It goes.");
  waits = false;
  ended = continuation < GOES_ON;
  if (ended) say(`${OVER} B goes back, J on.`);
  await show(action);
  shownAt.push(performance.now());
}

let lastTime = performance.now();
async function tick(now) {
  // A frame's time is that of its beginning: the first one may have begun before this script was through.
  const controls = input.read(Math.max(0, Math.min(0.1, (now - lastTime) / 1000)));
  lastTime = now;
  const moves = who() === "agent" || controls.steering !== 0 || controls.throttle !== 0 || controls.brake !== 0;
  if (isRestarted) await begin();
  else if (!ended && (isStep || (!isPaused && now >= dueAt && (moves || !waits)))) {
    isStep = false;
    dueAt = Math.max(dueAt + (1000 * (dream.simulator.step_s || 0.1)) / speed(), now);
    await advance(controls);
  }
  requestAnimationFrame((time) => tick(time).catch(fail));
}

function showStatus() {
  if (!dream) return;
  while (shownAt[0] < performance.now() - 1000) shownAt.shift();
  const driver = who() === "agent" ? "the agent drives" : "your hand drives";
  const stands = ended ? "over" : isPaused ? "paused" : waits ? "ready" : null;
  at("status").textContent = `${driver}, ${stands ?? `${shownAt.length} frames a second`}`;
}

function fail(error) {
  at("status").textContent = "Not running.";
  say(`The dream cannot be computed here: ${error.message ?? error}`, true);
  throw error;
}

async function load() {
  say("The dream is loading.");
  dream = await Dream.load(backend, (told) => { at("status").textContent = told; });
  const { id, frame_size: [height, width], action, vector } = dream.simulator;
  at("simulator").textContent = id;
  Object.assign(figure.querySelector("canvas"), { width, height });
  at("key-reverse").hidden = action.kind !== "driving" || action.low[3] >= 0;
  radio("agent").disabled = !dream.hasAgent;
  makeRows(vector ?? []);
  makeStarts(dream.manifest.page.start_states, restart);
  setInterval(showStatus, 500);
  window.dream = dream; // for whoever compares it with the model: await dream.run(start, actions, noises)
  await tick(performance.now());
}
load().catch(fail);
