// Start states of the dream, as pictures to choose from.

const SHOWN = 16;
const STRIDE = 1597; // a prime: neighbours in the bank are neighbours on a road, and look alike
const grid = document.getElementById("thumbnails");
let total = 0;
let first = 0;
let chosen = null;

/** Make the pictures; `choose(number)` is called for the one that is clicked. */
export function makeStarts(count, choose) {
  total = count;
  first = 0;
  const show = () => {
    const numbers = Array.from({ length: Math.min(SHOWN, total) }, (_, place) => ((first + place) * STRIDE) % total);
    grid.replaceChildren(...numbers.map((number) => {
      const button = document.createElement("button");
      button.type = "button";
      button.dataset.start = number;
      button.setAttribute("aria-label", `Start state ${number}`);
      button.title = `Start state ${number}`;
      const picture = new Image();
      picture.alt = "";
      picture.loading = "lazy";
      picture.src = `start-states/${number}.png`;
      button.append(picture);
      button.onclick = () => {
        choose(number);
        button.blur();
      };
      return button;
    }));
    mark(chosen);
  };
  document.getElementById("more").onclick = () => {
    first += SHOWN;
    show();
  };
  document.getElementById("more").hidden = total <= SHOWN;
  show();
}

/** Mark the start state that the dream has begun from. */
export function mark(number) {
  chosen = number;
  for (const button of grid.children) button.setAttribute("aria-pressed", String(Number(button.dataset.start) === number));
}
