// What the page shows of the chosen cell, and what the reader can do with it.
const find = id => document.getElementById(id), data = JSON.parse(find("data").textContent);
const N = data.ids.length, D = data.factors.labels.length, K = data.classes.length, all = numbers(data.factors.values);
const cells = {label: data.label, colours: data.colours, wrong: data.wrong};
const home = i => all.slice(i * D, i * D + D), map = mapOf(find("map"), cells), selected = new Set(), hidden = new Set();
const sheets = data.pictures.sheets.map(() => null), hovering = {down: false};
const plane = data.plane.map(numbers);
const after = data.moves ? numbers(data.moves.after) : null;
if (data.decoder) data.decoder.weights = halves(data.decoder.weights);
const original = {cell: -1, pixels: null, timer: 0};
let at = 0, z = home(0), last = data.used[0] ?? 0, waiting = false;

const pen = canvas => canvas.getContext("2d");
const shortly = v => isNaN(v) ? "–" : (Math.abs(v) >= 1e4 ? v.toExponential(1) : v.toPrecision(3)).replace("-", "−");
const called = k => k < 0 ? "nothing (outside its domain)" : data.classes[k];

function make(tag, more = {}, ...inside) {
  const made = Object.assign(document.createElement(tag), more);
  made.append(...inside);
  return made;
}

// ---- pictures

function sheet(k, then) {
  if (!sheets[k]) {
    sheets[k] = new Image();
    sheets[k].src = data.pictures.mime + data.pictures.sheets[k];
  }
  if (sheets[k].complete && sheets[k].naturalWidth) then(sheets[k]);
  else sheets[k].addEventListener("load", () => then(sheets[k]), {once: true});
}

function showImage(canvas, i) {
  const p = data.pictures, place = p.row[i];
  pen(canvas).clearRect(0, 0, canvas.width, canvas.height);
  canvas.dataset.cell = i;
  if (place < 0) return;
  const k = place % p.each;
  sheet(Math.floor(place / p.each), picture => {
    if (canvas.dataset.cell !== String(i)) return;              // it shows another cell by now
    const side = Math.max(p.w, p.h), w = canvas.width * p.w / side, h = canvas.height * p.h / side;
    pen(canvas).imageSmoothingEnabled = false;
    pen(canvas).drawImage(picture, k % p.across * p.w, Math.floor(k / p.across) * p.h, p.w, p.h,
      (canvas.width - w) / 2, (canvas.height - h) / 2, w, h);
  });
}

function drawn(factors) {
  // pixels of a drawing (channels, h, w), without what the decoder draws beyond the image's edge
  const d = data.decoder, {x, c, w, h} = decode(d, factors), [top, left, high, wide] = d.crop;
  const out = new Float32Array(c * high * wide);
  for (let k = 0, n = 0; k < c; k++)
    for (let y = 0; y < high; y++)
      for (let v = 0; v < wide; v++) out[n++] = x[(k * h + top + y) * w + left + v];
  return out;
}

function paint(canvas, colour, x = 0, side = canvas.width) {
  const [, , h, w] = data.decoder.crop, small = make("canvas", {width: w, height: h}), image = pen(small).createImageData(w, h);
  for (let i = 0; i < w * h; i++) image.data.set([...colour(i), 255], 4 * i);
  pen(small).putImageData(image, 0, 0);
  pen(canvas).imageSmoothingEnabled = false;
  pen(canvas).drawImage(small, x, 0, side, side * h / w);
}

function inColours(pixels) {
  const {low, high, colours, crop} = data.decoder, size = crop[2] * crop[3];
  return i => [0, 1, 2].map(k => 255 * Math.min(1, colours.reduce((sum, colour, c) =>
    sum + colour[k] * Math.max(0, Math.min(1, (pixels[c * size + i] - low[c]) / (high[c] - low[c] || 1))), 0)));
}

function inRedAndBlue(before, now) {
  // full colour is the largest change; below a twentieth of the drawing's range it stays pale
  const {low, high, crop} = data.decoder, size = crop[2] * crop[3], change = new Float32Array(size);
  for (let c = 0; c < low.length; c++)
    for (let i = 0; i < size; i++) change[i] += (now[c * size + i] - before[c * size + i]) / (high[c] - low[c] || 1);
  const most = change.reduce((a, b) => Math.max(a, Math.abs(b)), 0.05);
  return i => {
    const far = 255 * (1 - Math.abs(change[i]) / most);
    return change[i] > 0 ? [255, far, far] : [far, far, 255];
  };
}

