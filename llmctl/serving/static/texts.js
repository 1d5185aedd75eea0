// The tabs, and the two for whole texts: classes with what decided them, and search by vectors.
const KINDS = { chat: ["causal_lm", "gpt_bert"], classify: ["classify"], search: ["embed"] };
const NONE = {
  chat: "None of the models served writes text.",
  classify: "None of the models served is a classifier. Start llmctl serve with one: --from NAME",
  search: "None of the models served makes vectors of texts. Start llmctl serve with an embedder: --from NAME",
};
const TABS = Object.keys(KINDS), AT_ONCE = 32, SHOWN = 20;
let tab = "chat", cards = [], vectors = new Map();

function open_tab(name, focus = false) {
  tab = name;
  for (const one of TABS) {
    const button = $("tab_" + one);
    button.setAttribute("aria-selected", String(one === name));
    button.tabIndex = one === name ? 0 : -1;
    $(one).hidden = one !== name;
  }
  for (const part of document.querySelectorAll(".chat_only")) part.hidden = name !== "chat";
  $("title").textContent = name === "chat" ? talk.title : "";
  choose_model();
  keep();
  if (focus) $("tab_" + name).focus();
}
function choose_model() {
  const fit = cards.filter((model) => KINDS[tab].includes(model.kind)), last = chosen[tab];
  $("model").replaceChildren(...fit.map((model) => make("option", model.id, { value: model.id })));
  if (fit.some((model) => model.id === last)) $("model").value = last;
  $("model").disabled = !fit.length;
  show_defaults();
}
for (const name of TABS) {
  $("tab_" + name).onclick = () => open_tab(name);
  $("tab_" + name).onkeydown = (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    open_tab(TABS[(TABS.indexOf(name) + step + TABS.length) % TABS.length], true);
  };
}
async function post(address, body) {
  const answered = await fetch(address, { method: "POST", headers: headers(), body: JSON.stringify({ model: $("model").value, ...body }) });
  const document = await answered.json();
  if (!answered.ok) throw new Error(document.error.message);
  return document;
}
function told(place, text, wrong = false) { $(place).replaceChildren(make("p", text, { className: wrong ? "note wrong" : "note" })); }

// Classify

async function judge(answer) {
  const input = $("text").value;
  if (!input.trim()) return;
  if (!$("model").value) { told("shares", NONE.classify, true); return; }
  if (answer === undefined) { told("shares", "…"); $("why").replaceChildren(); }
  try {
    if (answer === undefined) {
      const [found] = (await post("classify", { input })).data;
      show_shares(found);
      answer = found.label;
    }
    told("why", "Looking for what decided …");
    show_why(await post("explain", { input, answer }));
  } catch (error) { told(answer === undefined ? "shares" : "why", error.message, true); }
}
function show_shares(found) {
  const order = found.labels.map((label, place) => [label, found.probs[place]]).sort((a, b) => b[1] - a[1]);
  $("shares").replaceChildren(...order.slice(0, SHOWN).map(([label, share]) => {
    const button = make("button", undefined, { type: "button", className: "share", title: "What decided " + label });
    const bar = make("span", undefined, { className: "bar" }), filled = make("span");
    filled.style.width = (100 * share).toFixed(1) + "%";
    bar.append(filled);
    button.append(make("span", label, { className: "name" }), bar, make("span", percent(share), { className: "number" }));
    button.onclick = () => judge(label);
    return button;
  }));
}
function show_why(found) {
  for (const button of $("shares").children) button.setAttribute("aria-pressed", String(button.firstChild.textContent === found.answer));
  const most = Math.max(...found.words.map((word) => Math.abs(word.weight)), 1e-9), text = $("text").value;
  const body = make("p", undefined, { className: "weighed" });
  let at = 0;
  // Places are counted in characters, which JavaScript's strings are not.
  const characters = Array.from(text);
  for (const word of found.words) {
    body.append(characters.slice(at, word.start).join(""));
    const mark = make("mark", word.text, { title: word.weight.toFixed(3) });
    const side = word.weight > 0 ? "--for" : "--against";
    mark.style.background = `rgb(var(${side}) / ${(0.55 * Math.abs(word.weight) / most).toFixed(2)})`;
    body.append(mark);
    at = word.end;
  }
  body.append(characters.slice(at).join(""));
  const better = found.faithfulness.faithfulness;
  const worth = better > 0 ? "Leaving words out in this order changes the answer sooner than in a random one"
    : "Leaving words out in this order changes the answer no sooner than in a random one: don't rely on it";
  $("why").replaceChildren(
    make("h2", "What decided “" + found.answer + "”"), body,
    make("p", `Blue speaks for it, orange against it (${found.method}). ${worth} (${better.toFixed(2)}).`, { className: "note" }));
}
$("judge").onsubmit = (event) => { event.preventDefault(); judge(); };
$("text").onkeydown = (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); $("judge").requestSubmit(); }
};

// Search

async function embed(texts) {
  const model = $("model").value, missing = [...new Set(texts)].filter((text) => !vectors.has(model + "\n" + text));
  for (let at = 0; at < missing.length; at += AT_ONCE) {
    told("found", `${at} of ${missing.length} texts …`);
    const part = missing.slice(at, at + AT_ONCE), found = await post("v1/embeddings", { input: part });
    for (const { index, embedding } of found.data) vectors.set(model + "\n" + part[index], embedding);
  }
  return texts.map((text) => vectors.get(model + "\n" + text));
}
function cosine(a, b) {
  let dot = 0, one = 0, other = 0;
  for (let place = 0; place < a.length; place += 1) { dot += a[place] * b[place]; one += a[place] ** 2; other += b[place] ** 2; }
  return dot / Math.max(Math.sqrt(one * other), 1e-12);
}
$("find").onsubmit = async (event) => {
  event.preventDefault();
  const texts = $("texts").value.split("\n").filter((line) => line.trim()), query = $("query").value;
  if (!$("model").value) { told("found", NONE.search, true); return; }
  if (!texts.length || !query.trim()) { told("found", "Write some texts and a query."); return; }
  try {
    const [asked, ...others] = await embed([query, ...texts]);
    const order = others.map((one, place) => [cosine(asked, one), texts[place]]).sort((a, b) => b[0] - a[0]);
    $("found").replaceChildren(...order.slice(0, SHOWN).map(([score, text]) => {
      const item = make("li", text);
      item.prepend(make("span", score.toFixed(3), { className: "score" }));
      return item;
    }));
  } catch (error) { told("found", error.message, true); }
};

begin();
open_tab(TABS.includes(settings.tab) ? settings.tab : "chat");
models_of().catch((error) => note(error.message, true));
