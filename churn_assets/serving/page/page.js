// Looks a customer up and shows what the service says. Names, units and groups come from the
// OpenAPI schema, so a new feature needs no edit here. Everything is set as text, never as HTML.
// The customer stands in the fragment (/#ID), which a browser does not send; the key stays in this tab.
"use strict";

const element = (id) => document.getElementById(id);
let declared = null;

async function ask(path, options = {}) {
  const key = element("key").value;
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const response = await fetch(path, { ...options, headers });
  const content = await response.json();
  if (response.ok) return content;
  throw Object.assign(new Error(typeof content.detail === "string" ? content.detail
    : "This is no customer id."), { status: response.status });
}

function add(parent, tag, text, className) {
  const child = parent.appendChild(document.createElement(tag));
  if (text !== undefined) child.textContent = text;
  if (className) child.className = className;
  return child;
}

function shown(value, unit) {
  if (value === null) return "unknown";
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (typeof value !== "number") return value;
  const number = value.toLocaleString("en", { maximumFractionDigits: 2 });
  return unit ? `${number} ${unit}` : number;
}

const words = (name) => name.replace(/^customer_|_features$/g, "").replaceAll("_", " ");

function showFeatures(answer) {
  const groups = {};
  for (const [name, feature] of Object.entries(declared)) {
    (groups[feature["x-group"]] ??= []).push([name, feature]);
  }
  element("features").replaceChildren();
  for (const [group, features] of Object.entries(groups)) {
    const part = add(element("features"), "div");
    add(part, "h3", words(group));
    const table = add(part, "table");
    for (const [name, feature] of features) {
      const row = add(table, "tr");
      add(add(row, "th", words(name)), "small", feature.description);
      if (answer.withheld.includes(name)) add(row, "td", "withheld", "none");
      else if (!(name in answer.features)) add(row, "td", "not served yet", "none");
      else {
        const value = answer.features[name];
        add(row, "td", shown(value, feature["x-unit"]), value === null ? "none" : "");
      }
    }
  }
}

function showSummary(answer, prediction) {
  const days = Math.floor((Date.now() - Date.parse(`${answer.cutoff}T00:00:00Z`)) / 86400000);
  element("name").textContent = answer.customer_id;
  element("freshness").textContent = `What was known on ${answer.cutoff}, ${days} days ago. `
    + (answer.stale ? "The online store does not answer: this is the last version seen."
      : "Fresh from the online store.");
  element("freshness").className = answer.stale ? "stale" : "";
  element("risk").hidden = !prediction;
  if (!prediction) return;
  const probability = prediction.churn_probability;
  element("probability").textContent = `${(100 * probability).toFixed(1)} %`;
  element("prediction").textContent = prediction.prediction;
  Object.assign(element("meter"), { value: probability, optimum: 0, low: prediction.threshold,
    high: prediction.threshold });
  element("risk").className = prediction.prediction === "RETAIN" ? "" : "risk";
  element("model").textContent = "Chance of no purchase within the horizon, by the "
    + `${words(prediction.model)} of ${prediction.model_cutoff}. Counts as a risk from `
    + `${(100 * prediction.threshold).toFixed(0)} % on.`;
  element("reasons").replaceChildren();
  for (const reason of prediction.reasons ?? []) add(element("reasons"), "li", reason);
}

async function lookUp(customer) {
  element("message").textContent = "";
  element("result").hidden = true;
  if (!customer) return;
  element("customer").value = customer;
  sessionStorage.setItem("key", element("key").value);
  try {
    declared ??= (await ask("openapi.json")).components.schemas.Features.properties;
    const path = encodeURIComponent(customer);
    const answer = await ask(`features/${path}`);
    const prediction = await ask(`predict/${path}?explain=true`, { method: "POST" }).catch((error) => {
      element("message").textContent = error.message;
    });
    showSummary(answer, prediction);
    showFeatures(answer);
    element("result").hidden = false;
  } catch (error) {
    element("message").textContent = error.message;
  }
}

const fromAddress = () => lookUp(decodeURIComponent(location.hash.slice(1)));

element("key").value = sessionStorage.getItem("key") ?? "";
element("lookup").addEventListener("submit", (event) => {
  event.preventDefault();
  const hash = `#${encodeURIComponent(element("customer").value)}`;
  if (location.hash === hash) fromAddress();
  else location.hash = hash;
});
addEventListener("hashchange", fromAddress);
fromAddress();
