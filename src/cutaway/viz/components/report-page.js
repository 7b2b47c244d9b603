// <cutaway-report>: the whole page of a study, from the payload that stands in the document. Its own text is in the
// light tree, so that fragment links, printing and searching in the page work; figures are elements of their own.

import "./attention-map.js";
import "./behavior-plot.js";
import "./claim-card.js";
import "./effect-series.js";
import "./forest-plot.js";
import "./heat-map.js";
import "./lens-chart.js";
import "./scatter-plot.js";
import "./token-strip.js";
import { badge } from "./badge.js";
import { h, table } from "./dom.js";
import { count, interval, number, percent } from "./number.js";
import { badges } from "./sheet.js";

/** @import { Child } from "./dom.js" */
/** @import { ArtifactEntry, ClaimCard, ModelCard, StudyReport } from "./payload" */
/** @typedef {{ study: StudyReport, artifacts: readonly ArtifactEntry[] }} Payload */
/** @typedef {{ id: string, title: string, children: Child[] }} Section */

class ReportPage extends HTMLElement {
  connectedCallback() {
    const source = document.getElementById("payload")?.textContent ?? "";
    /** @type {Payload} */
    const { study, artifacts } = JSON.parse(source);
    document.adoptedStyleSheets = [...document.adoptedStyleSheets, badges];
    const figures = new FigureCount();
    const sections = [
      behavior(study, figures),
      places(study, figures),
      parts(study, figures),
      claims(study, artifacts, figures),
      cost(study),
      model(study.model),
      again(study),
      limits(study),
      files(study, artifacts),
    ].filter((section) => section.children.length > 0);
    this.replaceChildren(h("div", { class: "page" }, contents(sections), h("main", {}, head(study), ...sections.map(written), colophon(study))));
    this.dataset.ready = "true";
  }
}

/** Numbers the figures in their order on the page. */
class FigureCount {
  #last = 0;

  /**
   * A figure element with its data.
   * @param {string} tag
   * @param {unknown} data
   */
  make(tag, data) {
    const element = /** @type {HTMLElement & { data: unknown, number: string }} */ (document.createElement(tag));
    this.#last += 1;
    element.number = String(this.#last);
    element.data = data;
    return element;
  }
}

/** @param {Section} section */
function written({ id, title, children }) {
  return h("section", { id, "aria-labelledby": `${id}-title` }, h("h2", { id: `${id}-title` }, h("a", { href: `#${id}` }, title)), ...children);
}

/** @param {readonly Section[]} sections */
function contents(sections) {
  const theme = h("button", { type: "button", class: "theme" }, "Light or dark");
  theme.addEventListener("click", () => {
    const root = document.documentElement;
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });
  return h("nav", { class: "contents", "aria-label": "Contents" }, h("ol", {}, ...sections.map(({ id, title }) => h("li", {}, h("a", { href: `#${id}` }, title)))), theme);
}

/** @param {StudyReport} study */
function head({ title, sentence, model: card, task, environment, claims: all }) {
  /** @type {[string, Child][]} */
  const facts = [
    ["Model", card.name],
    ["Behavior", task.name],
    ["Metric", `${task.metric.name}, in ${task.metric.unit}`],
    ["Written", when(environment.created)],
    ["Seed", String(environment.seed)],
    ["Cutaway", environment.cutaway],
  ];
  return h(
    "header",
    { class: "head" },
    h("p", { class: "kicker" }, "Cutaway study report"),
    h("h1", {}, title),
    h("p", { class: "lead" }, sentence),
    h("dl", { class: "facts three" }, ...facts.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)))),
    all.length > 0 && h("ul", { class: "verdicts", "aria-label": "Verdicts" }, ...all.map((claim) => h("li", {}, badge(claim.verdict), h("a", { href: `#${anchor(claim)}` }, claim.sentence)))),
  );
}

/**
 * A time for people, to the minute.
 * @param {string} time
 */
function when(time) {
  return time.replace(/^(\d{4}-\d\d-\d\d)T(\d\d:\d\d).*(Z|\+00:00)$/, "$1 $2 UTC");
}

/**
 * @param {StudyReport} study
 * @param {FigureCount} figures
 * @returns {Section}
 */
