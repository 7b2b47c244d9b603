// Verdict badges: a word and a shape, so that nothing hangs on colour alone.

import { h, s } from "./dom.js";

/** @import { VerdictName } from "./payload" */

/** @type {Record<VerdictName, string>} */
const SHAPES = {
  supported: "M2.5 7.5 L5.5 10.5 L11.5 3.5",
  refuted: "M3 3 L11 11 M11 3 L3 11",
  inconclusive: "M2 7 Q4.5 3.5 7 7 T12 7",
  invalid: "M7 2 V8 M7 11 V11.6",
};

/**
 * @param {VerdictName} verdict
 */
export function badge(verdict) {
  const shape = s("path", { d: SHAPES[verdict], fill: "none", stroke: "currentColor", "stroke-width": 2.2, "stroke-linecap": "round", "stroke-linejoin": "round" });
  return h("span", { class: "badge", "data-verdict": verdict }, s("svg", { viewBox: "0 0 14 14", "aria-hidden": "true" }, shape), verdict);
}
