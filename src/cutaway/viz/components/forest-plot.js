// <cutaway-forest>: each prediction's effect with its interval, beside the matched controls and the bound it had to pass.

import { bottomAxis, swarm } from "./axis.js";
import { badge } from "./badge.js";
import { h, rove, s, table } from "./dom.js";
import { dot, Figure, key } from "./figure.js";
import { bounded, extent, interval, linear, number } from "./number.js";
import { styled } from "./sheet.js";

/** @import { ClaimCard, PredictionCard } from "./payload" */
/** @import { Scale } from "./number.js" */
/** @typedef {{ claims: readonly ClaimCard[], title: string, sentence: string }} Forest */
/** @typedef {{ claim: ClaimCard, prediction: PredictionCard }} Row */

const ROW = 58;

const own = styled(`
.unit { margin: 22px 0 0; font-size: 12.5px; font-weight: 600; }
.row { display: grid; gap: 2px 18px; align-items: center; border-top: 1px solid var(--rule); padding: 6px 0; }
.wide .row { grid-template-columns: 220px minmax(0, 1fr) 158px; }
.row.at { background: var(--panel); box-shadow: -8px 0 0 var(--panel), 8px 0 0 var(--panel); }
.what { font-size: 13px; min-width: 0; overflow-wrap: anywhere; }
.what b { font-weight: 600; }
.what .mono { display: block; font-size: 11.5px; color: var(--muted); }
.come { font-size: 12.5px; font-variant-numeric: tabular-nums; color: var(--muted); display: flex; flex-wrap: wrap; gap: 5px 12px; align-items: center; }
.wide .come { flex-direction: column; align-items: flex-start; }
.wide .foot { display: grid; grid-template-columns: 220px minmax(0, 1fr) 158px; gap: 18px; }
.wide .foot > svg { grid-column: 2; }
`);

/** @extends {Figure<Forest>} */
export class ForestPlot extends Figure {
  constructor() {
    super(own);
  }

  /** @param {Forest} data */
  parts({ claims, title, sentence }) {
    return {
      title,
      sentence,
      legend: [
        key(dot("var(--accent)"), "subject, with the interval of its mean"),
        key(s("svg", { width: 12, height: 12 }, s("line", { x1: 6, x2: 6, y1: 1, y2: 11, stroke: "var(--accent)", "stroke-opacity": 0.55, "stroke-width": 1.5 })), "its clusters"),
        key(dot("var(--control)"), "matched controls"),
        key(s("svg", { width: 26, height: 16 }, s("rect", { x: 5, width: 21, height: 16, "style:fill": "var(--side)" }), s("line", { x1: 5, x2: 5, y1: 0, y2: 16, stroke: "var(--ink)", "stroke-width": 1.5, "stroke-dasharray": "4 3" })), "bound fixed beforehand; the interval must lie on the shaded side"),
      ],
      hint: "Point at a row, or focus the plot and use the arrow keys.",
      table: table(
        title,
        ["claim", "prediction", "unit", "estimate", "bound", "controls", "p (controls)", "pairs", "clusters", "verdict"],
        rowsOf(claims).map(({ claim, prediction }) => [claim.id, prediction.name, prediction.unit, interval(prediction.estimate), bound(prediction), spread(prediction), prediction.control_p === null ? "\u2013" : number(prediction.control_p), prediction.n_examples, prediction.n_clusters, prediction.verdict]),
      ),
    };
  }

  /**
   * @param {Forest} data
   * @param {number} width
   */
  draw({ claims, title }, width) {
    const rows = rowsOf(claims);
    const wide = width >= 660;
    const room = wide ? width - 220 - 158 - 36 : width;
    /** @type {HTMLElement[]} */
    const drawn = [];
    const groups = [...new Set(rows.map((row) => row.prediction.unit))].map((unit) => {
      const members = rows.filter((row) => row.prediction.unit === unit);
      const domain = extent([0, ...members.flatMap(({ prediction }) => [...bounded(prediction.estimate), prediction.minimum, ...prediction.controls, ...prediction.cluster_means])], 0.06);
      const scale = linear(domain, [8, room - 8]);
      const elements = members.map((row) => line(row, scale, room));
      drawn.push(...elements);
      const axis = s("svg", { width: room, height: 42, "aria-hidden": "true" }, bottomAxis({ scale, domain, top: 0, bottom: 5, width: room, title: `effect (${unitName(unit)})`, middle: room / 2 }));
      return h("div", {}, h("p", { class: "unit" }, `Effects in ${unitName(unit)}`), ...elements, h("div", { class: "foot" }, axis));
    });
    const ordered = groups.length === 1 ? rows : [...new Set(rows.map((row) => row.prediction.unit))].flatMap((unit) => rows.filter((row) => row.prediction.unit === unit));
    const board = h("div", { class: wide ? "wide" : "", role: "application", "aria-roledescription": "forest plot", "aria-label": `${title}: ${rows.length} predictions. Arrow keys read them; the data table holds the same numbers.` }, ...groups);
    let at = -1;
    const mark = (/** @type {number} */ index) => {
      drawn[at]?.classList.remove("at");
      drawn[index]?.classList.add("at");
      at = index;
    };
    const show = (/** @type {number} */ index) => {
      const row = ordered[index];
      if (!row) return;
      mark(index);
      this.read(h("b", {}, `${row.claim.id}, ${row.prediction.name}`), `: ${told(row.prediction)}`);
    };
    const leave = () => {
      mark(-1);
      this.read();
    };
    rove(board, { rows: ordered.length, columns: 1, show, leave });
    drawn.forEach((element, index) => element.addEventListener("pointerenter", () => show(index)));
    board.addEventListener("pointerleave", leave);
    return board;
  }
}

