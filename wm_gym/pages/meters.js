// Numbers, bars and the plot of the rewards.

const KEPT = 150; // steps in the plot
const rewards = { simulator: [], dream: [] };
const numbersBody = document.getElementById("numbers");
const vectorBody = document.getElementById("vector");
const plot = document.getElementById("plot");
const cells = new Map();
let fields = [];
let latest = null;

const text = (id, value) => { document.getElementById(id).textContent = value; };

/** Make the rows: reward, return, and the vector's fields. */
export function makeRows(vector) {
  fields = vector;
  for (const body of [numbersBody, vectorBody]) body.replaceChildren();
  cells.clear();
  document.getElementById("vector-box").hidden = vector.length === 0;
  for (const name of ["reward", "return", ...vector.map((field) => field.name)]) {
    const row = (cells.size < 4 ? numbersBody : vectorBody).insertRow(); // reward and return, in two worlds
    const head = document.createElement("th");
    head.scope = "row";
    head.textContent = name.replaceAll("_", " ");
    row.append(head);
    for (const world of ["simulator", "dream"]) {
      const cell = row.insertCell();
      cell.dataset.world = world;
      cells.set(`${name} ${world}`, cell);
    }
  }
}

function fieldText(field, value) {
  if (field.classes.length) return field.classes[Math.round(value)] ?? value.toFixed(0);
  return `${value.toFixed(2)} ${field.unit}`.trim();
}

/** Forget the rewards of the drive before. */
export function clearMeters() {
  rewards.simulator = [];
  rewards.dream = [];
}

/** Take a step's numbers. */
export function showNumbers(header) {
  latest = header;
  for (const [world, numbers] of Object.entries(header.worlds)) {
    cells.get(`reward ${world}`).textContent = numbers.reward.toFixed(2);
    const error = numbers.uncertainty ?? null; // where the model tells it
    cells.get(`return ${world}`).textContent =
      numbers.return.toFixed(1) + (error === null ? "" : ` \u00b1 ${error.toFixed(1)}`);
    fields.forEach((field, place) => {
      cells.get(`${field.name} ${world}`).textContent = fieldText(field, numbers.vector[place]);
    });
    if (numbers.steps === 0) rewards[world] = [];
    else rewards[world] = [...rewards[world].slice(1 - KEPT), numbers.reward];
  }
  for (const element of document.querySelectorAll("#meters [data-world]")) {
    element.hidden = !(element.dataset.world in header.worlds);
  }
  const continuation = header.worlds.dream?.continuation;
  document.getElementById("continuation").closest("p").hidden = continuation === undefined;
  if (continuation !== undefined) {
    document.getElementById("continuation").value = continuation;
    text("continuation-text", `${(100 * continuation).toFixed(1)} %`);
  }
  showAction(header.action);
  draw();
}

function fill(id, value) {
  const bar = document.querySelector(`#${id} i`);
  const share = Math.min(1, Math.abs(value)) * 50;
  bar.style.width = `${share}%`;
  bar.style.left = value < 0 ? `${50 - share}%` : "50%";
}

function showAction(action) {
  if (!action) return;
  const [steering, throttle = 0, brake = 0, gear = 1] = action;
  fill("bar-steering", steering);
  text("steering-text", Math.abs(steering) < 0.005 ? "0" : `${steering < 0 ? "◀" : "▶"} ${Math.abs(steering).toFixed(2)}`);
  fill("bar-pedals", throttle - brake);
  const [pedal, pressed] = brake > throttle ? ["brake", brake] : ["gas", throttle];
  const pedals = pressed < 0.05 ? "0" : `${pedal} ${pressed.toFixed(1)}`;
  text("pedals-text", gear < 0 ? `R ${pedals}` : pedals);
}

function draw() {
  const context = plot.getContext("2d");
  const scale = devicePixelRatio || 1;
  const [width, height] = [plot.clientWidth, plot.clientHeight];
  if (plot.width !== Math.round(width * scale)) {
    plot.width = Math.round(width * scale);
    plot.height = Math.round(height * scale);
  }
  context.setTransform(scale, 0, 0, scale, 0, 0);
  context.clearRect(0, 0, width, height);
  const all = [...rewards.simulator, ...rewards.dream, 0, 1];
  const [low, high] = [Math.min(...all), Math.max(...all)];
  const y = (value) => 4 + (height - 8) * (1 - (value - low) / (high - low));
  const style = getComputedStyle(plot);
  context.strokeStyle = style.getPropertyValue("color");
  context.globalAlpha = 0.35;
  context.lineWidth = 1;
  context.beginPath();
  context.moveTo(0, y(0));
  context.lineTo(width, y(0));
  context.stroke();
  context.globalAlpha = 1;
  context.lineWidth = 2;
  for (const [world, key, dash] of [["simulator", ".key.dashed", [5, 4]], ["dream", ".key.solid", []]]) {
    context.strokeStyle = getComputedStyle(document.querySelector(key)).borderBottomColor;
    context.setLineDash(dash);
    context.beginPath();
    // The newest step is at the right, in every world.
    const first = KEPT - rewards[world].length;
    rewards[world].forEach((value, step) => context.lineTo(((first + step) / (KEPT - 1)) * width, y(value)));
    context.stroke();
  }
  context.setLineDash([]);
}

/** The numbers as a sentence. */
export function spokenNumbers() {
  if (!latest) return "There is nothing yet.";
  return Object.entries(latest.worlds).map(([world, numbers]) => {
    const told = fields.map((field, place) => `${field.name} ${fieldText(field, numbers.vector[place])}`);
    const chance = numbers.continuation === null ? [] : [`goes on with ${(100 * numbers.continuation).toFixed(0)} %`];
    const error = (numbers.uncertainty ?? null) === null ? "" : `, give or take ${numbers.uncertainty.toFixed(0)}`;
    return [`${world}: step ${numbers.steps}`, `reward ${numbers.reward.toFixed(1)}`,
      `return ${numbers.return.toFixed(0)}${error}`, ...chance, ...told].join(", ");
  }).join("; ") + ".";
}
