// What the server knows of one image: a safetensors file, whose arrays are used where they lie.

const KINDS = { U8: Uint8Array, I16: Int16Array, F32: Float32Array };
const UNIT = 32767; // 1 in the fixed point of the unit vectors

export class Look {
  constructor(buffer) {
    const length = Number(new DataView(buffer).getBigUint64(0, true));
    const { __metadata__: own, ...arrays } = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, length)));
    Object.assign(this, JSON.parse(own.dvt_fast)); // names, titles, about, aspect, patch, range, similar
    for (const [name, { dtype, shape, data_offsets: [from, to] }] of Object.entries(arrays)) {
      const Kind = KINDS[dtype];
      this[name] = new Kind(buffer, 8 + length + from, (to - from) / Kind.BYTES_PER_ELEMENT);
      if (name === "unit") [, this.rows, this.columns, this.channels] = shape;
    }
    this.patches = this.rows * this.columns;
  }

  // One of the parts of `array`: 0 raw, 1 clean, 2 offset; `size` numbers a patch.
  part(array, index, size = 1) {
    return array.subarray(index * this.patches * size, (index + 1) * this.patches * size);
  }

  // Cosine of every patch with patch number `patch`, in raw (0) or clean (1).
  similarity(index, patch) {
    const unit = this.part(this.unit, index, this.channels);
    return Float32Array.from({ length: this.patches }, (_, i) => this.dot(unit, i, unit, patch));
  }

  // Cosine of raw to clean, patch by patch.
  kept() {
    const [raw, clean] = [0, 1].map((index) => this.part(this.unit, index, this.channels));
    return Float32Array.from({ length: this.patches }, (_, i) => this.dot(raw, i, clean, i));
  }

  dot(a, i, b, j) {
    const n = this.channels;
    let sum = 0;
    for (let k = 0, p = i * n, q = j * n; k < n; k++) sum += a[p + k] * b[q + k];
    return sum / (UNIT * UNIT);
  }
}

export async function ask(path) {
  let response;
  try {
    response = await fetch(path);
  } catch {
    throw new Error("The server does not answer: is dvt-fast look still running?");
  }
  if (!response.ok) throw new Error(`${await response.text()} (${response.status})`);
  return response;
}
