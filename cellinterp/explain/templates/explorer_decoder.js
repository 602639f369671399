// The decoder of the model, layer by layer: the same weights (in half precision) give the same drawing as in Python.
function bytes(text) { return Uint8Array.from(atob(text), c => c.charCodeAt(0)); }

function numbers(text) { return new Float32Array(bytes(text).buffer); }

function halves(text) {
  const raw = new Uint16Array(bytes(text).buffer), out = new Float32Array(raw.length);
  for (let i = 0; i < raw.length; i++) {
    const sign = raw[i] & 0x8000 ? -1 : 1, exponent = raw[i] >> 10 & 31, rest = raw[i] & 1023;
    out[i] = sign * (exponent ? 2 ** (exponent - 15) * (1 + rest / 1024) : 2 ** -24 * rest);
  }
  return out;
}

function dense(layer, weights, x) {
  const out = new Float32Array(layer.outputs), bias = layer.at + layer.outputs * layer.inputs;
  for (let o = 0; o < layer.outputs; o++) {
    let sum = weights[bias + o], at = layer.at + o * layer.inputs;
    for (let i = 0; i < layer.inputs; i++) sum += weights[at + i] * x[i];
    out[o] = sum;
  }
  return out;
}

function doubled(x, channels, h, w) {
  // bilinear, pixels as little squares
  const out = new Float32Array(channels * 4 * h * w);
  const side = n => Array.from({length: 2 * n}, (_, i) => {
    const at = Math.max(0, (i + 0.5) / 2 - 0.5), low = Math.floor(at);
    return [low, Math.min(low + 1, n - 1), at - low];
  });
  const ys = side(h), xs = side(w);
  for (let c = 0, k = 0; c < channels; c++) {
    for (const [y0, y1, fy] of ys) {
      const a = (c * h + y0) * w, b = (c * h + y1) * w;
      for (const [x0, x1, fx] of xs) {
        out[k++] = (x[a + x0] * (1 - fx) + x[a + x1] * fx) * (1 - fy) + (x[b + x0] * (1 - fx) + x[b + x1] * fx) * fy;
      }
    }
  }
  return out;
}

function convolved(layer, weights, x, h, w) {
  // 3 x 3, zeros around
  const out = new Float32Array(layer.outputs * h * w), bias = layer.at + layer.outputs * layer.inputs * 9;
  for (let o = 0; o < layer.outputs; o++) {
    const to = o * h * w;
    out.fill(weights[bias + o], to, to + h * w);
    for (let i = 0; i < layer.inputs; i++) {
      const from = i * h * w;
      for (let k = 0; k < 9; k++) {
        const weight = weights[layer.at + (o * layer.inputs + i) * 9 + k], dy = Math.floor(k / 3) - 1, dx = k % 3 - 1;
        const left = Math.max(0, -dx), right = Math.min(w, w - dx);
        for (let y = Math.max(0, -dy); y < Math.min(h, h - dy); y++) {
          const a = to + y * w, b = from + (y + dy) * w + dx;
          for (let v = left; v < right; v++) out[a + v] += weight * x[b + v];
        }
      }
    }
  }
  return out;
}

function decode(decoder, z) {
  let x = z, c = 0, h = 0, w = 0;
  for (const layer of decoder.layers) {
    if (layer.kind === "dense") x = dense(layer, decoder.weights, x);
    else if (layer.kind === "relu") x = x.map(v => v > 0 ? v : 0);
    else if (layer.kind === "grid") [c, h, w] = layer.size;
    else if (layer.kind === "double") { x = doubled(x, c, h, w); h *= 2; w *= 2; }
    else { x = convolved(layer, decoder.weights, x, h, w); c = layer.outputs; }
  }
  return {x, c, h, w};
}
