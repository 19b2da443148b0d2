"use strict";
// Shows /openapi.json as a page: addresses, the fields of requests, the answers. Everything is put there as text.

function element(name, text = "", ...inside) {
  const made = document.createElement(name);
  made.textContent = text;
  made.append(...inside);
  return made;
}

/** Put text on the page in which `backticks` mark code. */
const prose = (text) => text.split("\n\n").map((paragraph) => element("p", "", ...sentence(paragraph)));

const sentence = (text) => text.split("`").map((part, i) => (i % 2 ? element("code", part) : part));

function table(caption, heads, rows) {
  const made = element("table", "", element("caption", caption),
    element("thead", "", element("tr", "", ...heads.map((head) => element("th", head)))),
    element("tbody", "", ...rows.map((row) => element("tr", "", ...row.map((cell) =>
      element("td", "", ...(Array.isArray(cell) ? cell : [cell])))))));
  made.tHead.querySelectorAll("th").forEach((head) => head.setAttribute("scope", "col"));
  const scroll = element("div", "", made);
  scroll.className = "scroll";
  return scroll;
}

const named = (api, schema) => (schema.$ref ? api.components.schemas[schema.$ref.split("/").pop()] : schema);

function typeOf(api, schema) {
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" or ");
  if (schema.anyOf) return schema.anyOf.map((one) => typeOf(api, one)).join(" or ");
  if (schema.type === "array") return `list of ${typeOf(api, schema.items)}`;
  return schema.type ?? "any";
}

function rulesOf(schema, required) {
  const rules = [];
  const say = (key, words) => { if (schema[key] !== undefined) rules.push(`${words} ${schema[key]}`); };
  say("minimum", "at least");
  say("exclusiveMinimum", "above");
  say("maximum", "at most");
  say("exclusiveMaximum", "below");
  say("minLength", "characters: at least");
  say("maxLength", "characters: at most");
  say("minItems", "entries: at least");
  if (required) rules.push("required");
  else if (schema.default !== undefined) rules.push(`default ${JSON.stringify(schema.default)}`);
  return rules.join(", ");
}

function requestTable(api, schema) {
  return table("Request (JSON)", ["field", "type", "rules", "meaning"], Object.entries(schema.properties).map(
    ([name, field]) => [[element("code", name)], typeOf(api, field), rulesOf(field, schema.required?.includes(name)),
      sentence(field.description ?? "")]));
}

function answerTable(api, caption, schema) {
  return table(caption, ["field", "type"], Object.entries(schema.properties ?? {}).map(
    ([name, field]) => [[element("code", name)], typeOf(api, field)]));
}

const shown = new Set();

function operation(api, method, address, about) {
  const made = element("section", "", element("h2", "", element("code", `${method.toUpperCase()} ${address}`)));
  made.append(...prose(about.summary ?? ""));
  const asked = about.requestBody?.content?.["application/json"]?.schema;
  if (asked) made.append(requestTable(api, asked));
  const answered = about.responses["200"].content?.["application/json"]?.schema;
  if (answered) {
    shown.add(typeOf(api, answered));
    made.append(...prose(named(api, answered).description ?? ""), answerTable(api, "Answer (JSON)", named(api, answered)));
  }
  const others = Object.entries(about.responses).filter(([status]) => status !== "200");
  if (others.length) made.append(table("Errors", ["status", "meaning"], others.map(([status, one]) => [status, sentence(one.description)])));
  return made;
}

async function show() {
  const place = document.getElementById("reference");
  try {
    const api = await (await fetch("/openapi.json")).json();
    place.append(...prose(api.info.description));
    for (const [address, methods] of Object.entries(api.paths)) {
      for (const [method, about] of Object.entries(methods)) place.append(operation(api, method, address, about));
    }
    for (const [name, schema] of Object.entries(api.components?.schemas ?? {})) {
      if (shown.has(name)) continue;
      place.append(element("section", "", element("h2", name), ...prose(schema.description ?? ""), answerTable(api, "", schema)));
    }
  } catch {
    place.append(element("p", "the description is not there: is the server still running?"));
  }
}
show();
