// What is asked of the server; a problem that it tells of is thrown as an Error with that sentence.

import { decodePictures } from "./shared/pictures.js";

async function ask(path) {
  let answer;
  try {
    answer = await fetch(path);
  } catch {
    throw new Error("The server is gone. Start wm-gym view again, and open the address that it prints.");
  }
  if (answer.ok) return answer;
  const told = await answer.json().catch(() => ({}));
  throw new Error(told.problem ?? `The server answered ${answer.status}.`);
}

export const askJson = async (path) => (await ask(path)).json();
export const askBlob = async (path) => (await ask(path)).blob();

/** A message of pictures: its header, and an ImageBitmap by the number of each frame. */
export async function askFrames(path) {
  const { header, pictures } = decodePictures(await (await ask(path)).arrayBuffer());
  const made = Object.entries(pictures).map(async ([name, blob]) => [Number(name), await createImageBitmap(blob)]);
  return { header, frames: new Map(await Promise.all(made)) };
}
