// <cutaway-lines>: numbers along one axis, such as layers, one line a name.

import { bottomAxis, leftAxis } from "./axis.js";
import { h, rove, s, table } from "./dom.js";
import { Figure, key } from "./figure.js";
import { extent, linear, number } from "./number.js";

/** @typedef {{ title: string, sentence: string, unit: string, x_axis: string, x: readonly number[], lines: Readonly<Record<string, readonly (number | null)[]>>, x_labels: readonly string[] | null }} Lines */

const HEIGHT = 240;
/** Lines are told apart by their dashes too. */
const INKS = ["var(--positive)", "var(--negative)", "var(--accent)", "var(--ink)", "var(--muted)"];
const DASHES = ["", "6 3", "2 3", "9 3 2 3", "1 4"];

/** @extends {Figure<Lines>} */
export class LineChart extends Figure {
  /** @param {Lines} data */
  parts({ title, sentence, unit, x_axis, x, lines, x_labels }) {
    const names = Object.keys(lines);
    return {
      title,
      sentence,
      legend: [...names.map((name, index) => key(sample(index), name)), h("span", {}, `unit: ${unit}`)],
      hint: "Point at the chart, or focus it and use the arrow keys.",
      table: table(`${title}, in ${unit}`, [x_axis, ...names], x.map((at, index) => [x_labels?.[index] ?? number(at), ...names.map((name) => said(lines[name]?.[index]))])),
    };
  }

  /**
   * @param {Lines} data
   * @param {number} width
   */
  draw({ title, unit, x_axis, x, lines, x_labels }, width) {
    const [left, right] = [56, width - 14];
    const known = Object.values(lines).flat().filter((value) => value !== null);
    const domain = extent(known.length ? known : [0, 1]);
    const along = extent(x, 0);
    const across = linear(along, [left, right]);
    const scale = linear(domain, [HEIGHT, 10]);
    const drawing = s("svg", { width, height: HEIGHT + 42, "aria-hidden": "true" });
    drawing.append(leftAxis({ scale, domain, left, right, height: HEIGHT }));
    drawing.append(bottomAxis({ scale: across, domain: along, top: 10, bottom: HEIGHT, width: right - left, title: x_axis, middle: (left + right) / 2 }));
    Object.values(lines).forEach((values, index) => drawing.append(...pieces(values, x, across, scale, index)));
    const cursor = s("line", { class: "cursor", y1: 10, y2: HEIGHT, stroke: "var(--ink)", "stroke-width": 1, visibility: "hidden" });
    drawing.append(cursor);
    const board = h("div", { role: "application", "aria-roledescription": "line chart", "aria-label": `${title}, in ${unit}. Arrow keys read along the axis; the data table holds the same numbers.` }, drawing);
    const show = (/** @type {number} */ index) => {
      const at = x[index];
      if (at === undefined) return;
      cursor.setAttribute("x1", String(across(at)));
      cursor.setAttribute("x2", String(across(at)));
      cursor.setAttribute("visibility", "visible");
      const values = Object.entries(lines).map(([name, row]) => `${name} ${said(row[index])}`);
      this.read(h("b", {}, `${x_axis} ${x_labels?.[index] ?? number(at)}`), `: ${values.join(", ")} ${unit}`);
    };
    const leave = () => {
      cursor.setAttribute("visibility", "hidden");
      this.read();
    };
    rove(board, { rows: 1, columns: x.length, show: (_, index) => show(index), leave });
    drawing.addEventListener("pointermove", (event) => {
      const place = event.clientX - drawing.getBoundingClientRect().left;
      const distances = x.map((at) => Math.abs(across(at) - place));
      show(distances.indexOf(Math.min(...distances)));
    });
    drawing.addEventListener("pointerleave", leave);
    return board;
  }
}

/** @param {number | null | undefined} value */
function said(value) {
  return value === null || value === undefined ? "none" : number(value);
}

/**
 * How a line looks.
 * @param {number} index
 */
function ink(index) {
  return { stroke: INKS[index % INKS.length] ?? "", "stroke-dasharray": DASHES[index % DASHES.length] || undefined, "stroke-width": 2, fill: "none" };
}

/** @param {number} index */
function sample(index) {
  return s("svg", { width: 24, height: 10 }, s("line", { x1: 1, x2: 23, y1: 5, y2: 5, ...ink(index) }));
}

/**
 * A line, broken where there is no number; a number between two gaps is a dot.
 * @param {readonly (number | null)[]} values
 * @param {readonly number[]} x
 * @param {(value: number) => number} across
 * @param {(value: number) => number} scale
 * @param {number} index
 */
function pieces(values, x, across, scale, index) {
  /** @type {string[][]} */
  const runs = [[]];
  values.forEach((value, at) => {
    if (value === null) runs.push([]);
    else runs[runs.length - 1]?.push(`${across(x[at] ?? 0)},${scale(value)}`);
  });
  return runs.filter((run) => run.length).map((run) => {
    const [cx, cy] = (run[0] ?? "").split(",");
    return run.length > 1 ? s("polyline", { points: run.join(" "), ...ink(index) }) : s("circle", { cx, cy, r: 3, fill: INKS[index % INKS.length] ?? "" });
  });
}

customElements.define("cutaway-lines", LineChart);
