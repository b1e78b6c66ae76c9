// The server's API: JSON, and completions as they stream.

export const $ = (id) => document.getElementById(id);

/** Make an element with a class and a text. */
export function element(name, className = "", text = "") {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text) made.textContent = text;
  return made;
}

/** Show what went wrong, or nothing. */
export function alertWith(text) {
  $("alert").textContent = text;
  $("alert").hidden = !text;
}

function headers() {
  const key = $("key").value || kept("sessionStorage", "key");
  return { "content-type": "application/json", ...(key ? { authorization: `Bearer ${key}` } : {}) };
}

async function failure(response) {
  const body = await response.json().catch(() => null);
  if (response.status === 401) $("key-box").open = true;
  return new Error(body?.error?.message ?? `The server answered ${response.status}.`);
}

/** Ask the server; a connection that fails has an error that says so. */
async function ask(path, options) {
  const response = await fetch(path, { headers: headers(), ...options }).catch(noAnswer);
  if (!response.ok) throw await failure(response);
  return response;
}

function noAnswer(error) {
  throw error.name === "AbortError" ? error : new Error("The server does not answer. Does it still run?");
}

export async function getJson(path) {
  return (await ask(path)).json();
}

/** Return what this page kept in a storage; nothing where the browser forbids it. */
export function kept(storage, name) {
  try { return window[storage].getItem(name); } catch { return null; }
}

/** Keep a text in a storage, where the browser lets us. */
export function keep(storage, name, text) {
  try { window[storage].setItem(name, text); } catch { /* then it holds for this page only */ }
}

/** Yield the first choice of each chunk of a streamed chat completion; the last has a finish_reason. */
export async function* streamChat(body, signal) {
  const response = await ask("v1/chat/completions", {
    method: "POST", signal, body: JSON.stringify({ ...body, stream: true, return_tokens: true }),
  });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read().catch(noAnswer);
    if (done) throw new Error("The connection closed before the end.");
    held += value;
    const events = held.split("\n\n");
    held = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const content = JSON.parse(data);
      if (content.error) throw new Error(content.error.message);
      if (content.choices.length) yield content.choices[0];
    }
  }
}

/** Append tokens as spans; a span per token, its origin as class and title. */
export function appendTokens(parent, tokens) {
  const origins = { target: "the target", draft: "accepted draft", cache_hit: "predicted outcome", fallback: "fallback" };
  for (const token of tokens) {
    if (!token.text) continue;
    const span = element("span", `token ${token.origin}`, token.text);
    span.title = origins[token.origin];
    parent.append(span);
  }
}
