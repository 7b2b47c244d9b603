// Tokens as readers see them: white space and control characters get a visible sign.

import { h } from "./dom.js";

/** @type {Record<string, string>} */
const SIGNS = { " ": "\u00b7", "\n": "\u21b5", "\t": "\u21e5", "\r": "\u240d", "\u00a0": "\u237d" };

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
    const sign = SIGNS[character] ?? (character < " " || character === "\u007f" ? "\ufffd" : undefined);
    if (sign) parts.append(h("i", {}, sign));
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
  const shown = [...token].map((character) => SIGNS[character] ?? character);
  if (!shown.length) return "\u2205";
  return shown.length > longest ? `${shown.slice(0, longest - 1).join("")}\u2026` : shown.join("");
}
