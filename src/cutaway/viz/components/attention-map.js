// <cutaway-attention>: attention patterns of a few heads on a few prompts, as a matrix and as a line of shaded tokens.

import { inkOn, sequential } from "./color.js";
import { h, rove, s, table } from "./dom.js";
import { Figure, sequentialLegend } from "./figure.js";
import { fixed } from "./number.js";
import { styled } from "./sheet.js";
import { tokenLabel, tokenText } from "./token.js";

/** @import { AttentionExample, AttentionHead } from "./payload" */
/** @typedef {{ heads: readonly AttentionHead[], title: string, sentence: string }} Patterns */

const LABEL = 84;
const FAINTEST = 0.004;

const own = styled(`
.note { margin: 0 0 12px; font-size: 13px; }
.line { display: flex; flex-wrap: wrap; gap: 2px; margin-top: 14px; font-family: var(--mono); font-size: 12.5px; }
.line span.token { padding: 3px 4px; border-radius: 3px; white-space: pre-wrap; overflow-wrap: anywhere; max-width: 100%; }
.line i { font-style: normal; opacity: .6; }
.line .query { outline: 2px solid var(--ink); outline-offset: -1px; }
.under { margin: 12px 0 0; font-size: 12.5px; color: var(--muted); }
`);

/** @extends {Figure<Patterns>} */
export class AttentionMap extends Figure {
  #head = 0;
  #example = 0;

  constructor() {
    super(own);
  }