function drawings() {
  if (!data.decoder) return;
  if (original.cell !== at) Object.assign(original, {cell: at, pixels: drawn(home(at))});
  const now = drawn(z);
  paint(find("drawing"), inColours(original.pixels));
  paint(find("moved"), inColours(now));
  paint(find("change"), inRedAndBlue(original.pixels, now));
  clearTimeout(original.timer);
  original.timer = setTimeout(walk, 60, z.slice(), last, 0);
}

function walk(way, j, k) {
  // the strip comes afterwards, one drawing at a time, so that nobody waits for it
  const {low, high, labels} = data.factors, n = 7;
  way[j] = low[j] + (high[j] - low[j]) * k / (n - 1);
  paint(find("strip"), inColours(drawn(way)), k * 100, 98);
  find("strip-text").textContent = `this cell while ${labels[j]} goes from ${shortly(low[j])} to ${shortly(high[j])}`;
  if (k + 1 < n) original.timer = setTimeout(walk, 0, way, j, k + 1);
}

// ---- the law

function buildLaw() {
  data.law.forEach((margin, m) => {
    const terms = make("div", {className: "terms"}, ...margin.terms.map(t => make("span", {textContent: t.text.replaceAll("*", " · ")})));
    const line = make("div", {className: "line"}, make("span", {className: "name", textContent: margin.label}),
      make("span", {className: "bar"}, make("i")), make("span", {className: "number"}));
    find("margins").append(make("div", {className: "margin", id: "margin" + m}, line, terms));
  });
}

function showLaw() {
  const rows = marginsOf(data.law, z), was = marginsOf(data.law, home(at)), said = decide(data.law, z);
  rows.forEach((row, m) => {
    const box = find("margin" + m), bar = box.querySelector(".bar i"), share = Math.max(-1, Math.min(1, row.value / data.scale));
    box.classList.toggle("first", said === (rows.length === 1 ? 1 : m));
    box.querySelector(".number").textContent = shortly(row.value);
    bar.style.left = 50 + Math.min(0, 50 * share) + "%";
    bar.style.width = Math.abs(50 * share) + "%";
    box.querySelectorAll(".terms span").forEach((span, k) => {
      const moved = row.terms[k] - was[m].terms[k], large = Math.abs(moved) > 0.02 * data.scale;
      span.className = large ? moved > 0 ? "up" : "down" : "";
      span.title = `${shortly(row.terms[k])}; of the cell itself ${shortly(was[m].terms[k])}`;
    });
  });
  const first = decide(data.law, home(at)), text = find("verdict");
  const crossed = said !== first;
  text.textContent = crossed ? `Over the boundary: ${called(first)} → ${called(said)}.` : `The law says: ${called(said)}.`;
  text.classList.toggle("crossed", crossed);
}

// ---- factors

function buildFactors() {
  const {labels, low, high, sd} = data.factors, order = [...Array(D).keys()];
  order.sort((a, b) => data.used.includes(b) - data.used.includes(a) || a - b);
  for (const j of order) {
    const input = make("input", {type: "range", id: "f" + j, min: Math.min(low[j], high[j]), max: high[j], step: "any"});
    input.addEventListener("input", () => { z[j] = Number(input.value); last = j; soon(); });
    input.addEventListener("keydown", event => {
      const step = {ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, PageUp: 5, PageDown: -5}[event.key];
      if (!step) return;
      event.preventDefault();
      z[j] = Math.max(low[j], Math.min(high[j], z[j] + step * sd[j] / 5));
      last = j;
      soon();
    });
    const row = make("div", {className: "factor" + (data.used.includes(j) ? "" : " unused")},
      make("label", {htmlFor: "f" + j, textContent: labels[j]}), input, make("span", {className: "number", id: "v" + j}));
    find("factors").append(row);
  }
}

function showFactors() {
  const start = home(at);
  for (let j = 0; j < D; j++) {
    const input = find("f" + j), moved = (z[j] - start[j]) / data.factors.sd[j];
    if (document.activeElement !== input || Number(input.value) !== z[j]) input.value = z[j];
    const words = shortly(z[j]) + (Math.abs(moved) > 0.005 ? `, moved by ${shortly(moved)} standard deviations` : "");
    input.setAttribute("aria-valuetext", words);
    find("v" + j).textContent = shortly(z[j]);
  }
}

function show() {
  waiting = false;
  showLaw();
  showFactors();
  drawings();
}

function soon() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(show);
}

// ---- one cell

