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
  const key = sessionStorage.getItem("key");
  return { "content-type": "application/json", ...(key ? { authorization: `Bearer ${key}` } : {}) };
}

async function failure(response) {
  const body = await response.json().catch(() => null);
  if (response.status === 401) $("key-box").open = true;
  return new Error(body?.error?.message ?? `the server answered ${response.status}`);
}

export async function getJson(path) {
  const response = await fetch(path, { headers: headers() });
  if (!response.ok) throw await failure(response);
  return response.json();
}

/** Yield the first choice of each chunk of a streamed chat completion; the last has a finish_reason. */
export async function* streamChat(body, signal) {
  const response = await fetch("v1/chat/completions", {
    method: "POST", headers: headers(), signal, body: JSON.stringify({ ...body, stream: true, return_tokens: true }),
  });
  if (!response.ok) throw await failure(response);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("the connection closed before the end");
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
