// <cutaway-heat-map>: effects on a grid, such as layers by named positions or layers by heads.

import { diverging, inkOn } from "./color.js";
import { h, rove, s, table } from "./dom.js";
import { divergingLegend, Figure } from "./figure.js";
import { fixed, number, reach } from "./number.js";
import { tokenLabel } from "./token.js";

/** @import { EffectMap } from "./payload" */

/**
 * A map of any numbers; what a report's map has not is left out there.
 * @typedef {Omit<EffectMap, "values" | "half_widths" | "n_examples"> & { readonly values: readonly (readonly (number | null)[])[], readonly half_widths: readonly (readonly (number | null)[])[] | null, readonly n_examples?: number, readonly texts?: readonly (readonly string[])[] | null }} Map
 */

const TEXT_WIDTH = 6.6;
/** Longest column label, in characters. */
const LONGEST = 18;

/**
 * Where everything lies, in pixels.
 * @typedef {object} Grid
 * @property {number} left width of the row labels
 * @property {number} top height of the column labels
 * @property {number} cellWidth
 * @property {number} cellHeight
 * @property {boolean} slanted column labels are turned
 * @property {number} overhang room right of the cells, where turned labels end
 * @property {number} everyColumn every how many columns one has a label
 * @property {number} everyRow every how many rows one has a label
 */

/** @extends {Figure<Map>} */
export class HeatMap extends Figure {
  /** @param {Map} map */
  parts(map) {
    return {
      title: map.title,
      sentence: map.sentence,
      legend: [divergingLegend(reach(numbers(map)), map.unit), map.n_examples !== undefined && h("span", {}, `mean over ${map.n_examples} prompt pairs`)],
      hint: "Point at a cell, or focus the map and use the arrow keys.",
      table: table(
        `${map.title}, in ${map.unit}`,
        [`${map.row_axis} \\ ${map.column_axis}`, ...map.columns],
        map.rows.map((label, row) => [label, ...map.columns.map((_, column) => said(map, row, column))]),
      ),
    };
  }

  /**
   * @param {Map} map
   * @param {number} width
   */
  draw(map, width) {
    const grid = measure(map, width);
    const { left, top, cellWidth, cellHeight } = grid;
    const size = { width: left + cellWidth * map.columns.length + (grid.overhang), height: top + cellHeight * map.rows.length + 2 };
    const cursor = s("rect", { class: "cursor", width: cellWidth, height: cellHeight, rx: 2, fill: "none", stroke: "var(--ink)", "stroke-width": 2, visibility: "hidden" });
    const drawing = s("svg", { ...size, "aria-hidden": "true" }, labels(map, grid), cells(map, grid), cursor);
    const board = h("div", { class: "scroll", role: "application", "aria-roledescription": "heat map", "aria-label": `${map.title}. ${map.rows.length} rows, ${map.columns.length} columns. Arrow keys read the cells; the data table holds the same numbers.` }, drawing);
    const show = (/** @type {number} */ row, /** @type {number} */ column) => {
      cursor.setAttribute("x", String(left + column * cellWidth));
      cursor.setAttribute("y", String(top + row * cellHeight));
      cursor.setAttribute("visibility", "visible");
      this.read(h("b", {}, `${map.row_axis} ${map.rows[row]}, ${map.column_axis} ${map.columns[column]}`), ": ", said(map, row, column), ` ${map.unit}`);
    };
    const leave = () => {
      cursor.setAttribute("visibility", "hidden");
      this.read();
    };
    rove(board, { rows: map.rows.length, columns: map.columns.length, show, leave });
    drawing.addEventListener("pointermove", (event) => {
      const box = drawing.getBoundingClientRect();
      const column = Math.floor((event.clientX - box.left - left) / cellWidth);
      const row = Math.floor((event.clientY - box.top - top) / cellHeight);
      if (row in map.rows && column in map.columns) show(row, column);
    });
    drawing.addEventListener("pointerleave", leave);
    return board;
  }
}

/**
 * A cell's words, its value, and the half width of its interval.
 * @param {Map} map
 * @param {number} row
 * @param {number} column
 */
function said(map, row, column) {
  const value = map.values[row]?.[column] ?? null;
  const half = map.half_widths?.[row]?.[column] ?? null;
  const words = map.texts?.[row]?.[column];
  const told = value === null ? "none" : half === null ? number(value) : `${number(value)} \u00b1 ${number(half)}`;
  return words === undefined ? told : `\u2018${tokenLabel(words, 40)}\u2019 ${told}`;
}

