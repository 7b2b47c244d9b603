// Building elements from data, and reading them by keyboard. Text always becomes a text node: data is never parsed as HTML.

/** @typedef {string | number | Node | null | undefined | false} Child */
/** @typedef {Record<string, string | number | boolean | undefined>} Attributes */

/**
 * Give an element its attributes. `undefined` and `false` leave one out, `true` writes an empty one. Styles go through
 * the object model (keys `style:fill`), because a page without inline styles needs no exception in its security policy.
 * @param {HTMLElement | SVGElement} element
 * @param {Attributes} attributes
 */
function dress(element, attributes) {
  for (const [key, value] of Object.entries(attributes)) {
    if (value === undefined || value === false) continue;
    if (key.startsWith("style:")) element.style.setProperty(key.slice(6), String(value));
    else element.setAttribute(key, value === true ? "" : String(value));
  }
}

/**
 * @param {Element} element
 * @param {Child[]} children
 */
function fill(element, children) {
  for (const child of children) {
    if (child === null || child === undefined || child === false) continue;
    element.append(typeof child === "number" ? String(child) : child);
  }
}

/**
 * An HTML element.
 * @template {keyof HTMLElementTagNameMap} Tag
 * @param {Tag} tag
 * @param {Attributes} [attributes]
 * @param {...Child} children
 * @returns {HTMLElementTagNameMap[Tag]}
 */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  dress(element, attributes);
  fill(element, children);
  return element;
}

/**
 * An SVG element.
 * @template {keyof SVGElementTagNameMap} Tag
 * @param {Tag} tag
 * @param {Attributes} [attributes]
 * @param {...Child} children
 * @returns {SVGElementTagNameMap[Tag]}
 */
export function s(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  dress(element, attributes);
  fill(element, children);
  return element;
}

/**
 * A table with a header row; the first cell of each row is its header.
 * @param {string} caption
 * @param {readonly string[]} head
 * @param {readonly (readonly Child[])[]} rows
 */
export function table(caption, head, rows) {
  return h(
    "table",
    {},
    h("caption", {}, caption),
    h("thead", {}, h("tr", {}, ...head.map((text) => h("th", { scope: "col" }, text)))),
    h(
      "tbody",
      {},
      ...rows.map((row) =>
        h("tr", {}, ...row.map((cell, index) => (index === 0 ? h("th", { scope: "row" }, cell) : h("td", {}, cell)))),
      ),
    ),
  );
}

/**
 * Make a chart readable by keyboard: one tab stop, arrow keys move over a grid, Home and End go to a row's ends.
 * `show` is called with the cell that has the cursor; `leave` when the focus goes.
 * @param {HTMLElement} element
 * @param {{ rows: number, columns: number, start?: [number, number], show: (row: number, column: number) => void, leave?: () => void }} grid
 */
export function rove(element, { rows, columns, start = [0, 0], show, leave }) {
  let [row, column] = start;
  element.tabIndex = 0;
  element.addEventListener("focus", () => show(row, column));
  if (leave) element.addEventListener("blur", leave);
  element.addEventListener("keydown", (event) => {
    /** @type {Record<string, [number, number]>} */
    const moves = {
      ArrowUp: [row - 1, column],
      ArrowDown: [row + 1, column],
      ArrowLeft: [row, column - 1],
      ArrowRight: [row, column + 1],
      Home: [row, 0],
      End: [row, columns - 1],
    };
    const move = moves[event.key];
    if (!move) return;
    event.preventDefault();
    row = Math.min(rows - 1, Math.max(0, move[0]));
    column = Math.min(columns - 1, Math.max(0, move[1]));
    show(row, column);
  });
}
