// Frames of one episode, fetched piece by piece and kept for a while.

import { askFrames } from "./server.js";

const KEPT = 12; // pieces

export class FrameStore {
  /**
   * `kind` is what the server calls the pieces: "frames" or "reconstructions". `told` is called with the header of each
   * piece that arrives.
   */
  constructor(position, kind, piece, frameCount, told = () => {}) {
    this.path = `episodes/${position}/${kind}`;
    this.piece = piece;
    this.frameCount = frameCount;
    this.told = told;
    this.pieces = new Map();
  }

  /** A promise of a frame's ImageBitmap; the piece after it is fetched, too, where it is near. */
  async get(frame) {
    const number = Math.floor(frame / this.piece);
    const found = this.fetch(number);
    if ((frame % this.piece) * 2 >= this.piece && (number + 1) * this.piece < this.frameCount) {
      this.fetch(number + 1).catch(() => {}); // told when it is really wanted
    }
    return (await found).get(frame);
  }

  fetch(number) {
    let found = this.pieces.get(number);
    if (found) this.pieces.delete(number); // the newest are at the end
    else {
      found = askFrames(`${this.path}/${number}`).then(({ header, frames }) => {
        this.told(header);
        return frames;
      });
      found.catch(() => this.pieces.delete(number));
    }
    this.pieces.set(number, found);
    if (this.pieces.size > KEPT) this.drop(this.pieces.keys().next().value);
    return found;
  }

  drop(number) {
    const found = this.pieces.get(number);
    this.pieces.delete(number);
    found?.then(closeAll, () => {});
  }

  /** Free all pictures. */
  close() {
    for (const number of [...this.pieces.keys()]) this.drop(number);
  }
}

export function closeAll(frames) {
  for (const bitmap of frames.values()) bitmap.close();
}
