// <cutaway-gallery>: figures of any result, one below the other, from the payload that stands in the document.

import "./effect-series.js";
import "./heat-map.js";
import "./line-chart.js";
import "./scatter-plot.js";
import "./shaded-text.js";
import { h } from "./dom.js";

/** @import { Lines } from "./line-chart.js" */
/** @import { Shaded } from "./shaded-text.js" */
/** @import { EffectMap } from "./payload" */

/** @typedef {{ kind: "Heatmap" } & EffectMap} Heatmap */
/** @typedef {{ kind: "Bars", title: string, sentence: string, unit: string, labels: readonly string[], values: readonly (number | null)[], half_widths: readonly (number | null)[] | null }} Bars */
/** @typedef {{ kind: "Points", title: string, sentence: string, x_axis: string, y_axis: string, labels: readonly string[], x: readonly (number | null)[], y: readonly (number | null)[] }} Points */
/** @typedef {Heatmap | Bars | ({ kind: "Lines" } & Lines) | Points | ({ kind: "Strip" } & Shaded)} Drawn */

class GalleryPage extends HTMLElement {
  connectedCallback() {
    /** @type {{ title: string, figures: readonly Drawn[] }} */
    const { title, figures } = JSON.parse(document.getElementById("payload")?.textContent ?? "");
    const elements = figures.map((figure, index) => drawn(figure, figures.length > 1 ? String(index + 1) : ""));
    const head = h("header", { class: "head" }, h("p", { class: "kicker" }, "Cutaway"), h("h1", {}, title));
    const foot = h("footer", { class: "colophon" }, "Written by Cutaway. This page needs no network.");
    this.replaceChildren(h("div", { class: "page alone" }, h("main", {}, head, ...elements, foot)));
    this.dataset.ready = "true";
  }
}

/**
 * The element of a figure.
 * @param {Drawn} figure
 * @param {string} number
 */
function drawn(figure, number) {
  const [tag, data] = fed(figure);
  const element = /** @type {HTMLElement & { data: unknown, number: string }} */ (document.createElement(tag));
  element.number = number;
  element.data = data;
  return element;
}

/**
 * Element and data of a figure.
 * @param {Drawn} figure
 * @returns {[string, unknown]}
 */
function fed(figure) {
  if (figure.kind === "Heatmap") return ["cutaway-heat-map", figure];
  if (figure.kind === "Lines") return ["cutaway-lines", figure];
  if (figure.kind === "Strip") return ["cutaway-shaded-text", figure];
  if (figure.kind === "Bars") {
    const items = figure.labels.map((label, index) => ({ label, value: figure.values[index] ?? 0, half_width: figure.half_widths?.[index] ?? null }));
    return ["cutaway-effects", { ...figure, items }];
  }
  const points = figure.labels.map((label, index) => ({ label, exact: figure.x[index] ?? 0, estimate: figure.y[index] ?? 0 }));
  return ["cutaway-scatter", { ...figure, unit: "", correlation: null, points }];
}

customElements.define("cutaway-gallery", GalleryPage);
