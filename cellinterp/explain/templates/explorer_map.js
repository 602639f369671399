// The map of all cells: points, a lasso, and who is nearest to the pointer.
const MARGIN = 14;

function mapOf(canvas, cells) {
  const pen = canvas.getContext("2d"), n = cells.label.length;
  const map = {x: new Float32Array(n), y: new Float32Array(n), path: [], shown: new Uint8Array(n).fill(1)};

  map.place = (xs, ys) => {
    for (const [to, from, size, flip] of [[map.x, xs, canvas.width, 0], [map.y, ys, canvas.height, 1]]) {
      let low = Infinity, high = -Infinity;
      for (let i = 0; i < n; i++) {
        if (from[i] < low) low = from[i];
        if (from[i] > high) high = from[i];
      }
      const unit = (size - 2 * MARGIN) / (high - low || 1);
      for (let i = 0; i < n; i++) to[i] = flip ? size - MARGIN - (from[i] - low) * unit : MARGIN + (from[i] - low) * unit;
    }
  };

  map.paint = (at, selected) => {
    const small = n > 4000 ? 1 : 2, style = getComputedStyle(canvas);
    pen.clearRect(0, 0, canvas.width, canvas.height);
    cells.colours.forEach((colour, k) => {                       // one colour at a time: many times faster
      pen.fillStyle = pen.strokeStyle = colour;
      pen.beginPath();
      for (let i = 0; i < n; i++) {
        if (cells.label[i] !== k || !map.shown[i]) continue;
        if (cells.wrong[i]) {                                    // a cross, so that it is not told by colour alone
          pen.moveTo(map.x[i] - 3, map.y[i] - 3);
          pen.lineTo(map.x[i] + 3, map.y[i] + 3);
          pen.moveTo(map.x[i] - 3, map.y[i] + 3);
          pen.lineTo(map.x[i] + 3, map.y[i] - 3);
        } else pen.fillRect(map.x[i] - small, map.y[i] - small, 2 * small, 2 * small);
      }
      pen.stroke();
    });
    pen.strokeStyle = style.color;
    pen.lineWidth = 1;
    pen.beginPath();
    for (const i of selected) if (map.shown[i]) pen.rect(map.x[i] - 3.5, map.y[i] - 3.5, 7, 7);
    pen.stroke();
    if (at >= 0) {
      pen.lineWidth = 2.5;
      pen.beginPath();
      pen.arc(map.x[at], map.y[at], 8, 0, 7);
      pen.stroke();
      pen.lineWidth = 1;
    }
    if (map.path.length) {
      pen.beginPath();
      map.path.forEach(([x, y], k) => k ? pen.lineTo(x, y) : pen.moveTo(x, y));
      pen.stroke();
    }
  };

  map.nearest = (x, y, limit, skip = -1, ahead = () => true) => {
    let best = -1, least = limit * limit;
    for (let i = 0; i < n; i++) {
      if (!map.shown[i] || i === skip) continue;
      const dx = map.x[i] - x, dy = map.y[i] - y, d = dx * dx + dy * dy;
      if (d < least && ahead(dx, dy)) { least = d; best = i; }
    }
    return best;
  };

  map.inside = path => {
    const found = [];
    for (let i = 0; i < n; i++) {
      if (!map.shown[i]) continue;
      let odd = false;
      for (let a = 0, b = path.length - 1; a < path.length; b = a++) {
        const [xa, ya] = path[a], [xb, yb] = path[b];
        if (ya > map.y[i] !== yb > map.y[i] && map.x[i] < (xb - xa) * (map.y[i] - ya) / (yb - ya) + xa) odd = !odd;
      }
      if (odd) found.push(i);
    }
    return found;
  };
  return map;
}
