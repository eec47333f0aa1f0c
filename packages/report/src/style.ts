/** The page's only style sheet. Two palettes; widths from 320 px up; nothing is loaded. */
export const style = `
:root{color-scheme:light dark;--bg:#fbfaf7;--card:#fff;--ink:#1d2421;--soft:#5c6661;--line:#dfe3dd;--accent:#2c7a4b;
--accent-ink:#fff;--second:#b4641a;--third:#4a6fa5;--fourth:#8a4f9e;--track:#eef0eb;--warn:#fff4dc;--warn-ink:#6b4a00;--heat:44,122,75;--heat-negative:176,58,46}
@media (prefers-color-scheme:dark){:root{--bg:#131715;--card:#1b211e;--ink:#e7ece8;--soft:#a1aca5;--line:#333c37;--accent:#6cc492;
--accent-ink:#0d1b13;--second:#e39a55;--third:#8fb2e6;--fourth:#cb95de;--track:#262d29;--warn:#3a2f14;--warn-ink:#f3d795;--heat:108,196,146;--heat-negative:230,120,105}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;overflow-wrap:anywhere}
main{max-width:64rem;margin:0 auto;padding:1.5rem 1rem 4rem}
h1{font-size:1.6rem;line-height:1.25;margin:.2rem 0 .4rem}
h2{font-size:1.15rem;margin:0 0 .25rem}
p{margin:.25rem 0 .75rem}.soft,caption{color:var(--soft);font-size:.9rem}
section{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:1.1rem 1.1rem 1.2rem;margin:1rem 0}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(13rem,1fr));gap:.75rem;margin:1rem 0}
.card{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:.8rem 1rem}
.card b{display:block;font-size:1.45rem;line-height:1.3;font-variant-numeric:tabular-nums}
.card span{color:var(--soft);font-size:.88rem;display:block}
.scroll{overflow-x:auto;margin:0 -.2rem;padding:0 .2rem .3rem}
.scroll:focus-visible{outline:2px solid var(--accent)}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;width:100%}
caption{text-align:left;padding-bottom:.4rem}
th,td{text-align:left;padding:.4rem .7rem .4rem 0;border-bottom:1px solid var(--line);vertical-align:top}
th{font-weight:600;overflow-wrap:normal}tbody th{min-width:5.5rem}thead th{color:var(--soft);font-size:.85rem;white-space:nowrap}
td.n,th.n{text-align:right;white-space:nowrap}td.n small,th small{display:block;color:var(--soft);font-weight:400;font-size:.8rem}
tr.chosen th,tr.chosen td{background:color-mix(in srgb,var(--accent) 10%,transparent)}
tr:last-child th,tr:last-child td{border-bottom:0}
.plot{display:grid;grid-template-columns:minmax(6rem,11rem) 1fr;gap:.15rem .75rem;align-items:center;margin-top:1rem}
.plot .name{font-size:.9rem;text-align:right}.plot .chosen{font-weight:700}
.track{position:relative;height:1.9rem;background:var(--track);border-radius:4px}
.track i,.track u{position:absolute;display:block}
.track i{height:3px;border-radius:2px;transform:translateY(-50%)}
.track u{width:11px;height:11px;border-radius:50%;transform:translate(-50%,-50%)}
.track .s{top:32%}.track .h{top:68%}
i.s{background:var(--second)}u.s{background:var(--card);border:3px solid var(--second)}
i.h,u.h{background:var(--accent)}
.axis{position:relative;height:1.3rem;font-size:.78rem;color:var(--soft)}
.axis span{position:absolute;transform:translateX(-50%)}.axis span:first-child{transform:none}.axis span:last-child{transform:translateX(-100%)}
.legend{display:flex;flex-wrap:wrap;gap:.2rem 1.1rem;font-size:.88rem;color:var(--soft);margin:.3rem 0 0;padding:0;list-style:none}
.legend i{display:inline-block;width:.75rem;height:.75rem;border-radius:50%;margin-right:.4rem;vertical-align:-.05rem}
.legend .ring{border:3px solid var(--second)}
.line{display:grid;grid-template-columns:auto 1fr;gap:.2rem .5rem;margin-top:.7rem}
.line .y{display:flex;flex-direction:column;justify-content:space-between;text-align:right;font-size:.78rem;color:var(--soft);font-variant-numeric:tabular-nums}
.line svg{width:100%;height:16rem;background:var(--track);border-radius:4px;display:block}
.line .x{grid-column:2;display:flex;justify-content:space-between;font-size:.78rem;color:var(--soft)}
.line path{vector-effect:non-scaling-stroke;fill:none;stroke-linecap:round}
.dot{stroke-width:5px;opacity:.75}.best{stroke:var(--ink);stroke-width:1.5px}.grid{stroke:var(--line);stroke-width:1px}
.p0{stroke:var(--accent)}.p1{stroke:var(--second)}.p2{stroke:var(--third)}.p3{stroke:var(--fourth)}
.b0{background:var(--accent)}.b1{background:var(--second)}.b2{background:var(--third)}.b3{background:var(--fourth)}.bb{background:var(--ink);height:3px!important;border-radius:2px!important;vertical-align:.2rem!important}
.heat{width:auto}.heat th,.heat td{border:0;padding:0}
.heat tbody th{vertical-align:middle;padding-right:.7rem;white-space:nowrap;font-weight:400;font-size:.85rem;text-align:right}
.heat thead th{text-align:center;font-weight:400;font-size:.75rem;padding:0 0 .2rem}
.heat td{min-width:2.5rem;height:2rem;text-align:center;vertical-align:middle;font-size:.78rem;white-space:nowrap;border:2px solid var(--card);border-radius:6px;background:var(--track);color:var(--soft)}
.heat td.m{background:rgba(var(--heat),var(--a));color:var(--ink)}
.heat td.g{background:rgba(var(--heat-negative),var(--a));color:var(--ink)}
.heat td.k{box-shadow:inset 0 0 0 2px var(--accent);font-weight:700;color:var(--ink)}
.heat td.d{color:var(--accent-ink)}
.heat td.f{background:var(--accent);color:var(--accent-ink)}
.heat.small td{min-width:1rem;width:1rem;height:1rem;border-width:1px;border-radius:3px}.heat.small thead th{font-size:.65rem}
.hidden{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%);white-space:nowrap}
pre{background:var(--track);border-radius:8px;padding:.8rem 1rem;white-space:pre-wrap;font:.88rem/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;margin:.5rem 0 1rem}
dl{display:grid;grid-template-columns:minmax(8rem,auto) 1fr;gap:.25rem 1rem;margin:.5rem 0 0;font-size:.93rem}
dt{color:var(--soft)}dd{margin:0;font-variant-numeric:tabular-nums}
.note{background:var(--warn);color:var(--warn-ink);border-radius:8px;padding:.6rem .9rem;margin:.5rem 0}
footer{color:var(--soft);font-size:.85rem}
@media (max-width:34rem){main{padding:1rem .6rem 3rem}section{padding:.9rem .8rem}.plot{grid-template-columns:1fr}.plot .name{text-align:left}.plot .gap{display:none}dl{grid-template-columns:1fr}dd{margin-bottom:.4rem}}
@media print{section,.card{break-inside:avoid}}
`;
