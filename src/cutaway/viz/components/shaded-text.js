// <cutaway-shaded-text>: texts whose tokens are shaded by a number each.

import { diverging, inkOn } from "./color.js";
import { h, rove, table } from "./dom.js";
import { divergingLegend, Figure } from "./figure.js";
import { number, reach } from "./number.js";
import { styled } from "./sheet.js";
import { tokenLabel, tokenText } from "./token.js";

/** @typedef {{ title: string, sentence: string, unit: string, rows: readonly (readonly (readonly [string, number | null])[])[] }} Shaded */

const own = styled(`
.text { display: flex; flex-wrap: wrap; gap: 2px 1px; padding: 10px 0; border-top: 1px solid var(--rule); font-family: var(--mono); font-size: 12.5px; }
.text:last-of-type { border-bottom: 1px solid var(--rule); }
.token { padding: 2px 4px; white-space: pre-wrap; overflow-wrap: anywhere; border-radius: 3px; max-width: 100%; }
.token i { font-style: normal; opacity: .5; }
.token.at { outline: 1.5px solid var(--ink); }
`);

/** @extends {Figure<Shaded>} */
export class ShadedText extends Figure {
  constructor() {
    super(own);
  }

  /** @param {Shaded} data */
  parts({ title, sentence, unit, rows }) {
    return {
      title,
      sentence,
      legend: [divergingLegend(reach(numbers(rows)), unit), h("span", {}, "\u00b7 is a space")],
      hint: "Point at a token, or focus a text and use the arrow keys.",
      table: table(`${title}, in ${unit}`, ["token", "text", unit], rows.flatMap((row, index) => row.map(([token, value], at) => [`${index + 1}.${at}`, tokenLabel(token, 40), said(value)]))),
    };
  }

  /** @param {Shaded} data */
  draw({ unit, rows }) {
    const most = reach(numbers(rows));
    return h("div", {}, ...rows.map((row, index) => this.#text(row, index, most, unit)));
  }

  /**
   * @param {readonly (readonly [string, number | null])[]} row
   * @param {number} index
   * @param {number} most
   * @param {string} unit
   */
  #text(row, index, most, unit) {
    const tokens = row.map(([token, value]) => h("span", { class: "token", "style:background": diverging(value ?? 0, most), "style:color": inkOn(value ?? 0, most) }, tokenText(token)));
    const text = h("div", { class: "text", role: "application", "aria-roledescription": "shaded text", "aria-label": `Text ${index + 1}: ${row.map(([token]) => token).join("")}. Arrow keys read token by token.` }, ...tokens);
    let at = -1;
    const mark = (/** @type {number} */ next) => {
      tokens[at]?.classList.remove("at");
      tokens[next]?.classList.add("at");
      at = next;
    };
    const show = (/** @type {number} */ next) => {
      const [token, value] = row[next] ?? ["", null];
      mark(next);
      this.read(h("b", {}, `Token ${next} \u2018${tokenLabel(token, 60)}\u2019`), `: ${said(value)} ${unit}`);
    };
    const leave = () => {
      mark(-1);
      this.read();
    };
    rove(text, { rows: 1, columns: row.length, show: (_, next) => show(next), leave });
    tokens.forEach((element, next) => element.addEventListener("pointerenter", () => show(next)));
    text.addEventListener("pointerleave", leave);
    return text;
  }
}

/** @param {Shaded["rows"]} rows */
function numbers(rows) {
  return rows.map((row) => row.map(([, value]) => value ?? 0));
}

/** @param {number | null} value */
function said(value) {
  return value === null ? "none" : number(value);
}

customElements.define("cutaway-shaded-text", ShadedText);
