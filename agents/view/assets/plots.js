// Numbers over the frames of an episode: lines, a cursor, and the value at the cursor in words.

const LINES = [
  { name: "recorded", colour: "--mark", dash: [] },
  { name: "reconstruction", colour: "--rebuilt", dash: [2, 3] },
  { name: "dream", colour: "--dream", dash: [6, 4] },
];

export class Plot {
  /** `field` has a name, and may have a unit and classes; `scrub(frame)` is called for a click or a drag. */
  constructor(field, frameCount, scrub) {
    this.field = field;
    this.frameCount = frameCount;
    this.lines = {};
    this.element = document.createElement("figure");
    this.element.className = "plot";
    this.element.dataset.name = field.name;
    this.element.innerHTML = `<figcaption><b></b><span></span></figcaption>
      <div class="area"><canvas role="img"></canvas><div class="cursor"></div></div>`;
    const title = `${field.name.replaceAll("_", " ")}${field.unit ? ` (${field.unit})` : ""}`;
    this.range = document.createElement("small");
    this.element.querySelector("b").append(title, " ", this.range);
    this.value = this.element.querySelector("figcaption span");
    this.area = this.element.querySelector(".area");
    this.canvas = this.element.querySelector("canvas");
    this.cursor = this.element.querySelector(".cursor");
    const go = (event) => {
      const box = this.area.getBoundingClientRect();
      const share = Math.max(0, Math.min(1, (event.clientX - box.left) / box.width));
      scrub(Math.round(share * (this.frameCount - 1)));
    };
    this.area.addEventListener("pointerdown", (event) => {
      this.area.setPointerCapture(event.pointerId);
      go(event);
    });
    this.area.addEventListener("pointermove", (event) => this.area.hasPointerCapture(event.pointerId) && go(event));
  }

  /** Set a line: `values` from frame `first` on, `null` where there is none; no values remove it. */
  set(name, values, first = 0) {
    if (values === null) delete this.lines[name];
    else {
      const line = (this.lines[name] ??= new Array(this.frameCount).fill(null));
      values.forEach((value, place) => { if (first + place < this.frameCount) line[first + place] = value; });
    }
    this.draw();
  }

  words(value) {
    if (this.field.classes?.length) return this.field.classes[Math.round(value)] ?? String(value);
    return Math.abs(value) >= 100 ? value.toFixed(1) : value.toFixed(2);
  }

  /** The values at a frame in words; empty where there are none. */
  textAt(frame) {
    return LINES.filter(({ name }) => (this.lines[name]?.[frame] ?? null) !== null)
      .map(({ name }) => `${name === "recorded" ? "" : `${name} `}${this.words(this.lines[name][frame])}`).join(", ");
  }

  moveTo(frame) {
    this.cursor.style.left = `${(100 * frame) / Math.max(1, this.frameCount - 1)}%`;
    this.value.textContent = this.textAt(frame) || "–";
  }

  draw() {
    const scale = devicePixelRatio || 1;
    const [width, height] = [this.canvas.clientWidth, this.canvas.clientHeight];
    if (width === 0) return; // not on the screen
    this.canvas.width = Math.round(width * scale);
    this.canvas.height = Math.round(height * scale);
    const context = this.canvas.getContext("2d");
    context.setTransform(scale, 0, 0, scale, 0, 0);
    let [low, high] = [Infinity, -Infinity];
    for (const line of Object.values(this.lines)) {
      for (const value of line) {
        if (value === null) continue;
        low = Math.min(low, value);
        high = Math.max(high, value);
      }
    }
    if (low > high) return;
    const range = low === high ? `always ${this.words(low)}` : `${this.words(low)} to ${this.words(high)}`;
    this.canvas.setAttribute("aria-label", `${this.field.name}, ${range}`);
    this.range.textContent = range;
    if (low === high) [low, high] = [low - 1, high + 1];
    const x = (frame) => (frame / Math.max(1, this.frameCount - 1)) * width;
    const y = (value) => 4 + (height - 8) * (1 - (value - low) / (high - low));
    const style = getComputedStyle(this.canvas);
    context.strokeStyle = style.getPropertyValue("--line");
    if (low < 0 && high > 0) stroke(context, [[0, y(0)], [width, y(0)]]);
    context.lineWidth = 1.5;
    for (const { name, colour, dash } of LINES) {
      if (!this.lines[name]) continue;
      context.strokeStyle = style.getPropertyValue(colour);
      context.setLineDash(dash);
      let points = [];
      this.lines[name].forEach((value, frame) => {
        if (value !== null) points.push([x(frame), y(value)]);
        else points = stroke(context, points);
      });
      stroke(context, points);
    }
    context.setLineDash([]);
  }
}

function stroke(context, points) {
  if (points.length === 0) return points;
  context.beginPath();
  if (points.length === 1) points.push([points[0][0] + 1, points[0][1]]);
  for (const [x, y] of points) context.lineTo(x, y);
  context.stroke();
  return [];
}
