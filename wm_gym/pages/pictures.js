// A header and pictures in one binary message (see agents/web/pictures.py).

const decoder = new TextDecoder();

/** Split a message (ArrayBuffer) into its header and a picture (Blob) for each name. */
export function decodePictures(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(decoder.decode(new Uint8Array(buffer, 4, length)));
  const pictures = {};
  let place = 4 + length;
  for (const { name, type, bytes } of header.pictures) {
    pictures[name] = new Blob([new Uint8Array(buffer, place, bytes)], { type });
    place += bytes;
  }
  return { header, pictures };
}
