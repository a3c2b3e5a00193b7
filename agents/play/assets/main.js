// Puts the parts of the page together.

import { connect } from "./connection.js";
import { Input } from "./shared/input.js";
import { clearMeters, makeRows, showNumbers, spokenNumbers } from "./shared/meters.js";
import { say } from "./shared/live.js";
import { showPictures, showStandstill } from "./stage.js";
import { makeStarts, mark } from "./shared/starts.js";

const SLOW = 0.25;
const at = (id) => document.getElementById(id);
let state = null;
let speedBefore = 1;
let isConnected = false;
const shownAt = [];

const listeners = {
  text(message) {
    if (message.kind === "hello") greet(message);
    else if (message.kind === "state") take(message);
    else if (message.kind === "notice") say(message.text);
    else if (message.kind === "problem") say(message.text, true);
  },
  async step(header, pictures) {
    await showPictures(header, pictures, state?.horizon ?? "");
    showNumbers(header);
    const now = performance.now();
    shownAt.push(now);
    while (shownAt[0] < now - 1000) shownAt.shift();
    document.body.dataset.steps = header.number;
  },
  closed() {
    isConnected = false;
    at("status").textContent = "Not connected.";
    say("The connection is closed. Start wm-gym play again, or reload this page.", true);
  },
};
const send = connect(listeners);

function greet(hello) {
  isConnected = true;
  at("simulator").textContent = hello.simulator;
  at("key-reverse").hidden = !hello.has_gear;
  document.querySelector("input[name=who][value=agent]").disabled = !hello.has_agent;
  at("record").disabled = !hello.can_record;
  at("record").title = hello.can_record ? "Keep drives, each from its start" : "Start wm-gym play with --record DIR";
  makeRows(hello.vector);
  makeStarts(hello.start_states, (number) => send({ kind: "start", start_state: number }));
}

const SPOKEN = {
  mode: { dream: "You drive in the dream.", simulator: "You drive in the simulator.", both: "You drive in both." },
  who: { hand: "Your hand drives.", agent: "The agent drives." },
  paused: { true: "Paused.", false: "Goes on." },
  record: { true: "Drives are recorded, this one from its start.", false: "Recording is off." },
};

const WAITING = "Ready. Gas or brake, steer, or let the agent drive: then it goes.";

function take(fresh) {
  const before = state;
  state = fresh;
  const told = before === null ? [] : Object.keys(SPOKEN)
    .filter((name) => before[name] !== fresh[name]).map((name) => SPOKEN[name][fresh[name]]);
  if (fresh.ended && fresh.ended !== before?.ended) told.push(`The drive is over: ${fresh.ended}. B goes back, J on.`);
  if (fresh.waits !== Boolean(before?.waits)) told.push(fresh.waits ? WAITING : "It goes.");
  if (told.length) say(told.join(" "));
  for (const name of ["mode", "who"]) document.querySelector(`input[name=${name}][value=${fresh[name]}]`).checked = true;
  at("pause").setAttribute("aria-pressed", String(fresh.paused));
  at("record").setAttribute("aria-pressed", String(fresh.record));
  at("speed").value = String(fresh.speed);
  for (const [id, value] of [["horizon", fresh.horizon], ["temperature", fresh.temperature], ["seed", fresh.seed]]) {
    if (document.activeElement !== at(id)) at(id).value = value;
  }
  at("fork").hidden = fresh.mode !== "both";
  at("horizon-field").hidden = fresh.mode === "simulator";
  at("temperature-field").hidden = fresh.mode === "simulator" || fresh.temperature === null;
  at("seed-field").hidden = fresh.mode === "dream";
  at("starts").hidden = fresh.mode !== "dream";
  showStandstill(fresh.mode, fresh.ended ? `The drive is over: ${fresh.ended}.` : fresh.waits ? WAITING : null);
  mark(fresh.mode === "dream" ? fresh.start_state : null);
  if (before && (before.mode !== fresh.mode || before.seed !== fresh.seed)) clearMeters();
  Object.assign(document.body.dataset, { mode: fresh.mode, who: fresh.who, waits: fresh.waits, ended: fresh.ended ?? "" });
  showStatus();
}

const ACTS = {
  change: () => send({ kind: "driver", who: state.who === "hand" ? "agent" : "hand" }),
  pause: () => send({ kind: "pause", paused: !state.paused }),
  single: () => send({ kind: "single_step" }),
  again: () => send({ kind: "again" }),
  next: () => send({ kind: "next" }),
  fork: () => send({ kind: "dream_again" }),
  record: () => send({ kind: "record", on: !state.record }),
  reverse: () => say(input.reverse ? "Reverse gear." : "Forward gear."),
  say: () => say(spokenNumbers()),
  slow: () => {
    const isSlow = state.speed < 1;
    if (!isSlow) speedBefore = state.speed;
    send({ kind: "speed", speed: isSlow ? speedBefore : SLOW });
    say(isSlow ? "Slow motion is off." : "Slow motion.");
  },
};
const input = new Input((name) => state && ACTS[name]());

for (const name of ["pause", "single", "again", "next", "fork", "record"]) at(name).onclick = () => state && ACTS[name]();
at("speed").onchange = ({ target }) => {
  send({ kind: "speed", speed: Number(target.value) });
  target.blur(); // or the arrow keys would choose a speed
};
for (const radio of document.querySelectorAll("input[name=mode]")) {
  radio.onchange = () => {
    send({ kind: "start", mode: radio.value });
    radio.blur();
  };
}
for (const radio of document.querySelectorAll("input[name=who]")) {
  radio.onchange = () => {
    send({ kind: "driver", who: radio.value });
    radio.blur();
  };
}
at("horizon").onchange = ({ target }) => {
  if (target.checkValidity() && target.value) send({ kind: "horizon", steps: Number(target.value) });
  else say("The horizon is a whole number from 1 to 100000.", true);
};
at("temperature").onchange = ({ target }) => {
  if (target.validity.rangeUnderflow || target.validity.rangeOverflow || !target.value) {
    say("The temperature is a number from 0.1 to 5.", true);
  } else send({ kind: "temperature", temperature: Number(target.value) });
};
for (const id of ["horizon", "temperature", "seed"]) at(id).onkeydown = ({ key, target }) => key === "Enter" && target.blur();
at("seed").onchange = ({ target }) => {
  if (target.checkValidity() && target.value) send({ kind: "start", seed: Number(target.value) });
  else say("The seed is a whole number from 0 to 999999.", true);
};

let controlsBefore = "";
let lastTime = performance.now();
function tick(now) {
  // A frame's time is that of its beginning: the first one may have begun before this script was through.
  const seconds = Math.max(0, Math.min(0.1, (now - lastTime) / 1000));
  const controls = { kind: "controls", ...input.read(seconds) };
  lastTime = now;
  const text = JSON.stringify(controls);
  if (isConnected && text !== controlsBefore) {
    controlsBefore = text;
    send(controls);
  }
  requestAnimationFrame(tick);
}
requestAnimationFrame(tick);

function showStatus() {
  if (!isConnected || !state) return;
  const now = performance.now();
  const recent = shownAt.filter((time) => time > now - 1000).length;
  document.body.dataset.fps = recent;
  const who = state.who === "agent" ? "the agent drives" : "your hand drives";
  const stands = state.ended ? "over" : state.paused ? "paused" : state.waits ? "ready" : null;
  at("status").textContent = `${who}, ${stands ?? `${recent} frames a second`}`;
}
setInterval(showStatus, 500);
