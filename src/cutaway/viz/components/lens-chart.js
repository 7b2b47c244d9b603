// <cutaway-lens>: what each layer's residual stream would predict at the answer position, in numbers and in tokens.

import { leftAxis } from "./axis.js";
import { inkOn, sequential } from "./color.js";
import { h, rove, s, table } from "./dom.js";
import { Figure, key } from "./figure.js";
import { bounded, extent, interval, linear, percent } from "./number.js";
import { styled } from "./sheet.js";
import { tokenText } from "./token.js";

/** @import { LensLayer, LensReadout, TopToken } from "./payload" */
/** @typedef {{ lens: LensReadout, metric: string, unit: string, title: string }} Lens */
/** @typedef {{ values: readonly number[], color: string, dashed?: boolean }} Line */

const HEIGHT = 190;

const own = styled(`
.panels { display: grid; gap: 26px 32px; }
.panels.two { grid-template-columns: 1fr 1fr; }
.panel h4 { margin: 0 0 6px; font-size: 12.5px; font-weight: 600; color: var(--ink); }
.tops { margin-top: 24px; }
.tops h4 { margin: 0 0 8px; font-size: 12.5px; font-weight: 600; overflow-wrap: anywhere; }
.layers { max-height: 460px; overflow: auto; }
.layer { display: grid; grid-template-columns: 104px minmax(0, 1fr); gap: 8px; align-items: baseline; padding: 4px 0; border-top: 1px solid var(--rule); }
.guesses { display: flex; flex-wrap: wrap; gap: 3px 4px; padding: 1.5px; }
.layer > b { font-weight: 400; color: var(--muted); font-family: var(--mono); font-size: 11.5px; overflow-wrap: anywhere; }
.guess { font-family: var(--mono); font-size: 12px; padding: 2px 6px; border-radius: 3px; white-space: pre-wrap; overflow-wrap: anywhere; }
.guess i { font-style: normal; opacity: .6; }
.guess small { font-family: var(--sans); font-size: 10.5px; margin-left: 5px; opacity: .8; }
.guess.answer { outline: 1.5px solid var(--ink); }
`);

/** @extends {Figure<Lens>} */
export class LensChart extends Figure {
  constructor() {
    super(own);
  }

  /** @param {Lens} data */
  parts({ lens, unit, metric, title }) {
    return {
      title,
      sentence: lens.sentence,
      legend: [
        key(stroke("var(--accent)"), `${metric} (${unit}), with its interval`),
        key(stroke("var(--positive)"), "probability of the answer"),
        key(stroke("var(--negative)", true), "probability of the foil"),
        h("span", {}, `mean over ${lens.n_examples} prompts`),
      ],
      hint: "Point at a layer, or focus the chart and use the arrow keys.",
      table: table(
        `${title}: ${metric} in ${unit}`,
        ["site", `${metric} (${unit})`, "answer", "foil", "likeliest tokens"],
        lens.layers.map((layer) => [layer.label, interval(layer.metric), percent(layer.answer_prob), percent(layer.foil_prob), layer.top.map((one) => one.token).join(" | ")]),
      ),
    };
  }

  /**
   * @param {Lens} data
   * @param {number} width
   */
  draw({ lens, metric, unit, title }, width) {
    const layers = lens.layers;
    const two = width >= 620;
    const each = two ? (width - 32) / 2 : width;
    const metricDomain = extent([0, ...layers.flatMap((layer) => bounded(layer.metric))]);
    const left = panel(layers, each, metricDomain, [{ values: layers.map((layer) => layer.metric.value), color: "var(--accent)" }], true);
    const right = panel(layers, each, [0, 1], [
      { values: layers.map((layer) => layer.foil_prob), color: "var(--negative)", dashed: true },
      { values: layers.map((layer) => layer.answer_prob), color: "var(--positive)" },
    ]);
    const panels = [left, right];
    const board = h(
      "div",
      { class: `panels${two ? " two" : ""}`, role: "application", "aria-roledescription": "line chart", "aria-label": `${title}. Arrow keys read the layers; the data table holds the same numbers.` },
      h("div", { class: "panel" }, h("h4", {}, `${metric} (${unit})`), left.drawing),
      h("div", { class: "panel" }, h("h4", {}, "probability (0 to 1)"), right.drawing),
    );
    const show = (/** @type {number} */ index) => {
      const layer = layers[index];
      if (!layer) return;
      panels.forEach(({ cursor, x }) => {
        cursor.setAttribute("x", String(x(index) - 1));
        cursor.setAttribute("visibility", "visible");
      });
      this.read(h("b", {}, layer.label), `: ${metric} ${interval(layer.metric)} ${unit}; answer ${percent(layer.answer_prob)}, foil ${percent(layer.foil_prob)}`);
    };
    const leave = () => {
      panels.forEach(({ cursor }) => cursor.setAttribute("visibility", "hidden"));
      this.read();
    };
    rove(board, { rows: 1, columns: layers.length, show: (_, index) => show(index), leave });
    panels.forEach(({ drawing, at }) => {
      drawing.addEventListener("pointermove", (event) => show(at(event.clientX - drawing.getBoundingClientRect().left)));
      drawing.addEventListener("pointerleave", leave);
    });
    return h("div", {}, board, tops(lens));
  }
}

