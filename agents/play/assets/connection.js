// The WebSocket: texts both ways, and steps as binary messages (see messages.py).

import { decodePictures } from "./shared/pictures.js";

/** Connect; `listeners` has `text(message)`, `step(header, pictures)` (may be async) and `closed()`. */
export function connect(listeners) {
  const address = new URL("drive", location.href);
  address.protocol = address.protocol === "https:" ? "wss:" : "ws:";
  const socket = new WebSocket(address);
  socket.binaryType = "arraybuffer";
  const send = (message) => {
    if (socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify(message));
  };
  socket.onmessage = async ({ data }) => {
    if (typeof data === "string") {
      listeners.text(JSON.parse(data));
      return;
    }
    const { header, pictures } = decodePictures(data);
    await listeners.step(header, pictures);
    send({ kind: "shown", number: header.number });
  };
  socket.onclose = () => listeners.closed();
  return send;
}
