// Axes of charts: ticks, grid lines and a title that names the unit.

import { s } from "./dom.js";
import { tickLabels, ticks } from "./number.js";

/** @import { Scale } from "./number.js" */

/**
 * A horizontal axis below a chart, with faint grid lines through it.
 * @param {object} axis
 * @param {Scale} axis.scale
 * @param {readonly [number, number]} axis.domain
 * @param {number} axis.top where the grid lines begin
 * @param {number} axis.bottom where they end
 * @param {number} axis.width room for ticks
 * @param {string} axis.title
 * @param {number} axis.middle where the title is centred
 */
export function bottomAxis({ scale, domain, top, bottom, width, title, middle }) {
  const values = ticks(domain, Math.max(2, width / 85));
  const names = tickLabels(values);
  const group = s("g", { class: "axis" });
  values.forEach((value, index) => {
    const x = scale(value);
    group.append(s("line", { x1: x, x2: x, y1: top, y2: bottom, class: value === 0 ? "zero" : "" }));
    group.append(s("text", { x, y: bottom + 16, "text-anchor": "middle" }, names[index]));
  });
  if (title) group.append(s("text", { x: middle, y: bottom + 35, "text-anchor": "middle" }, title));
  return group;
}

/**
 * A vertical axis left of a chart, with faint grid lines through it.
 * @param {object} axis
 * @param {Scale} axis.scale
 * @param {readonly [number, number]} axis.domain
 * @param {number} axis.left where the grid lines begin
 * @param {number} axis.right where they end
 * @param {number} axis.height room for ticks
 */
export function leftAxis({ scale, domain, left, right, height }) {
  const values = ticks(domain, Math.max(2, height / 48));
  const names = tickLabels(values);
  const group = s("g", { class: "axis" });
  values.forEach((value, index) => {
    const y = scale(value);
    group.append(s("line", { x1: left, x2: right, y1: y, y2: y, class: value === 0 ? "zero" : "" }));
    group.append(s("text", { x: left - 8, y: y + 4, "text-anchor": "end" }, names[index]));
  });
  return group;
}

/**
 * Offsets that keep dots from lying on each other: each dot takes the free lane nearest to the middle.
 * @param {readonly number[]} places along the axis, in pixels
 * @param {number} size of a dot, in pixels
 * @param {number} lanes on each side of the middle
 * @returns {number[]} one lane a dot; 0 is the middle
 */
export function swarm(places, size, lanes) {
  const order = places.map((_, index) => index).sort((a, b) => (places[a] ?? 0) - (places[b] ?? 0));
  const choices = [0];
  for (let lane = 1; lane <= lanes; lane += 1) choices.push(lane, -lane);
  /** @type {Map<number, number>} */
  const last = new Map();
  const result = places.map(() => 0);
  for (const index of order) {
    const place = places[index] ?? 0;
    const free = choices.find((lane) => place - (last.get(lane) ?? -Infinity) >= size);
    const lane = free ?? choices.reduce((best, one) => ((last.get(one) ?? 0) < (last.get(best) ?? 0) ? one : best), 0);
    last.set(lane, place);
    result[index] = lane;
  }
  return result;
}