function choose(i) {
  at = i;
  z = home(i);
  showImage(find("image"), i);
  const says = data.opponent ? `; ${data.opponent.name}: ${data.opponent.says[i]}` : "";
  const group = data.groups ? `; ${data.groups.name} ${data.groups.names[data.groups.code[i]]}` : "";
  const wrong = data.wrong[i] ? " (wrong)" : "";
  find("who").textContent = `${data.ids[i]}: labelled ${data.kinds[data.label[i]]}; law: ${called(data.answer[i])}${wrong}${says}${group}`;
  const place = data.moves ? data.moves.row[i] : -1, found = place >= 0 && data.moves.target[place] >= 0;
  find("cross").disabled = !found;
  find("cross-text").textContent = found ? "" : "none was looked for, or found, for this cell";
  show();
  map.paint(at, selected);
}

find("reset").onclick = () => { z = home(at); find("cross-text").textContent = ""; show(); };

find("cross").onclick = () => {
  // the nearest point of the boundary was found beforehand; one hundredth further is beyond it
  const row = data.moves.row[at], start = home(at), u = data.used.length, {labels, sd} = data.factors;
  const moves = data.used.map((j, k) => (after[row * u + k] - start[j]) / sd[j]);
  const most = Math.max(...moves.map(Math.abs)), words = [];
  z = start.slice();
  data.used.forEach((j, k) => {
    z[j] = start[j] + 1.01 * moves[k] * sd[j];
    if (Math.abs(moves[k]) === most) last = j;
    if (Math.abs(moves[k]) > most / 20) words.push(`${labels[j]} ${moves[k] > 0 ? "+" : ""}${shortly(moves[k])} sd`);
  });
  find("cross-text").textContent = words.join(", ");
  show();
};

function step(by) {
  for (let k = 1; k <= N; k++) {
    const i = (at + by * k + N * Math.abs(by)) % N;
    if (map.shown[i]) { choose(i); return; }
  }
}

find("before").onclick = () => step(N - 1);
find("after").onclick = () => step(1);
find("go").addEventListener("change", () => {
  const i = data.ids.indexOf(find("go").value.trim());
  find("go").setAttribute("aria-invalid", String(i < 0));
  if (i >= 0) choose(i);
});

// ---- all cells

function options(select, names) { names.forEach((name, k) => select.append(make("option", {value: k, textContent: name}))); }

function filter() {
  const says = find("by-answer").value, group = data.groups ? find("by-group").value : "", error = find("by-error").value;
  let shown = 0;
  for (let i = 0; i < N; i++) {
    const fits = !hidden.has(data.label[i]) && (says === "" || data.answer[i] === Number(says))
      && (group === "" || data.groups.code[i] === Number(group))
      && (error === "" || error === "other" && data.opponent.says[i] !== called(data.answer[i])
        || error === "wrong" && data.wrong[i] || error === "right" && data.right[i]);
    map.shown[i] = Number(fits);
    shown += map.shown[i];
  }
  find("shown").textContent = `${shown.toLocaleString("en")} of ${N.toLocaleString("en")} cells are shown, ${selected.size} selected.`;
  map.paint(at, selected);
}

function axes() {
  const column = name => {
    if (name.startsWith("m")) return plane[Number(name.slice(1))];
    return Float32Array.from({length: N}, (_, i) => all[i * D + Number(name)]);
  };
  map.place(column(find("x-axis").value), column(find("y-axis").value));
  map.paint(at, selected);
}

function showSelected() {
  const rows = [...selected].sort((a, b) => a - b);
  find("sheet").replaceChildren(...rows.slice(0, 60).map(i => {
    const wrong = data.wrong[i] ? ", law is wrong" : "", canvas = make("canvas", {width: 56, height: 56});
    const button = make("button", {type: "button", title: `${data.ids[i]}, ${data.kinds[data.label[i]]}${wrong}`}, canvas);
    button.setAttribute("aria-label", button.title);
    button.style.borderColor = data.colours[data.label[i]];
    button.onclick = () => choose(i);
    showImage(canvas, i);
    return button;
  }));
  if (rows.length > 60) find("sheet").append(`and ${(rows.length - 60).toLocaleString("en")} more`);
  find("list").value = rows.map(i => data.ids[i]).join("\n");
  find("done").textContent = "";
  filter();
}

