// <cutaway-claim>: one claim with its verdict, its predictions, what would change the verdict and what speaks against it.

import { badge } from "./badge.js";
import { h, table } from "./dom.js";
import { bound, spread } from "./forest-plot.js";
import { count, interval, number } from "./number.js";
import { badges, sheet, styled } from "./sheet.js";

/** @import { Check, ClaimCard, PredictionCard, WorstExample } from "./payload" */

const own = styled(`
article { border: 1px solid var(--rule); border-radius: 8px; background: var(--raised); padding: 20px 22px 16px; }
header { display: flex; flex-wrap: wrap; gap: 6px 12px; align-items: center; }
header .id { font-size: 12.5px; color: var(--muted); font-weight: 600; overflow-wrap: anywhere; }
h3 { margin: 9px 0 8px; font-family: var(--serif); font-size: 19px; line-height: 1.35; font-weight: 600; text-wrap: pretty; overflow-wrap: anywhere; }
p { margin: 0 0 10px; max-width: 74ch; text-wrap: pretty; overflow-wrap: anywhere; }
.subject { display: flex; flex-wrap: wrap; gap: 5px; align-items: baseline; color: var(--muted); font-size: 12.5px; margin-bottom: 12px; }
.subject code { color: var(--ink); background: var(--panel); border-radius: 3px; padding: 1px 6px; }
.lead { color: var(--muted); font-weight: 600; font-size: 12.5px; margin: 0 0 2px; }
.prediction { border-top: 1px solid var(--rule); padding: 11px 0; }
.prediction > div { display: flex; flex-wrap: wrap; gap: 6px 12px; align-items: baseline; justify-content: space-between; }
.prediction b { font-weight: 600; }
.why { margin: 6px 0 0; color: var(--muted); font-size: 13px; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(138px, 1fr)); gap: 8px 16px; margin: 8px 0 0; }
dt { font-size: 11.5px; color: var(--muted); }
dd { margin: 0; font-size: 13px; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.checks { border-top: 1px solid var(--rule); padding: 11px 0 0; margin: 0; }
.checks ul { margin: 8px 0 0; padding: 0; list-style: none; font-size: 13px; }
.checks li { padding: 2px 0; font-variant-numeric: tabular-nums; }
.checks b { font-weight: 600; }
.worst table { white-space: normal; }
.worst td { white-space: normal; min-width: 90px; }
.worst td:nth-child(4), .worst th:nth-child(4) { text-align: left; min-width: 240px; overflow-wrap: anywhere; }
footer { border-top: 1px solid var(--rule); padding-top: 10px; margin-top: 12px; font-size: 12px; color: var(--muted); display: flex; flex-wrap: wrap; gap: 3px 18px; overflow-wrap: anywhere; }
footer a { color: var(--accent); }
`);

/** @typedef {{ claim: ClaimCard, raw: string | undefined }} Card the claim, and the file of its raw result */

/** Fed by its `data` property. */
export class ClaimElement extends HTMLElement {
  constructor() {
    super();
    this.attachShadow({ mode: "open" }).adoptedStyleSheets = [sheet, badges, own];
  }

  /** @param {Card} card */
  set data({ claim, raw }) {
    this.shadowRoot?.replaceChildren(
      h(
        "article",
        { "aria-label": `claim ${claim.id}: ${claim.verdict}` },
        h("header", {}, badge(claim.verdict), h("span", { class: "id" }, claim.id)),
        h("h3", {}, claim.sentence),
        h("div", { class: "subject" }, "about", ...claim.subject.map((site) => h("code", {}, site))),
        ...words(claim),
        ...claim.predictions.map((card) => prediction(card, claim)),
        claim.checks.length > 0 && checks(claim.checks),
        claim.worst.length > 0 && worst(claim.worst),
        foot(claim, raw),
      ),
    );
  }
}

/**
 * Whether each prediction speaks for itself, because the claim's own words are those of its predictions in a row.
 * @param {ClaimCard} claim
 */
function apart({ predictions, reason }) {
  return predictions.length > 1 && predictions.every((card) => card.reason !== "" && reason.includes(card.reason));
}

/**
 * Why the verdict is what it is, and what would change it.
 * @param {ClaimCard} claim
 */
function words(claim) {
  if (apart(claim)) return [h("p", {}, "Every prediction holds.")];
  return [h("p", {}, claim.reason), h("p", { class: "lead" }, "What would change the verdict"), h("p", {}, claim.would_change)];
}

/**
 * @param {PredictionCard} card
 * @param {ClaimCard} claim
 */
function prediction(card, claim) {
  /** @type {[string, string][]} */
  const facts = [
    ["effect", `${interval(card.estimate)} ${card.unit}`],
    ["bound fixed beforehand", bound(card)],
    ["matched controls", spread(card)],
    ["data", `${card.n_examples} pairs, ${card.n_clusters} clusters`],
  ];
  if (card.control_p !== null) facts.splice(3, 0, ["p against controls", number(card.control_p)]);
  return h(
    "section",
    { class: "prediction", "aria-label": `prediction ${card.name}` },
    h("div", {}, h("span", {}, h("b", {}, card.name), ` \u2013 ${card.sentence}`), badge(card.verdict)),
    (apart(claim) || !claim.reason.includes(card.reason)) && h("p", { class: "why" }, card.reason),
    h("dl", {}, ...facts.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)))),
    apart(claim) && card.would_change !== "" && h("p", { class: "why" }, h("span", { class: "lead" }, "What would change it: "), card.would_change),
  );
}

/** @param {readonly Check[]} all */
function checks(all) {
  const passed = all.filter((one) => one.passed).length;
  return h(
    "details",
    { class: "checks", open: passed < all.length },
    h("summary", {}, `Checks of the test itself: ${passed} of ${all.length} passed`),
    h("ul", {}, ...all.map((one) => h("li", {}, h("b", {}, one.passed ? "\u2713 passed" : "\u2717 failed"), ` \u00b7 ${one.name}: ${number(one.value)} ${one.unit} (rule: ${one.rule})`))),
  );
}

/** @param {readonly WorstExample[]} examples */
function worst(examples) {
  return h(
    "details",
    { class: "worst" },
    h("summary", {}, `Examples that speak most against it (${examples.length})`),
    h(
      "div",
      { class: "cells", tabindex: 0, role: "region", "aria-label": "examples that speak against the claim" },
      table("examples that speak against the claim", ["pair", "prediction", "effect", "prompt", "cluster"], examples.map((one) => [one.id, one.prediction, number(one.value), one.text, one.cluster])),
    ),
  );
}

/**
 * @param {ClaimCard} claim
 * @param {string | undefined} raw
 */
function foot(claim, raw) {
  return h(
    "footer",
    {},
    h("span", {}, `tests at \u03b1 = ${claim.alpha}`),
    h("span", {}, `written after looking at ${count(claim.search)} components`),
    h("span", {}, "frozen plan ", h("code", { title: claim.plan }, claim.plan.slice(0, 12))),
    raw !== undefined && h("a", { href: raw }, "raw result"),
  );
}

customElements.define("cutaway-claim", ClaimElement);
