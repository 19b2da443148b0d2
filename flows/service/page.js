"use strict";
// Whatever comes from a model, a run or a reader is put on the page as text (textContent), never as HTML.

const one = (id) => document.getElementById(id);
const form = one("form"), prefix = one("prefix"), write = one("write"), stop = one("stop"), status = one("status");
const temperature = one("temperature"), length = one("length"), seed = one("seed"), topK = one("top-k");
const cards = new Map();
let asking = null;

function element(name, className, text = "") {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.textContent = text;
  return made;
}

const figure = (value) => (value === null ? "–" : value >= 1000 ? value.toExponential(2) : value.toPrecision(4));

function card(model) {
  const article = element("article");
  article.dataset.model = model.name;
  const heading = element("h2", "", model.name);
  heading.id = `model-${cards.size}`;
  article.setAttribute("aria-labelledby", heading.id);
  const facts = element("p", "facts", "perplexity: valid ");
  facts.append(element("strong", "valid", figure(model.valid_perplexity)), ", test ",
    element("strong", "test", figure(model.test_perplexity)));
  const about = [model.cell === model.name ? "" : model.cell, model.corpus ?? "",
    `${model.level} tokens`, model.order ? `order ${model.order}` : `${model.num_layers} × ${model.hidden_size} hidden`,
    `${model.parameters.toLocaleString("en")} ${model.order ? "n-grams" : "weights"}`];
  facts.append(element("br"), about.filter(Boolean).join(" · "));
  const text = element("p", "text");
  const read = element("span", "prefix"), continuation = element("span", "continuation");
  text.append(read, continuation);
  const messages = element("div", "messages");
  messages.setAttribute("role", "alert");
  article.append(heading, facts, text, messages);
  one("models").append(article);
  return { model, article, text, read, continuation, messages };
}

function tell(place, kind, sentence) {
  place.append(element("p", kind, sentence));
}

function showSettings() {
  one("temperature-value").textContent = Number(temperature.value).toFixed(2);
  one("length-value").textContent = length.value;
  // At temperature 0 nothing is drawn: the service refuses what would have no effect.
  seed.disabled = topK.disabled = Number(temperature.value) === 0;
}

function settings() {
  const asked = { prefix: prefix.value, length: Number(length.value), temperature: Number(temperature.value), unknown: "map" };
  return asked.temperature === 0 ? asked : { ...asked, seed: Number(seed.value), top_k: Number(topK.value) };
}

async function* records(body) {
  const reader = body.getReader(), decoder = new TextDecoder();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (rest + decoder.decode(value, { stream: true })).split("\n");
    rest = lines.pop();
    for (const line of lines) yield JSON.parse(line);
  }
}

async function continueText(shown, asked, signal) {
  shown.article.setAttribute("aria-busy", "true");
  shown.read.textContent = shown.continuation.textContent = "";
  shown.messages.replaceChildren();
  shown.text.classList.add("waiting");
  try {
    const answer = await fetch("/generate", {
      method: "POST", signal, headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ ...asked, model: shown.model.name, stream: true }),
    });
    if (!answer.ok) throw new Error((await answer.json()).error.message);
    let ended = false;
    for await (const record of records(answer.body)) {
      shown.text.classList.remove("waiting");
      if ("prefix" in record) shown.read.textContent = record.prefix;
      if ("piece" in record) shown.continuation.append(record.piece);
      if ("warning" in record) tell(shown.messages, "warning", record.warning);
      if ("error" in record) throw new Error(record.error.message);
      ended ||= "done" in record;
    }
    if (!ended) throw new Error("the answer has broken off: is the server still there?");
    return true;
  } catch (error) {
    if (signal.aborted) return false;
    const lost = error instanceof TypeError;
    tell(shown.messages, "error", lost ? "the server does not answer: is it still running?" : error.message);
    return false;
  } finally {
    shown.text.classList.remove("waiting");
    shown.article.setAttribute("aria-busy", "false");
  }
}

async function begin(event) {
  event.preventDefault();
  if (asking || cards.size === 0 || !form.reportValidity()) return;
  asking = new AbortController();
  write.disabled = true;
  stop.disabled = false;
  status.textContent = "Writing …";
  const { signal } = asking;
  const done = await Promise.all([...cards.values()].map((shown) => continueText(shown, settings(), signal)));
  status.textContent = signal.aborted ? "Stopped." : done.every(Boolean) ? "Done." : "Done, with errors.";
  asking = null;
  write.disabled = false;
  stop.disabled = true;
}

async function load() {
  try {
    const answer = await fetch("/models");
    const { models, limits } = await answer.json();
    length.max = String(limits.length);
    length.min = String(Math.min(10, limits.length));
    length.step = limits.length % 10 === 0 ? "10" : "1";
    for (const model of models) cards.set(model.name, card(model));
    if (prefix.value === "") prefix.value = models[0].beginning;
    showSettings();
  } catch {
    tell(one("models"), "error", "the models are not known: is the server still running?");
  }
}

form.addEventListener("submit", begin);
form.addEventListener("input", showSettings);
stop.addEventListener("click", () => asking?.abort());
prefix.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    form.requestSubmit();
  }
});
load();
