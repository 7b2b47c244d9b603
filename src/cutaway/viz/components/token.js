// Tokens as readers see them: white space and control characters get a visible sign.

import { h } from "./dom.js";

/** @type {Record<string, string>} */
const SIGNS = { " ": "\u00b7", "\n": "\u21b5", "\t": "\u21e5", "\r": "\u240d", "\u00a0": "\u237d" };

/**
 * The sign of a character that a reader would not see, or that would move the text around it; undefined for others.
 * @param {string} character
 */
function sign(character) {
  const known = SIGNS[character];
  if (known || !/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/u.test(character)) return known;
  return `U+${(character.codePointAt(0) ?? 0).toString(16).toUpperCase().padStart(4, "0")}`;
}

/**
 * A token with visible white space. Signs are set apart, so that they are not taken for text.
 * @param {string} token
 * @param {number} [longest] in characters; what is longer is cut and says so in its title
 */
export function tokenText(token, longest = 24) {
  const shown = [...token];
  const parts = h("span", { class: "token-text", title: shown.length > longest ? token : undefined });
  if (!shown.length) parts.append(h("i", {}, "\u2205"));
  for (const character of shown.slice(0, longest)) {
    const mark = sign(character);
    if (mark) parts.append(h("i", {}, mark));
    else parts.append(character);
  }
  if (shown.length > longest) parts.append("\u2026");
  return parts;
}

/**
 * The same as plain text, for SVG and for spoken labels.
 * @param {string} token
 * @param {number} [longest]
 */
export function tokenLabel(token, longest = 14) {
  const shown = [...token].map((character) => sign(character) ?? character);
  if (!shown.length) return "\u2205";
  return shown.length > longest ? `${shown.slice(0, longest - 1).join("")}\u2026` : shown.join("");
}
