// <cutaway-effects>: effects of a row of components, such as the MLPs from the first layer to the last, as columns.

import { leftAxis } from "./axis.js";
import { h, rove, s, table } from "./dom.js";
import { dot, Figure, key } from "./figure.js";
import { extent, linear, number } from "./number.js";

/** @import { EffectSeries, LabelledEffect } from "./payload" */

const HEIGHT = 190;

/** @extends {Figure<EffectSeries>} */
export class Effects extends Figure {
  /** @param {EffectSeries} series */
  parts({ title, sentence, unit, items }) {
    return {
      title,
      sentence,
      legend: [
        key(dot("var(--positive)"), "positive"),
        key(dot("var(--negative)"), "negative"),
        h("span", {}, `unit: ${unit}`),
        items.some((item) => item.half_width !== null) && h("span", {}, "thin line: interval of the mean"),
      ],
      hint: "Point at a column, or focus the chart and use the arrow keys.",
      table: table(`${title}, in ${unit}`, ["component", unit], items.map((item) => [item.label, said(item)])),
    };
  }

  /**
   * @param {EffectSeries} series
   * @param {number} width
   */
  draw({ title, unit, items }, width) {
    const left = 52;
    const domain = extent([0, ...items.flatMap((item) => [item.value - (item.half_width ?? 0), item.value + (item.half_width ?? 0)])]);
    const scale = linear(domain, [HEIGHT, 8]);
    const step = Math.min(64, (width - left - 4) / items.length);
    const right = left + step * items.length;
    const { axis, names } = naming(items);
    const longest = Math.max(...names.map((name) => name.length));
    const slanted = axis === "" && longest * 6.8 > step;
    const foot = slanted ? Math.min(longest, 16) * 5 + 16 : 42;
    const drawing = s("svg", { width, height: HEIGHT + foot, "aria-hidden": "true" });
    drawing.append(leftAxis({ scale, domain, left, right, height: HEIGHT }));
    const every = Math.ceil((slanted ? 19 : longest * 6.8 + 6) / step);
    items.forEach((item, index) => drawing.append(column(item, { x: left + index * step, step, scale, name: index % every ? "" : names[index] ?? "", slanted })));
    drawing.append(s("text", { x: (left + right) / 2, y: HEIGHT + 36, "text-anchor": "middle" }, axis));
    const cursor = s("rect", { class: "cursor", y: 4, width: step, height: HEIGHT, rx: 3, fill: "none", stroke: "var(--ink)", "stroke-width": 1.5, visibility: "hidden" });
    drawing.append(cursor);
    const board = h("div", { role: "application", "aria-roledescription": "column chart", "aria-label": `${title}, in ${unit}. Arrow keys read the columns; the data table holds the same numbers.` }, drawing);
    const show = (/** @type {number} */ index) => {
      const item = items[index];
      if (!item) return;
      cursor.setAttribute("x", String(left + index * step));
      cursor.setAttribute("visibility", "visible");
      this.read(h("b", {}, item.label), `: ${said(item)} ${unit}`);
    };
    const leave = () => {
      cursor.setAttribute("visibility", "hidden");
      this.read();
    };
    rove(board, { rows: 1, columns: items.length, show: (_, index) => show(index), leave });
    drawing.addEventListener("pointermove", (event) => show(Math.floor((event.clientX - drawing.getBoundingClientRect().left - left) / step)));
    drawing.addEventListener("pointerleave", leave);
    return board;
  }
}

/** @param {LabelledEffect} item */
function said({ value, half_width }) {
  return half_width === null ? number(value) : `${number(value)} \u00b1 ${number(half_width)}`;
}

/**
 * Labels for the axis: where all differ only in the number at their end, the numbers, and what they count.
 * @param {readonly LabelledEffect[]} items
 */
function naming(items) {
  const found = items.map((item) => /^(.*?)\.?(\d+)$/.exec(item.label));
  const stems = new Set(found.map((match) => match?.[1]));
  const stem = stems.size === 1 ? [...stems][0] : undefined;
  if (!stem) return { axis: "", names: items.map((item) => item.label) };
  return { axis: `${stem}, by layer`, names: found.map((match) => match?.[2] ?? "") };
}

/**
 * @param {LabelledEffect} item
 * @param {{ x: number, step: number, scale: (value: number) => number, name: string, slanted: boolean }} place
 */
function column({ value, half_width }, { x, step, scale, name, slanted }) {
  const group = s("g");
  const [zero, end] = [scale(0), scale(value)];
  const thick = Math.max(3, step * 0.62);
  const middle = x + step / 2;
  group.append(s("rect", { x: middle - thick / 2, y: Math.min(zero, end), width: thick, height: Math.max(1, Math.abs(zero - end)), rx: 1.5, fill: value < 0 ? "var(--negative)" : "var(--positive)", "fill-opacity": 0.75 }));
  if (half_width) group.append(s("line", { x1: middle, x2: middle, y1: scale(value - half_width), y2: scale(value + half_width), stroke: "var(--ink)", "stroke-width": 1.25 }));
  const shown = name.length > 16 ? `${name.slice(0, 15)}\u2026` : name;
  const place = slanted ? { transform: `translate(${middle + 3} ${HEIGHT + 12}) rotate(-45)`, "text-anchor": "end" } : { x: middle, y: HEIGHT + 17, "text-anchor": "middle" };
  if (name) group.append(s("text", { class: "strong", ...place }, shown));
  return group;
}

customElements.define("cutaway-effects", Effects);
