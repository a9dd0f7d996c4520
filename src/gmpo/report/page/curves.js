const GROUP_COLOURS = ["c0", "c1", "c2", "c3", "c4", "c5"];
const MEANING = { correct: "good", wrong: "bad", unparsed: "note", timeout: "c3", grader_error: "c5" };
function several() { return REPORT.runs.length > 1; }
function panelSpec(panel, run) {
  const names = panel.series.filter(([name]) => column(run, name));
  let steps = run.curves.steps, keep = steps.map((_, i) => i);
  const series = names.map(([name, label], i) => ({ label: t(label), values: column(run, name), raw: column(run, name), colour: colour(MEANING[label] || "c" + i), points: panel.points, name, dash: panel.stacked ? undefined : [undefined, [7, 4], [2, 3]][i] }));
  if (!series.length) return null;
  keep = keep.filter((i) => series.some((s) => s.values[i] !== null));
  if (!keep.length) return null;
  steps = keep.map((i) => run.curves.steps[i]);
  const pick = (v) => keep.map((i) => v[i]);
  for (const s of series) { s.raw = pick(s.raw); s.values = panel.log ? s.raw.map((v) => (v > 0 ? v : null)) : s.raw; }
  const spec = { steps, series, bands: [], scale: panel.log ? { distr: 3 } : panel.unit === "share" ? { range: (u, a, b) => [0, Math.max(panel.stacked ? 1 : 0.01, b === null ? 1 : b * 1.05)] } : {} };
  if (panel.stacked) {
    const live = series.filter((s) => s.raw.some((v) => v));
    if (live.length) spec.series = live;
    let below = null;
    spec.series.forEach((s, i) => {
      const under = below;
      s.values = s.raw.map((v, k) => (v || 0) + (under ? under[k] : 0));
      below = s.values; s.width = 1;
      if (i === 0) s.fill = s.colour + "55"; else spec.bands.push({ series: [i + 1, i], fill: s.colour + "55" });
    });
    if (panel.unit === "seconds") spec.scale = { range: (u, a, b) => [0, (b || 1) * 1.05] };
  }
  if (panel.band && column(run, panel.band[0])) {
    const [low, high] = panel.band.map((name) => pick(column(run, name)));
    if (panel.points) {
      spec.draw = whiskers(steps, low, high, "c0");
      spec.scale = { range: (u, a, b) => [Math.max(0, Math.min(a === null ? 0 : a, ...low.filter((v) => v !== null)) - 0.03), Math.max(b === null ? 1 : b, ...high.filter((v) => v !== null)) + 0.03] };
    } else {
      spec.series.push({ values: low, colour: "transparent", width: 0, hidden: true }, { values: high, colour: "transparent", width: 0, hidden: true });
      const n = spec.series.length;
      spec.bands.push({ series: [n, n - 1], fill: faint("c0", 0.14) });
    }
  }
  return spec;
}
/* The headline of a panel for several runs: mean and least to most of each kind of run, on the union of their steps. */
function groupSpec(panel) {
  const [name] = panel.series.find(([n]) => REPORT.runs.some((r) => column(r, n))) || [];
  if (!name) return null;
  const steps = [...new Set(REPORT.runs.flatMap((r) => (column(r, name) ? r.curves.steps.filter((_, i) => column(r, name)[i] !== null) : [])))].sort((a, b) => a - b);
  const spec = { steps, series: [], bands: [], scale: panel.log ? { distr: 3 } : {} };
  REPORT.comparison.groups.forEach((group, g) => {
    const tables = group.runs.map((i) => REPORT.runs[i]).filter((r) => column(r, name)).map((r) => new Map(r.curves.steps.map((s, i) => [s, column(r, name)[i]])));
    if (!tables.length) return;
    const at = steps.map((s) => tables.map((m) => m.get(s)).filter((v) => v !== undefined && v !== null && (!panel.log || v > 0)));
    const c = colour(GROUP_COLOURS[g % 6]);
    spec.series.push({ label: group.label, values: at.map((v) => (v.length ? v.reduce((a, b) => a + b, 0) / v.length : null)), colour: c, points: panel.points });
    if (tables.length > 1) {
      spec.series.push({ values: at.map((v) => (v.length ? Math.min(...v) : null)), colour: c, width: 0, hidden: true }, { values: at.map((v) => (v.length ? Math.max(...v) : null)), colour: c, width: 0, hidden: true });
      const n = spec.series.length;
      spec.bands.push({ series: [n, n - 1], fill: faint(GROUP_COLOURS[g % 6], 0.15) });
    }
  });
  return spec.series.length && steps.length ? spec : null;
}
function curves() {
  const grid = h("div", { class: "panels" }), run = REPORT.runs[state.run], later = [];
  for (const panel of REPORT.panels) {
    const spec = several() ? groupSpec(panel) : panelSpec(panel, run);
    if (!spec) continue;
    const names = panel.series.map(([n]) => n).filter((n) => REPORT.runs.some((r) => column(r, n)));
    const headline = panel.series.find(([n]) => names.includes(n));
    const f = frame(panel.id, panel.title[state.lang] + (several() && panel.series.length > 1 ? ": " + t(headline[1]) : ""), names);
    grid.append(f.node);
    later.push(() => { const update = legendOf(f.legend, spec.series, panel.unit); update(null); draw(f.place, spec, update); });
  }
  const node = h("section", { "aria-label": t("curves") }, h("h2", { id: "curves" }, t("curves")), h("p", { class: "dim", hidden: !later.length }, t("click"), " ", several() ? t("spread") : ""), grid);
  return { node, start: () => later.forEach((f) => f()) };
}
function ratio() {
  const run = REPORT.runs[state.run], q = (name) => column(run, "actor/log_ratio/" + name), later = [];
  const node = h("section", { "aria-label": t("ratio") }, h("h2", { id: "ratio" }, t("ratio") + (several() ? " – " + run.name : "")));
  if (!q("q50")) { node.append(h("p", { class: "dim" }, t("noRatio"))); return { node, start() {} }; }
  node.append(h("ul", { class: "said" }, run.ratio.map((s) => h("li", {}, s[LANG()]))));
  const grid = h("div", { class: "panels" });
  node.append(grid);
  const keep = run.curves.steps.map((_, i) => i).filter((i) => q("q50")[i] !== null), steps = keep.map((i) => run.curves.steps[i]);
  const pick = (name) => keep.map((i) => (column(run, name) ? column(run, name)[i] : null));
  const add = (id, title, names, spec, unit, wide) => {
    const f = frame(id, title, names, wide);
    grid.append(f.node);
    later.push(() => { const update = legendOf(f.legend, spec.series, unit); update(null); draw(f.place, spec, update); });
  };
  const L = (n) => "actor/log_ratio/" + n, s = (n, more) => ({ values: pick(n), colour: colour("c0"), still: true, ...more });
  const all = ["min", "q0.1", "q1", "q50", "q99", "q99.9", "max"].map(L);
  const [below, above] = run.bounds || [null, null];
  const peak = Math.max(1e-6, below || 0, above || 0, ...all.flatMap((n) => pick(n).map((v) => Math.abs(v || 0)))) * 1.25;
  add("ratio", t("band"), [...all, "actor/updates"], {
    steps, height: 260, scale: { distr: 4, asinh: 0.01, range: () => [-peak, peak] },
    series: [s(L("q50"), { label: t("median"), width: 2 }), s(L("q0.1"), { label: "0.1 %", width: 0.8 }), s(L("q99.9"), { label: "99.9 %", width: 0.8 }), s(L("q1"), { label: "1 %", width: 0 }), s(L("q99"), { label: "99 %", width: 0 }), s(L("min"), { label: "min", width: 1, dash: [2, 4], colour: colour("c5") }), s(L("max"), { label: "max", width: 1, dash: [2, 4], colour: colour("c5") })],
    bands: [{ series: [3, 2], fill: faint("c0", 0.15) }, { series: [5, 4], fill: faint("c0", 0.25) }],
    draw: (u) => { if (above !== null) line(u, above, t("upper") + " " + number(above), "bad"); if (below !== null) line(u, -below, t("lower") + " " + number(-below), "bad"); },
  }, "", true);
  add("clip", t("clip"), ["actor/clip_share/positive", "actor/clip_share/negative"], { steps, scale: { range: (u, a, b) => [0, Math.max(1e-4, b * 1.1)] }, series: [s("actor/clip_share/positive", { label: "A > 0" }), s("actor/clip_share/negative", { label: "A < 0", colour: colour("c1") })] }, "share");
  const variance = pick(L("var_within"));
  add("variance", t("variance"), [L("var_within")], { steps, scale: { distr: 3 }, series: [{ label: t("variance").split(/[ 的]/)[0], values: variance.map((v) => (v > 0 ? v : null)), colour: colour("c0") }], draw: (u) => line(u, 0.01, "0.01", "note") }, "");
  const mean = pick("actor/seq_ratio/mean");
  const ends = ["min", "max"].flatMap((n) => pick("actor/seq_ratio/" + n)).filter((v) => v > 0);
  add("seq", t("seq"), ["actor/seq_ratio/mean", "actor/seq_ratio/min", "actor/seq_ratio/max"], { steps, scale: Math.max(...ends) > 8 * Math.min(...ends) ? { distr: 3 } : {}, series: [{ label: t("mean"), values: mean, colour: colour("c0") }, s("actor/seq_ratio/min", { label: "min", width: 0 }), s("actor/seq_ratio/max", { label: "max", width: 0 })], bands: [{ series: [3, 2], fill: faint("c0", 0.18) }] }, "");
  add("ess", t("ess"), ["actor/ess"], { steps, scale: { range: (u, a) => [Math.min(0.9, a === null ? 0 : a * 0.95), 1.01] }, series: [s("actor/ess", { label: "ESS" })] }, "");
  return { node, start: () => later.forEach((f) => f()) };
}
