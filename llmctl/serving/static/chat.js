// Conversations: kept in the browser, answered as a stream, each token with its alternatives.
"use strict";
const $ = (id) => document.getElementById(id);
const STORE = "llmctl.conversations", SETTINGS = "llmctl.choices", MOST = 100;
const FIELDS = ["system", "temperature", "top_p", "min_p", "repetition_penalty", "max_tokens", "seed"];
// How tokens are chosen where neither the page nor the model's folder says it.
const DEFAULTS = { temperature: 0.7, top_p: 0.9, min_p: 0, repetition_penalty: 1 };
let talks = load(STORE, []), talk = null, models = {}, running = null;
const settings = load(SETTINGS, {}), chosen = { ...settings.chosen };

function load(name, other) {
  try { return JSON.parse(localStorage.getItem(name)) ?? other; } catch { return other; }
}
function keep() {
  try {
    localStorage.setItem(STORE, JSON.stringify(talks.slice(0, MOST)));
    const values = Object.fromEntries(FIELDS.map((field) => [field, $(field).value]));
    localStorage.setItem(SETTINGS, JSON.stringify({ ...values, shade: $("shade").checked, chosen, tab }));
  } catch { note("The browser keeps no more; save what you need.", true); }
}
function make(tag, text, attributes = {}) {
  const element = Object.assign(document.createElement(tag), attributes);
  if (text !== undefined) element.textContent = text;
  return element;
}
function headers() {
  const key = $("key").value;
  return { "content-type": "application/json", ...(key ? { authorization: "Bearer " + key } : {}) };
}
function note(text, wrong = false) {
  $("talk").append(make("p", text, { className: wrong ? "note wrong" : "note" }));
  down();
}
function down() { $("talk").scrollTop = $("talk").scrollHeight; }

function begin() {
  talk = { id: String(Date.now()), title: "New conversation", turns: [] };
  show();
  $("say").focus();
}
function show() {
  $("title").textContent = tab === "chat" ? talk.title : "";
  $("talk").replaceChildren(...talk.turns.map(shown));
  if (!talk.turns.length) $("talk").append(make("p", "Say something. Choose a token of an answer to see what else could have come, and go on from that.", { className: "empty" }));
  $("list").replaceChildren(...talks.map((one) => {
    const item = make("li");
    const open = make("button", one.title, { type: "button" });
    open.setAttribute("aria-current", String(one === talk));
    open.onclick = () => { stop(); talk = one; show(); closeMenu(); };
    const gone = make("button", "×", { type: "button" });
    gone.setAttribute("aria-label", "Delete " + one.title);
    gone.onclick = () => { talks = talks.filter((other) => other !== one); keep(); if (one === talk) begin(); else show(); };
    item.append(open, gone);
    return item;
  }));
  down();
}
function shown(turn, place) {
  const element = make("article", undefined, { className: turn.role });
  element.append(make("span", turn.role === "user" ? "You" : turn.model || "Model", { className: "who" }));
  const body = make("div");
  element.append(body);
  fill(body, turn, place);
  const tools = make("div", undefined, { className: "tools" });
  if (turn.role === "user") {
    tools.append(tool("Edit", () => { $("say").value = turn.content; cut(place); $("say").focus(); }));
  } else {
    tools.append(tool("Again", () => { cut(place); answer(); }), tool("Go on", () => { cut(place + 1); answer(turn); }));
  }
  tools.append(tool("Copy", () => navigator.clipboard?.writeText(turn.content)));
  element.append(tools);
  return element;
}
function tool(name, does) {
  const button = make("button", name, { type: "button", className: "small" });
  button.onclick = () => { if (!running) does(); };
  return button;
}
function fill(body, turn, place) {
  const tokens = turn.tokens || [];
  if (!tokens.length) { body.textContent = turn.content; return; }
  body.replaceChildren(...tokens.map((token, number) => token_button(token, number, turn, place)));
}
function token_button(token, number, turn, place) {
  const share = Math.exp(token.logprob);
  const button = make("button", token.text, { type: "button", className: "token", title: percent(share) });
  if ($("shade").checked) button.style.background = `rgb(200 80 0 / ${((1 - share) * 0.6).toFixed(2)})`;
  button.onclick = () => choose(token, number, turn, place);
  return button;
}
function percent(share) { return (100 * share).toFixed(share < 0.01 ? 3 : 1) + " %"; }
function choose(token, number, turn, place) {
  const dialog = $("others");
  dialog.replaceChildren(make("p", "In this place (choose one to go on from it):"));
  for (const other of token.top || []) {
    const button = make("button", undefined, { type: "button" });
    button.append(make("code", JSON.stringify(other.token)), make("span", percent(Math.exp(other.logprob))));
    button.onclick = () => {
      dialog.close();
      if (running) return;
      const before = turn.tokens.slice(0, number);
      const tokens = [...before, { text: other.token, logprob: other.logprob, top: token.top }];
      cut(place);
      const begun = { role: "assistant", model: turn.model, content: tokens.map((one) => one.text).join(""), tokens };
      talk.turns.push(begun);
      answer(begun);
    };
    dialog.append(button);
  }
  const close = make("button", "Close", { type: "button" });
  close.onclick = () => dialog.close();
  dialog.append(close);
  dialog.showModal();
}
function cut(place) { stop(); talk.turns = talk.turns.slice(0, place); keep(); show(); }
function stop() { running?.abort(); running = null; $("send").textContent = "Send"; }

