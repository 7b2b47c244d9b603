// <cutaway-scatter>: the estimated effect of each component beside its exact one; on the diagonal they agree.

import { bottomAxis, leftAxis } from "./axis.js";
import { h, rove, s, table } from "./dom.js";
import { dot, Figure, key } from "./figure.js";
import { extent, fixed, linear, number } from "./number.js";

/** @import { Attribution, AttributionPoint } from "./payload" */
/** @typedef {Attribution & { readonly x_axis?: string, readonly y_axis?: string }} Dots */

const EXACT = "exact effect (patching)";
const ESTIMATED = "estimated effect (attribution)";

const NAMED = 5;

/** @extends {Figure<Dots>} */
export class Scatter extends Figure {
  /** @param {Dots} data */
  parts({ title, sentence, unit, points, correlation, x_axis = "exact", y_axis = "estimate" }) {
    return {
      title,
      sentence,
      legend: [
        key(dot("var(--accent)"), "one component"),
        key(s("svg", { width: 22, height: 14 }, s("line", { x1: 1, y1: 13, x2: 21, y2: 1, stroke: "var(--faint)", "stroke-width": 1.5, "stroke-dasharray": "4 3" })), `${y_axis} = ${x_axis}`),
        correlation !== null && h("span", {}, `correlation ${fixed(correlation, 3)} over ${points.length} components`),
        unit !== "" && h("span", {}, `unit: ${unit}`),
      ],
      hint: "Point at a dot, or focus the chart and use the arrow keys: largest effect first.",
      table: table(unit === "" ? title : `${title}, in ${unit}`, ["component", x_axis, y_axis], ranked(points).map((point) => [point.label, number(point.exact), number(point.estimate)])),
    };
  }

  /**
   * @param {Dots} data
   * @param {number} width
   */
  draw({ title, points, x_axis, y_axis }, width) {
    const [left, top] = [52, 22];
    const side = Math.min(width - left - 12, 620);
    const height = Math.min(side, 400);
    const xDomain = extent([0, ...points.map((point) => point.exact)], 0.08);
    const yDomain = extent([0, ...points.map((point) => point.estimate)], 0.1);
    const x = linear(xDomain, [left, left + side]);
    const y = linear(yDomain, [top + height, top]);
    const drawing = s("svg", { width: left + side + 10, height: top + height + 44, "aria-hidden": "true" });
    drawing.append(bottomAxis({ scale: x, domain: xDomain, top, bottom: top + height, width: side, title: x_axis ?? EXACT, middle: left + side / 2 }));
    drawing.append(leftAxis({ scale: y, domain: yDomain, left, right: left + side, height }), s("text", { x: 0, y: 10 }, `\u2191 ${y_axis ?? ESTIMATED}`));
    const from = Math.max(xDomain[0], yDomain[0]);
    const to = Math.min(xDomain[1], yDomain[1]);
    if (from < to) drawing.append(s("line", { x1: x(from), y1: y(from), x2: x(to), y2: y(to), stroke: "var(--faint)", "stroke-width": 1.5, "stroke-dasharray": "4 3" }));
    const order = ranked(points);
    const radius = points.length > 300 ? 2.6 : 4;
    order.forEach((point, index) => drawing.append(s("circle", { cx: x(point.exact), cy: y(point.estimate), r: radius, "data-index": index, fill: "var(--accent)", "fill-opacity": 0.6 })));
    drawing.append(names(order, x, y, left + side));
    const cursor = s("circle", { class: "cursor", r: 8, fill: "none", stroke: "var(--ink)", "stroke-width": 2, visibility: "hidden" });
    drawing.append(cursor);
    const board = h("div", { role: "application", "aria-roledescription": "scatter plot", "aria-label": `${title}. Arrow keys read the components, largest effect first; the data table holds the same numbers.` }, drawing);
    const show = (/** @type {number} */ index) => {
      const point = order[index];
      if (!point) return;
      cursor.setAttribute("cx", String(x(point.exact)));
      cursor.setAttribute("cy", String(y(point.estimate)));
      cursor.setAttribute("visibility", "visible");
      this.read(h("b", {}, point.label), `: ${x_axis ?? "exact"} ${number(point.exact)}, ${y_axis ?? "estimate"} ${number(point.estimate)}`);
    };
    const leave = () => {
      cursor.setAttribute("visibility", "hidden");
      this.read();
    };
    rove(board, { rows: 1, columns: order.length, show: (_, index) => show(index), leave });
    drawing.addEventListener("pointermove", (event) => {
      const index = /** @type {Element} */ (event.target).getAttribute("data-index");
      if (index !== null) show(Number(index));
    });
    drawing.addEventListener("pointerleave", leave);
    return board;
  }
}

/**
 * Largest exact effect first.
 * @param {readonly AttributionPoint[]} points
 */
function ranked(points) {
  return [...points].sort((a, b) => Math.abs(b.exact) - Math.abs(a.exact));
}

/**
 * Names beside the largest dots; a name that would lie on another one is left out.
 * @param {readonly AttributionPoint[]} order
 * @param {(value: number) => number} x
 * @param {(value: number) => number} y
 * @param {number} edge
 */
function names(order, x, y, edge) {
  const group = s("g");
  /** @type {{ x: number, y: number, width: number }[]} */
  const taken = [];
  for (const point of order.slice(0, NAMED)) {
    const width = point.label.length * 6.8;
    const at = { x: x(point.exact) + 9, y: y(point.estimate) + 4, width };
    if (at.x + width > edge) at.x = x(point.exact) - 9 - width;
    if (taken.some((other) => Math.abs(other.y - at.y) < 14 && at.x < other.x + other.width && other.x < at.x + width)) continue;
    taken.push(at);
    group.append(s("text", { class: "strong mono halo", x: at.x, y: at.y }, point.label));
  }
  return group;
}

customElements.define("cutaway-scatter", Scatter);
