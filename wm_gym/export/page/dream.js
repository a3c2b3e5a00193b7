// The dream: the exported parts, run by ONNX Runtime Web. The page and the tests drive it; it knows no element.

/** Fetch a file beside the page. */
async function ask(name) {
  const answer = await fetch(name);
  if (!answer.ok) throw new Error(`${name}: ${answer.status} ${answer.statusText}`);
  return answer;
}

/** Load ONNX Runtime for WASM on one thread, or with WebGPU. */
async function loadRuntime(backend) {
  const isGpu = backend === "webgpu";
  const ort = await import(`./runtime/ort.${isGpu ? "webgpu" : "wasm"}.bundle.min.js`);
  const { body } = await ask(`runtime/ort-wasm-simd-threaded${isGpu ? ".asyncify" : ""}.wasm.gzip`);
  ort.env.wasm.wasmBinary = await new Response(body.pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
  ort.env.wasm.numThreads = 1; // more need headers that a static host does not send
  return ort;
}

/** Uniform numbers in [0, 1), as float32 has them: more digits could be rounded to 1. */
export function uniform(size) {
  return Float32Array.from({ length: size }, () => Math.floor(Math.random() * 2 ** 24) / 2 ** 24);
}

export class Dream {
  /** Load everything; `backend` is "wasm" or "webgpu", and `say(sentence)` is told how it goes on. */
  static async load(backend, say = () => {}) {
    const dream = new Dream();
    say("Loading the runtime …");
    const ort = await loadRuntime(backend);
    dream.manifest = await (await ask("export.json")).json();
    dream.parts = {};
    for (const { name, part, inputs, outputs } of dream.manifest.files) {
      say(`Loading ${name} …`);
      const content = new Uint8Array(await (await ask(name)).arrayBuffer());
      const session = await ort.InferenceSession.create(content, {
        executionProviders: [backend],
        logSeverityLevel: 3, // errors: with WebGPU it would warn that small nodes stay with the processor
      });
      dream.parts[part] = { session, inputs, outputs };
    }
    dream.starts = new Float32Array(await (await ask("start_states.bin")).arrayBuffer());
    dream.Tensor = ort.Tensor;
    return dream;
  }

  get simulator() { return this.manifest.model.simulator; }
  get hasAgent() { return "policy" in this.parts; }
  get noiseSize() { return this.size("step", "noise"); }

  /** Entries of an input of a part; 0 where it has no such input. */
  size(part, name) {
    const spec = this.parts[part].inputs.find((input) => input.name === name);
    return spec ? spec.shape.slice(1).reduce((product, length) => product * length, 1) : 0;
  }

  /** Run a part on arrays by name; gives arrays by name. */
  async call(part, values) {
    const { session, inputs, outputs } = this.parts[part];
    const feeds = {};
    for (const { name, shape } of inputs) {
      // What no output depends on may be no input of the file.
      if (session.inputNames.includes(name)) {
        feeds[name] = new this.Tensor("float32", values[name], [1, ...shape.slice(1)]);
      }
    }
    const given = await session.run(feeds);
    return Object.fromEntries(outputs.map(({ name }) => [name, given[name].data]));
  }

  /** Begin in a start state. */
  start(number) {
    const sizes = [this.size("step", "latent"), this.size("step", "memory"), this.manifest.page.features];
    let place = number * (sizes[0] + sizes[1] + sizes[2]);
    const [latent, memory, features] = sizes.map((size) => this.starts.slice(place, place += size));
    this.state = { latent, memory, features };
  }

  /** Imagine one step under an action in the stored format; gives reward and continuation. */
  async step(action, noise = uniform(this.noiseSize)) {
    const given = await this.call("step", { ...this.state, action, noise });
    this.state = { latent: given.next_latent, memory: given.next_memory, features: given.features };
    return { reward: given.reward[0], continuation: given.continuation[0] };
  }

  /** The picture of the state: float32 in [-1, 1], channels first. */
  async picture() { return (await this.call("decoder", { latent: this.state.latent })).frames; }

  /** The agent's action for the state, in the stored format. */
  async agentAction() { return (await this.call("policy", { features: this.state.features })).action; }

  /** The vector that goes with the picture; empty where the simulator has none. */
  async vector() {
    if (!("vector_decoder" in this.parts)) return [];
    return (await this.call("vector_decoder", { features: this.state.features })).vector;
  }

  /** Dream from a start state under given actions and noise, a row of each for every step; `null` lets the agent act. */
  async run(start, actions, noises) {
    this.start(start);
    const steps = [];
    for (const [place, row] of actions.entries()) {
      const action = row === null ? await this.agentAction() : Float32Array.from(row);
      const told = await this.step(action, Float32Array.from(noises[place]));
      const rows = { ...this.state, action, frames: await this.picture() };
      steps.push({ ...told, ...Object.fromEntries(Object.entries(rows).map(([name, row]) => [name, [...row]])) });
    }
    return steps;
  }
}

/** Wheel and pedals as an action in the stored format, within its bounds (HandControls.to_action in Python). */
export function toAction({ steering, throttle, brake, reverse }, { kind, low, high }) {
  const clamped = (values) => Float32Array.from(values, (value, at) => Math.min(high[at], Math.max(low[at], value)));
  if (kind === "driving") return clamped([steering, throttle, brake, reverse ? -1 : 1]);
  const brakesBySecond = low.length < 3 || low[1] < 0;
  const wanted = [steering, brakesBySecond ? throttle - brake : throttle, brakesBySecond ? 0 : brake];
  // A push of 0 is the value 0, of 1 the upper bound, of -1 the lower one.
  return clamped(low.map((_, at) => {
    const push = wanted[at] ?? 0;
    return push >= 0 ? push * high[at] : -push * low[at];
  }));
}
