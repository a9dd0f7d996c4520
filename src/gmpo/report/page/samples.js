const filter = { kind: 0, only: true, verdicts: new Set(), rewardLow: null, rewardHigh: null, lengthLow: null, lengthHigh: null, text: "", colour: "lr", shown: 12 };
const VERDICTS = ["correct", "wrong", "unparsed", "timeout", "grader_error"];
const textOf = async (r, i) => { const c = REPORT.runs[r].samples.columns; return c.text[i] < 0 ? null : (await unpack(`r${r}t${c.text[i]}`))[c.at[i]]; };
const tokensOf = async (r, i) => { const c = REPORT.runs[r].samples.columns; return c.token[i] < 0 ? null : (await unpack(`r${r}k${c.token[i]}`))[c.tat[i]]; };
function nearest(run) {
  /* The step of which answers are there that is nearest to the chosen one. */
  const c = run.samples.columns;
  let best = null;
  for (let i = 0; i < c.step.length; i++) if (filter.kind === 2 || c.kind[i] === filter.kind) if (best === null || Math.abs(c.step[i] - state.step) < Math.abs(best - state.step)) best = c.step[i];
  return best;
}
async function passing() {
  const run = REPORT.runs[state.run], c = run.samples.columns, wanted = filter.text.trim().toLowerCase(), at = nearest(run), found = [];
  for (let i = 0; i < c.step.length; i++) {
    if (filter.kind !== 2 && c.kind[i] !== filter.kind) continue;
    if (filter.only ? c.step[i] !== at : state.range && (c.step[i] < state.range[0] || c.step[i] > state.range[1])) continue;
    if (filter.verdicts.size && !filter.verdicts.has(c.verdict[i])) continue;
    if (filter.rewardLow !== null && !(c.reward[i] >= filter.rewardLow)) continue;
    if (filter.rewardHigh !== null && !(c.reward[i] <= filter.rewardHigh)) continue;
    if (filter.lengthLow !== null && c.tokens[i] < filter.lengthLow) continue;
    if (filter.lengthHigh !== null && c.tokens[i] > filter.lengthHigh) continue;
    if (wanted) {
      const problem = run.samples.problems[c.group[i]], text = await textOf(state.run, i);
      const hay = problem.id + "\n" + (text ? text.p + "\n" + text.o + "\n" + (text.g || "") : "");
      if (!hay.toLowerCase().includes(wanted)) continue;
    }
    found.push(i);
  }
  return found;
}
function shade(value, scale) {
  if (!value) return "";
  const a = Math.min(0.62, 0.06 + 0.56 * Math.abs(value) / scale);
  return `background:rgba(var(--${value > 0 ? "pos" : "neg"}),${a.toFixed(3)})`;
}
const per = (x, i) => (Array.isArray(x) ? x[i] : x);
function valueOf(record, i) {
  if (filter.colour === "lr") return record.d[i];
  if (filter.colour === "lp") return record.p[i];
  if (filter.colour === "aw") return record.a === undefined ? 0 : per(record.a, i) * (record.w === undefined ? 1 : per(record.w, i));
  return 0;
}
function scaleOf(records) {
  const values = records.flatMap((r) => r.d.map((_, i) => Math.abs(valueOf(r, i)))).sort((a, b) => a - b);
  return values.length ? Math.max(1e-9, values[Math.floor(values.length * 0.98)]) : 1;
}
function coloured(record, scale) {
  const cut = new Set(record.c), free = new Set(record.n || []);
  const pre = h("pre", { tabindex: "0" });
  record.t.forEach((text, i) => {
    const span = h("span", { style: filter.colour === "plain" ? "" : filter.colour === "cutc" ? (cut.has(i) ? "background:rgba(var(--cutrgb),.4)" : "") : shade(valueOf(record, i), scale) }, text || "·");
    if (cut.has(i)) span.className = "cut";
    span.dataset.tip = [
      JSON.stringify(text) + (free.has(i) ? "  " + t("unsampled") : ""),
      t("lr") + "  " + signed(record.d[i]), t("lp") + "  " + record.p[i].toFixed(3),
      record.a === undefined ? "" : t("advantage") + "  " + signed(per(record.a, i)) + (record.w === undefined ? "" : "   " + t("weight") + "  " + number(per(record.w, i))),
      cut.has(i) ? t("byBound") : "",
    ].filter(Boolean).join("\n");
    pre.append(span);
  });
  return pre;
}
const signed = (x) => (x > 0 ? "+" : x < 0 ? "−" : "") + Math.abs(x).toFixed(Math.abs(x) < 0.1 ? 4 : 3);
async function groupCard(g, passed) {
  const run = REPORT.runs[state.run], c = run.samples.columns, members = run.members[g], first = members[0];
  const texts = await Promise.all(members.map((i) => textOf(state.run, i))), records = await Promise.all(members.map((i) => tokensOf(state.run, i)));
  const known = texts.find((x) => x), scale = scaleOf(records.filter((r) => r)), problem = run.samples.problems[g];
  const answers = members.map((i, k) => {
    const text = texts[k], record = records[k], verdict = VERDICTS[c.verdict[i]] || "";
    const bar = h("div", { class: "bar" }, h("b", { class: verdict === "correct" ? "good" : verdict === "wrong" ? "bad" : "note" }, t(verdict)), h("span", {}, t("reward") + " " + number(c.reward[i])), h("span", {}, c.tokens[i] + " " + t("tokens")), c.cut[i] ? h("span", { class: "bad" }, t("cut")) : null,
      record ? (Array.isArray(record.a) || record.a === undefined ? null : h("span", {}, "A " + signed(record.a))) : null);
    const body = record ? coloured(record, scale) : text ? h("pre", { tabindex: "0" }, text.o) : h("p", { class: "dim" }, t("noText"));
    const got = text ? h("div", { class: "got" }, t("extracted") + ": ", h("b", {}, text.a === undefined ? t("nothing") : String(text.a)), text.r ? h("div", { class: "bad" }, text.r) : null) : null;
    return h("article", { class: "answer " + verdict + (passed.has(i) ? "" : " out"), "data-answer": String(i) }, bar, body, got);
  });
  return h("section", { class: "group", "data-group": String(g) },
    h("div", { class: "bar dim" }, t("step") + " " + c.step[first] + " · " + t(c.kind[first] ? "validation" : "training") + " · " + problem.id + (problem.source ? " · " + problem.source : "") + (records.some((r) => r) ? (["lr", "aw", "lp"].includes(filter.colour) ? ` · ${t("scale")}: ±${number(scale)}` : "") : " · " + t("noTokens"))),
    known ? h("div", { class: "prompt" }, known.p) : null, known && known.g ? h("div", { class: "bar" }, t("expected") + ": ", h("b", {}, known.g)) : null,
    h("div", { class: "answers" }, answers));
}
let turn = 0;
async function showSamples() {
  const place = $("found"), root = document.documentElement;
  if (!place) { delete root.dataset.busy; return; }
  root.dataset.busy = "1";
  const mine = ++turn, run = REPORT.runs[state.run], c = run.samples.columns;
  const passed = new Set(await passing());
  const groups = [...new Set([...passed].map((i) => c.group[i]))];
  /* What has token records first, then in the order of the file. */
  groups.sort((a, b) => (has(b) - has(a)) || a - b);
  function has(g) { return run.members[g].some((i) => c.token[i] >= 0) ? 1 : 0; }
  const cards = await Promise.all(groups.slice(0, filter.shown).map((g) => groupCard(g, passed)));
  if (mine !== turn) return;
  const where = filter.only ? ` · ${t("step")} ${nearest(run)}` : "";
  $("count").textContent = state.lang ? `${groups.length} ${t("groups")}中的 ${passed.size} 个回答${where}` : `${passed.size} ${t("found")} ${groups.length} ${t("groups")}${where}`;
  place.replaceChildren(...cards, ...(groups.length ? [] : [h("p", { class: "dim" }, t("none"))]),
    groups.length > filter.shown ? h("button", { class: "more", type: "button", onclick: () => { filter.shown += 24; showSamples(); } }, t("more") + " (" + (groups.length - filter.shown) + ")") : "");
  if (!waiting) delete root.dataset.busy;
}
function field(label, key, step) {
  return h("input", { type: "number", step, "aria-label": label, id: "f-" + key, value: filter[key], oninput: (e) => { filter[key] = e.target.value === "" ? null : +e.target.value; refilter(); } });
}
let waiting = null;
function refilter() { filter.shown = 12; document.documentElement.dataset.busy = "1"; clearTimeout(waiting); waiting = setTimeout(() => { waiting = null; showSamples(); }, 120); }
function samples() {
  const run = REPORT.runs[state.run], c = run.samples.columns;
  const node = h("section", { "aria-label": t("samples") }, h("h2", { id: "samples" }, t("samples") + (several() ? " – " + run.name : "")));
  if (!c.step.length) { node.append(h("p", { class: "dim" }, t("noSamples"))); return { node, start() {} }; }
  run.members = run.samples.problems.map(() => []);
  c.group.forEach((g, i) => run.members[g].push(i));
  if (!c.kind.includes(0)) filter.kind = 1;
  const kinds = ["training", "validation", "both"].map((k, i) => h("option", { value: String(i), selected: filter.kind === i }, t(k)));
  const modes = ["lr", "aw", "cutc", "lp", "plain"].map((k) => h("option", { value: k, selected: filter.colour === k }, t(k)));
  const counts = VERDICTS.map((_, v) => c.verdict.filter((x) => x === v).length);
  const chips = VERDICTS.map((name, v) => (counts[v] ? h("button", { type: "button", "data-verdict": name, "aria-pressed": String(filter.verdicts.has(v)), onclick: (e) => { if (filter.verdicts.has(v)) filter.verdicts.delete(v); else filter.verdicts.add(v); e.currentTarget.setAttribute("aria-pressed", String(filter.verdicts.has(v))); refilter(); } }, t(name) + " " + counts[v]) : null));
  const left = run.samples.left_out;
  node.append(
    h("form", { class: "filters", onsubmit: (e) => e.preventDefault() },
      h("label", {}, t("kind"), h("select", { id: "f-kind", onchange: (e) => { filter.kind = +e.target.value; refilter(); } }, kinds)),
      h("label", {}, h("input", { type: "checkbox", id: "f-only", checked: filter.only, onchange: (e) => { filter.only = e.target.checked; refilter(); } }), t("onlyStep")),
      h("span", { class: "chips" }, chips),
      h("label", {}, t("rewardFrom"), field(t("rewardFrom") + " ≥", "rewardLow", "any"), "–", field(t("rewardFrom") + " ≤", "rewardHigh", "any")),
      h("label", {}, t("lengthFrom"), field(t("lengthFrom") + " ≥", "lengthLow", "1"), "–", field(t("lengthFrom") + " ≤", "lengthHigh", "1")),
      h("input", { type: "search", id: "f-text", placeholder: t("text"), "aria-label": t("text"), value: filter.text, oninput: (e) => { filter.text = e.target.value; refilter(); } }),
      h("label", {}, t("colour"), h("select", { id: "f-colour", onchange: (e) => { filter.colour = e.target.value; showSamples(); } }, modes)),
      h("span", { class: "key" }, h("b", { style: "background:rgba(var(--neg),.5)" }, "−"), h("b", { style: "background:rgba(var(--pos),.5)" }, "+"), h("span", { style: "text-decoration:underline 2px var(--cut)" }, t("byBound")))),
    h("p", { class: "dim", id: "count", "aria-live": "polite" }),
    left.texts || left.tokens ? h("p", { class: "dim" }, t("leftOut").replace("{a}", left.texts).replace("{b}", left.tokens)) : "",
    h("div", { id: "found" }));
  return { node, start: showSamples };
}
function tips() {
  const tip = $("tip");
  document.addEventListener("mouseover", (e) => {
    const text = e.target.dataset && e.target.dataset.tip;
    tip.hidden = !text;
    if (!text) return;
    tip.textContent = text;
    const box = e.target.getBoundingClientRect(), w = tip.offsetWidth, y = box.top - tip.offsetHeight - 6;
    tip.style.left = Math.max(4, Math.min(innerWidth - w - 4, box.left)) + "px";
    tip.style.top = (y < 4 ? box.bottom + 6 : y) + "px";
  });
  document.addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });
}
