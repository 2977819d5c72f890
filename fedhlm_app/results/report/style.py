"""The look of the report: one style sheet, light and dark."""

CSS = """
:root { --ink: #1a1d21; --dim: #616a75; --page: #f5f6f8; --card: #fff; --line: #e2e5e9; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e7eaee; --dim: #9aa4b0; --page: #14171a; --card: #1d2125; --line: #30363d; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1120px; padding: 28px 20px 60px; background: var(--page);
  color: var(--ink); font: 15px/1.45 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 24px; margin: 0 0 2px; } h2 { font-size: 16px; margin: 0 0 2px; }
p { margin: 0 0 10px; } .dim, .none { color: var(--dim); }
.verdict { font-size: 18px; margin: 16px 0 0; }
.cards { display: grid; gap: 12px; margin: 20px 0;
  grid-template-columns: repeat(auto-fit, minmax(158px, 1fr)); }
.card, section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
.card { padding: 12px 14px; } .card b { display: block; font-size: 22px; line-height: 1.25;
  font-variant-numeric: tabular-nums; } .card span { color: var(--dim); font-size: 13px; }
section { padding: 16px 18px; margin-bottom: 14px; }
.grid2 { display: grid; gap: 14px; grid-template-columns: repeat(auto-fit, minmax(400px, 1fr)); }
.grid2 section { margin: 0; } .grid2 { margin-bottom: 14px; }
svg { display: block; width: 100%; } svg.bar { border-radius: 6px; margin: 8px 0; }
svg text { fill: var(--dim); font-size: 11px; } svg .grid { stroke: var(--line); }
.dot { opacity: 0; } .dot:hover { opacity: 1; } rect:hover { opacity: .8; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 16px; list-style: none; margin: 6px 0 0;
  padding: 0; font-size: 13px; color: var(--dim); }
.legend i { display: inline-block; width: 10px; height: 10px; border-radius: 2px;
  margin-right: 6px; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
td, th { text-align: left; padding: 4px 10px 4px 0; border-bottom: 1px solid var(--line);
  vertical-align: top; } td.value { font-family: ui-monospace, monospace; word-break: break-all; }
tr.changed td { font-weight: 600; } .failed { border-left: 4px solid #d55e00; }
details summary { cursor: pointer; font-weight: 600; }
"""
