"use strict";
// A law is a tree of arrays, such as ["+", ["*", -2.5, "3"], 1]: texts are columns of the factors, numbers are numbers.
const half = v => { const r = Math.round(v); return Math.abs(v % 1) === 0.5 && r % 2 ? r - 1 : r; };   // as numpy rounds
const FUNCTIONS = {
  exp: Math.exp, log: Math.log, log2: Math.log2, log10: Math.log10, log1p: Math.log1p, abs: Math.abs, sign: Math.sign,
  cbrt: Math.cbrt, sin: Math.sin, cos: Math.cos, tan: Math.tan, asin: Math.asin, acos: Math.acos, atan: Math.atan,
  sinh: Math.sinh, cosh: Math.cosh, tanh: Math.tanh, asinh: Math.asinh, acosh: Math.acosh, atanh: Math.atanh,
  floor: Math.floor, ceil: Math.ceil, round: half, sigmoid: v => 1 / (1 + Math.exp(-v)),
  relu: v => v > 0 ? v : 0 * v, atan2: Math.atan2, mod: (a, b) => a - Math.floor(a / b) * b, max: Math.max,
  min: Math.min, greater: (a, b) => isNaN(a) || isNaN(b) ? NaN : Number(a > b), cond: (a, b) => (a > 0 ? b : 0) + 0 * a,
  "^": Math.pow, "+": (...parts) => parts.reduce((a, b) => a + b), "*": (...parts) => parts.reduce((a, b) => a * b),
  erf: erf,
};

function erf(v) {
  // its power series, and a continued fraction where that is long
  const x = Math.abs(v);
  if (x > 6) return Math.sign(v);
  if (x < 2.5) {
    let term = x, sum = x;
    for (let n = 1; n < 60; n++) { term *= -x * x / n; sum += term / (2 * n + 1); }
    return Math.sign(v) * 2 / Math.sqrt(Math.PI) * sum;
  }
  let rest = x;
  for (let n = 60; n > 0; n--) rest = x + n / 2 / rest;
  return Math.sign(v) * (1 - Math.exp(-x * x) / Math.sqrt(Math.PI) / rest);
}

function evaluate(part, z) {
  if (typeof part === "number") return part;
  if (typeof part === "string") return z[Number(part)];
  return FUNCTIONS[part[0]](...part.slice(1).map(p => evaluate(p, z)));
}

function marginsOf(law, z) {
  // every class's margin and the terms that it is the sum of; of two classes the first has 0
  const rows = law.map(margin => {
    const terms = margin.terms.map(term => evaluate(term.tree, z));
    const sum = terms.reduce((a, b) => a + b, 0);
    return {terms, value: Math.max(-1e300, Math.min(1e300, sum))};
  });
  return rows;
}

function decide(law, z) {
  const values = marginsOf(law, z).map(row => row.value);
  if (values.some(v => isNaN(v))) return -1;
  if (values.length === 1) return values[0] > 0 ? 1 : 0;
  return values.indexOf(Math.max(...values));
}
