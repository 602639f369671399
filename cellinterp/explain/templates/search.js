(() => {
const root = document.currentScript.dataset.root, box = document.createElement("div");
box.className = "search";
box.innerHTML = '<input type="search" placeholder="Search  /" aria-label="Search the docs" autocomplete="off">'
  + '<div class="results" hidden></div>';
document.querySelector(".top .home").after(box);
const input = box.firstChild, list = box.lastChild;
let at = -1, loading;

// The index is a script, not JSON, so that search also works on pages opened from a disk; it is fetched when it is used.
function load() {
  loading = loading || new Promise((done, fail) => {
    const script = document.createElement("script");
    script.src = root + "site/index.js";
    script.onload = done;
    script.onerror = fail;
    document.head.append(script);
  });
  return loading;
}

const literal = text => text.replace(/[^a-z0-9_ ]/gi, "\\$&");
function score(entry, words) {
  let total = 0;
  const title = entry.t.toLowerCase(), heading = entry.h.toLowerCase(), text = entry.x.toLowerCase();
  for (const word of words) {
    let found = heading === word ? 40 : heading.includes(word) ? 14 : 0;
    if (title.includes(word)) found += 8;
    if (new RegExp("(^|[^a-z0-9])" + literal(word)).test(text)) found += 3;
    else if (text.includes(word)) found += 1;
    if (!found) return 0;
    total += found;
  }
  return total;
}

function snippet(text, words) {
  const low = text.toLowerCase(), places = words.map(word => low.indexOf(word)).filter(place => place >= 0);
  const from = Math.max(0, Math.min(...places, 1e9) - 50), start = from < 1e8 ? from : 0;
  const line = document.createElement("span");
  const parts = text.slice(start, start + 150).split(new RegExp("(" + words.map(literal).join("|") + ")", "gi"));
  if (start) line.append("…");
  parts.forEach((part, i) => {
    if (i % 2) line.append(Object.assign(document.createElement("mark"), {textContent: part}));
    else line.append(part);
  });
  return line;
}

function result(entry, words) {
  const link = document.createElement("a");
  link.href = root + entry.u;
  link.append(Object.assign(document.createElement("b"), {textContent: entry.t}));
  if (entry.h) link.append(" › " + entry.h);
  link.append(snippet(entry.x, words));
  return link;
}

function show() {
  const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
  at = -1;
  if (!words.length) { list.hidden = true; return; }
  load().then(() => {
    const found = window.SEARCH.map(entry => [score(entry, words), entry]).filter(pair => pair[0]);
    found.sort((a, b) => b[0] - a[0]);
    list.replaceChildren(...found.slice(0, 12).map(pair => result(pair[1], words)));
    if (!found.length) list.append(Object.assign(document.createElement("p"), {textContent: "Nothing found."}));
    list.hidden = false;
  });
}

function mark(step) {
  const links = [...list.querySelectorAll("a")];
  if (!links.length) return;
  at = (at + step + links.length) % links.length;
  links.forEach((link, i) => link.classList.toggle("on", i === at));
  links[at].scrollIntoView({block: "nearest"});
}

input.oninput = show;
input.onfocus = () => load().then(show, () => 0);
input.onkeydown = event => {
  if (event.key === "ArrowDown") { mark(1); event.preventDefault(); }
  else if (event.key === "ArrowUp") { mark(-1); event.preventDefault(); }
  else if (event.key === "Enter") {
    const link = list.querySelectorAll("a")[Math.max(0, at)];
    if (link) link.click();
  } else if (event.key === "Escape") { input.value = ""; list.hidden = true; input.blur(); }
};
list.onclick = () => { list.hidden = true; };
document.addEventListener("click", event => { if (!box.contains(event.target)) list.hidden = true; });
document.addEventListener("keydown", event => {
  if (event.key === "/" && !/INPUT|TEXTAREA/.test(document.activeElement.tagName)) {
    input.focus();
    event.preventDefault();
  }
});
})();
