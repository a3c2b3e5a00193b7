// One episode: its frames, the numbers beside them, and what the world model makes of it.

import { FrameStore, closeAll } from "./frames.js";
import { describe } from "./list.js";
import { hideMoments, showMoments } from "./moments.js";
import { Plot } from "./plots.js";
import { askFrames, askJson } from "./server.js";
import { say } from "./shared/live.js";

const at = (id) => document.getElementById(id);
const KINDS = ["recorded", "reconstruction", "dream"];
const figures = Object.fromEntries(KINDS.map((kind) => [kind, at(`figure-${kind}`)]));
const LIKENESS = { name: "likeness", unit: "PSNR in dB" };
const DEFAULT_STEP_S = 0.1; // of a simulator that does not say

export class EpisodeView {
  /** `moved(frame)` is called when another frame is shown. */
  constructor(dataset, position, moved) {
    this.dataset = dataset;
    this.position = position;
    this.episode = dataset.episodes[position];
    this.frameCount = this.episode.length + 1;
    this.moved = moved;
    this.frame = 0;
    this.steps = null; // what was recorded beside the frames
    this.plots = [];
    this.isOpen = true;
    this.isPlaying = false;
    this.recorded = new FrameStore(position, "frames", dataset.piece, this.frameCount);
    this.rebuilt = null;
    this.dreamt = null; // { start, frames, seed }
    this.likeness = null;
    at("title").textContent = `Episode ${this.episode.index}`;
    at("facts").textContent = describe(this.episode, dataset.step_s).join(", ");
    at("frame").max = this.episode.length;
    at("redraw").disabled = true;
    this.showProblem(null);
    this.showLines();
    this.showMoments();
    this.setPlaying(false);
  }

  /** Fetch the numbers, and show a frame. */
  async open(frame) {
    this.moveTo(frame);
    const { position } = this;
    try {
      const steps = await askJson(`episodes/${position}/steps`);
      if (this.isOpen) this.makePlots(steps);
    } catch (error) {
      this.showProblem(error);
    }
  }

  close() {
    this.isOpen = false;
    this.setPlaying(false);
    this.recorded.close();
    this.rebuilt?.close();
    if (this.dreamt) closeAll(this.dreamt.frames);
    at("chief-plots").replaceChildren();
    at("further-plots").replaceChildren();
  }

  makePlots(steps) {
    this.steps = steps;
    const add = (parent, field, values, first) => {
      const plot = new Plot(field, this.frameCount, (frame) => this.moveTo(frame));
      at(parent).append(plot.element);
      plot.set("recorded", values, first);
      this.plots.push(plot);
      return plot;
    };
    this.dataset.actions.forEach((name, place) => add("chief-plots", { name }, steps.actions[place], 0));
    this.reward = add("chief-plots", { name: "reward" }, steps.rewards, 1);
    this.vector = this.dataset.vector.map((field, place) => add("chief-plots", field, steps.vectors[place], 0));
    const further = Object.entries(steps.infos).filter(([, values]) => values.some((value) => value !== null));
    for (const [name, values] of further) add("further-plots", { name }, values, 1);
    at("further").hidden = further.length === 0;
    document.body.dataset.plots = this.plots.length;
    this.moveTo(this.frame);
  }

  redrawPlots() {
    for (const plot of this.plots) plot.draw();
  }

  showProblem(error) {
    if (error && !this.isOpen) return;
    at("problem").hidden = error === null;
    at("problem").textContent = error?.message ?? "";
    if (error) {
      this.setPlaying(false);
      say(error.message, true);
    }
  }

  /** Go to a frame, the nearest that there is. */
  moveTo(frame) {
    this.frame = Math.max(0, Math.min(this.episode.length, Math.round(frame)));
    const seconds = this.dataset.step_s > 0 ? `, ${(this.frame * this.dataset.step_s).toFixed(2)} s` : "";
    const place = `frame ${this.frame} of ${this.episode.length}${seconds}`;
    at("place").textContent = place;
    at("frame").value = this.frame;
    at("frame").setAttribute("aria-valuetext", place);
    for (const plot of this.plots) plot.moveTo(this.frame);
    this.moved(this.frame);
    return this.draw();
  }

