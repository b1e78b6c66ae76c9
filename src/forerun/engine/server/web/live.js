// The metrics, read once a second and drawn.

import { $, element } from "./api.js";

const LENGTH = 120;
const WIDTH = 300;
const HEIGHT = 100;

/** Return a metric's value, summed over its labels. */
const total = (sample, name) => (sample.get(name) ?? []).reduce((sum, [, value]) => sum + value, 0);
const change = (now, before, name) => total(now, name) - total(before, name);
const ratio = (part, whole) => (whole > 0 ? part / whole : null);
const mean = (now, before, name) => ratio(change(now, before, `${name}_sum`), change(now, before, `${name}_count`));
const inMs = (value) => (value === null ? null : 1000 * value);

const CHARTS = [
  { title: "Throughput", unit: "tokens/s", lines: [["tokens", (n, b, s) => change(n, b, "forerun_generated_tokens_total") / s]] },
  { title: "Requests", unit: "", lines: [["running", (n) => total(n, "forerun_requests_running")], ["waiting", (n) => total(n, "forerun_requests_waiting")]] },
  { title: "Time to first token", unit: "ms", lines: [["mean", (n, b) => inMs(mean(n, b, "forerun_time_to_first_token_seconds"))]] },
  { title: "Inter-token latency", unit: "ms", lines: [["mean", (n, b) => inMs(mean(n, b, "forerun_inter_token_latency_seconds"))]] },
  { title: "Tokens per pass and request", unit: "", lines: [["tokens", (n, b) => ratio(change(n, b, "forerun_target_verifications_total") + change(n, b, "forerun_draft_tokens_accepted_total"), change(n, b, "forerun_target_verifications_total"))]] },
  { title: "Speculation", unit: "%", most: 100, lines: [
    ["accepted", (n, b) => percent(n, b, "forerun_draft_tokens_accepted_total", "forerun_draft_tokens_proposed_total")],
    ["predicted", (n, b) => percent(n, b, "forerun_outcome_hits_total", "forerun_outcome_look_ups_total")]] },
  { title: "Cache in use", unit: "%", most: 100, lines: [["keys and values", (n) => 100 * total(n, "forerun_kv_cache_usage_ratio")]] },
  { title: "Requests by method", unit: "", lines: ["none", "sequential", "ssd"].map((method) => [method, (n) => labelled(n, "forerun_requests_by_method", method)]) },
];

function percent(now, before, part, whole) {
  const value = ratio(change(now, before, part), change(now, before, whole));
  return value === null ? null : 100 * value;
}

function labelled(sample, name, label) {
  return (sample.get(name) ?? []).filter(([labels]) => labels.includes(`"${label}"`)).reduce((sum, [, value]) => sum + value, 0);
}

/** Read Prometheus's text format: name to [labels, value] pairs. */
function parse(text) {
  const sample = new Map();
  for (const line of text.split("\n")) {
    const match = /^(\w+)(\{.*\})? (\S+)$/.exec(line);
    if (!match) continue;
    if (!sample.has(match[1])) sample.set(match[1], []);
    sample.get(match[1]).push([match[2] ?? "", Number(match[3])]);
  }
  return sample;
}

function written(value) {
  if (value === null) return "–";
  if (Number.isInteger(value) || value >= 100) return value.toFixed(0);
  return value.toFixed(value >= 10 ? 1 : 2);
}

class Chart {
  constructor(spec) {
    this.spec = spec;
    this.values = spec.lines.map(() => []);
    this.root = element("article", "chart");
    const title = element("h2", "", spec.title);
    this.now = element("strong");
    title.append(this.now);
    const space = "http://www.w3.org/2000/svg";
    this.svg = document.createElementNS(space, "svg");
    this.svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
    this.svg.setAttribute("preserveAspectRatio", "none");
    this.svg.setAttribute("role", "img");
    for (const y of [1, HEIGHT / 2, HEIGHT - 1]) {
      const line = document.createElementNS(space, "line");
      for (const [name, value] of Object.entries({ x1: 0, x2: WIDTH, y1: y, y2: y })) line.setAttribute(name, String(value));
      this.svg.append(line);
    }
    const keys = element("p");
    const names = element("span");
    this.paths = spec.lines.map(([name], index) => {
      const path = document.createElementNS(space, "path");
      const order = ["", "second", "third"][index];
      path.setAttribute("class", order);
      this.svg.append(path);
      if (spec.lines.length > 1) names.append(element("span", `key ${order}`), `${name}  `);
      return path;
    });
    this.scale = element("span");
    keys.append(names, this.scale);
    this.root.append(title, this.svg, keys);
  }

  add(now, before, spentS) {
    this.spec.lines.forEach(([, read], index) => {
      this.values[index].push(read(now, before, spentS));
      if (this.values[index].length > LENGTH) this.values[index].shift();
    });
    const seen = this.values.flat().filter((value) => value !== null);
    const most = this.spec.most ?? Math.max(1e-9, ...seen);
    this.paths.forEach((path, index) => path.setAttribute("d", this.path(this.values[index], most)));
    const last = this.values.map((values) => written(values.at(-1)));
    this.now.textContent = `${last.join(" · ")} ${this.spec.unit}`;
    this.scale.textContent = this.spec.most || most > 1e-9 ? `top of the scale ${written(most)} ${this.spec.unit}` : "nothing yet";
    this.svg.setAttribute("aria-label", `${this.spec.title}: now ${this.spec.lines.map(([name], i) => `${name} ${last[i]}`).join(", ")} ${this.spec.unit}`);
  }

  path(values, most) {
    let isDown = false;
    return values.map((value, index) => {
      if (value === null) { isDown = false; return ""; }
      const x = WIDTH - (values.length - 1 - index) * (WIDTH / (LENGTH - 1));
      const y = HEIGHT - 2 - (Math.min(value, most) / most) * (HEIGHT - 6);
      const step = `${isDown ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`;
      const lone = isDown ? "" : "h0.01";
      isDown = true;
      return step + lone;
    }).join("");
  }
}

/** Make the charts; they are read while they are visible. */
export function startLive() {
  const charts = CHARTS.map((spec) => new Chart(spec));
  $("charts").append(...charts.map((chart) => chart.root));
  let before = null;
  let beforeMs = 0;
  let timer = null;

  /** Say how it is; only a change, as a screen reader tells each. */
  function tell(text) {
    if ($("live-status").textContent !== text) $("live-status").textContent = text;
  }

  async function read() {
    try {
      const response = await fetch("metrics");
      if (!response.ok) throw new Error();
      const now = parse(await response.text());
      const nowMs = performance.now();
      if (before !== null) for (const chart of charts) chart.add(now, before, (nowMs - beforeMs) / 1000);
      [before, beforeMs] = [now, nowMs];
      tell("Read from /metrics once a second while this tab is open.");
    } catch {
      tell("The server does not answer.");
      before = null;
    }
  }

  return {
    setVisible(isVisible) {
      clearInterval(timer);
      timer = isVisible ? setInterval(read, 1000) : null;
      if (isVisible) read();
    },
  };
}
