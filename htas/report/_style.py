"""How the page and its pictures look: light and dark, on a screen and on paper."""

INK, FAINT, RULE, PAPER = "#1f2328", "#6b7280", "#d5d9e0", "#fefefe"
BLUE, RED, GREEN, PURPLE, ORANGE, SKY = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"
VARIABLES = {INK: "ink", FAINT: "faint", RULE: "rule", PAPER: "paper", BLUE: "blue", RED: "red", GREEN: "green"}
"""Colours that the page changes with its theme, by the name of its CSS variable.

All are those of Okabe and Ito, which the colour-blind can tell apart, and no colour is alone in saying something."""
TURNS = (BLUE, RED, GREEN, ORANGE, PURPLE, SKY, INK)
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left")
"""Of what has no look of its own, one after the other."""

STYLE = """
:root {
  color-scheme: light dark;
  --ink: #1f2328; --faint: #6b7280; --rule: #d5d9e0; --paper: #ffffff; --tint: #f5f6f8;
  --blue: #0072b2; --red: #d55e00; --green: #009e73;
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Inter, "Noto Sans", sans-serif;
  --mono: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --ink: #e6e8eb; --faint: #9aa3ae; --rule: #363c45; --paper: #15181c; --tint: #1e2228;
    --blue: #56b4e9; --red: #ff8a3d; --green: #2fc79a;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 var(--sans); }
main { max-width: 68rem; margin: 0 auto; padding: 2.5rem 1.5rem 5rem; }
h1 { font-size: 1rem; font-weight: 600; color: var(--faint); margin: 0 0 1.2rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 3.2rem 0 .8rem; letter-spacing: -.01em; }
p, ul { max-width: 46rem; }
li { margin: .25rem 0; overflow-wrap: anywhere; }
.answer .first { font-size: 1.75rem; line-height: 1.25; font-weight: 650; letter-spacing: -.02em;
  margin: 0 0 1.4rem; text-wrap: balance; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); margin: 0 0 1.3rem;
  border-top: 2px solid var(--ink); border-bottom: 1px solid var(--rule); }
dl div { padding: .9rem 1rem .9rem 0; display: flex; flex-direction: column; }
dl dt { color: var(--ink); font-size: .9rem; line-height: 1.3; }
dl dd { margin: 0; font-size: .9rem; color: var(--faint); font-variant-numeric: tabular-nums; }
dl dd:has(b) { order: -1; }
dl b { display: block; font-size: 2.1rem; line-height: 1.2; letter-spacing: -.02em; color: var(--ink); }
dl div:first-child b { color: var(--red); }
.wide { overflow-x: auto; margin: .8rem 0 1rem; }
table { border-collapse: collapse; width: 100%; font-size: .875rem; line-height: 1.4;
  font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .5rem .9rem .5rem 0; border-bottom: 1px solid var(--rule); }
thead th { vertical-align: bottom; color: var(--faint); font-weight: 500; line-height: 1.25;
  border-bottom: 1px solid var(--ink); }
tbody th { font-weight: 600; min-width: 11rem; }
.number { text-align: right; white-space: nowrap; padding: .5rem 0 .5rem .9rem; }
thead .number { white-space: normal; min-width: 4.5rem; }
.words { max-width: 22rem; }
th:first-child, td:first-child { padding-left: .7rem; }
th:last-child, td:last-child { padding-right: .7rem; }
.marked { background: var(--tint); }
.marked > :first-child { box-shadow: inset 3px 0 var(--red); }
small { display: block; color: var(--faint); font-weight: 400; font-size: .8rem; }
figure { margin: 1.5rem 0 2.4rem; break-inside: avoid; }
figure svg { display: block; overflow: visible; }
.chart { width: 100%; }
.later .chart { min-height: 430px; }
.chart > svg { width: 100%; height: auto; }
.chart.vega-embed { display: block; padding: 0; }
#vg-tooltip-element { font: .85rem/1.4 var(--sans); }
figcaption { font-size: .875rem; color: var(--faint); max-width: 46rem; margin-top: .5rem; overflow-wrap: anywhere; }
details { margin: .8rem 0; }
summary { cursor: pointer; color: var(--blue); }
pre { background: var(--tint); padding: .9rem 1rem; border-radius: 6px; overflow-x: auto;
  font: .85rem/1.5 var(--mono); }
@media print {
  body { font-size: 10pt; }
  main { max-width: none; padding: 0; }
  h2 { break-after: avoid; }
  tr, figure { break-inside: avoid; }
  pre { white-space: pre-wrap; }
  details::details-content { content-visibility: visible; display: block; }
}
"""