  /** @param {Patterns} patterns */
  parts({ heads, title, sentence }) {
    const example = h("select", {});
    const head = h("select", {}, ...heads.map((one, index) => h("option", { value: index }, one.site)));
    const list = () => example.replaceChildren(...(heads[this.#head]?.examples ?? []).map((one, index) => h("option", { value: index }, one.id)));
    list();
    head.addEventListener("change", () => {
      this.#head = Number(head.value);
      this.#example = 0;
      list();
      this.redraw();
    });
    example.addEventListener("change", () => {
      this.#example = Number(example.value);
      this.redraw();
    });
    return {
      title,
      sentence,
      controls: [h("label", {}, "Head", head), h("label", {}, "Prompt", example)],
      legend: [sequentialLegend("attention weight (share; each row sums to 1)")],
      hint: "Point at a cell, or focus the matrix and use the arrow keys: up and down choose the query, left and right the key.",
      table: strongest(title, heads),
    };
  }

  /**
   * @param {Patterns} patterns
   * @param {number} width
   */
  draw({ heads }, width) {
    const head = heads[this.#head];
    const example = head?.examples[this.#example];
    if (!head || !example) return h("div");
    const line = h("div", { class: "line", "aria-hidden": "true" });
    const under = h("p", { class: "under" });
    const shade = (/** @type {number} */ query) => {
      under.replaceChildren(`Where token ${query}, \u2018${tokenLabel(example.tokens[query] ?? "", 30)}\u2019, looks:`);
      line.replaceChildren(...example.tokens.map((token, index) => shaded(token, example.weights[query]?.[index] ?? 0, index === query)));
    };
    const board = this.#matrix(head, example, width, shade);
    shade(example.tokens.length - 1);
    return h("div", {}, h("p", { class: "note" }, head.sentence), board, under, line);
  }

  /**
   * @param {AttentionHead} head
   * @param {AttentionExample} example
   * @param {number} width
   * @param {(query: number) => void} shade
   */
  #matrix(head, example, width, shade) {
    const count = example.tokens.length;
    const cell = Math.max(6, Math.min(26, (Math.min(width, 620) - LABEL - 46) / count));
    const [left, top] = [LABEL, 74];
    const cursor = s("rect", { class: "cursor", width: cell, height: cell, fill: "none", stroke: "var(--ink)", "stroke-width": 2, rx: 2, visibility: "hidden" });
    const drawing = s("svg", { width: left + cell * count + 46, height: top + cell * count + 2, "aria-hidden": "true" }, matrix(example, { left, top, cell }), cursor);
    const board = h("div", { class: "scroll", role: "application", "aria-roledescription": "attention matrix", "aria-label": `Attention of ${head.site} on ${example.id}: ${count} query rows, ${count} key columns. Arrow keys read the weights.` }, drawing);
    const show = (/** @type {number} */ query, /** @type {number} */ to) => {
      cursor.setAttribute("x", String(left + to * cell));
      cursor.setAttribute("y", String(top + query * cell));
      cursor.setAttribute("visibility", "visible");
      shade(query);
      this.read("query ", h("b", {}, `${query} \u2018${tokenLabel(example.tokens[query] ?? "", 30)}\u2019`), " to key ", h("b", {}, `${to} \u2018${tokenLabel(example.tokens[to] ?? "", 30)}\u2019`), `: ${fixed(example.weights[query]?.[to] ?? 0, 3)}`);
    };
    const leave = () => {
      cursor.setAttribute("visibility", "hidden");
      this.read();
    };
    rove(board, { rows: count, columns: count, start: [count - 1, 0], show, leave });
    drawing.addEventListener("pointermove", (event) => {
      const box = drawing.getBoundingClientRect();
      const to = Math.floor((event.clientX - box.left - left) / cell);
      const query = Math.floor((event.clientY - box.top - top) / cell);
      if (query in example.tokens && to in example.tokens) show(query, to);
    });
    drawing.addEventListener("pointerleave", leave);
    return board;
  }
}

/**
 * @param {AttentionExample} example
 * @param {{ left: number, top: number, cell: number }} place
 */
function matrix({ tokens, weights }, { left, top, cell }) {
  const side = cell * tokens.length;
  const every = Math.ceil(11 / cell);
  const group = s("g", {}, s("rect", { x: left, y: top, width: side, height: side, "style:fill": "var(--zero)", stroke: "var(--rule)" }));
  group.append(s("text", { x: 0, y: 11 }, "query \u2193   key \u2192"));
  tokens.forEach((token, index) => {
    if (index % every) return;
    const middle = (index + 0.5) * cell;
    group.append(s("text", { class: "strong mono", x: left - 7, y: top + middle + 4, "text-anchor": "end" }, tokenLabel(token, 11)));
    group.append(s("text", { class: "strong mono", transform: `translate(${left + middle} ${top - 8}) rotate(-45)` }, tokenLabel(token, 9)));
  });
  weights.forEach((row, query) =>
    row.forEach((weight, to) => {
      if (weight < FAINTEST) return;
      group.append(s("rect", { x: left + to * cell + 0.25, y: top + query * cell + 0.25, width: cell - 0.5, height: cell - 0.5, "style:fill": sequential(weight) }));
    }),
  );
  return group;
}

/**
 * @param {string} token
 * @param {number} weight
 * @param {boolean} query
 */
function shaded(token, weight, query) {
  return h("span", { class: `token${query ? " query" : ""}`, title: fixed(weight, 3), "style:background": sequential(weight), "style:color": inkOn(weight, 1) }, tokenText(token));
}

/**
 * The strongest weight of each query: the matrix in words.
 * @param {string} title
 * @param {readonly AttentionHead[]} heads
 */
function strongest(title, heads) {
  const rows = heads.flatMap((head) =>
    head.examples.flatMap((example) =>
      example.weights.map((row, query) => {
        const to = row.reduce((best, weight, index) => (weight > (row[best] ?? 0) ? index : best), 0);
        return [head.site, example.id, `${query} ${tokenLabel(example.tokens[query] ?? "")}`, `${to} ${tokenLabel(example.tokens[to] ?? "")}`, fixed(row[to] ?? 0, 3)];
      }),
    ),
  );
  return table(`${title}: strongest key of each query`, ["head", "prompt", "query", "strongest key", "weight"], rows);
}

customElements.define("cutaway-attention", AttentionMap);
