// Asks for the report again and again, and shows it where it is another one.

import { say } from "./shared/live.js";

const EVERY_MS = 2000;
const report = document.getElementById("report");
let known = null;

/** Put a report in the place of the one before; what was unfolded stays so, and nothing moves. */
async function show(html) {
  const made = document.createElement("div");
  made.innerHTML = html; // every text in it is escaped, and no script would run
  const title = (details) => details.querySelector("summary").textContent;
  const unfolded = new Set([...report.querySelectorAll("details[open]")].map(title));
  for (const details of made.querySelectorAll("details")) details.open = unfolded.has(title(details));
  await Promise.all([...made.querySelectorAll("img")].map((image) => image.decode().catch(() => {})));
  report.replaceChildren(...made.childNodes);
}

async function renew() {
  let answer;
  try {
    answer = await fetch(known === null ? "report" : `report?known=${encodeURIComponent(known)}`);
  } catch {
    say("The server is gone. Start wm-gym report --serve again, and open the address that it prints.", true);
    return;
  }
  if (answer.status === 204) return;
  if (!answer.ok) {
    say(`The server answered ${answer.status}.`, true);
    return;
  }
  const told = await answer.json();
  await show(told.html);
  known = told.stamp;
  document.body.dataset.stamp = known;
  say(told.problem ?? `Renewed at ${new Date().toLocaleTimeString()}.`, told.problem !== null);
}

async function goOn() {
  if (!document.hidden) await renew();
  setTimeout(goOn, EVERY_MS);
}

goOn();
