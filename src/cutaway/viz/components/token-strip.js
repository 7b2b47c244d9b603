// <cutaway-token-strip>: a prompt pair, token above token, with what differs and the named positions marked.

import { h, rove, table } from "./dom.js";
import { dot, Figure, key } from "./figure.js";
import { number } from "./number.js";
import { styled } from "./sheet.js";
import { tokenLabel, tokenText } from "./token.js";

/** @import { Example } from "./payload" */
/** @typedef {{ examples: readonly Example[], unit: string, title: string, sentence: string }} Strips */

const FIRST = 3;
const LONGEST = 160;

const own = styled(`
.pair { padding: 16px 0 18px; border-top: 1px solid var(--rule); }
.pair:last-of-type { border-bottom: 1px solid var(--rule); }
.about { display: flex; flex-wrap: wrap; gap: 4px 18px; font-size: 12.5px; color: var(--muted); margin-bottom: 9px; overflow-wrap: anywhere; }
.about b { color: var(--ink); font-weight: 600; }
.strip { display: flex; flex-wrap: wrap; gap: 3px 2px; font-family: var(--mono); font-size: 12.5px; }
.column { display: grid; grid-template-rows: 15px auto auto; min-width: 13px; max-width: 100%; }
.role { font-family: var(--sans); font-size: 10.5px; line-height: 15px; color: var(--accent); white-space: nowrap; padding: 0 3px; font-weight: 600; }
.token { padding: 2px 4px; min-height: 23px; white-space: pre-wrap; overflow-wrap: anywhere; border-radius: 3px; background: var(--panel); }
.token + .token { margin-top: 2px; }
.token i { font-style: normal; color: var(--faint); }
.differs .clean { background: color-mix(in oklab, var(--positive) 17%, var(--paper)); }
.differs .corrupt { background: color-mix(in oklab, var(--negative) 21%, var(--paper)); }
.same .corrupt { background: none; }
.named .clean { box-shadow: inset 0 2px 0 var(--accent); }
.at .token { outline: 1.5px solid var(--ink); }
.scores { display: flex; flex-wrap: wrap; gap: 4px 18px; margin-top: 10px; font-size: 12.5px; color: var(--muted); font-variant-numeric: tabular-nums; }
.scores b { color: var(--ink); font-weight: 600; }
.scores .mono { color: var(--ink); background: var(--panel); padding: 1px 5px; border-radius: 3px; }
.scores .mono i { font-style: normal; color: var(--faint); }
.more { margin-top: 12px; }
`);

/** @extends {Figure<Strips>} */
export class TokenStrip extends Figure {
  #all = false;

  constructor() {
    super(own);
  }

  /** @param {Strips} strips */
  parts({ examples, unit, title, sentence }) {
    return {
      title,
      sentence,
      legend: [
        key(dot("color-mix(in oklab, var(--positive) 45%, var(--paper))"), "clean token where the prompts differ (upper row)"),
        key(dot("color-mix(in oklab, var(--negative) 50%, var(--paper))"), "corrupt token (lower row)"),
        key(dot("var(--accent)"), "named position"),
        h("span", {}, "\u00b7 is a space; an empty place below means the same token"),
      ],
      hint: "Focus a prompt and use the arrow keys to read it token by token.",
      table: table(
        `${title}, metric in ${unit}`,
        ["pair", "cluster", "answer", "foil", `clean (${unit})`, `corrupt (${unit})`],
        examples.map((example) => [example.id, example.cluster, tokenLabel(example.answer), tokenLabel(example.foil), number(example.clean_metric), number(example.corrupt_metric)]),
      ),
    };
  }

  /** @param {Strips} strips */
  draw({ examples, unit }) {
    const shown = this.#all ? examples : examples.slice(0, FIRST);
    const rest = examples.length - shown.length;
    const more = h("button", { class: "more", type: "button" }, `Show ${rest} more`);
    more.addEventListener("click", () => {
      this.#all = true;
      this.redraw();
    });
    return h("div", {}, ...shown.map((example) => this.#pair(example, unit)), rest > 0 && more);
  }

  /**
   * @param {Example} example
   * @param {string} unit
   */
  #pair(example, unit) {
    const roles = new Map(example.positions.map(({ role, index }) => [index, role]));
    const differing = new Set(example.differing);
    const length = Math.min(example.clean.length, LONGEST);
    const columns = example.clean.slice(0, length).map((clean, index) => column(clean, example.corrupt[index] ?? "", differing.has(index), roles.get(index)));
    const strip = h("div", { class: "strip", role: "application", "aria-roledescription": "prompt pair", "aria-label": `Pair ${example.id}: ${example.clean.join("")}. Arrow keys read token by token.` }, ...columns);
    this.#reading(strip, example, columns, roles);
    return h(
      "section",
      { class: "pair", "aria-label": `pair ${example.id}` },
      h("div", { class: "about" }, h("b", {}, example.id), h("span", {}, `cluster ${example.cluster}`), h("span", {}, `split ${example.split}`)),
      strip,
      length < example.clean.length && h("div", { class: "about" }, `${length} of ${example.clean.length} tokens shown`),
      scores(example, unit),
    );
  }

  /**
   * @param {HTMLElement} strip
   * @param {Example} example
   * @param {HTMLElement[]} columns
   * @param {Map<number, string>} roles
   */
  #reading(strip, example, columns, roles) {
    let at = -1;
    const mark = (/** @type {number} */ index) => {
      columns[at]?.classList.remove("at");
      columns[index]?.classList.add("at");
      at = index;
    };
    const show = (/** @type {number} */ index) => {
      mark(index);
      const role = roles.get(index);
      const clean = tokenLabel(example.clean[index] ?? "", 60);
      const corrupt = tokenLabel(example.corrupt[index] ?? "", 60);
      this.read(h("b", {}, `Token ${index}`), role ? ` (${role})` : "", `: clean \u2018${clean}\u2019, `, clean === corrupt ? "the same in the corrupt prompt" : `corrupt \u2018${corrupt}\u2019`);
    };
    const leave = () => {
      mark(-1);
      this.read();
    };
    rove(strip, { rows: 1, columns: columns.length, show: (_, index) => show(index), leave });
    columns.forEach((element, index) => element.addEventListener("pointerenter", () => show(index)));
    strip.addEventListener("pointerleave", leave);
  }
}

/**
 * @param {string} clean
 * @param {string} corrupt
 * @param {boolean} differs
 * @param {string | undefined} role
 */
function column(clean, corrupt, differs, role) {
  return h(
    "span",
    { class: `column ${differs ? "differs" : "same"}${role ? " named" : ""}` },
    h("span", { class: "role" }, role ?? ""),
    h("span", { class: "token clean" }, tokenText(clean)),
    h("span", { class: "token corrupt" }, differs && tokenText(corrupt)),
  );
}

/**
 * @param {Example} example
 * @param {string} unit
 */
function scores(example, unit) {
  return h(
    "div",
    { class: "scores" },
    h("span", {}, "answer ", h("span", { class: "mono" }, tokenText(example.answer))),
    h("span", {}, "foil ", h("span", { class: "mono" }, tokenText(example.foil))),
    h("span", {}, "clean ", h("b", {}, number(example.clean_metric)), ` ${unit}`),
    h("span", {}, "corrupt ", h("b", {}, number(example.corrupt_metric)), ` ${unit}`),
  );
}

customElements.define("cutaway-token-strip", TokenStrip);
