// The race: the same prompt by each method, one after another, then side by side as fast as it was.

import { $, alertWith, appendTokens, element, streamChat } from "./api.js";
import { hideTree, showTree } from "./tree.js";

const METHODS = [
  { method: "none", name: "AR", meaning: "one token a pass" },
  { method: "sequential", name: "SD", meaning: "draft, then verify" },
  { method: "ssd", name: "SSD", meaning: "drafts meanwhile" },
];
const COUNTERS = [["tokens", "tokens"], ["rate", "tokens/s"], ["length", "tokens/pass"], ["ready", "were ready"]];

const allTokens = (rounds) => rounds.flatMap((round) => round.tokens);

class Pane {
  constructor(racer) {
    this.racer = racer;
    this.root = element("article", "pane");
    this.root.setAttribute("aria-label", `${racer.name}: ${racer.meaning}`);
    const title = element("h2");
    this.place = element("span", "place");
    title.append(`${racer.name} · ${racer.meaning}`, this.place);
    const list = element("dl");
    this.values = {};
    for (const [id, name] of COUNTERS) {
      const group = element("div");
      this.values[id] = element("dd", "", "–");
      group.append(element("dt", "", name), this.values[id]);
      list.append(group);
    }
    this.text = element("div", "text");
    this.text.tabIndex = 0;
    this.text.setAttribute("aria-label", `Text by ${racer.name}`);
    this.root.append(title, list, this.text);
    this.clear();
  }

  clear() {
    this.rounds = [];
    this.place.textContent = "";
    this.show(0);
  }

  get endMs() { return this.rounds.length ? this.rounds.at(-1).timeMs : 0; }
  get output() { return allTokens(this.rounds).map((token) => token.text).join(""); }

  add({ tokens, outcomes = [] }) {
    this.rounds.push({ tokens, outcomes, timeMs: tokens[0].time_ms });
    this.show(Infinity);
  }

  /** Show what had come after so many milliseconds. */
  show(timeMs) {
    const shown = this.rounds.filter((round) => round.timeMs <= timeMs);
    if (shown.length < (this.numShown ?? 0) || timeMs === 0) {
      this.text.textContent = "";
      this.numShown = 0;
    }
    for (const { tokens } of shown.slice(this.numShown)) appendTokens(this.text, tokens);
    if (shown.length !== this.numShown) this.text.scrollTop = this.text.scrollHeight;
    this.numShown = shown.length;
    this.count(shown);
  }

  count(shown) {
    const numTokens = allTokens(shown).length;
    const later = shown.slice(1);
    const numLater = allTokens(later).length;
    const spentS = shown.length > 1 ? (shown.at(-1).timeMs - shown[0].timeMs) / 1000 : 0;
    const numReady = allTokens(later).filter((token) => token.origin === "cache_hit").length;
    this.values.tokens.textContent = String(numTokens);
    this.values.rate.textContent = spentS > 0 ? (numLater / spentS).toFixed(1) : "–";
    this.values.length.textContent = later.length ? (numLater / later.length).toFixed(2) : "–";
    const isSsd = this.racer.method === "ssd";
    this.values.ready.textContent = isSsd && numLater ? `${Math.round((100 * numReady) / numLater)}%` : "–";
  }
}

let panes = [];
let stopper = null;
let playing = null;
let round = 0;

function totalMs() { return Math.max(1, ...panes.map((pane) => pane.endMs)); }

function seek(timeMs) {
  for (const pane of panes) pane.show(timeMs);
  $("replay-time").value = String(Math.round((1000 * timeMs) / totalMs()));
  $("replay-clock").textContent = `${(timeMs / 1000).toFixed(2)} s`;
  $("replay-time").setAttribute("aria-valuetext", `${(timeMs / 1000).toFixed(2)} of ${(totalMs() / 1000).toFixed(2)} seconds`);
}

function pause() {
  cancelAnimationFrame(playing);
  playing = null;
  $("replay-play").textContent = "Replay";
  tellTree();
}

const ssdPane = () => panes.find((pane) => pane.racer.method === "ssd");

/** Show the tree of the round that the replay stands at. */
function tellTree() {
  const pane = ssdPane();
  const isOver = pane?.rounds.length && !$("replay-play").disabled;
  $("step-back").disabled = $("step-on").disabled = !isOver;
  if (isOver) round = showTree(pane.rounds, pane.numShown - 1) ?? pane.numShown - 1;
}

