// Colours of values. Blue is positive, orange negative, paper is zero: distinct under every common colour blindness.
// Colours are mixed by the browser from theme variables, so a change of theme needs no redrawing.

/**
 * Colour of a value on a scale centred at zero.
 * @param {number} value
 * @param {number} reach the value that has the full colour
 */
export function diverging(value, reach) {
  const strength = Math.min(1, Math.abs(value) / reach);
  const end = value < 0 ? "--negative" : "--positive";
  return `color-mix(in oklab, var(${end}) ${(100 * strength).toFixed(1)}%, var(--zero))`;
}

/**
 * Colour of a share, from 0 to 1.
 * @param {number} share
 */
export function sequential(share) {
  return diverging(Math.max(0, share), 1);
}

/**
 * Colour of text that lies on a value's colour: nearly white on dark, nearly black on light, in either theme.
 * @param {number} value
 * @param {number} reach
 */
export function inkOn(value, reach) {
  return `oklch(from ${diverging(value, reach)} clamp(0.16, (0.6 - l) * 1000, 0.99) 0 0)`;
}