async function answer(begun = null) {
  const turn = begun ?? { role: "assistant", model: $("model").value, content: "", tokens: [] };
  if (!begun) talk.turns.push(turn);
  keep();
  show();
  const body = $("talk").lastChild.querySelector("div");
  const place = talk.turns.length - 1, chat = models[$("model").value]?.chat, own = talk;
  const control = running = new AbortController();
  $("send").textContent = "Stop";
  const begin_at = performance.now();
  let count = 0;
  try {
    const answered = await fetch(chat ? "v1/chat/completions" : "v1/completions", {
      method: "POST", headers: headers(), signal: control.signal, body: JSON.stringify(asked(chat, Boolean(begun))),
    });
    if (!answered.ok) throw new Error((await answered.json()).error.message);
    for await (const chunk of chunks(answered.body)) {
      if (chunk.error) throw new Error(chunk.error.message);
      for (const token of tokens_of(chunk, chat)) {
        turn.tokens.push(token);
        count += 1;
        if (own === talk) body.append(token_button(token, turn.tokens.length - 1, turn, place));
      }
      turn.content += chat ? chunk.choices[0]?.delta?.content ?? "" : chunk.choices[0]?.text ?? "";
    }
    const seconds = (performance.now() - begin_at) / 1000;
    if (own === talk) { show(); note(`${count} tokens, ${(count / seconds).toFixed(1)} a second`); }
  } catch (error) {
    if (own === talk) { show(); note(error.name === "AbortError" ? "stopped" : error.message, error.name !== "AbortError"); }
  } finally {
    if (running === control) stop();
    keep();
  }
}
function defaults() {
  const own = models[$("model").value]?.sampling ?? {};
  // The two go together: a folder's temperature was not chosen beside the page's share.
  return { ...DEFAULTS, ...("temperature" in own ? { top_p: 1 } : {}), ...own };
}
function show_defaults() {
  for (const [field, value] of Object.entries(defaults())) if (field in DEFAULTS) $(field).placeholder = value;
}
function asked(chat, resumes) {
  const number = (id) => $(id).value === "" ? defaults()[id] : Number($(id).value);
  const shared = {
    model: $("model").value, stream: true, temperature: number("temperature"), top_p: number("top_p"), min_p: number("min_p"),
    repetition_penalty: number("repetition_penalty"), max_tokens: number("max_tokens"), seed: number("seed"),
  };
  const turns = talk.turns.map(({ role, content }) => ({ role, content }));
  if (!resumes) turns.pop();
  if (!chat) return { ...shared, prompt: turns.map((turn) => turn.content).join(""), logprobs: 5 };
  const system = $("system").value ? [{ role: "system", content: $("system").value }] : [];
  return { ...shared, messages: [...system, ...turns], logprobs: true, top_logprobs: 5, continue_final_message: resumes };
}
function tokens_of(chunk, chat) {
  const choice = chunk.choices[0];
  if (!choice?.logprobs) return [];
  // A token's own spelling may be half of a character: what is told of the text is whole.
  const told = chat ? choice.delta?.content ?? "" : choice.text ?? "";
  if (chat) return choice.logprobs.content.map((one) => ({ text: told, logprob: one.logprob, top: one.top_logprobs }));
  return choice.logprobs.token_logprobs.map((logprob, place) => ({
    text: told, logprob,
    top: Object.entries(choice.logprobs.top_logprobs[place]).map(([token, value]) => ({ token, logprob: value })).sort((a, b) => b.logprob - a.logprob),
  }));
}
async function* chunks(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    held += value;
    const lines = held.split("\n");
    held = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data: ") && line !== "data: [DONE]") yield JSON.parse(line.slice(6));
    }
  }
}

$("ask").onsubmit = (event) => {
  event.preventDefault();
  if (running) { stop(); return; }
  const said = $("say").value;
  if (!said.trim()) return;
  if (!$("model").value) { note(NONE.chat, true); return; }
  if (!talk.turns.length) { talk.title = said.slice(0, 60); talks.unshift(talk); }
  talk.turns.push({ role: "user", content: said });
  $("say").value = "";
  answer();
};
$("say").onkeydown = (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); $("ask").requestSubmit(); }
};
document.onkeydown = (event) => { if (event.key === "Escape" && running && !$("others").open) stop(); };
$("new").onclick = () => { stop(); begin(); closeMenu(); };
$("shade").onchange = () => { keep(); show(); };
$("key").onchange = () => models_of();
for (const field of FIELDS) $(field).addEventListener("change", keep);
$("menu").onclick = () => {
  const open = $("side").classList.toggle("open");
  $("menu").setAttribute("aria-expanded", String(open));
  if (open) $("new").focus();
};
function closeMenu() { $("side").classList.remove("open"); $("menu").setAttribute("aria-expanded", "false"); }
$("talk").onclick = closeMenu;
$("export").onclick = () => {
  const link = make("a", undefined, { download: "conversation.json" });
  link.href = URL.createObjectURL(new Blob([JSON.stringify(talk.turns.map(({ role, content }) => ({ role, content })), null, 1)]));
  link.click();
  URL.revokeObjectURL(link.href);
};
async function models_of() {
  const answered = await fetch("v1/models", { headers: headers() });
  if (!answered.ok) { note((await answered.json()).error.message, true); return; }
  cards = (await answered.json()).data;
  models = Object.fromEntries(cards.map((model) => [model.id, model]));
  choose_model();
}
$("model").onchange = () => { chosen[tab] = $("model").value; show_defaults(); keep(); };
for (const field of FIELDS) if (settings[field]) $(field).value = settings[field];
$("shade").checked = Boolean(settings.shade);
