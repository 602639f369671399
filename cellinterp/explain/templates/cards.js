(() => {
const field = document.getElementById("q"), count = document.getElementById("n");
const cards = [...document.querySelectorAll("article")];
function search() {
  const words = field.value.toLowerCase();
  let shown = 0;
  for (const card of cards) {
    card.hidden = !card.textContent.toLowerCase().includes(words);
    shown += !card.hidden;
  }
  count.textContent = shown + " of " + cards.length + " features";
}
field.oninput = search;
search();
})();
