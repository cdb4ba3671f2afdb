"""How the report page looks: on a phone and on a desk, by day and by night, and on paper."""

from __future__ import annotations

from typing import Final

CSS: Final = """
:root{color-scheme:light dark;--ink:#1c2127;--soft:#57606a;--page:#fff;--card:#f4f6f8;
--rule:#d0d7de;--accent:#0060a0;--good:#0a6b3d;--bad:#a8330b}
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ed;--soft:#a3adb8;--page:#14181d;--card:#1e242b;
--rule:#39424d;--accent:#79bdf2;--good:#6fd3a0;--bad:#ff9d73}
img.lines,.swatch,.bar i{filter:invert(1) hue-rotate(180deg)}
img.lines{mix-blend-mode:screen}
img.maps{filter:brightness(.88)}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;text-size-adjust:100%}
body{margin:0;background:var(--page);color:var(--ink);font:1rem/1.55 system-ui,sans-serif}
header,main,footer{max-width:74rem;margin:0 auto;padding:.8rem 1rem}
h1{font-size:1rem;line-height:1.3;margin:.2rem 0 .6rem;color:var(--soft);font-weight:600}
h2{font-size:1.3rem;line-height:1.3;margin:2.4rem 0 .6rem;padding-top:1rem;
border-top:1px solid var(--rule)}
h3{font-size:1.05rem;margin:1.2rem 0 .4rem}
a{color:var(--accent)}
p{max-width:46rem}
.verdict{font-size:1.3rem;line-height:1.4;max-width:none;background:var(--card);
padding:.9rem 1rem;border-left:.35rem solid var(--accent);border-radius:.3rem;margin:.6rem 0}
.verdict.good{border-color:var(--good)}
.verdict.bad{border-color:var(--bad)}
.caution{max-width:none;padding:.6rem 1rem;border-left:.35rem solid var(--bad);
background:var(--card);border-radius:.3rem;margin:.6rem 0}
.caution b{color:var(--bad)}
.verdict b{display:block;font-size:.95rem;letter-spacing:.02em}
.good b,.better{color:var(--good)}
.better{font-weight:600}
.bad b{color:var(--bad)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(9.5rem,1fr));gap:.6rem;
margin:.8rem 0;padding:0;list-style:none}
.tiles li{background:var(--card);border-radius:.3rem;padding:.6rem .8rem;font-size:.85rem;
line-height:1.35;color:var(--soft)}
.tiles strong{display:block;font-size:1.5rem;line-height:1.25;color:var(--ink);
font-variant-numeric:tabular-nums}
nav ul{display:flex;flex-wrap:wrap;gap:.2rem 1rem;padding:0;margin:.8rem 0 0;list-style:none;
font-size:.95rem}
nav a{display:inline-block;padding:.25rem 0}
.pair,.three{display:grid;gap:0 2rem;align-items:start}
.pair{grid-template-columns:repeat(auto-fit,minmax(min(100%,30rem),1fr))}
.three{grid-template-columns:repeat(auto-fit,minmax(min(100%,20rem),1fr))}
.pair>div,.three>div{min-width:0}
.scroll{overflow-x:auto;margin:.6rem 0 1rem;max-width:100%}
.scroll:focus-visible,a:focus-visible,summary:focus-visible{outline:2px solid var(--accent);
outline-offset:2px}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.9rem}
caption{text-align:left;color:var(--soft);padding-bottom:.3rem}
th,td{padding:.3rem .55rem;border-bottom:1px solid var(--rule);text-align:right;
white-space:nowrap;vertical-align:baseline}
th:first-child,td:first-child{text-align:left;padding-left:0}
th[scope=row]{font-weight:500;white-space:normal;min-width:9.5rem;position:sticky;left:0;
background:var(--page)}
tr.published th,tr.published td{color:var(--soft);font-style:italic}
td small{display:block;font-weight:400;color:var(--soft);font-size:.78em;line-height:1.2}
.swatch{display:inline-block;width:.75em;height:.75em;border-radius:50%;margin-right:.45em}
td.bar{min-width:7rem;width:40%}
.bar i{display:block;height:.8em;border-radius:.15em;min-width:2px}
figure{margin:.6rem 0 1.8rem;min-width:0}
figure h3{margin-top:.4rem}
figure img{display:block;width:100%;max-width:42rem;height:auto;background:#fff;
border-radius:.3rem}
figcaption,.note{color:var(--soft);font-size:.9rem;line-height:1.45;margin:.5rem 0 0}
figcaption{max-width:42rem}
details{margin:.8rem 0}
summary{cursor:pointer;color:var(--accent);padding:.4rem 0}
.facts td{text-align:left;white-space:normal;overflow-wrap:anywhere;font-size:.82rem;
font-family:ui-monospace,monospace}
.facts th[scope=row]{overflow-wrap:anywhere}
footer{color:var(--soft);border-top:1px solid var(--rule);margin-top:2rem}
@media(max-width:30rem){table{font-size:.8rem}th,td{padding:.3rem .28rem}
.dense{font-size:.74rem}.dense th,.dense td{padding:.3rem .14rem}
.dense th:first-child{padding-left:0}
th[scope=row]{min-width:5.2rem}.verdict{font-size:1.15rem}td.bar{min-width:5rem}}
@media print{nav{display:none}figure,tr{break-inside:avoid}}
"""
