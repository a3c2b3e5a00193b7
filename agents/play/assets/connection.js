// The WebSocket: texts both ways, and steps as binary messages (see messages.py).

const decoder = new TextDecoder();

/** Split a binary message into its header and a picture (Blob) for each world. */
export function decodeStep(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(decoder.decode(new Uint8Array(buffer, 4, length)));
  const pictures = {};
  let place = 4 + length;
  for (const { world, type, bytes } of header.pictures) {
    pictures[world] = new Blob([new Uint8Array(buffer, place, bytes)], { type });
    place += bytes;
  }
  return { header, pictures };
}

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
    const { header, pictures } = decodeStep(data);
    await listeners.step(header, pictures);
    send({ kind: "shown", number: header.number });
  };
  socket.onclose = () => listeners.closed();
  return send;
}
