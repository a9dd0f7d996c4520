function header() {
  const run = REPORT.runs[state.run], state_ = h("span", { class: "chip " + ({ finished: "good", running: "note", failed: "bad" }[run.status] || "dim"), id: "status" }, t("status_" + run.status));
  $("top").replaceChildren(
    h("h1", {}, several() ? REPORT.runs.length + " " + (state.lang ? "个运行" : "runs") : run.name), several() ? "" : state_,
    h("span", { class: "where" }, several() ? "" : run.folder),
    several() ? h("select", { id: "which", "aria-label": t("run"), onchange: (e) => { state.run = +e.target.value; render(); } }, REPORT.runs.map((r, i) => h("option", { value: String(i), selected: i === state.run }, r.name))) : "",
    h("button", { type: "button", id: "language", onclick: () => switchTo("lang", 1 - state.lang) }, state.lang ? "English" : "中文"),
    h("button", { type: "button", id: "theme", onclick: () => switchTo("theme", state.theme === "dark" ? "light" : "dark") }, t(state.theme === "dark" ? "themeLight" : "theme")));
}
function switchTo(what, value) {
  state[what] = value;
  store.set(what, String(value));
  render();
}
function apply() {
  document.documentElement.dataset.theme = state.theme;
  document.documentElement.lang = state.lang ? "zh-CN" : "en";
}
function findings(run, first) {
  return run.findings.map((f, i) => {
    const w = f.words[LANG()];
    const link = $("panel-" + f.panel) || f.panel === "legs" ? h("a", { href: f.panel === "legs" ? "#legs" : "#panel-" + f.panel, onclick: () => { if (f.step) choose(f.step); } }, t("evidence") + " ↓") : null;
    return h("article", { class: "verdict " + f.level + (first && i === 0 ? " first" : ""), "data-kind": f.kind }, h("h3", {}, w.title), h("p", {}, w.evidence + " ", link), w.advice ? h("p", { class: "try" }, h("b", {}, t("tryit") + ": "), w.advice) : "");
  });
}
function tile(name, big, more) { return h("div", { class: "tile" }, h("div", { class: "name" }, name), h("div", { class: "big" }, big), more ? h("div", { class: "more" }, more) : ""); }
function tiles(run) {
  const s = run.summary, found = [], fix = (x) => x.toFixed(3), span = (r) => `${fix(r[0])}`;
  if (s.pass) { const [a, b] = s.pass; found.push(tile(t("pass"), b ? span(a) + " → " + span(b) : span(a), (b ? [a, b] : [a]).map((r) => `${fix(r[1])}–${fix(r[2])}`).join(" → "))); }
  if (s.completed) found.push(tile(t("completed"), percent(s.completed[1]), s.right ? t("ofRight").replace("{}", percent(s.completed[1] / Math.max(1e-12, s.right[1]))) : ""));
  if (s.reward) found.push(tile(t("rewardTile"), number(s.reward[0]) + " → " + number(s.reward[1])));
  if (s.length) found.push(tile(t("lengthTile"), number(s.length[0]) + " → " + number(s.length[1]), percent(s.cut[1]) + " " + t("cutShare")));
  if (s.entropy) found.push(tile(t("entropyTile"), number(s.entropy[0]) + " → " + number(s.entropy[1])));
  found.push(tile(t("stepsTile"), run.step + " / " + run.total));
  if (s.seconds) found.push(tile(t("timeTile"), clock(s.seconds), run.step ? number(s.seconds / run.step) + " s " + t("perStep") : ""));
  return h("div", { class: "tiles" }, found);
}
const clock = (s) => (s < 120 ? Math.round(s) + " s" : s < 7200 ? Math.round(s / 60) + " min" : (s / 3600).toFixed(1) + " h");
function top() {
  const node = h("section", { "aria-label": t("verdict") }, h("h2", { id: "verdict" }, t("verdict")));
  const parts = several() ? REPORT.runs.map((run, i) => [h("h3", {}, h("a", { href: "#samples", onclick: () => { state.run = i; render(); } }, run.name), " ", h("span", { class: "dim" }, t("status_" + run.status))), i]) : [[null, 0]];
  return { node, start() {
    if (several()) {
      const rows = parts.map(([head, i]) => { const r = REPORT.runs[i], w = r.findings[0]; return h("tr", {}, h("td", {}, head), h("td", { class: w.level }, h("b", {}, w.words[LANG()].title)), h("td", {}, w.words[LANG()].evidence), h("td", { class: "num" }, r.step + " / " + r.total)); });
      node.append(h("div", { class: "scroll" }, h("table", {}, rows)));
    } else node.append(...findings(REPORT.runs[0], true), tiles(REPORT.runs[0]));
    const bad = REPORT.runs.flatMap((r) => r.notices.map((n) => (several() ? r.name + ": " : "") + n));
    if (bad.length) node.append(h("details", { open: true }, h("summary", {}, t("notices")), h("ul", {}, bad.map((n) => h("li", {}, n)))));
  } };
}
function table(head, rows) { return h("div", { class: "scroll" }, h("table", {}, h("tr", {}, head.map((c) => h("th", {}, c))), rows.map((r) => h("tr", {}, r.map((c) => (c instanceof Node ? c : h("td", {}, c))))))); }
const code = (x) => h("td", {}, h("code", {}, x));
const num = (x) => h("td", { class: "num" }, x);
function comparison() {
  const c = REPORT.comparison, node = h("section", { "aria-label": t("compare") }, h("h2", { id: "compare" }, t("compare")));
  const start = () => {};
  if (c.changed.length) node.append(h("details", { open: c.changed.length < 16 }, h("summary", {}, `${t("changedSettings")} (${c.changed.length})`), table([t("key"), ...c.groups.map((g) => g.label)], c.changed.map((r) => [code(r.key), ...r.values.map((v) => code(v))]))));
  node.append(h("h3", {}, t("endpoint")), table([t("endpoint"), ...c.groups.map((g) => `${g.label} (${g.runs.length})`), ...c.groups.slice(1).map((g) => `${t("difference")}: ${g.label} − ${c.groups[0].label}`)],
    c.endpoints.map((e) => [h("td", {}, e.title[state.lang]), ...e.means.map((m) => num(m === null ? "–" : number(m))), ...e.differences.map((d) => { const clear = d && d.pairs > 2 && (d.low > 0 || d.high < 0); return h("td", { class: "num" + (clear ? " " + (e.better * d.mean > 0 ? "good" : e.better * d.mean < 0 ? "bad" : "") : "") }, d ? `${d.mean > 0 ? "+" : ""}${number(d.mean)}` + (d.low === null ? "" : `  (${number(d.low)} … ${number(d.high)})`) + `  n=${d.pairs}` : "–"); })])),
    h("p", { class: "dim" }, t(c.paired ? "pairedNote" : "unpairedNote")));
  for (const f of c.flips) {
    const body = f.problems.length ? table([t("problem"), f.from, f.to], f.problems.map((p) => [code(p.id), num(percent(p.before)), h("td", { class: "num " + (p.after > p.before ? "good" : "bad") }, percent(p.after))])) : h("p", { class: "dim" }, t("noFlips").replace("{n}", f.of));
    node.append(h("details", { open: f.problems.length > 0 && f.problems.length < 15 }, h("summary", {}, `${t("flipped")}: ${f.from} → ${f.to} (${f.problems.length} / ${f.of})`), body));
  }
  return { node, start };
}
function settings() {
  const run = REPORT.runs[state.run], node = h("section", { "aria-label": t("settings") }, h("h2", { id: "settings" }, t("settings") + (several() ? " – " + run.name : "")));
  const shown = (v) => (typeof v === "string" ? v : JSON.stringify(v));
  if (run.settings.length) node.append(h("h3", {}, t("differs") + (run.recipe ? ` · ${t("closest")}: ${run.recipe}` : "")), table([t("key"), t("value"), t("default"), ...(run.recipe ? [t("recipe")] : [])], run.settings.map((s) => [code(s.key), code(shown(s.value)), code(s.default === undefined ? "" : shown(s.default)), ...(run.recipe ? [code(s.recipe === undefined ? "" : shown(s.recipe))] : [])])));
  if (run.legs.length) node.append(h("h3", { id: "legs", style: "margin-top:14px" }, t("legs")), table([t("leg"), t("from"), t("to"), t("state"), t("exact"), t("changed"), "gmpo"], run.legs.map((l) => [num(l.number), num(l.start), num(l.steps), h("td", {}, t("status_" + l.status) + (l.reason ? ": " + l.reason : "")), h("td", {}, t(l.exact ? "yes" : "no")), h("td", {}, l.differences.join("; ")), h("td", {}, l.gmpo)])));
  if (Object.keys(run.environment).length) node.append(h("details", {}, h("summary", {}, t("environment")), table(["", ""], Object.entries(run.environment).map(([k, v]) => [code(k), h("td", {}, shown(v))]))));
  return { node, start() {} };
}
function stepbar() {
  const place = $("stepbar"), canvas = h("canvas", { role: "slider", tabindex: "0", "aria-label": t("step") }), now = h("span", { class: "now" }), reset = h("button", { type: "button", onclick: () => zoom(null) }, t("reset"));
  const run = () => REPORT.runs[state.run];
  place.replaceChildren(run().curves.steps.length ? h("div", {}, now, canvas, reset) : "");
  const values = () => column(run(), "critic/score/mean") || column(run(), "train/loss") || [];
  function paint() {
    const steps = run().curves.steps, v = values();
    if (!steps.length) return;
    const [a, b] = extent(), w = canvas.clientWidth, H = 34, k = devicePixelRatio, c = canvas.getContext("2d");
    canvas.width = w * k; canvas.height = H * k; c.scale(k, k); c.clearRect(0, 0, w, H);
    const x = (s) => 4 + (w - 8) * (b > a ? (s - a) / (b - a) : 0.5), present = v.filter((y) => y !== null && y !== undefined), top_ = Math.max(...present, 1e-9), low = Math.min(...present, 0), wide = Math.max(1, (w - 8) / Math.max(1, b - a) - 1);
    if (state.range) { c.fillStyle = faint("c0", 0.12); c.fillRect(x(state.range[0]) - wide / 2, 0, x(state.range[1]) - x(state.range[0]) + wide, H); }
    steps.forEach((s, i) => { if (v[i] === null || v[i] === undefined) return; const y = 3 + (H - 5) * (v[i] - low) / (top_ - low || 1); c.fillStyle = s === state.step ? colour("ink") : faint("c0", 0.65); c.fillRect(x(s) - wide / 2, H - y, wide, y); });
    c.fillStyle = colour("c1");
    const checked = column(run(), "val/pass@1");
    if (checked) steps.forEach((s, i) => { if (checked[i] !== null) c.fillRect(x(s) - 1.5, 0, 3, 4); });
    c.fillStyle = colour("ink"); c.fillRect(x(state.step) - 1, 0, 2, H);
    const i = steps.indexOf(state.step), score = i < 0 ? null : v[i];
    now.replaceChildren(h("b", {}, `${t("step")} ${state.step}`), ` / ${run().total}` + (score === null || score === undefined ? "" : ` · ${t(column(run(), "critic/score/mean") ? "reward" : "loss")} ${number(score)}`));
    canvas.setAttribute("aria-valuenow", state.step); canvas.setAttribute("aria-valuemin", a); canvas.setAttribute("aria-valuemax", b);
  }
  const at = (e) => { const box = canvas.getBoundingClientRect(), [a, b] = extent(); return Math.round(a + (b - a) * Math.max(0, Math.min(1, (e.clientX - box.left - 4) / (box.width - 8)))); };
  canvas.addEventListener("pointerdown", (e) => { choose(at(e)); canvas.setPointerCapture(e.pointerId); });
  canvas.addEventListener("pointermove", (e) => { if (e.buttons) choose(at(e)); });
  new ResizeObserver(paint).observe(canvas);
  return paint;
}
let paint = () => {};
function render() {
  apply();
  plots.splice(0).forEach(({ plot }) => plot.destroy());
  header();
  const parts = [top(), ...(several() ? [comparison()] : []), curves(), ratio(), samples(), settings()];
  $("main").replaceChildren(...parts.map((p) => p.node), h("footer", {}, `${t("made")} ${REPORT.gmpo}, ${REPORT.made}. ${t("license")} `, h("br"), `${t("keys")}: ${t("keysText")}`));
  paint = stepbar();
  parts.forEach((p) => p.start());
  paint();
  document.documentElement.dataset.ready = "1";
}
function keys(e) {
  if (e.ctrlKey || e.metaKey || e.altKey || /INPUT|SELECT|TEXTAREA/.test(e.target.tagName)) { if (e.key === "Escape") e.target.blur(); return; }
  const run = REPORT.runs[state.run], steps = run.curves.steps, i = steps.findIndex((s) => s >= state.step);
  const to = { ArrowRight: steps[Math.min(steps.length - 1, i + 1)], ArrowLeft: steps[Math.max(0, i - 1)], Home: steps[0], End: steps[steps.length - 1] }[e.key];
  if (to !== undefined && (e.target.tagName !== "PRE")) { choose(to); e.preventDefault(); }
  else if (e.key === "t") switchTo("theme", state.theme === "dark" ? "light" : "dark");
  else if (e.key === "l") switchTo("lang", 1 - state.lang);
  else if (e.key === "/") { const f = $("f-text"); if (f) { f.focus(); e.preventDefault(); } }
  else if (several() && (e.key === "[" || e.key === "]")) { state.run = (state.run + (e.key === "]" ? 1 : REPORT.runs.length - 1)) % REPORT.runs.length; render(); }
}
(async () => {
  REPORT = await unpack("report");
  const language = store.get("lang"), theme = store.get("theme"), asked = new URLSearchParams(location.hash.slice(1));
  state.lang = language === null ? +(navigator.language || "").startsWith("zh") : +language;
  state.theme = theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  state.run = Math.max(0, Math.min(REPORT.runs.length - 1, +(asked.get("run") || 0)));
  const steps = REPORT.runs[state.run].curves.steps;
  state.step = +(asked.get("step") || steps[steps.length - 1] || 0);
  state.listeners.push((o) => { for (const { plot } of plots) plot.redraw(false, false); paint(); if (!o.zoomed || !filter.only) refilter(); if (o.scroll) $("samples").scrollIntoView({ behavior: "smooth" }); });
  document.addEventListener("keydown", keys);
  tips();
  render();
  let before = null;
  addEventListener("beforeprint", () => { before = state.theme; if (before !== "light") { state.theme = "light"; render(); } });
  addEventListener("afterprint", () => { if (before && before !== "light") { state.theme = before; render(); } });
})();
