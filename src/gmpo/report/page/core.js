const $ = (id) => document.getElementById(id);
const store = {
  get(k) { try { return localStorage.getItem("gmpo." + k); } catch { return null; } },
  set(k, v) { try { localStorage.setItem("gmpo." + k, v); } catch { /* a browser that keeps nothing of files */ } },
};
const state = { lang: 0, theme: "light", run: 0, step: 0, range: null, listeners: [] };
const t = (key) => (WORDS[key] ? WORDS[key][state.lang] : key);
const LANG = () => ["en", "zh"][state.lang];
function h(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "style") node.style.cssText = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat(Infinity)) if (child !== null && child !== undefined && child !== false) node.append(child);
  return node;
}
const opened = new Map();
function unpack(id) {
  if (!opened.has(id)) opened.set(id, (async () => {
    const binary = atob($(id).textContent.trim());
    const bytes = Uint8Array.from(binary, (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return JSON.parse(await new Response(stream).text());
  })());
  return opened.get(id);
}
function number(x) {
  if (x === null || x === undefined || Number.isNaN(x)) return "–";
  const size = Math.abs(x);
  if (size === 0) return "0";
  if (size >= 1e5) return x.toExponential(1);
  if (size >= 1000) return Math.round(x).toLocaleString("en").replace(/,/g, "\u202f");
  if (size >= 100) return x.toFixed(0);
  if (size >= 1) return String(+x.toFixed(2));
  if (size >= 1e-3) return String(+x.toPrecision(3));
  return x.toExponential(1);
}
const percent = (x) => (x === null || x === undefined ? "–" : +(100 * x).toPrecision(3) + " %");
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
const faint = (name, alpha) => { const c = colour(name); return c.startsWith("#") ? c + Math.round(alpha * 255).toString(16).padStart(2, "0") : c; };
function column(run, name) { return run.curves.columns[name]; }
function lastOf(values) { for (let i = values.length - 1; i >= 0; i--) if (values[i] !== null) return values[i]; return null; }
function firstOf(values) { for (const v of values) if (v !== null) return v; return null; }
function choose(step, options) {
  const run = REPORT.runs[state.run], steps = run.curves.steps;
  if (!steps.length) return;
  state.step = Math.max(steps[0], Math.min(steps[steps.length - 1], step));
  try { history.replaceState(null, "", "#step=" + state.step + (state.run ? "&run=" + state.run : "")); } catch { /* not allowed from some places */ }
  for (const listener of state.listeners) listener(options || {});
}
let REPORT = null;
