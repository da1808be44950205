// Filters the cards; the page is whole without it.
const filters = document.querySelector(".filters");
if (filters) {
  filters.hidden = false;
  filters.addEventListener("click", (event) => {
    const chosen = event.target.dataset.filter;
    if (!chosen) return;
    for (const button of filters.querySelectorAll("button")) {
      button.setAttribute("aria-pressed", String(button.dataset.filter === chosen));
    }
    for (const card of document.querySelectorAll(".card")) {
      card.hidden = chosen !== "all" && card.dataset.phase !== chosen && card.dataset.outcome !== chosen;
    }
  });
}
