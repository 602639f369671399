(() => {
const root = document.documentElement, bar = document.querySelector(".top"), narrow = matchMedia("(max-width:98rem)");

function button(text, label, press) {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = text;
  made.setAttribute("aria-label", label);
  made.onclick = () => press(made);
  return made;
}

// code behind folds
const folds = [...document.querySelectorAll("details.code")];
if (folds.length) {
  const toggle = button("Show code", "Show or hide all code", made => {
    const open = made.textContent === "Show code";
    folds.forEach(fold => { fold.open = open; });
    made.textContent = open ? "Hide code" : "Show code";
  });
  toggle.classList.add("code-toggle");
  bar.append(toggle);
}

// light or dark
const isDark = () => root.dataset.theme
  ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme:dark)").matches;
const theme = button("", "Light or dark", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  try { localStorage.setItem("theme", root.dataset.theme); } catch (error) { /* no storage */ }
  theme.textContent = isDark() ? "Light" : "Dark";
});
theme.textContent = isDark() ? "Light" : "Dark";
theme.classList.add("theme-toggle");
bar.append(theme);

// copy buttons
document.querySelectorAll("div.sourceCode > pre").forEach(pre => {
  pre.tabIndex = 0;
  pre.parentElement.append(Object.assign(button("Copy", "Copy this code", made => {
    const done = () => { made.textContent = "Copied"; setTimeout(() => { made.textContent = "Copy"; }, 1500); };
    const code = pre.innerText.replace(/\n$/, "");
    if (navigator.clipboard) navigator.clipboard.writeText(code).then(done, () => select(pre));
    else select(pre);
  }), {className: "copy"}));
});
function select(element) {
  getSelection().selectAllChildren(element);
}

// boxes that scroll can be reached by the keyboard
document.querySelectorAll(".scroll, .formula, .output pre").forEach(box => {
  if (box.scrollWidth > box.clientWidth || box.scrollHeight > box.clientHeight) {
    box.tabIndex = 0;
    box.setAttribute("role", "region");
    box.setAttribute("aria-label", "Scrolls");
  }
});

// the sidebar, at the current page
const menu = document.querySelector(".menu"), side = document.querySelector(".side");
if (menu) menu.onclick = () => menu.setAttribute("aria-expanded", side.classList.toggle("open"));
const here = side && side.querySelector("[aria-current]");
if (here && here.offsetTop > side.clientHeight * 0.6) side.scrollTop = here.offsetTop - side.clientHeight / 3;

const contents = document.querySelector("details.toc");
if (contents && narrow.matches) contents.open = false;

// a link into a fold opens it
function unfold() {
  let element = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  for (; element; element = element.parentElement) if (element.tagName === "DETAILS") element.open = true;
}
addEventListener("hashchange", unfold);
unfold();
})();
