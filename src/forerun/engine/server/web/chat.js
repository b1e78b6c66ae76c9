// A conversation: stop, edit, copy, try again.

import { $, alertWith, appendTokens, element, streamChat } from "./api.js";

let turns = [];
let stopper = null;
let current = null;
let hasTemplate = true;

function settings() {
  const number = (name) => ($(`set-${name}`).value === "" ? null : Number($(`set-${name}`).value));
  const names = ["temperature", "top_p", "repetition_penalty", "max_tokens", "seed"];
  return { ...Object.fromEntries(names.map((name) => [name, number(name)])), method: $("set-method").value };
}

function button(text, label, action) {
  const made = element("button", "", text);
  made.type = "button";
  made.setAttribute("aria-label", label);
  made.addEventListener("click", action);
  return made;
}

/** Copy a turn's text; where there is no clipboard, as for a page over plain HTTP, by selecting it. */
async function copy(turn) {
  let isCopied = await navigator.clipboard?.writeText(turn.content).then(() => true, () => false);
  if (!isCopied) {
    getSelection().selectAllChildren(turn.body);
    isCopied = document.execCommand("copy");
  }
  $("chat-status").textContent = isCopied ? "Copied." : "The browser does not allow to copy.";
  turn.copied.textContent = isCopied ? "Copied" : "Not allowed";
  setTimeout(() => { turn.copied.textContent = "Copy"; }, 1500);
}

function render(turn) {
  const root = element("article", `turn ${turn.role}`);
  root.setAttribute("aria-label", turn.role === "user" ? "You" : "Reply");
  turn.body = element("div", "body");
  turn.note = element("span");
  if (turn.tokens) appendTokens(turn.body, turn.tokens);
  else turn.body.textContent = turn.content;
  const footer = element("footer");
  turn.copied = button("Copy", "Copy this text", () => copy(turn));
  footer.append(turn.copied);
  if (turn.role === "user") footer.append(button("Edit", "Edit this message; what follows it goes", () => edit(turn)));
  else footer.append(button("Again", "Ask for this reply again", () => again(turn)));
  footer.append(turn.note);
  root.append(turn.body, footer);
  $("turns").append(root);
  turn.root = root;
  $("turns").scrollTop = $("turns").scrollHeight;
}

/** Take some turns away, from one on. */
function drop(turn, count = Infinity) {
  for (const gone of turns.splice(turns.indexOf(turn), count)) gone.root.remove();
}

/** Stop the reply that is under way; one without a word goes. */
function stop() {
  stopper?.abort();
  if (current && !current.content && turns.includes(current)) drop(current, 1);
}

function cutFrom(turn) {
  stopper?.abort();
  drop(turn);
}

function edit(turn) {
  cutFrom(turn);
  $("chat-message").value = turn.content;
  $("chat-message").focus();
}

function again(turn) {
  cutFrom(turn);
  $("chat-message").focus();  // the button that had the focus is gone
  reply();
}

async function reply() {
  const system = $("set-system").value.trim();
  const messages = turns.map(({ role, content }) => ({ role, content }));
  if (system) messages.unshift({ role: "system", content: system });
  const turn = { role: "assistant", content: "", tokens: [] };
  turns.push(turn);
  render(turn);
  current = turn;
  const mine = (stopper = new AbortController());
  $("chat-stop").disabled = false;
  $("chat-status").textContent = "The model replies.";
  const startedMs = performance.now();
  try {
    for await (const choice of streamChat({ messages, ...settings() }, mine.signal)) {
      turn.content += choice.delta.content;
      turn.tokens.push(...choice.tokens);
      appendTokens(turn.body, choice.tokens);
      $("turns").scrollTop = $("turns").scrollHeight;
    }
    const spentS = (performance.now() - startedMs) / 1000;
    turn.note.textContent = `${turn.tokens.length} tokens, ${(turn.tokens.length / spentS).toFixed(0)} per second`;
    // Stop strings and ends are cut from the text, not from the tokens.
    if (turn.body.textContent !== turn.content && !turn.body.textContent.startsWith(turn.content)) turn.body.textContent = turn.content;
    $("chat-status").textContent = `Reply: ${turn.content}`;
  } catch (error) {
    turn.note.textContent = error.name === "AbortError" ? "stopped" : "broken off";
    if (error.name !== "AbortError") alertWith(error.message);
    if (!turn.content && turns.includes(turn)) drop(turn, 1);
    if (stopper === mine) $("chat-status").textContent = "Stopped.";
  } finally {
    if (stopper === mine) $("chat-stop").disabled = true;
  }
}

function send(event) {
  event.preventDefault();
  const content = $("chat-message").value.trim();
  if (!content) return;
  stop();
  alertWith(hasTemplate ? "" : "This model has no chat template: it continues texts, through /v1/completions.");
  turns.push({ role: "user", content });
  render(turns.at(-1));
  $("chat-message").value = "";
  reply();
}

/** Set the chat up for a model; called again when the key changes. */
export function startChat(model) {
  hasTemplate = model.has_chat_template;
  const isFirst = $("set-method").options.length === 0;
  $("set-method").replaceChildren(...model.methods.map((method) => new Option(method, method)));
  $("set-method").value = model.default_method;
  if (!isFirst) return;
  $("chat-form").addEventListener("submit", send);
  $("chat-stop").addEventListener("click", stop);
  $("chat-clear").addEventListener("click", () => { if (turns.length) cutFrom(turns[0]); $("chat-message").focus(); });
  $("chat-message").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); $("chat-form").requestSubmit(); }
  });
  $("set-origins").addEventListener("change", () => $("turns").classList.toggle("plain", !$("set-origins").checked));
  const asked = new URLSearchParams(location.search).get("ask");
  if (asked) { $("chat-message").value = asked; $("chat-form").requestSubmit(); }
}
