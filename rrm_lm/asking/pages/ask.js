// Keys, drafts, marked parts and a page that does not reload. Without this script, every form works as a plain form.
"use strict";

const main = () => document.getElementById("main");
const form = () => main().querySelector('form[action="/answer"]');
const draftKey = () => `draft ${document.body.dataset.person} ${main().dataset.item} ${main().dataset.shown}`;
let active = 0; // the answer that keys such as "critique" are about
let selected = ""; // the last text that was selected in an answer

function say(text) {
  document.getElementById("status").textContent = text;
}

function activate(place) {
  const cards = [...main().querySelectorAll(".card")];
  active = Math.min(place, Math.max(cards.length - 1, 0));
  cards.forEach((card, index) => card.classList.toggle("active", index === active));
}

function saveDraft() {
  if (!form()) return;
  const fields = [...new FormData(form())].filter(([name, value]) => value && !["secret", "request", "item", "shown"].includes(name));
  const typed = fields.filter(([name, value]) => form().elements[name].defaultValue !== value || name === "verdict");
  try {
    typed.length ? localStorage.setItem(draftKey(), JSON.stringify(typed)) : localStorage.removeItem(draftKey());
  } catch { /* storage is full or off: there are no drafts then */ }
}

function restoreDraft() {
  let draft = null;
  try { draft = JSON.parse(localStorage.getItem(draftKey())); } catch { /* as above */ }
  if (!draft || !form()) return;
  for (const [name, value] of draft) {
    const field = form().elements[name];
    if (!field) continue;
    if (field.type === "checkbox") field.checked = true;
    else field.value = value;
    if (field.closest) {
      field.closest(".quote")?.removeAttribute("hidden");
      const fold = field.closest("details");
      if (fold) fold.open = true;
    }
  }
  say("Your draft was restored.");
}

function noteSelection() {
  const selection = document.getSelection();
  const text = selection.toString().trim();
  const card = selection.anchorNode?.parentElement?.closest(".response")?.closest(".card");
  if (text && card) {
    selected = text;
    activate(Number(card.dataset.place));
  }
}

function fit(area) { // grow with the text
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight + 2}px`;
}

function begin() {
  selected = "";
  activate(0);
  restoreDraft();
  main().querySelectorAll("textarea").forEach((area) => area.value && area.offsetParent && fit(area));
  if (main().querySelector("details.write[open]") && !main().querySelector(".card")) {
    main().querySelector("details.write textarea").focus({ preventScroll: true });
  }
}

async function send(target, button) {
  const body = new URLSearchParams(new FormData(target, button));
  const key = target.getAttribute("action") === "/answer" ? draftKey() : null;
  document.body.classList.add("sending");
  const post = () => fetch(target.action, { method: "POST", body, credentials: "same-origin", headers: { "X-Next": "page" } });
  let answer;
  try {
    answer = await post().catch(post); // a repeated answer is stored once
  } catch {
    say("Not saved: the server cannot be reached. Your draft is kept in this browser; try again.");
    return;
  } finally {
    document.body.classList.remove("sending");
  }
  if (answer.ok && key) localStorage.removeItem(key);
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  if (!page.getElementById("main")) return say("Not saved: the server gave no page. Your draft is kept.");
  document.querySelector(".bar").replaceWith(page.querySelector(".bar"));
  main().replaceWith(page.getElementById("main"));
  document.title = page.title;
  if (answer.ok) history.replaceState(null, "", new URL(answer.url).pathname.replace("/answer", "/"));
  window.scrollTo(0, 0);
  main().focus({ preventScroll: true });
  if (main().hasAttribute("data-wait")) return void setTimeout(() => location.reload(), 1500);
  say(answer.ok ? `Saved. ${page.title}.` : "");
  begin();
}

const actions = {
  "answer A": () => activate(0),
  "answer B": () => activate(1),
  keys: () => document.getElementById("keys").showModal(),
  "mark selection": () => {
    noteSelection();
    const field = form()?.elements[`quote_${active}`];
    if (!field) return;
    if (!selected) return say("Select a part of an answer first.");
    field.value = selected;
    field.closest(".quote").hidden = false;
    form().elements[`critique_${active}`].focus();
    saveDraft();
  },
  "goal example": () => setGoal("goal"),
  unacceptable: () => setGoal("unacceptable"),
};

function setGoal(value) {
  const field = form()?.elements[`goal_${active}`];
  if (!field) return;
  field.value = field.value === value ? "" : value;
  saveDraft();
}

function act(action) {
  if (actions[action]) return void actions[action]();
  const card = main().querySelectorAll(".card")[active];
  const found = card?.querySelector(`[data-action="${action}"]`) || main().querySelector(`[data-action="${action}"]`);
  if (!found) return;
  if (found.type === "radio" && found.name === "verdict") {
    found.checked = !found.checked;
    saveDraft();
  } else if (found.tagName === "SUMMARY") {
    found.parentElement.open = !found.parentElement.open;
    const area = found.parentElement.querySelector("textarea");
    if (found.parentElement.open && area) { area.focus(); fit(area); }
  } else if (found.tagName === "BUTTON") found.click();
  else found.focus();
}

document.addEventListener("keydown", (event) => {
  const field = event.target;
  const typing = field.matches("textarea, input:not([type=radio]):not([type=checkbox]), select");
  if (event.key === "Escape" && typing) return field.blur();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && form()) {
    event.preventDefault();
    return form().requestSubmit();
  }
  if (typing || event.ctrlKey || event.metaKey || event.altKey || document.getElementById("keys").open) return;
  if (field.matches("input[type=radio][name^=rating]") && /^[1-5]$/.test(event.key)) {
    event.preventDefault();
    form().elements[field.name].value = event.key;
    saveDraft();
    return field.blur();
  }
  if (event.key === "Enter" && field.matches("a, button, summary")) return;
  const keys = JSON.parse(document.body.dataset.keys);
  const action = Object.keys(keys).find((name) => keys[name] === event.key);
  if (!action) return;
  event.preventDefault();
  act(action);
});

document.addEventListener("submit", (event) => {
  if (event.target.method !== "post") return;
  event.preventDefault();
  if (!document.body.classList.contains("sending")) send(event.target, event.submitter);
});
document.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-action]");
  if (button?.type === "button") act(button.dataset.action);
});
document.addEventListener("input", (event) => {
  if (event.target.tagName === "TEXTAREA") fit(event.target);
  saveDraft();
});
document.addEventListener("pointerdown", (event) => {
  const card = event.target.closest(".card");
  if (card) activate(Number(card.dataset.place));
});
document.addEventListener("focusin", (event) => {
  const card = event.target.closest?.(".card");
  if (card) activate(Number(card.dataset.place));
});
document.addEventListener("selectionchange", noteSelection);
begin();