function csv(rows) {
  // a spreadsheet would compute what begins with a sign
  const harmless = v => /^[=+@-]/.test(v) ? "'" + v : v;
  const quote = v => /[",\n\r]/.test(v) ? `"${harmless(v).replaceAll('"', '""')}"` : harmless(v);
  const {opponent, groups} = data, more = [opponent, groups].filter(Boolean).map(column => column.name);
  const head = ["cell", "label", "law", ...more, ...data.factors.columns];
  const lines = rows.map(i => [data.ids[i], data.kinds[data.label[i]], called(data.answer[i]),
    ...(opponent ? [opponent.says[i]] : []), ...(groups ? [groups.names[groups.code[i]]] : [])].map(quote)
    .concat(Array.from(home(i), v => v.toPrecision(7))).join(","));
  return [head.map(quote).join(","), ...lines].join("\r\n") + "\r\n";
}

find("take").onclick = () => { for (let i = 0; i < N; i++) if (map.shown[i]) selected.add(i); showSelected(); };
find("drop").onclick = () => { selected.clear(); showSelected(); };
find("save").onclick = () => {
  const rows = [...selected].sort((a, b) => a - b), address = URL.createObjectURL(new Blob([csv(rows)], {type: "text/csv"}));
  make("a", {href: address, download: "cells.csv"}).click();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
  find("done").textContent = `${rows.length} cells saved as cells.csv`;
};
find("copy").onclick = () => {
  find("list").select();
  const copied = document.execCommand("copy");                  // works in a file on the disk, too
  find("done").textContent = copied ? `${selected.size} names copied` : "select the names below and copy them";
};

const where = event => {
  const canvas = find("map"), box = canvas.getBoundingClientRect();
  return [(event.clientX - box.left) * canvas.width / box.width, (event.clientY - box.top) * canvas.height / box.height];
};
find("map").addEventListener("pointerdown", event => {
  hovering.down = true;
  map.path = [where(event)];
  find("map").setPointerCapture(event.pointerId);
});
find("map").addEventListener("pointermove", event => {
  if (!hovering.down) return;
  const point = where(event), [x, y] = map.path[map.path.length - 1];
  if (Math.hypot(point[0] - x, point[1] - y) < 4) return;
  map.path.push(point);
  map.paint(at, selected);
});
find("map").addEventListener("pointerup", event => {
  hovering.down = false;
  const path = map.path, [x, y] = where(event);
  map.path = [];
  if (path.length > 3) {
    if (!event.shiftKey) selected.clear();
    map.inside(path).forEach(i => selected.add(i));
    showSelected();
  } else {
    const i = map.nearest(x, y, 24);
    if (i >= 0) choose(i); else map.paint(at, selected);
  }
});
find("map").addEventListener("keydown", event => {
  const ahead = {ArrowRight: dx => dx > 0, ArrowLeft: dx => dx < 0, ArrowDown: (dx, dy) => dy > 0, ArrowUp: (dx, dy) => dy < 0};
  if (event.key === " ") {
    if (selected.has(at)) selected.delete(at); else selected.add(at);
    showSelected();
  } else if (ahead[event.key]) {
    const wide = {ArrowRight: 1, ArrowLeft: 1}[event.key];
    const within = (dx, dy) => ahead[event.key](dx, dy) && (wide ? Math.abs(dx) >= Math.abs(dy) : Math.abs(dy) >= Math.abs(dx));
    const i = map.nearest(map.x[at], map.y[at], 1e9, at, within);
    if (i >= 0) choose(i);
  } else return;
  event.preventDefault();
});

data.kinds.forEach((name, k) => {
  const colour = make("i"), button = make("button", {type: "button"}, colour, name);
  colour.style.background = data.colours[k];
  button.setAttribute("aria-pressed", "true");
  button.onclick = () => {
    if (hidden.has(k)) hidden.delete(k); else hidden.add(k);
    button.setAttribute("aria-pressed", String(!hidden.has(k)));
    filter();
  };
  find("key").append(button);
});
options(find("by-answer"), data.classes);
if (data.groups) { options(find("by-group"), data.groups.names); find("by-group").onchange = filter; }
for (const [id, chosen] of [["x-axis", "m0"], ["y-axis", "m1"]]) {
  const names = [["m0", "most different"], ["m1", "second most different"], ...data.used.map(j => [String(j), data.factors.labels[j]])];
  names.forEach(([value, textContent]) => find(id).append(make("option", {value, textContent, selected: value === chosen})));
  find(id).onchange = axes;
}
find("by-answer").onchange = find("by-error").onchange = filter;
buildLaw();
buildFactors();
axes();
filter();
choose(0);
