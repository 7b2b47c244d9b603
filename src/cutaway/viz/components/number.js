// Numbers as readers see them, and the scales that place them.

/** @typedef {(value: number) => number} Scale */

/**
 * A number for people: about three significant digits, a real minus sign, no needless exponent.
 * @param {number} value
 */
export function number(value) {
  const size = Math.abs(value);
  let text;
  if (size === 0) text = "0";
  else if (size >= 10000) text = Math.round(value).toLocaleString("en-US");
  else if (size >= 100) text = value.toFixed(0);
  else if (size >= 10) text = value.toFixed(1);
  else if (size >= 0.0995) text = value.toFixed(2);
  else if (size >= 0.00001) text = value.toPrecision(2);
  else text = value.toExponential(1);
  return minus(text);
}

/**
 * A number with fixed decimals and a real minus sign; what rounds to zero has no sign.
 * @param {number} value
 * @param {number} digits
 */
export function fixed(value, digits) {
  const text = value.toFixed(digits);
  return minus(Number(text) === 0 ? (0).toFixed(digits) : text);
}

/** @param {string} text */
function minus(text) {
  return text.replaceAll("-", "\u2212");
}

/**
 * A share as a percentage.
 * @param {number} share
 */
export function percent(share) {
  const value = 100 * share;
  return `${value > 0 && value < 10 ? value.toFixed(1) : value.toFixed(0)}\u202f%`;
}

/**
 * A whole number with thin spaces between thousands.
 * @param {number} value
 */
export function count(value) {
  return String(value).replace(/\B(?=(\d{3})+$)/g, "\u202f");
}

/**
 * An estimate with its interval, as in `0.42 [0.35, 0.49]`; an end that the data do not bound is infinite.
 * @param {{ value: number, low: number | null, high: number | null }} estimate
 */
export function interval({ value, low, high }) {
  return `${number(value)} [${low === null ? "\u2212\u221e" : number(low)},\u00a0${high === null ? "\u221e" : number(high)}]`;
}

/**
 * The numbers of an estimate that lie on an axis.
 * @param {{ value: number, low: number | null, high: number | null }} estimate
 */
export function bounded({ value, low, high }) {
  return [value, low ?? value, high ?? value];
}

/**
 * The straight scale from `[from, to]` to `[start, end]`; an empty domain maps to the middle.
 * @param {readonly [number, number]} domain
 * @param {readonly [number, number]} range
 * @returns {Scale}
 */
export function linear([from, to], [start, end]) {
  if (from === to) return () => (start + end) / 2;
  return (value) => start + ((value - from) / (to - from)) * (end - start);
}

/**
 * Least and greatest of the values, widened by a margin (a share of the width); never empty.
 * @param {readonly number[]} values
 * @param {number} [margin]
 * @returns {[number, number]}
 */
export function extent(values, margin = 0.05) {
  const low = values.reduce((least, value) => Math.min(least, value), Infinity);
  const high = values.reduce((most, value) => Math.max(most, value), -Infinity);
  const room = (high - low || Math.abs(high) || 1) * margin;
  return [low - room, high + room];
}

/**
 * Round tick values inside a domain, about `wanted` of them.
 * @param {readonly [number, number]} domain
 * @param {number} [wanted]
 */
export function ticks([low, high], wanted = 5) {
  const rough = (high - low) / Math.max(1, wanted);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough * 0.999) ?? 10 * power;
  const found = [];
  for (let index = Math.ceil(low / step - 1e-9); index * step <= high + step * 1e-9; index += 1) {
    found.push(Number((index * step).toPrecision(12)));
  }
  return found;
}

/**
 * Tick labels with as many decimals as the finest of them needs.
 * @param {readonly number[]} values
 */
export function tickLabels(values) {
  const digits = Math.max(0, ...values.map((value) => (String(value).split(".")[1] ?? "").length));
  return values.map((value) => (Math.abs(value) >= 1e4 || digits > 5 ? number(value) : fixed(value, digits)));
}

/**
 * Greatest absolute value, 1 when all are zero: the end of a scale that is centred at zero.
 * @param {readonly (readonly number[])[]} rows
 */
export function reach(rows) {
  return rows.flat().reduce((most, value) => Math.max(most, Math.abs(value)), 0) || 1;
}
