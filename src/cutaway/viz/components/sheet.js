// The style sheet that all figures share. Colours and fonts are variables of the host page (theme.css).

const TEXT = `
:host { display: block; color: var(--ink); font-family: var(--sans); font-size: 14px; line-height: 1.45; container-type: inline-size; }
:host([hidden]) { display: none; }
* { box-sizing: border-box; }
figure { margin: 0; }
figcaption { margin: 0 0 14px; max-width: 74ch; }
.number { color: var(--muted); font-weight: 500; margin-right: .5em; }
.title { font-weight: 650; letter-spacing: -.003em; }
.sentence { margin: 3px 0 0; color: var(--muted); text-wrap: pretty; }
.legend { display: flex; flex-wrap: wrap; gap: 6px 22px; align-items: center; margin: 0 0 12px; font-size: 12.5px; color: var(--muted); }
.key { display: inline-flex; align-items: center; gap: 7px; }
.ramp { display: inline-grid; grid-template-columns: auto 132px auto; gap: 8px; align-items: center; font-variant-numeric: tabular-nums; }
.ramp i { display: block; height: 10px; border-radius: 2px; border: 1px solid var(--rule); }
.chart { position: relative; }
.scroll { overflow-x: auto; overflow-y: hidden; }
.chart:focus-visible, .scroll:focus-visible, [tabindex]:focus-visible, button:focus-visible, select:focus-visible, summary:focus-visible, a:focus-visible
  { outline: 2px solid var(--accent); outline-offset: 3px; border-radius: 3px; }
svg { display: block; overflow: visible; }
svg text { fill: var(--muted); font-family: var(--sans); font-size: 11.5px; font-variant-numeric: tabular-nums; }
svg text.strong { fill: var(--ink); }
svg text.halo { paint-order: stroke; stroke: var(--paper); stroke-width: 4px; stroke-linejoin: round; }
svg text.mono { font-family: var(--mono); font-size: 11px; }
.axis line { stroke: var(--rule); shape-rendering: crispEdges; }
.axis .zero { stroke: var(--faint); }
.readout { min-height: 1.45em; margin: 10px 0 0; padding-left: 10px; border-left: 2px solid var(--rule); font-size: 13px; color: var(--muted); font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.readout b { color: var(--ink); font-weight: 600; }
details { margin-top: 8px; font-size: 12.5px; }
summary { cursor: pointer; color: var(--muted); width: fit-content; }
summary:hover { color: var(--ink); }
.cells { overflow: auto; max-height: 420px; margin-top: 8px; border: 1px solid var(--rule); border-radius: 4px; }
table { border-collapse: collapse; font-size: 12.5px; font-variant-numeric: tabular-nums; }
caption { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
th, td { padding: 4px 12px; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--rule); font-weight: 400; }
thead th { position: sticky; top: 0; background: var(--panel); font-weight: 600; }
th:first-child { text-align: left; }
tbody tr:last-child > * { border-bottom: 0; }
code, .mono { font-family: var(--mono); font-size: .92em; overflow-wrap: anywhere; }
.controls { display: flex; flex-wrap: wrap; gap: 8px 16px; margin: 0 0 12px; font-size: 12.5px; color: var(--muted); }
label { display: inline-flex; align-items: center; gap: 7px; max-width: 100%; }
select, button { font: inherit; color: var(--ink); background: var(--panel); border: 1px solid var(--edge); border-radius: 5px; padding: 4px 9px; min-width: 0; max-width: 100%; }
button { cursor: pointer; }
button:hover, select:hover { border-color: var(--muted); }
.dot { width: 9px; height: 9px; border-radius: 50%; display: inline-block; }
@container (max-width: 560px) { .readout { min-height: 2.9em; } }
@media (prefers-reduced-motion: no-preference) { .cursor { transition: x 90ms, y 90ms, cx 90ms, cy 90ms; } }
`;

const BADGES = `
.badge { display: inline-flex; align-items: center; gap: 6px; padding: 2px 10px 2px 7px; border-radius: 999px; font-size: 12.5px; font-weight: 600; line-height: 1.5; white-space: nowrap; color: var(--verdict); background: color-mix(in oklab, var(--verdict) 11%, transparent); border: 1px solid color-mix(in oklab, var(--verdict) 38%, transparent); }
.badge svg { width: 13px; height: 13px; flex: none; }
.badge[data-verdict="supported"] { --verdict: var(--supported); }
.badge[data-verdict="refuted"] { --verdict: var(--refuted); }
.badge[data-verdict="inconclusive"] { --verdict: var(--inconclusive); }
.badge[data-verdict="invalid"] { --verdict: var(--invalid); }
`;

export const sheet = styled(TEXT);
/** Verdict badges, in figures and in a page's own text. */
export const badges = styled(BADGES);

/**
 * A sheet of rules.
 * @param {string} text
 */
export function styled(text) {
  const own = new CSSStyleSheet();
  own.replaceSync(text);
  return own;
}
