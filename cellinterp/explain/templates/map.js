"use strict";
(() => {
const find = id => document.getElementById(id), data = JSON.parse(find("data").textContent);
const map = find("map"), pen = map.getContext("2d"), width = map.width, height = map.height, hidden = new Set();
const sheets = [["a", new Image(), data.images], ["b", new Image(), data.drawn]];
const points = data.xy.map(p => [18 + p[0] * (width - 36), height - 18 - p[1] * (height - 36)]);
let at = -1;

function dot(point, kind) {
  pen.fillStyle = data.colours[kind];
  pen.beginPath();
  if (data.unseen[kind]) {
    pen.moveTo(point[0], point[1] - 5);
    pen.lineTo(point[0] + 5, point[1] + 4);
    pen.lineTo(point[0] - 5, point[1] + 4);
    pen.closePath();
    pen.fill();
    pen.strokeStyle = "#000";
    pen.lineWidth = 0.6;
    pen.stroke();
  } else {
    pen.arc(point[0], point[1], 3, 0, 7);
    pen.globalAlpha = 0.75;
    pen.fill();
    pen.globalAlpha = 1;
  }
}

function paint() {
  pen.clearRect(0, 0, width, height);
  points.forEach((point, i) => { if (!hidden.has(data.y[i])) dot(point, data.y[i]); });
  if (at < 0) return;
  pen.strokeStyle = "#000";
  pen.lineWidth = 2;
  pen.beginPath();
  pen.arc(points[at][0], points[at][1], 8, 0, 7);
  pen.stroke();
}

function show(i) {
  at = i;
  paint();
  for (const [id, sheet, content] of sheets) {
    const canvas = find(id), draw = canvas.getContext("2d");
    draw.imageSmoothingEnabled = false;
    draw.clearRect(0, 0, canvas.width, canvas.height);
    const x = (i % data.across) * data.w, y = Math.floor(i / data.across) * data.h;
    const high = canvas.width * data.h / data.w;
    if (content && sheet.complete) draw.drawImage(sheet, x, y, data.w, data.h, 0, 0, canvas.width, high);
  }
  const kind = data.y[i], words = data.names[kind] + (data.unseen[kind] ? " (unseen)" : "");
  find("text").textContent = words + (data.text.length ? " · " + data.text[i] : "");
}

map.addEventListener("pointermove", event => {
  const box = map.getBoundingClientRect();
  const x = (event.clientX - box.left) * width / box.width, y = (event.clientY - box.top) * height / box.height;
  let best = -1, nearest = 400;
  points.forEach((point, i) => {
    if (hidden.has(data.y[i])) return;
    const distance = (point[0] - x) ** 2 + (point[1] - y) ** 2;
    if (distance < nearest) { nearest = distance; best = i; }
  });
  if (best >= 0 && best !== at) show(best);
});

map.addEventListener("keydown", event => {
  const step = {ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1}[event.key];
  if (!step) return;
  event.preventDefault();
  for (let k = 1; k <= points.length; k++) {
    const i = (at + step * k + points.length * 2) % points.length;
    if (!hidden.has(data.y[i])) { show(i); return; }
  }
});

data.names.forEach((name, kind) => {
  const button = document.createElement("button"), colour = document.createElement("i");
  button.type = "button";
  button.setAttribute("aria-pressed", "true");
  colour.style.background = data.colours[kind];
  button.append(colour, name + (data.unseen[kind] ? " (unseen)" : ""));
  button.onclick = () => {
    if (hidden.has(kind)) hidden.delete(kind); else hidden.add(kind);
    button.setAttribute("aria-pressed", String(!hidden.has(kind)));
    button.className = hidden.has(kind) ? "off" : "";
    paint();
  };
  find("key").append(button);
});

for (const [, sheet, content] of sheets) {
  sheet.onload = () => show(Math.max(at, 0));
  if (content) sheet.src = "data:image/png;base64," + content;
}
paint();
})();
