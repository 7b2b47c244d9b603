// <cutaway-behavior>: the metric of every example, clean and corrupt, and the gap between them with its interval.

import { bottomAxis, swarm } from "./axis.js";
import { h, rove, s, table } from "./dom.js";
import { dot, Figure, key } from "./figure.js";
import { bounded, extent, interval, linear, number } from "./number.js";

/** @import { BehaviorCheck } from "./payload" */
/** @typedef {{ behavior: BehaviorCheck, unit: string, metric: string, title: string, sentence: string }} Behavior */
/** @typedef {{ name: string, values: readonly number[], color: string }} Row */

const ROW = 62;

/** @extends {Figure<Behavior>} */
export class BehaviorPlot extends Figure {
  /** @param {Behavior} data */
  parts({ behavior, unit, title, sentence }) {
    return {
      title,
      sentence,
      legend: [
        key(dot("var(--positive)"), "clean prompt"),
        key(dot("var(--negative)"), "corrupt prompt"),
        key(dot("var(--control)"), "gap of one pair"),
        key(mark(), "mean gap with its interval"),
        key(dash(), `least gap that counts: ${number(behavior.threshold)} ${unit}`),
      ],
      hint: "Focus the chart and use the arrow keys to read it pair by pair.",
      table: table(
        `${title}, in ${unit}`,
        ["example", "cluster", "clean", "corrupt", "gap"],
        behavior.clean.map((clean, index) => [index, behavior.clusters[index], number(clean), number(behavior.corrupt[index] ?? 0), number(clean - (behavior.corrupt[index] ?? 0))]),
      ),
    };
  }

  /**
   * @param {Behavior} data
   * @param {number} width
   */
  draw({ behavior, unit, metric, title }, width) {
    const gaps = behavior.clean.map((clean, index) => clean - (behavior.corrupt[index] ?? 0));
    /** @type {Row[]} */
    const rows = [
      { name: "clean", values: behavior.clean, color: "var(--positive)" },
      { name: "corrupt", values: behavior.corrupt, color: "var(--negative)" },
      { name: "gap", values: gaps, color: "var(--control)" },
    ];
    const left = 62;
    const bottom = 3 * ROW + 4;
    const domain = extent([...rows.flatMap((row) => row.values), 0, behavior.threshold, ...bounded(behavior.gap)], 0.04);
    const scale = linear(domain, [left, width - 10]);
    const drawing = s("svg", { width, height: bottom + 44, "aria-hidden": "true" });
    drawing.append(bottomAxis({ scale, domain, top: 4, bottom, width: width - left, title: `${metric} (${unit})`, middle: (left + width) / 2 }));
    const places = rows.map((row, index) => dots(drawing, row, scale, ROW * (index + 0.5)));
    gapMark(drawing, behavior, scale, [left, width]);
    const cursors = places.map(() => s("circle", { class: "cursor", r: 6, fill: "none", stroke: "var(--ink)", "stroke-width": 2, visibility: "hidden" }));
    drawing.append(...cursors);
    const board = h("div", { role: "application", "aria-roledescription": "dot plot", "aria-label": `${title}. Mean gap ${interval(behavior.gap)} ${unit}. Arrow keys read the pairs; the data table holds the same numbers.` }, drawing);
    const show = (/** @type {number} */ index) => {
      cursors.forEach((cursor, row) => {
        const place = places[row]?.[index];
        cursor.setAttribute("cx", String(place?.x ?? 0));
        cursor.setAttribute("cy", String(place?.y ?? 0));
        cursor.setAttribute("visibility", "visible");
      });
      const said = rows.map((row) => `${row.name} ${number(row.values[index] ?? 0)}`).join(", ");
      this.read(h("b", {}, `Pair ${index}, cluster ${behavior.clusters[index]}`), `: ${said} ${unit}`);
    };
    const leave = () => {
      cursors.forEach((cursor) => cursor.setAttribute("visibility", "hidden"));
      this.read();
    };
    rove(board, { rows: 1, columns: gaps.length, show: (_, index) => show(index), leave });
    drawing.addEventListener("pointermove", (event) => {
      const index = /** @type {Element} */ (event.target).getAttribute("data-index");
      if (index !== null) show(Number(index));
    });
    drawing.addEventListener("pointerleave", leave);
    return board;
  }
}

/**
 * Draw one row of dots; returns their places.
 * @param {SVGElement} drawing
 * @param {Row} row
 * @param {(value: number) => number} scale
 * @param {number} middle
 */
function dots(drawing, { name, values, color }, scale, middle) {
  const radius = values.length > 150 ? 2.2 : 3.2;
  const xs = values.map(scale);
  const lanes = swarm(xs, radius * 2.1, Math.floor(20 / (radius * 2)));
  const places = xs.map((x, index) => ({ x, y: middle + (lanes[index] ?? 0) * radius * 2 }));
  drawing.append(s("text", { class: "strong", x: 0, y: middle + 4 }, name));
  places.forEach(({ x, y }, index) => drawing.append(s("circle", { cx: x, cy: y, r: radius, "data-index": index, "style:fill": color, "fill-opacity": 0.62 })));
  return places;
}

/**
 * @param {SVGElement} drawing
 * @param {BehaviorCheck} behavior
 * @param {(value: number) => number} scale
 * @param {readonly [number, number]} ends where an unbounded interval ends
 */
function gapMark(drawing, { gap, threshold }, scale, ends) {
  const middle = 2.5 * ROW;
  const [low, high, at, least] = [gap.low === null ? ends[0] : scale(gap.low), gap.high === null ? ends[1] : scale(gap.high), scale(gap.value), scale(threshold)];
  drawing.append(
    s("line", { x1: least, x2: least, y1: 2 * ROW + 6, y2: 3 * ROW, stroke: "var(--ink)", "stroke-width": 1.5, "stroke-dasharray": "4 3" }),
    s("line", { x1: low, x2: high, y1: middle, y2: middle, stroke: "var(--paper)", "stroke-width": 7 }),
    s("line", { x1: low, x2: high, y1: middle, y2: middle, stroke: "var(--ink)", "stroke-width": 3, "stroke-linecap": "round" }),
    s("circle", { cx: at, cy: middle, r: 6, fill: "var(--ink)", stroke: "var(--paper)", "stroke-width": 2 }),
  );
}

function mark() {
  return s("svg", { width: 26, height: 12 }, s("line", { x1: 1, x2: 25, y1: 6, y2: 6, stroke: "var(--ink)", "stroke-width": 3, "stroke-linecap": "round" }), s("circle", { cx: 13, cy: 6, r: 5, fill: "var(--ink)" }));
}

function dash() {
  return s("svg", { width: 10, height: 14 }, s("line", { x1: 5, x2: 5, y1: 0, y2: 14, stroke: "var(--ink)", "stroke-width": 1.5, "stroke-dasharray": "4 3" }));
}

customElements.define("cutaway-behavior", BehaviorPlot);
