const plots = [];
function axes(log) {
  const stroke = colour("dim"), grid = { stroke: colour("grid"), width: 1 };
  const font = "11px " + colour("sans");
  const tens = (u, splits) => splits.map((v) => (v === 0 || Math.abs(Math.log10(Math.abs(v)) % 1) < 1e-9 ? v : null));
  return [
    { stroke, grid, ticks: { show: false }, font, size: 24, space: 46, values: (u, v) => v.map((x) => (Number.isInteger(x) ? x : "")) },
    { stroke, grid: log ? { ...grid, filter: tens } : grid, filter: log ? tens : undefined, ticks: { show: false }, font, size: 50, space: log ? 16 : 26, values: (u, v) => v.map((x) => (x === null ? "" : number(x))) },
  ];
}
function zoom(range) {
  const same = (a, b) => a === b || (a && b && a[0] === b[0] && a[1] === b[1]);
  if (same(range, state.range)) return;
  state.range = range;
  for (const { plot } of plots) setRange(plot);
  for (const listener of state.listeners) listener({ zoomed: true });
}
function extent() {
  const all = REPORT.runs.flatMap((r) => r.curves.steps);
  return all.length ? [Math.min(...all), Math.max(...all)] : [0, 1];
}
function setRange(plot) {
  const [low, high] = state.range || extent();
  plot.setScale("x", { min: low, max: high > low ? high : low + 1 });
}
/* One plot on the common axis.
   spec: {steps, series: [{label, values, shown, colour, width, dash, points, hidden}], bands: [{series: [hi, lo], fill}], scale, draw, height, y} */