function behavior({ task, behavior: check, examples, model: card }, figures) {
  const { name, unit } = task.metric;
  const sizes = task.splits.map((split) => `${split.n_pairs} pairs in ${split.n_clusters} clusters (${split.name})`).join(", ");
  const outcome = check.passed ? "so there is a behavior to explain" : "so there is no behavior to explain, and the study stopped here";
  return {
    id: "behavior",
    title: "The behavior",
    children: [
      h("p", {}, task.description),
      h("p", {}, `It is measured by `, h("code", {}, name), ` in ${unit}: ${task.metric.doc} The task has ${sizes}; the splits share no cluster.`),
      h("p", {}, `On the ${check.split} split ${card.name} prefers the answer on ${percent(check.accuracy)} of ${check.clean.length} clean prompts. The metric falls from clean to corrupt by ${interval(check.gap)} ${unit} on average; at least ${number(check.threshold)} ${unit} was asked for, ${outcome}.`),
      figures.make("cutaway-behavior", {
        behavior: check,
        unit,
        metric: name,
        title: "The behavior, example by example",
        sentence: "Each dot is a prompt; the lowest row is the difference within each pair. The behavior counts as present when the whole interval of the mean gap lies right of the dashed line.",
      }),
      examples.length > 0 &&
        figures.make("cutaway-token-strip", {
          examples,
          unit,
          title: "What the model reads",
          sentence: "Prompt pairs, token above token. The two prompts differ only in the shaded tokens; everything that the study restores or removes is the consequence of that difference.",
        }),
    ],
  };
}

/**
 * @param {StudyReport} study
 * @param {FigureCount} figures
 * @returns {Section}
 */
function places({ position_map, head_map, mlps, attribution }, figures) {
  return {
    id: "where",
    title: "Where it happens",
    children: [
      position_map && figures.make("cutaway-heat-map", position_map),
      head_map && figures.make("cutaway-heat-map", head_map),
      mlps && figures.make("cutaway-effects", mlps),
      attribution && figures.make("cutaway-scatter", attribution),
    ].filter((child) => child !== null),
  };
}

/**
 * @param {StudyReport} study
 * @param {FigureCount} figures
 * @returns {Section}
 */
function parts({ attention, lens, task }, figures) {
  return {
    id: "parts",
    title: "What the parts do",
    children: [
      attention.length > 0 &&
        figures.make("cutaway-attention", {
          heads: attention,
          title: "Where the named heads look",
          sentence: "Attention from each token (row) to the tokens before it (column): the stronger the colour, the larger the share. Choose a head and a prompt.",
        }),
      lens && figures.make("cutaway-lens", { lens, metric: task.metric.name, unit: task.metric.unit, title: "The answer, layer by layer" }),
    ].filter((child) => child !== null && child !== false),
  };
}

/**
 * @param {StudyReport} study
 * @param {readonly ArtifactEntry[]} artifacts
 * @param {FigureCount} figures
 * @returns {Section}
 */
function claims({ claims: all }, artifacts, figures) {
  const cards = all.map((claim) => {
    const card = /** @type {HTMLElement & { data: unknown }} */ (document.createElement("cutaway-claim"));
    card.id = anchor(claim);
    card.data = { claim, raw: artifacts.find((entry) => entry.name === claim.result)?.path };
    return card;
  });
  if (!cards.length) return { id: "claims", title: "Claims and verdicts", children: [] };
  return {
    id: "claims",
    title: "Claims and verdicts",
    children: [
      h("p", {}, "Each claim was written down with its bounds before the confirm split was opened, and was tested on that split alone. A claim is supported when every interval lies beyond its bound and the matched controls are beaten; refuted when an interval lies wholly on the other side; otherwise inconclusive."),
      figures.make("cutaway-forest", {
        claims: all,
        title: "Subject against controls",
        sentence: "One row a prediction. Blue is the effect of the components that the claim names, grey the same number of components of the same kind, chosen at random.",
      }),
      ...cards,
    ],
  };
}

/** @param {ClaimCard} claim */
function anchor(claim) {
  return `claim-${claim.id.replace(/[^A-Za-z0-9_-]+/g, "-")}`;
}

/**
 * @param {StudyReport} study
 * @returns {Section}
 */
function cost({ plan }) {
  if (!plan) return { id: "cost", title: "What it cost", children: [] };
  const { passes, naive_passes, seconds } = plan;
  const told = [
    passes !== null && `${number(passes)} forward passes' worth of computation`,
    passes !== null && naive_passes !== null && passes > 0 && `${number(naive_passes)} with one plain pass for each run (${number(naive_passes / passes)} times as much)`,
    seconds !== null && `${number(seconds)} seconds on the clock`,
  ].filter((text) => text !== false);
  return { id: "cost", title: "What it cost", children: [told.length > 0 && h("p", {}, `${told.join("; ")}.`), h("pre", { tabindex: 0 }, plan.explain)] };
}

