"""The look of the pages: one style sheet, light and dark, from 360 pixels up."""

CSS = """
:root { --ink: #1a1d21; --dim: #59616b; --page: #f5f6f8; --card: #fff; --line: #e2e5e9;
  --band: #d55e0022; --level: #b3261e; color-scheme: light dark; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e7eaee; --dim: #a3adb8; --page: #14171a; --card: #1d2125; --line: #363c43;
    --band: #ff9a5033; --level: #ff8a80; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1120px; padding: 28px 20px 60px; background: var(--page);
  color: var(--ink); font: 15px/1.45 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 24px; margin: 0 0 2px; overflow-wrap: anywhere; }
h2 { font-size: 16px; margin: 0 0 2px; }
p { margin: 0 0 10px; } .dim, .none { color: var(--dim); }
code { font-family: ui-monospace, monospace; overflow-wrap: anywhere; }
.verdict { font-size: 18px; margin: 16px 0 0; }
.cards { display: grid; gap: 12px; margin: 20px 0;
  grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); }
.card, section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
.card { padding: 12px 14px; } .card b { display: block; font-size: 22px; line-height: 1.25;
  font-variant-numeric: tabular-nums; } .card span { color: var(--dim); font-size: 13px; }
section { padding: 16px 18px; margin-bottom: 14px; min-width: 0; }
.grid2 { display: grid; gap: 14px; margin-bottom: 14px;
  grid-template-columns: repeat(auto-fit, minmax(min(400px, 100%), 1fr)); }
.grid2 section { margin: 0; }
svg { display: block; width: 100%; overflow: visible; }
svg.bar { border-radius: 6px; overflow: hidden; }
svg text { fill: var(--dim); font-size: 11px; } svg .grid { stroke: var(--line); }
polyline, .level { vector-effect: non-scaling-stroke; }
.dot { opacity: 0; } .dot:hover { opacity: 1; } rect:hover { opacity: .8; }
rect.band { fill: var(--band); } line.level { stroke: var(--level); stroke-dasharray: 6 4;
  stroke-width: 1.6; }
.shares { margin: 8px 0; } .shares span { font-size: 13px; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 16px; list-style: none; margin: 6px 0 0;
  padding: 0; font-size: 13px; color: var(--dim); }
.legend i { display: inline-block; width: 10px; height: 10px; border-radius: 2px;
  margin-right: 6px; } .legend .band { background: var(--band); border: 1px solid var(--line); }
.legend .level { width: 18px; height: 0; border-radius: 0;
  border-top: 2px dashed var(--level); vertical-align: middle; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
td, th { text-align: left; padding: 4px 10px 4px 0; border-bottom: 1px solid var(--line);
  vertical-align: top; font-weight: inherit; } thead th, tr.changed th { font-weight: 600; }
thead th { vertical-align: bottom; }
td.value { font-family: ui-monospace, monospace; overflow-wrap: anywhere; min-width: 7.5em; }
.scroll { overflow-x: auto; max-height: 70vh; }
.sorts td, .sorts tbody th, .values td { font-variant-numeric: tabular-nums; white-space: nowrap; }
.scroll tr > :first-child { position: sticky; left: 0; background: var(--card); }
.sorts button { all: unset; cursor: pointer; font-weight: 600; }
.sorts button:focus-visible, .scroll:focus-visible { outline: 2px solid; outline-offset: 2px; }
th[aria-sort=ascending] button::after { content: " \\25b2"; }
th[aria-sort=descending] button::after { content: " \\25bc"; }
.tools { margin: 4px 0 8px; } .tools[hidden] { display: none; } .tools input { font: inherit; }
.failed { border-left: 4px solid #d55e00; }
details summary { cursor: pointer; font-weight: 600; } details.values { margin-top: 8px;
  font-size: 13px; color: var(--dim); } .values summary { font-weight: inherit; }
.example { margin: 10px 0; line-height: 2; white-space: pre-wrap; overflow-wrap: anywhere; }
.token { border-bottom: 3px solid var(--stage); padding: 1px 0;
  background: color-mix(in srgb, var(--stage) 18%, transparent); }
.token:hover { background: color-mix(in srgb, var(--stage) 45%, transparent); }
#told:checked ~ .example .token::after { content: attr(data-told); font-size: 11px;
  margin: 0 3px; vertical-align: super; }
@media (max-width: 560px) { body { padding: 16px 10px 40px; } section { padding: 12px; }
  svg text { font-size: 20px; } .wide { display: none; } td.dim { display: none; }
  .sorts tbody th { white-space: normal; } }
@media print { body { padding: 0; } .tools { display: none; }
  svg, tr, .card { break-inside: avoid; }
  h2 { break-after: avoid; } .legend i, .token { print-color-adjust: exact; }
  .scroll { max-height: none; overflow: visible; } .scroll table { font-size: 9px; }
  .scroll tr > * { position: static; padding-right: 4px; } .scroll thead th,
  .scroll tbody th { white-space: normal; overflow-wrap: break-word; } }
"""