/** Go to another round of SSD. */
function step(by) {
  const rounds = ssdPane()?.rounds ?? [];
  if (!rounds.length || $("replay-play").disabled) return;
  cancelAnimationFrame(playing);
  seek(rounds[Math.max(0, Math.min(rounds.length - 1, round + by))].timeMs);
  pause();
}

function replay() {
  if (playing !== null) return pause();
  const fromMs = Number($("replay-time").value) >= 1000 ? 0 : (Number($("replay-time").value) / 1000) * totalMs();
  const startedMs = performance.now() - fromMs;
  $("replay-play").textContent = "Pause";
  hideTree("Pause the replay to see what was prepared for the round it stands at.");
  const frame = () => {
    const nowMs = performance.now() - startedMs;
    seek(Math.min(nowMs, totalMs()));
    playing = nowMs < totalMs() ? requestAnimationFrame(frame) : null;
    if (playing === null) pause();
  };
  playing = requestAnimationFrame(frame);
}

function result() {
  const ranked = [...panes].sort((a, b) => a.endMs - b.endMs);
  ranked.forEach((pane, index) => { pane.place.textContent = `${(pane.endMs / 1000).toFixed(2)} s${index ? "" : " · first"}`; });
  const outputs = new Set(panes.map((pane) => pane.output));
  const said = outputs.size === 1 ? "All outputs are the same, token for token." : "The outputs differ: see docs/models.md on number formats.";
  const base = panes.find((pane) => pane.racer.method === "none");
  const gain = base && ranked[0] !== base ? ` ${ranked[0].racer.name} was ${(base.endMs / ranked[0].endMs).toFixed(2)} times as fast as AR.` : "";
  return `${said}${gain}`;
}

async function run(event) {
  event.preventDefault();
  $("replay-play").disabled = $("replay-time").disabled = true;
  pause();
  hideTree("While the race runs, nothing is shown here.");
  $("tree-round").textContent = "";
  alertWith("");
  stopper = new AbortController();
  $("race-start").disabled = true;
  $("race-stop").disabled = false;
  for (const pane of panes) pane.clear();
  try {
    for (const pane of panes) {
      $("race-status").textContent = `${pane.racer.name} runs, with the machine to itself.`;
      const body = {
        messages: [{ role: "user", content: $("race-prompt").value }],
        max_tokens: Number($("race-tokens").value),
        temperature: Number($("race-temperature").value),
        seed: Number($("race-seed").value),
        method: pane.racer.method,
        return_outcomes: pane.racer.method === "ssd",
      };
      for await (const choice of streamChat(body, stopper.signal)) if (choice.tokens.length) pane.add(choice);
    }
    $("race-status").textContent = result();
    $("replay-play").disabled = $("replay-time").disabled = false;
    if (matchMedia("(prefers-reduced-motion: reduce)").matches) {
      seek(totalMs());
      pause();
    } else {
      seek(0);
      replay();
    }
  } catch (error) {
    if (error.name !== "AbortError") alertWith(error.message);
    $("race-status").textContent = "Stopped.";
  } finally {
    $("race-start").disabled = false;
    $("race-stop").disabled = true;
  }
}

/** Set the race up for a model; called again when the key changes. */
export function startRace(model) {
  const isFirst = panes.length === 0;
  panes = METHODS.filter((racer) => model.methods.includes(racer.method)).map((racer) => new Pane(racer));
  $("panes").replaceChildren(...panes.map((pane) => pane.root));
  $("tree").hidden = !ssdPane();
  if (!isFirst) return;
  $("race-form").addEventListener("submit", run);
  $("race-stop").addEventListener("click", () => stopper?.abort());
  $("replay-play").addEventListener("click", replay);
  $("replay-time").addEventListener("input", () => {
    pause();
    seek((Number($("replay-time").value) / 1000) * totalMs());
    tellTree();
  });
  $("step-back").addEventListener("click", () => step(-1));
  $("step-on").addEventListener("click", () => step(1));
  $("tree").addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!by) return;
    event.preventDefault();
    step(by);
  });
  if (new URLSearchParams(location.search).has("race")) $("race-form").requestSubmit();
}