/**
 * One small chart over the layers.
 * @param {readonly LensLayer[]} layers
 * @param {number} width
 * @param {readonly [number, number]} domain
 * @param {readonly Line[]} lines
 * @param {boolean} [banded] draw the metric's interval
 */
function panel(layers, width, domain, lines, banded = false) {
  const left = 44;
  const y = linear(domain, [HEIGHT, 8]);
  const last = layers.length - 1;
  const x = linear([0, last], [left + 10, width - 12]);
  const drawing = s("svg", { width, height: HEIGHT + 44, "aria-hidden": "true" }, leftAxis({ scale: y, domain, left, right: width, height: HEIGHT }), layerAxis(layers, x, width - left));
  if (banded) {
    const upper = layers.map((layer, index) => `${x(index)},${y(layer.metric.high ?? domain[1])}`);
    const lower = layers.map((layer, index) => `${x(index)},${y(layer.metric.low ?? domain[0])}`).reverse();
    drawing.append(s("polygon", { points: [...upper, ...lower].join(" "), fill: "var(--accent)", "fill-opacity": 0.16 }));
  }
  for (const { values, color, dashed } of lines) {
    const points = values.map((value, index) => `${x(index)},${y(value)}`).join(" ");
    drawing.append(s("polyline", { points, fill: "none", stroke: color, "stroke-width": 2, "stroke-linejoin": "round", "stroke-dasharray": dashed ? "5 3" : undefined }));
    values.forEach((value, index) => drawing.append(s("circle", { cx: x(index), cy: y(value), r: values.length > 24 ? 2 : 3, fill: color })));
  }
  const cursor = s("rect", { class: "cursor", y: 4, width: 2, height: HEIGHT - 4, fill: "var(--ink)", "fill-opacity": 0.5, visibility: "hidden" });
  drawing.append(cursor);
  const at = (/** @type {number} */ place) => Math.max(0, Math.min(last, Math.round(((place - left - 10) / (width - 22 - left)) * last)));
  return { drawing, cursor, x, at };
}

/**
 * @param {readonly LensLayer[]} layers
 * @param {(index: number) => number} x
 * @param {number} width
 */
function layerAxis(layers, x, width) {
  const every = Math.ceil(layers.length / Math.max(2, Math.floor(width / 34)));
  const group = s("g");
  layers.forEach((layer, index) => {
    if (index % every) return;
    group.append(s("text", { x: x(index), y: HEIGHT + 17, "text-anchor": "middle" }, layer.label === "resid_pre.0" ? "in" : (/\d+$/.exec(layer.label)?.[0] ?? (layers.length < 8 ? layer.label : String(index)))));
  });
  group.append(s("text", { x: (x(0) + x(layers.length - 1)) / 2, y: HEIGHT + 37, "text-anchor": "middle" }, "layer"));
  return group;
}

/** @param {LensReadout} lens */
function tops({ layers, example, answer }) {
  if (!layers.some((layer) => layer.top.length)) return h("div");
  return h(
    "div",
    { class: "tops" },
    h("h4", {}, `Likeliest tokens at the answer position${example === null ? "" : `, pair ${example}`} (the outlined one is the answer)`),
    h(
      "div",
      { class: "layers", tabindex: 0, role: "region", "aria-label": "likeliest tokens by layer" },
      ...layers.map((layer) =>
        h(
          "div",
          { class: "layer" },
          h("b", {}, layer.label),
          h("div", { class: "guesses" }, ...layer.top.map((one) => guess(one, one.token === answer))),
        ),
      ),
    ),
  );
}

/**
 * @param {TopToken} one
 * @param {boolean} right
 */
function guess({ token, prob }, right) {
  return h("span", { class: `guess${right ? " answer" : ""}`, "style:background": sequential(prob), "style:color": inkOn(prob, 1) }, tokenText(token, 20), h("small", {}, percent(prob)));
}

/**
 * @param {string} color
 * @param {boolean} [dashed]
 */
function stroke(color, dashed = false) {
  return s("svg", { width: 24, height: 10 }, s("line", { x1: 1, x2: 23, y1: 5, y2: 5, stroke: color, "stroke-width": 2.5, "stroke-dasharray": dashed ? "5 3" : undefined }));
}

customElements.define("cutaway-lens", LensChart);
