// The pictures of the worlds.

export const WORLDS = ["simulator", "dream"];

const figures = Object.fromEntries(WORLDS.map((world) => [world, document.getElementById(`figure-${world}`)]));

/** Draw each world's picture, and hide the worlds that have none. */
export async function showPictures(header, pictures, horizon) {
  const bitmaps = await Promise.all(
    Object.entries(pictures).map(async ([world, blob]) => [world, await createImageBitmap(blob)]));
  for (const [world, bitmap] of bitmaps) {
    const canvas = figures[world].querySelector("canvas");
    if (canvas.width !== bitmap.width || canvas.height !== bitmap.height) {
      canvas.width = bitmap.width;
      canvas.height = bitmap.height;
    }
    canvas.getContext("2d").drawImage(bitmap, 0, 0);
    bitmap.close();
    const { steps } = header.worlds[world];
    const limit = world === "dream" ? ` of ${horizon}` : "";
    figures[world].querySelector(".caption").textContent = `step ${steps}${limit}`;
  }
  for (const world of WORLDS) figures[world].hidden = !(world in pictures);
}

/** Say over the leading world's picture why it stands still; `null` removes it. */
export function showStandstill(mode, text) {
  for (const world of WORLDS) {
    const end = figures[world].querySelector(".end");
    end.hidden = text === null || world !== (mode === "dream" ? "dream" : "simulator");
    end.textContent = text ?? "";
  }
}
