// Keyboard, touch and gamepad as one wheel and two pedals.

const HELD = {
  ArrowLeft: "left", KeyA: "left", ArrowRight: "right", KeyD: "right",
  ArrowUp: "throttle", KeyW: "throttle", ArrowDown: "brake", KeyS: "brake", Space: "brake",
};
const PRESSED = {
  KeyX: "reverse", KeyC: "change", KeyP: "pause", KeyN: "single", KeyM: "slow", KeyB: "again", KeyJ: "next",
  KeyF: "fork", KeyV: "record", KeyI: "say",
};
const PAD_BUTTONS = { 0: "change", 1: "again", 9: "pause" };
const PER_SECOND = 4; // keys turn the wheel from the middle to the end in a quarter of a second
const DEAD_ZONE = 0.08;

/** Whether a key belongs to the element that has the focus. */
function isTaken(event) {
  const target = event.target;
  if (event.ctrlKey || event.altKey || event.metaKey) return true;
  if (target.matches("select, input[type=number]")) return true;
  if (target.matches("input[type=radio]")) return event.code.startsWith("Arrow") || event.code === "Space";
  return event.code === "Space" && target.matches("button, summary");
}

export class Input {
  /** `act(name)` is called for keys and buttons that do something once. */
  constructor(act) {
    this.act = act;
    this.held = new Set();
    this.wheel = 0;
    this.touch = { steering: 0, throttle: 0, brake: 0 };
    this.reverse = false;
    this.padBefore = {};
    this.listenToKeys();
    this.listenToTouch();
  }

  listenToKeys() {
    addEventListener("keydown", (event) => {
      if (isTaken(event)) return;
      if (event.code in HELD) {
        this.held.add(HELD[event.code]);
        event.preventDefault();
      } else if (event.code in PRESSED && !event.repeat) {
        if (PRESSED[event.code] === "reverse") this.reverse = !this.reverse;
        this.act(PRESSED[event.code]);
        event.preventDefault();
      }
    });
    addEventListener("keyup", (event) => {
      if (event.code in HELD) this.held.delete(HELD[event.code]);
    });
    addEventListener("blur", () => this.held.clear());
  }

  listenToTouch() {
    const wheel = document.getElementById("wheel");
    const knob = wheel.querySelector(".knob");
    const turn = (steering) => {
      this.touch.steering = Math.max(-1, Math.min(1, steering));
      const room = wheel.clientWidth / 2 - 28;
      knob.style.transform = `translateX(${this.touch.steering * room}px)`;
      wheel.setAttribute("aria-valuenow", this.touch.steering.toFixed(2));
    };
    const drag = (event) => {
      const box = wheel.getBoundingClientRect();
      turn(((event.clientX - box.left) / box.width - 0.5) * 2.4);
    };
    wheel.addEventListener("pointerdown", (event) => {
      wheel.setPointerCapture(event.pointerId);
      drag(event);
    });
    wheel.addEventListener("pointermove", (event) => wheel.hasPointerCapture(event.pointerId) && drag(event));
    for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) wheel.addEventListener(end, () => turn(0));
    for (const pedal of ["throttle", "brake"]) {
      const button = document.getElementById(`touch-${pedal}`);
      const press = (down) => {
        this.touch[pedal] = down ? 1 : 0;
        button.classList.toggle("down", down);
      };
      button.addEventListener("pointerdown", (event) => {
        button.setPointerCapture(event.pointerId);
        press(true);
      });
      for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) {
        button.addEventListener(end, () => press(false));
      }
      button.addEventListener("contextmenu", (event) => event.preventDefault());
    }
  }

  /** Where wheel and pedals are after `seconds` more. */
  read(seconds) {
    const wanted = Number(this.held.has("right")) - Number(this.held.has("left"));
    const most = PER_SECOND * seconds;
    this.wheel += Math.max(-most, Math.min(most, wanted - this.wheel));
    const pad = this.readPad();
    const strongest = [this.touch.steering, pad.steering].reduce(
      (kept, value) => (Math.abs(value) > Math.abs(kept) ? value : kept), this.wheel);
    return {
      steering: strongest,
      throttle: Math.max(Number(this.held.has("throttle")), this.touch.throttle, pad.throttle),
      brake: Math.max(Number(this.held.has("brake")), this.touch.brake, pad.brake),
      reverse: this.reverse,
    };
  }

  readPad() {
    const pad = navigator.getGamepads?.().find((found) => found?.mapping === "standard");
    if (!pad) return { steering: 0, throttle: 0, brake: 0 };
    for (const [index, name] of Object.entries(PAD_BUTTONS)) {
      const down = pad.buttons[index].pressed;
      if (down && !this.padBefore[index]) this.act(name);
      this.padBefore[index] = down;
    }
    const stick = pad.axes[0];
    return {
      steering: Math.abs(stick) < DEAD_ZONE ? 0 : Math.max(-1, Math.min(1, stick)),
      throttle: pad.buttons[7].value,
      brake: pad.buttons[6].value,
    };
  }
}