  /** Draw the pictures of this frame, unless another one is wanted by the time they are here. */
  async draw() {
    const { frame } = this;
    const wanted = [this.show("recorded", this.recorded.get(frame), frame)];
    if (this.rebuilt) wanted.push(this.show("reconstruction", this.rebuilt.get(frame), frame));
    if (this.dreamt) {
      const { start, frames } = this.dreamt;
      const shown = frames.get(frame);
      const ahead = frame - start;
      figures.dream.querySelector(".caption").textContent = shown
        ? `step ${ahead} of ${frames.size}`
        : `it goes from frame ${start + 1} to ${start + frames.size}`;
      wanted.push(this.show("dream", shown ?? null, frame));
    }
    await Promise.all(wanted);
    if (this.isOpen && frame === this.frame) document.body.dataset.frame = frame;
  }

  async show(kind, picture, frame) {
    let bitmap;
    try {
      bitmap = await picture;
    } catch (error) {
      this.showProblem(error);
      return;
    }
    if (!this.isOpen || frame !== this.frame || figures[kind].hidden) return;
    const canvas = figures[kind].querySelector("canvas");
    const [height, width] = this.dataset.frame_size;
    [canvas.width, canvas.height] = bitmap ? [bitmap.width, bitmap.height] : [width, height]; // empties it, too
    if (bitmap) canvas.getContext("2d").drawImage(bitmap, 0, 0);
    if (bitmap && kind === "recorded") this.showProblem(null);
  }

  showLines() {
    const has = { recorded: true, reconstruction: this.rebuilt !== null, dream: this.dreamt !== null };
    for (const kind of KINDS) {
      figures[kind].hidden = !has[kind];
      document.querySelector(`.key.${kind}`).hidden = !has[kind];
    }
    at("reconstruct").setAttribute("aria-pressed", String(has.reconstruction));
    at("redraw").disabled = !has.dream;
    if (this.likeness && !has.reconstruction && !has.dream) {
      this.likeness.element.remove();
      this.plots = this.plots.filter((plot) => plot !== this.likeness);
      this.likeness = null;
    }
  }

  /** Put what the model says of frames from `first` on into the plots. */
  tell(kind, first, header) {
    if (!this.isOpen || !this.steps) return;
    if (!this.likeness) {
      this.likeness = new Plot(LIKENESS, this.frameCount, (frame) => this.moveTo(frame));
      at("chief-plots").prepend(this.likeness.element);
      this.plots.unshift(this.likeness);
    }
    this.likeness.set(kind, header.psnr, first);
    if (header.rewards) this.reward.set(kind, header.rewards, first);
    header.vectors.forEach((values, place) => this.vector[place].set(kind, values, first));
    for (const plot of this.plots) plot.moveTo(this.frame);
  }

  forget(kind) {
    for (const plot of this.plots) plot.set(kind, null);
  }

  toggleReconstruction() {
    if (!this.hasModel()) return;
    if (this.rebuilt) {
      this.rebuilt.close();
      this.rebuilt = null;
      this.forget("reconstruction");
      say("The reconstruction is off.");
    } else {
      this.rebuilt = new FrameStore(this.position, "reconstructions", this.dataset.piece, this.frameCount,
        (header) => this.rebuilt && this.tell("reconstruction", header.first, header));
      say("The world model shows each frame as it understands it, having seen it.");
    }
    this.showLines();
    this.showMoments();
    this.moveTo(this.frame);
  }