/**
 * The values, with zeros where there are none.
 * @param {Map} map
 */
function numbers({ values }) {
  return values.map((row) => row.map((value) => value ?? 0));
}

/**
 * @param {Map} map
 * @param {number} width
 * @returns {Grid}
 */
function measure(map, width) {
  const longest = Math.max(...map.rows.map((label) => label.length), map.row_axis.length + 2);
  const left = Math.min(Math.ceil(longest * TEXT_WIDTH) + 12, 150, width * 0.34);
  const many = map.columns.length > 12;
  const cellWidth = Math.max(9, Math.min(many ? 30 : 112, (width - left - 6) / map.columns.length));
  const widest = Math.max(...map.columns.map((label) => label.length)) * TEXT_WIDTH;
  const short = widest < 26;
  const slanted = !short && widest + 8 > cellWidth;
  const turned = Math.min(widest, LONGEST * TEXT_WIDTH) * 0.72;
  const tall = map.rows.length <= 12 ? 28 : map.rows.length <= 26 ? 21 : 14;
  const cellHeight = many ? Math.max(12, Math.min(tall, cellWidth)) : tall;
  return {
    left,
    top: 22 + (slanted ? turned + 12 : 18),
    cellWidth: slanted ? Math.max(9, Math.min(cellWidth, (width - left - turned) / map.columns.length)) : cellWidth,
    cellHeight,
    slanted,
    overhang: slanted ? turned : 6,
    everyColumn: slanted ? 1 : Math.ceil((widest + 5) / cellWidth),
    everyRow: cellHeight < 13 ? 2 : 1,
  };
}

/**
 * @param {Map} map
 * @param {Grid} grid
 */
function labels(map, { left, top, cellWidth, cellHeight, slanted, everyColumn, everyRow }) {
  const group = s("g");
  group.append(s("text", { x: left, y: 11 }, `${map.column_axis} \u2192`), s("text", { x: left - 9, y: top - 8, "text-anchor": "end" }, `${map.row_axis} \u2193`));
  const room = Math.floor((left - 10) / TEXT_WIDTH);
  map.rows.forEach((label, row) => {
    if (row % everyRow) return;
    group.append(s("text", { class: "strong", x: left - 9, y: top + (row + 0.5) * cellHeight + 4, "text-anchor": "end" }, cut(label, room)));
  });
  map.columns.forEach((label, column) => {
    if (column % everyColumn) return;
    const x = left + (column + 0.5) * cellWidth;
    const place = slanted ? { transform: `translate(${x - 2} ${top - 7}) rotate(-45)` } : { x, y: top - 7, "text-anchor": "middle" };
    group.append(s("text", { class: "strong", ...place }, cut(label, LONGEST)));
  });
  return group;
}

/**
 * @param {Map} map
 * @param {Grid} grid
 */
function cells(map, { left, top, cellWidth, cellHeight }) {
  const most = reach(numbers(map));
  const written = cellWidth >= 36 && cellHeight >= 18;
  const room = Math.floor((cellWidth - 4) / TEXT_WIDTH);
  const group = s("g");
  map.values.forEach((values, row) =>
    values.forEach((value, column) => {
      if (value === null) return;
      const words = map.texts?.[row]?.[column];
      const x = left + column * cellWidth;
      const y = top + row * cellHeight;
      group.append(s("rect", { x: x + 0.5, y: y + 0.5, width: cellWidth - 1, height: cellHeight - 1, rx: Math.min(2.5, cellWidth / 8), "style:fill": diverging(value, most) }));
      if (!written) return;
      group.append(s("text", { x: x + cellWidth / 2, y: y + cellHeight / 2 + 4, "text-anchor": "middle", "style:fill": inkOn(value, most) }, words === undefined ? fixed(value, 2) : tokenLabel(words, room)));
    }),
  );
  return group;
}

/**
 * A label that fits.
 * @param {string} label
 * @param {number} room in characters
 */
function cut(label, room) {
  return label.length > room ? `${label.slice(0, Math.max(1, room - 1))}\u2026` : label;
}

customElements.define("cutaway-heat-map", HeatMap);
