// The tree of predicted outcomes: what SSD had prepared while a round was verified, and what came true.

import { $, element } from "./api.js";

const SHOWN = new Map([["\n", "⏎"], ["\t", "⇥"], ["\r", "␍"]]);
const CONTEXT_LETTERS = 28;

/** Return a token's text with what cannot be seen made visible. */
function visible(text) {
  return [...text].map((letter) => SHOWN.get(letter) ?? letter).join("") || "∅";
}

/** Return it without the space that most words begin with, which a line through it would strike. */
const bare = (token) => ({ ...token, text: token.text.trim() ? token.text.trimStart() : token.text });
const quoted = (token) => `“${visible(bare(token).text)}”`;
const counted = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;

function chip(token, className = "") {
  return element("span", `chip ${className}`, visible(token.text));
}

/** Make the row of one outcome: its token, then the tokens that were ready to follow it. */
function branch(outcome, isTrue) {
  const row = element("li", `branch${isTrue ? " true" : ""}`);
  row.append(chip(outcome.token, "first"));
  const rest = element("span", "rest");
  rest.append(...outcome.continuation.map((token) => chip(token)));
  row.append(rest);
  if (isTrue) row.append(element("strong", "note", "came true"));
  return row;
}

function missed(lookUp) {
  const row = element("li", "branch missed");
  row.append(chip(lookUp.token, "first"), element("strong", "note", "came, and was not prepared"));
  return row;
}

/** Make a place of the draft, with the outcomes that were prepared for as many accepted tokens. */
function node(lookUp, numAccepted, label) {
  const isAccepted = numAccepted <= lookUp.num_accepted;
  const root = element("li", `node ${isAccepted ? "accepted" : "rejected"}${numAccepted === lookUp.num_accepted ? " last-accepted" : ""}`);
  const title = element("div", "label");
  title.append(label);
  if (numAccepted > 0) title.append(element("span", "note", isAccepted ? "accepted" : "rejected"));
  root.append(title);
  const rows = element("ul", "branches");
  rows.setAttribute("aria-label", `Outcomes with ${numAccepted} accepted`);
  lookUp.predicted.forEach((outcome, index) => {
    if (outcome.num_accepted === numAccepted) rows.append(branch(outcome, index === lookUp.came_true));
  });
  if (lookUp.came_true === null && isAccepted && numAccepted === lookUp.num_accepted) rows.append(missed(lookUp));
  if (rows.children.length) root.append(rows);
  return root;
}

function caption(lookUp) {
  const numDraft = lookUp.draft.length;
  const accepted = numDraft ? `${lookUp.num_accepted} of ${counted(numDraft, "draft token")} accepted, then the target's own ${quoted(lookUp.token)}.` : `No draft: the target's own ${quoted(lookUp.token)}.`;
  const prepared = counted(lookUp.predicted.length, "outcome");
  if (lookUp.came_true === null) return `${accepted} Of ${prepared} prepared meanwhile, this was none: a miss, and the fallback drafts.`;
  const ready = lookUp.predicted[lookUp.came_true].continuation.length;
  return `${accepted} It was among ${prepared} prepared meanwhile, with ${counted(ready, "token")} ready${ready ? ": no wait" : ""}.`;
}

/** Show what was prepared while a round was verified.
 *
 * The look-up of a round's outcome comes with the round after it, so the last one has none.
 */
export function showTree(rounds, index) {
  const last = rounds.findLastIndex((round) => round.outcomes.length) - 1;
  if (last < 0) return hideTree("No outcomes: this race had no SSD, or it ended with its first round.");
  const place = Math.max(0, Math.min(index, last));
  const [lookUp] = rounds[place + 1].outcomes;
  $("tree-round").textContent = `Round ${place + 1} of ${rounds.length}`;
  if (!lookUp) return hideTree("Nothing was looked up after this round.");
  const before = rounds.slice(0, place).flatMap((round) => round.tokens).map((token) => token.text).join("");
  const end = before.slice(-CONTEXT_LETTERS);
  const context = before ? `…${visible(end.slice(end.indexOf(" ") + 1) || end)}` : "the prompt";
  $("tree-caption").textContent = caption(lookUp);
  $("tree-nodes").replaceChildren(
    node(lookUp, 0, element("span", "context", context)),
    ...lookUp.draft.map((token, offset) => node(lookUp, offset + 1, chip(bare(token), "draft"))),
  );
  $("tree-nodes").hidden = false;
  return place;
}

/** Show a sentence in the place of the tree. */
export function hideTree(sentence) {
  $("tree-caption").textContent = sentence;
  $("tree-nodes").replaceChildren();
  $("tree-nodes").hidden = true;
  return null;
}
