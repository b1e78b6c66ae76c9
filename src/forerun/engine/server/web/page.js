// Tabs, theme, key; the views are in modules of their own.

import { $, alertWith, getJson, keep, kept } from "./api.js";
import { startChat } from "./chat.js";
import { startLive } from "./live.js";
import { startRace } from "./race.js";

const tabs = [...document.querySelectorAll('[role="tab"]')];
const live = startLive();

function show(tab) {
  for (const other of tabs) {
    const isShown = other === tab;
    other.setAttribute("aria-selected", String(isShown));
    other.tabIndex = isShown ? 0 : -1;
    $(other.getAttribute("aria-controls")).hidden = !isShown;
  }
  live.setVisible(tab.id === "tab-live");
  history.replaceState(null, "", `#${tab.getAttribute("aria-controls")}`);
}

tabs.forEach((tab, index) => {
  tab.addEventListener("click", () => show(tab));
  tab.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1, Home: -index, End: tabs.length - 1 - index }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    const next = tabs[(index + step + tabs.length) % tabs.length];
    next.focus();
    show(next);
  });
});

function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

function setTheme(theme) {
  if (theme) document.documentElement.dataset.theme = theme;
  $("theme").textContent = isDark() ? "Light" : "Dark";
  $("theme").setAttribute("aria-label", `Change to ${isDark() ? "light" : "dark"} colours`);
}

$("theme").addEventListener("click", () => {
  const theme = isDark() ? "light" : "dark";
  keep("localStorage", "theme", theme);
  setTheme(theme);
});
setTheme(new URLSearchParams(location.search).get("theme") ?? kept("localStorage", "theme"));

async function connect() {
  try {
    const model = (await getJson("v1/models")).data[0];
    $("served").textContent = `${model.id}, context of ${model.max_model_len} tokens`;
    alertWith("");
    startRace(model);
    startChat(model);
  } catch (error) {
    $("served").textContent = "";
    alertWith(error.message);
  }
}

$("key").addEventListener("change", () => {
  keep("sessionStorage", "key", $("key").value);
  connect();
});
show(tabs.find((tab) => tab.getAttribute("aria-controls") === location.hash.slice(1)) ?? tabs[0]);
connect();
