// Pictures of one value or colour a patch, and the scales under them.

export function number(value) {
  if (Math.abs(value) >= 1000) return Math.round(value).toLocaleString("en");
  return value.toPrecision(3);
}

// A small figure: caption, value at a patch, canvas, mark.
export class Tile {
  constructor(figure, label) {
    this.figure = figure;
    this.values = null; // one a patch; null where the tile shows colours
    this.name = document.createElement("span");
    this.output = document.createElement("output");
    const caption = document.createElement("figcaption");
    caption.append(this.name, this.output);
    this.canvas = document.createElement("canvas");
    this.canvas.setAttribute("role", "img");
    const frame = document.createElement("div");
    frame.className = "frame";
    const mark = document.createElement("div");
    mark.className = "mark";
    frame.append(this.canvas, mark);
    figure.replaceChildren(caption, frame);
    figure.tile = this;
    if (label) this.label(label);
  }

  label(text) {
    this.name.textContent = text;
    this.canvas.setAttribute("aria-label", text);
  }

  // values: one a patch, drawn on the scale from `low` to `high`.
  draw(look, values, low, high, logarithmic = false) {
    this.values = values;
    const place = logarithmic ? (v) => Math.log(v / low) / Math.log(high / low) : (v) => (v - low) / (high - low);
    const steps = look.scale.length / 3 - 1;
    const colors = new Uint8Array(3 * values.length);
    values.forEach((value, i) => {
      const step = Math.round(Math.min(Math.max(place(value), 0), 1) * steps);
      colors.set(look.scale.subarray(3 * step, 3 * step + 3), 3 * i);
    });
    paint(this.canvas, look, colors);
  }

  drawClusters(look, labels) {
    const colors = new Uint8Array(3 * labels.length);
    labels.forEach((label, i) => colors.set(look.clusters.subarray(3 * label, 3 * label + 3), 3 * i));
    paint(this.canvas, look, colors);
  }

  // Say the value at a patch.
  read(patch) {
    if (this.values) this.output.textContent = number(this.values[patch]);
  }
}

// Colours, three bytes a patch, one pixel a patch.
export function paint(canvas, look, colors) {
  canvas.width = look.columns;
  canvas.height = look.rows;
  const pixels = new Uint8ClampedArray(4 * look.patches).fill(255);
  for (let i = 0; i < look.patches; i++) pixels.set(colors.subarray(3 * i, 3 * i + 3), 4 * i);
  canvas.getContext("2d").putImageData(new ImageData(pixels, look.columns, look.rows), 0, 0);
}

// A colour bar from `low` to `high`, with three numbers.
export function drawBar(bar, look, low, high, logarithmic = false) {
  const canvas = document.createElement("canvas");
  canvas.setAttribute("aria-hidden", "true");
  paint(canvas, { rows: 1, columns: look.scale.length / 3, patches: look.scale.length / 3 }, look.scale);
  const middle = logarithmic ? Math.sqrt(low * high) : (low + high) / 2;
  const numbers = [low, middle, high].map((value) => {
    const text = document.createElement("span");
    text.textContent = number(value);
    return text;
  });
  bar.replaceChildren(canvas, ...numbers);
}