function draw(place, spec, onCursor) {
  const data = [spec.steps, ...spec.series.map((s) => s.values)];
  let pressed = null;
  const options = {
    width: Math.max(200, place.clientWidth), height: spec.height || 168, legend: { show: false }, padding: [8, 16, 0, 0],
    cursor: {
      sync: { key: "steps", scales: ["x", null], filters: { pub: (type) => type === "mousemove" || type === "mouseleave", sub: () => true } },
      drag: { x: true, y: false, setScale: false }, points: { size: 6 }, y: false,
      bind: { dblclick: () => () => { zoom(null); return null; } },
    },
    scales: { x: { time: false }, y: spec.scale || {} },
    axes: axes(spec.scale && spec.scale.distr),
    series: [{}, ...spec.series.map((s) => ({
      label: s.label, stroke: s.hidden ? "transparent" : s.colour, width: s.width === undefined ? 1.6 : s.width, dash: s.dash, spanGaps: true, fill: s.fill,
      points: { show: !!s.points || spec.steps.length < 3, size: s.points ? 6 : 5, fill: s.colour, stroke: s.colour },
    }))],
    bands: spec.bands || [],
    hooks: {
      setSelect: [(u) => { if (u.select.width > 4) { const a = u.posToVal(u.select.left, "x"), b = u.posToVal(u.select.left + u.select.width, "x"); u.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false); if (b - a >= 0.5) zoom([Math.floor(a), Math.ceil(b)]); } }],
      setCursor: [(u) => onCursor(u.cursor.left >= 0 ? u.cursor.idx : null)],
      draw: [(u) => { if (spec.draw) spec.draw(u); mark(u); }],
      ready: [(u) => {
        u.over.addEventListener("mousedown", (e) => { pressed = e.clientX; });
        u.over.addEventListener("click", (e) => {
          if (pressed !== null && Math.abs(e.clientX - pressed) < 4 && u.cursor.idx !== null && u.cursor.idx !== undefined) choose(u.data[0][u.cursor.idx], { scroll: true });
        });
      }],
    },
  };
  const plot = new uPlot(options, data, place);
  setRange(plot);
  const entry = { plot, place };
  plots.push(entry);
  new ResizeObserver(() => { const w = place.clientWidth; if (w > 0 && Math.abs(w - plot.width) > 1) plot.setSize({ width: w, height: options.height }); }).observe(place);
  return plot;
}
function line(u, value, text, name) {
  const y = u.valToPos(value, "y", true);
  if (y < u.bbox.top - 1 || y > u.bbox.top + u.bbox.height + 1) return;
  const c = u.ctx;
  c.save(); c.strokeStyle = colour(name); c.fillStyle = colour(name); c.setLineDash([6, 4]); c.lineWidth = 1.5 * devicePixelRatio;
  c.beginPath(); c.moveTo(u.bbox.left, y); c.lineTo(u.bbox.left + u.bbox.width, y); c.stroke();
  c.font = 11 * devicePixelRatio + "px " + colour("sans"); c.textAlign = "right"; c.fillText(text, u.bbox.left + u.bbox.width - 4, y - 4 * devicePixelRatio); c.restore();
}
function mark(u) {
  const x = u.valToPos(state.step, "x", true);
  if (!(x >= u.bbox.left - 1 && x <= u.bbox.left + u.bbox.width + 1)) return;
  const c = u.ctx;
  c.save(); c.setLineDash([]); c.strokeStyle = faint("ink", 0.35); c.lineWidth = devicePixelRatio; c.beginPath(); c.moveTo(x, u.bbox.top); c.lineTo(x, u.bbox.top + u.bbox.height); c.stroke(); c.restore();
}
function whiskers(steps, low, high, name) {
  return (u) => {
    const c = u.ctx;
    c.save(); c.setLineDash([]); c.strokeStyle = colour(name); c.lineWidth = 1.4 * devicePixelRatio;
    steps.forEach((s, i) => {
      if (low[i] === null || high[i] === null || low[i] === undefined) return;
      const x = u.valToPos(s, "x", true), a = u.valToPos(low[i], "y", true), b = u.valToPos(high[i], "y", true), w = 4 * devicePixelRatio;
      if (x < u.bbox.left - 1 || x > u.bbox.left + u.bbox.width + 1) return;
      c.beginPath(); c.moveTo(x, a); c.lineTo(x, b); c.moveTo(x - w, a); c.lineTo(x + w, a); c.moveTo(x - w, b); c.lineTo(x + w, b); c.stroke();
    });
    c.restore();
  };
}
function markdown(text) {
  return text.split(/(`[^`]+`)/).map((part) => (part.startsWith("`") ? h("code", {}, part.slice(1, -1)) : part.replace(/\*\*/g, "")));
}
function docs(names) {
  return h("div", { class: "doc", hidden: true }, h("dl", {}, names.map((name) => {
    const found = (REPORT.docs[name] || {})[LANG()];
    return [h("dt", {}, name), h("dd", {}, found ? [t("formula"), ": ", markdown(found[0]), found[1] ? [h("br"), t("expect"), ": ", markdown(found[1])] : []] : t("noDoc"))];
  })));
}
function frame(id, title, names, wide) {
  const doc = docs(names), legend = h("div", { class: "legend" }), place = h("div", { class: "plot" });
  const info = h("button", { class: "info", type: "button", "aria-label": "i: " + title, "aria-expanded": "false", onclick: () => { doc.hidden = !doc.hidden; info.setAttribute("aria-expanded", String(!doc.hidden)); } }, "i");
  const node = h("section", { class: "panel" + (wide ? " wide" : ""), id: "panel-" + id, "aria-label": title }, h("div", { class: "head" }, h("h3", {}, title), info), legend, doc, place);
  return { node, legend, place };
}
function legendOf(legend, series, unit) {
  const show = unit === "share" ? percent : number;
  return (index) => {
    legend.replaceChildren(...series.filter((s) => s.label).map((s) => {
      const raw = s.raw || s.values, first = firstOf(raw), at = index === null || index === undefined ? lastOf(raw) : raw[index];
      const change = first !== null && at !== null && at !== undefined && at !== first ? (at > first ? "+" : "−") + show(Math.abs(at - first)) : "";
      return h("span", {}, h("i", { style: "background:" + s.colour }), s.label + " " + show(at) + " ", s.still ? "" : h("span", { class: "chg", title: t("sinceStart") }, change));
    }));
  };
}
