// The frame of every figure: number, title, one sentence, legend, chart, readout and data table. Charts extend it.

import { h } from "./dom.js";
import { number } from "./number.js";
import { badges, sheet } from "./sheet.js";

/** @import { Child } from "./dom.js" */

/**
 * What a chart hands to its frame.
 * @typedef {object} Parts
 * @property {string} title heading
 * @property {string} sentence what it shows and how to read it
 * @property {Child[]} [legend] keys, with the unit
 * @property {Child[]} [controls] choices above the chart
 * @property {HTMLElement | null} table the same numbers as a table
 * @property {string} [hint] what the readout says while nothing is pointed at; without one there is no readout
 */

/**
 * A figure fed by its `data` property. It draws itself when it has data and a width, and again when the width changes.
 * @template Data
 * @abstract
 */
export class Figure extends HTMLElement {
  /** @type {Data | undefined} */
  #data;
  #width = 0;
  #readout = h("p", { class: "readout", role: "status" });
  #chart = h("div", { class: "chart" });
  #hint = "";
  /** @type {ResizeObserver | undefined} */
  #observer;

  /** @param {CSSStyleSheet[]} styles */
  constructor(...styles) {
    super();
    const root = this.attachShadow({ mode: "open" });
    root.adoptedStyleSheets = [sheet, badges, ...styles];
  }

  /** Number of the figure on its page; empty for none. */
  number = "";

  get data() {
    return this.#data;
  }

  set data(value) {
    this.#data = value;
    if (value === undefined) return;
    this.#frame(this.parts(value));
    this.#redraw();
  }

  connectedCallback() {
    this.#observer = new ResizeObserver((entries) => {
      const width = Math.floor(entries[0]?.contentRect.width ?? 0);
      if (width === this.#width) return;
      this.#width = width;
      requestAnimationFrame(() => this.#redraw());
    });
    this.#observer.observe(this);
  }

  disconnectedCallback() {
    this.#observer?.disconnect();
  }

  /**
   * Text around the chart.
   * @abstract
   * @param {Data} _data
   * @returns {Parts}
   */
  parts(_data) {
    throw new Error("a figure says what stands around its chart");
  }

  /**
   * The chart itself, at a width in pixels.
   * @abstract
   * @param {Data} _data
   * @param {number} _width
   * @returns {Node}
   */
  draw(_data, _width) {
    throw new Error("a figure draws itself");
  }

  /**
   * Put text under the chart; without any, the hint returns.
   * @param {...Child} children
   */
  read(...children) {
    this.#readout.replaceChildren(
      ...(children.length ? children : [this.#hint]).map((child) => (child instanceof Node ? child : String(child ?? ""))),
    );
  }

  /** Draw again, after a choice changed. */
  redraw() {
    this.#redraw();
  }

  #redraw() {
    if (this.#data === undefined || this.#width < 40) return;
    const held = this.shadowRoot?.activeElement !== null && this.#chart.contains(this.shadowRoot?.activeElement ?? null);
    this.#chart.replaceChildren(this.draw(this.#data, this.#width));
    if (held) /** @type {HTMLElement | null} */ (this.#chart.querySelector("[tabindex='0']"))?.focus();
  }

  /** @param {Parts} parts */
  #frame({ title, sentence, legend = [], controls = [], table, hint = "" }) {
    this.#hint = hint;
    this.read();
    const figure = h(
      "figure",
      { "aria-label": title },
      h(
        "figcaption",
        {},
        this.number !== "" && h("span", { class: "number" }, `Figure ${this.number}`),
        h("span", { class: "title" }, title),
        h("p", { class: "sentence" }, sentence),
      ),
      controls.length > 0 && h("div", { class: "controls" }, ...controls),
      legend.length > 0 && h("div", { class: "legend" }, ...legend),
      this.#chart,
      hint !== "" && this.#readout,
      table && h("details", {}, h("summary", {}, "Data table"), h("div", { class: "cells", tabindex: 0, role: "region", "aria-label": `${title}: data table` }, table)),
    );
    this.shadowRoot?.replaceChildren(figure);
  }
}

/**
 * A legend entry: a mark and its meaning.
 * @param {Node} mark
 * @param {string} text
 */
export function key(mark, text) {
  return h("span", { class: "key" }, mark, text);
}

/**
 * Legend of a colour scale centred at zero.
 * @param {number} reach
 * @param {string} unit
 */
export function divergingLegend(reach, unit) {
  const ramp = h("i", { "style:background": "linear-gradient(in oklab to right, var(--negative), var(--zero), var(--positive))" });
  return h("span", { class: "key" }, h("span", { class: "ramp" }, number(-reach), ramp, `+${number(reach)}`), unit);
}

/**
 * Legend of a colour scale from 0 to 1.
 * @param {string} unit
 */
export function sequentialLegend(unit) {
  const ramp = h("i", { "style:background": "linear-gradient(in oklab to right, var(--zero), var(--positive))" });
  return h("span", { class: "key" }, h("span", { class: "ramp" }, "0", ramp, "1"), unit);
}

/**
 * A small round mark for legends.
 * @param {string} color
 */
export function dot(color) {
  return h("span", { class: "dot", "style:background": color });
}