/**
 * @param {ModelCard} card
 * @returns {Section}
 */
function model(card) {
  /** @type {[string, string | number][]} */
  const facts = [
    ["architecture", card.architecture],
    ["weights", count(card.n_parameters)],
    ["layers", card.n_layers],
    ["heads", card.n_heads === card.n_kv_heads ? card.n_heads : `${card.n_heads} (${card.n_kv_heads} key/value)`],
    ["residual width", card.d_model],
    ["head width", card.d_head],
    ["MLP width", card.d_mlp === null ? "\u2013" : count(card.d_mlp)],
    ["vocabulary", count(card.d_vocab)],
    ["number format", card.dtype],
    ["device", card.device],
  ];
  const audit = table("Self-check of the sites", ["site", "status", "left over", "check"], card.audit.map((row) => [h("code", {}, row.site), row.status, row.error === null ? "\u2013" : number(row.error), row.detail]));
  return {
    id: "model",
    title: "The model",
    children: [
      h("p", {}, h("b", {}, card.name), " with digest ", h("code", { class: "digest" }, card.digest), "."),
      h("dl", { class: "facts" }, ...facts.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)))),
      card.audit.length > 0 && h("p", {}, "Before the study every kind of site was checked on these weights: ", h("i", {}, "verified"), " sites are what their name says, ", h("i", {}, "structural"), " ones were found by structure alone, ", h("i", {}, "refused"), " ones cannot be used here. \u201cLeft over\u201d is the largest absolute difference that the check found."),
      card.audit.length > 0 && h("div", { class: "wide-table", tabindex: 0, role: "region", "aria-label": "self-check of the sites" }, audit),
    ],
  };
}

/**
 * @param {StudyReport} study
 * @returns {Section}
 */
function again({ rerun }) {
  return {
    id: "rerun",
    title: "Run it again",
    children: [h("p", {}, "The command:"), code(rerun.command), h("p", {}, "The same in Python:"), code(rerun.python), rerun.note !== "" && h("p", {}, rerun.note)],
  };
}

/** @param {string} text */
function code(text) {
  const block = h("pre", { tabindex: 0 }, text);
  const copy = h("button", { type: "button" }, "Copy");
  copy.addEventListener("click", async () => {
    getSelection()?.selectAllChildren(block);
    try {
      await navigator.clipboard.writeText(text);
      copy.textContent = "Copied";
    } catch {
      copy.textContent = "Selected";
    }
  });
  return h("div", { class: "code" }, block, copy);
}

/**
 * @param {StudyReport} study
 * @returns {Section}
 */
function limits({ limits: all }) {
  return { id: "limits", title: "What this does not show", children: all.length ? [h("ul", {}, ...all.map((text) => h("li", {}, text)))] : [] };
}

/**
 * @param {StudyReport} study
 * @param {readonly ArtifactEntry[]} artifacts
 * @returns {Section}
 */
function files({ environment }, artifacts) {
  const { packages, ...rest } = environment;
  const facts = Object.entries({ ...rest, created: when(rest.created), ...packages });
  const rows = artifacts.map((entry) => [h("a", { href: entry.path }, entry.name), count(entry.n_bytes), h("code", { title: entry.sha256 }, entry.sha256.slice(0, 16))]);
  return {
    id: "evidence",
    title: "Evidence and environment",
    children: [
      h("p", {}, "This page is drawn from ", h("code", {}, "report.json"), ", which lists the hash of every file. ", h("code", {}, "cutaway verify"), " recomputes the hashes, the ledger's chain and every verdict from the raw values."),
      rows.length > 0 && h("div", { class: "wide-table", tabindex: 0, role: "region", "aria-label": "files of raw data" }, table("Files of raw data", ["artifact", "bytes", "SHA-256"], rows)),
      h("dl", { class: "facts" }, ...facts.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, String(value))))),
    ],
  };
}

/** @param {StudyReport} study */
function colophon({ environment }) {
  return h("footer", { class: "colophon" }, `Written by Cutaway ${environment.cutaway}. This page needs no network.`);
}

customElements.define("cutaway-report", ReportPage);