  /** The dream's moments under those that were recorded. */
  async showMoments() {
    if (!this.dreamt) {
      hideMoments();
      return;
    }
    const { start, frames } = this.dreamt;
    const rows = [{ name: "recorded", get: (frame) => this.recorded.get(frame) }];
    if (this.rebuilt) rows.push({ name: "reconstruction", get: (frame) => this.rebuilt?.get(frame) });
    rows.push({ name: "dream", get: (frame) => frames.get(frame) });
    try {
      await showMoments(start + 1, start + frames.size, rows, this.dataset.frame_size, (frame) => this.moveTo(frame));
    } catch (error) {
      this.showProblem(error);
    }
  }

  hasModel() {
    if (!this.dataset.model.is_there) say(`There is no world model here: ${this.dataset.model.name}.`, true);
    return this.dataset.model.is_there;
  }

  /** Dream from a frame on, under the recorded actions. */
  async dream(start = this.frame, seed = 0) {
    if (!this.hasModel()) return;
    if (start >= this.episode.length) {
      say("A dream begins before the last frame.", true);
      return;
    }
    const field = at("steps");
    if (!field.checkValidity() || field.value === "") {
      say(`The steps are a whole number from 1 to ${this.dataset.most_dream_steps}.`, true);
      return;
    }
    say("Dreaming …");
    let answer;
    try {
      answer = await askFrames(`episodes/${this.position}/dreams/${start}/${Number(field.value)}/${seed}`);
    } catch (error) {
      this.showProblem(error);
      return;
    }
    if (!this.isOpen) {
      closeAll(answer.frames);
      return;
    }
    if (this.dreamt) closeAll(this.dreamt.frames);
    this.dreamt = { start, seed, frames: answer.frames };
    this.forget("dream");
    this.showLines();
    this.tell("dream", answer.header.first, answer.header);
    document.body.dataset.dream = `${start} ${answer.frames.size} ${seed}`;
    say(`Dreamt ${answer.frames.size} steps from frame ${start} under the recorded actions; `
      + `their likeness to what was recorded is ${mean(answer.header.psnr).toFixed(1)} dB on average.`);
    this.showMoments();
    // A dream is looked at from its first step on.
    this.moveTo(this.frame > start && this.frame <= start + answer.frames.size ? this.frame : start + 1);
  }

  /** The same dream with other draws of a stochastic model. */
  redraw() {
    if (this.dreamt) this.dream(this.dreamt.start, this.dreamt.seed + 1);
  }

  setPlaying(isPlaying) {
    const goes = isPlaying && this.isOpen;
    at("play").setAttribute("aria-pressed", String(goes));
    at("play").textContent = goes ? "Stop" : "Play";
    if (goes && !this.isPlaying) {
      if (this.frame === this.episode.length) this.moveTo(0);
      this.due = performance.now();
      requestAnimationFrame(() => this.tick());
    }
    this.isPlaying = goes;
  }

  async tick() {
    if (!this.isPlaying) return;
    const period = (1000 * (this.dataset.step_s || DEFAULT_STEP_S)) / Number(at("speed").value);
    const now = performance.now();
    if (now >= this.due + period) {
      this.due = Math.max(this.due + period, now - period); // what is lost is not caught up with
      if (this.frame === this.episode.length) this.setPlaying(false);
      else await this.moveTo(this.frame + 1);
    }
    requestAnimationFrame(() => this.tick());
  }

  /** The numbers at this frame as a sentence. */
  spoken() {
    if (!this.steps) return "There are no numbers yet.";
    const told = this.plots.filter((plot) => plot.element.closest("#chief-plots"))
      .map((plot) => [plot.field.name.replaceAll("_", " "), plot.textAt(this.frame)]).filter(([, text]) => text);
    const sum = this.steps.rewards.slice(0, this.frame).reduce((total, reward) => total + reward, 0);
    return [`${at("place").textContent}: return so far ${sum.toFixed(1)}`, ...told.map((pair) => pair.join(" "))].join("; ") + ".";
  }
}

const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
