// What the student sees, drawn on canvases.

const STOPS = [[0, 0, 4], [40, 11, 84], [101, 21, 110], [159, 42, 99], [212, 72, 66], [245, 125, 21], [250, 193, 39], [252, 255, 164]];

function heat(value) {  // 0 to 255 as in the "inferno" colour map
  const place = (value / 255) * (STOPS.length - 1), k = Math.min(STOPS.length - 2, Math.floor(place)), part = place - k;
  return STOPS[k].map((from, c) => from + (STOPS[k + 1][c] - from) * part);
}

function hue(label) {  // class 0 is black, the others go round the colours
  if (!label) return [0, 0, 0];
  const angle = (label * 0.618034) % 1 * 6, wave = (shift) => Math.max(0, Math.min(1, Math.abs(((angle + shift) % 6) - 3) - 1));
  return [wave(0), wave(4), wave(2)].map((part) => 255 * (0.33 + 0.6 * part));
}

const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

// Pixels of {rows, columns, channels, data} on a canvas of just that size; colour(bytes, index) gives [r, g, b].
export function paint(canvas, { rows, columns, channels, data }, colour, upsideDown = false) {
  canvas.width = columns; canvas.height = rows;
  const context = canvas.getContext("2d"), image = context.createImageData(columns, rows), values = bytes(data);
  for (let row = 0; row < rows; row++)
    for (let column = 0; column < columns; column++) {
      const to = 4 * ((upsideDown ? rows - 1 - row : row) * columns + column);
      image.data.set([...colour(values, (row * columns + column) * channels), 255], to);
    }
  context.putImageData(image, 0, 0);
}

const COLOURS = {
  spectrogram: (values, k) => heat(values[k]),
  picture: (channels) => (values, k) => channels >= 3 ? [values[k], values[k + 1], values[k + 2]] : [values[k], values[k], values[k]],
  map: (values, k) => hue(values[k]),
};

export const paintMap = (canvas, map) => paint(canvas, map, COLOURS.map);
export const paintPicture = (canvas, view) => paint(canvas, view, COLOURS.picture(view.channels));
export const paintBands = (canvas, view) => paint(canvas, view, COLOURS.spectrogram, true);

export function paintWave(canvas, peaks, colour) {
  canvas.width = peaks.length; canvas.height = 92;
  const context = canvas.getContext("2d");
  context.fillStyle = colour;
  peaks.forEach((peak, k) => context.fillRect(k, 46 - 45 * peak, 1, Math.max(1, 90 * peak)));
}

// A pad to draw on with a pointer; onStroke is called at the end of each stroke.
export function drawingPad(canvas, onStroke) {
  const context = canvas.getContext("2d");
  let last = null, empty = true;
  const clear = () => { context.fillStyle = "#fbfbf8"; context.fillRect(0, 0, canvas.width, canvas.height); empty = true; };
  const place = (event) => {
    const box = canvas.getBoundingClientRect();
    return [(event.clientX - box.left) * canvas.width / box.width, (event.clientY - box.top) * canvas.height / box.height];
  };
  const line = (to) => {
    Object.assign(context, { lineWidth: 20, lineCap: "round", lineJoin: "round", strokeStyle: "#16181b" });
    context.beginPath(); context.moveTo(...last); context.lineTo(...to); context.stroke();
    last = to; empty = false;
  };
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    canvas.setPointerCapture(event.pointerId);
    last = place(event); line(last);
  });
  canvas.addEventListener("pointermove", (event) => { if (last) event.getCoalescedEvents().concat(event).forEach((part) => line(place(part))); });
  const end = () => { if (last) { last = null; onStroke(); } };
  canvas.addEventListener("pointerup", end);
  canvas.addEventListener("pointercancel", end);
  clear();
  return {
    clear,
    get empty() { return empty; },
    picture() {  // with paper around it: what touches the border of a picture is taken for its edge
      const sheet = document.createElement("canvas"), margin = 40;
      sheet.width = canvas.width + 2 * margin; sheet.height = canvas.height + 2 * margin;
      const paper = sheet.getContext("2d");
      paper.fillStyle = "#fbfbf8"; paper.fillRect(0, 0, sheet.width, sheet.height);
      paper.drawImage(canvas, margin, margin);
      return new Promise((resolve) => sheet.toBlob(resolve, "image/png"));
    },
  };
}