/**
 * @param {readonly ClaimCard[]} claims
 * @returns {Row[]}
 */
function rowsOf(claims) {
  return claims.flatMap((claim) => claim.predictions.map((prediction) => ({ claim, prediction })));
}

/**
 * A unit as a noun: `of pairs` is a share of pairs.
 * @param {string} unit
 */
function unitName(unit) {
  return unit.startsWith("of ") ? `shares ${unit}` : unit;
}

/** @param {PredictionCard} prediction */
export function bound({ direction, minimum }) {
  return `${direction === "at_least" ? "\u2265" : "\u2264"} ${number(minimum)}`;
}

/** @param {PredictionCard} prediction */
export function spread({ controls }) {
  if (!controls.length) return "none";
  return `${controls.length}, from ${number(Math.min(...controls))} to ${number(Math.max(...controls))}`;
}

/** @param {PredictionCard} prediction */
function told(prediction) {
  const { estimate, unit, controls, n_examples, n_clusters, verdict } = prediction;
  const against = controls.length ? `; ${spread(prediction).replace(",", " controls,")}` : "";
  return `${interval(estimate)} ${unit}, had to be ${bound(prediction)}${against}; ${n_examples} pairs in ${n_clusters} clusters; ${verdict}`;
}

/**
 * @param {Row} row
 * @param {Scale} scale
 * @param {number} room
 */
function line({ claim, prediction }, scale, room) {
  return h(
    "div",
    { class: "row" },
    h("div", { class: "what" }, h("b", {}, claim.id), ` \u00b7 ${prediction.name}`, h("span", { class: "mono" }, claim.subject.length > 3 ? `${claim.subject.slice(0, 3).join(" ")} and ${claim.subject.length - 3} more` : claim.subject.join(" "))),
    drawing(prediction, scale, room),
    h("div", { class: "come" }, h("span", {}, interval(prediction.estimate)), badge(prediction.verdict)),
  );
}

/**
 * @param {PredictionCard} prediction
 * @param {Scale} scale
 * @param {number} room
 */
function drawing({ estimate, controls, cluster_means, minimum, direction }, scale, room) {
  const middle = controls.length ? 18 : ROW / 2;
  const least = scale(minimum);
  const zero = scale(0);
  const side = direction === "at_least" ? { x: least, width: Math.max(0, room - least) } : { x: 0, width: Math.max(0, least) };
  const image = s("svg", { width: room, height: ROW, "aria-hidden": "true" });
  image.append(
    s("rect", { ...side, y: 0, height: ROW, "style:fill": "var(--side)" }),
    s("line", { x1: zero, x2: zero, y1: 0, y2: ROW, stroke: "var(--faint)", "shape-rendering": "crispEdges" }),
    s("line", { x1: least, x2: least, y1: 0, y2: ROW, stroke: "var(--ink)", "stroke-width": 1.5, "stroke-dasharray": "4 3" }),
  );
  const xs = controls.map(scale);
  const lanes = swarm(xs, 4.6, 2);
  xs.forEach((x, index) => image.append(s("circle", { cx: x, cy: 43 + (lanes[index] ?? 0) * 4.4, r: 2.3, fill: "var(--control)", "fill-opacity": 0.85 })));
  cluster_means.forEach((value) => image.append(s("line", { x1: scale(value), x2: scale(value), y1: middle - 9, y2: middle + 9, stroke: "var(--accent)", "stroke-opacity": 0.4, "stroke-width": 1.5 })));
  image.append(
    s("line", { x1: estimate.low === null ? 0 : scale(estimate.low), x2: estimate.high === null ? room : scale(estimate.high), y1: middle, y2: middle, stroke: "var(--accent)", "stroke-width": 3, "stroke-linecap": "round" }),
    s("circle", { cx: scale(estimate.value), cy: middle, r: 6, fill: "var(--accent)", stroke: "var(--paper)", "stroke-width": 2 }),
  );
  return image;
}

customElements.define("cutaway-forest", ForestPlot);
