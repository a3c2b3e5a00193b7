// The line at the bottom that says what happens, also to a screen reader.

const live = document.getElementById("live");
let problemAt = -Infinity;

/** Say something; what went wrong stays a while, whatever follows from it. */
export function say(text, isProblem = false) {
  if (isProblem) problemAt = performance.now();
  else if (performance.now() < problemAt + 4000) return;
  live.textContent = text;
  live.classList.toggle("problem", isProblem);
}
