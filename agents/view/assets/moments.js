// Moments of a dream, one under the other: what was recorded, its reconstruction, and the dream.

const COLUMNS = 8;
const GAP = 2; // pixels of a frame
const figure = document.getElementById("moments");
const canvas = figure.querySelector("canvas");
let frames = [];
let go = () => {};
let drawing = 0; // the newest request; older ones that are still waiting for frames are dropped

canvas.onclick = ({ offsetX }) => {
  if (frames.length) go(frames[Math.min(frames.length - 1, Math.floor((offsetX / canvas.clientWidth) * frames.length))]);
};

/** Hide the picture. */
export function hideMoments() {
  drawing += 1;
  figure.hidden = true;
}

/**
 * Draw frames at equal distances out of `first` to `last`.
 *
 * `rows` has a `name` and `get(frame)`, a promise of an ImageBitmap, for each row; `choose(frame)` is called for a click.
 */
export async function showMoments(first, last, rows, [height, width], choose) {
  const own = ++drawing;
  const count = Math.min(COLUMNS, last - first + 1);
  const wanted = Array.from({ length: count }, (_, place) =>
    Math.round(first + ((last - first) * place) / Math.max(1, count - 1)));
  // One row after another: each may take the model a while.
  const pictures = [];
  for (const row of rows) pictures.push(await Promise.all(wanted.map((frame) => row.get(frame))));
  if (own !== drawing) return;
  frames = wanted;
  go = choose;
  canvas.width = count * (width + GAP) - GAP;
  canvas.height = rows.length * (height + GAP) - GAP;
  const context = canvas.getContext("2d");
  pictures.forEach((row, line) => row.forEach((bitmap, column) =>
    bitmap && context.drawImage(bitmap, column * (width + GAP), line * (height + GAP), width, height)));
  const order = rows.map(({ name }) => name).join(", below it ");
  const text = `Frames ${wanted.join(", ")}: ${order}.`;
  canvas.setAttribute("aria-label", text);
  figure.querySelector("figcaption").textContent = text;
  figure.hidden = false;
}
