// What the stream at /events says, shown. Text is only ever set as text.

const byId = (id) => document.getElementById(id);
const kept = 200; // lines in the list

const el = (tag, className, text) => {
  const e = document.createElement(tag);
  if (className) e.className = className;
  if (text !== undefined) e.textContent = text;
  return e;
};

const ms = (n) => {
  if (n < 10) return `${n.toFixed(1)} ms`;
  if (n < 1000) return `${Math.round(n)} ms`;
  if (n < 60_000) return `${(n / 1000).toFixed(1)} s`;
  return `${Math.round(n / 60_000)} min`;
};
const clock = (text) => {
  const t = new Date(text);
  return `${t.toLocaleTimeString("en-GB")}.${String(t.getMilliseconds()).padStart(3, "0")}`;
};
const shortRef = (id) => (/^[0-9a-f]{64}$/.test(id) ? id.slice(0, 12) : id.length > 24 ? `${id.slice(0, 23)}…` : id);

// The list of changes.

const list = byId("changes");
const lines = new Map(); // by id of the change
let paused = false;
let waiting = []; // while paused
let settled = false; // what comes at first is not new

function matches(line) {
  const words = byId("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  return words.every((w) => line.dataset.words.includes(w));
}

function count() {
  const shown = [...list.children].filter((l) => !l.hidden).length;
  byId("count").textContent = byId("filter").value ? `${shown} of ${list.children.length}` : "";
  byId("none").hidden = list.children.length > 0;
}

function put(line) {
  line.hidden = !matches(line);
  list.prepend(line);
  while (list.children.length > kept) {
    lines.delete(list.lastElementChild.dataset.id);
    list.lastElementChild.remove();
  }
  count();
}

function showChange(c) {
  const known = lines.get(c.id);
  const line = el("li", [c.past && "past", c.wide && "wide", !known && settled && "new"].filter(Boolean).join(" "));
  line.dataset.id = c.id;
  const refs = c.wide ? "every one" : c.refs.map(shortRef).join(" ") + (c.more ? ` and ${c.more} more` : "");
  line.append(el("time", "mono", clock(c.written)), el("span", "mono", c.position));
  const what = el("span", "what", `${c.kind} ${c.op} `);
  what.append(el("span", "ref mono", refs));
  line.append(what);
  const where = el("span", "where");
  for (const n of c.nodes) {
    where.append(el("span", n.anew ? "node anew" : "node", n.anew ? `${n.node} began anew` : `${n.node} ${ms(n.after_ms)}`));
  }
  if (!c.past && c.nodes.length < c.of) where.append(el("span", "node open", `${c.nodes.length} of ${c.of} nodes`));
  if (where.children.length) line.append(where);
  line.dataset.words = [c.kind, c.op, c.position, c.epoch, ...c.refs, ...c.nodes.map((n) => n.node)].join(" ").toLowerCase();
  lines.set(c.id, line);
  if (known?.isConnected) {
    line.hidden = !matches(line);
    known.replaceWith(line);
    count();
  } else if (!known) {
    put(line);
  }
}

function showNotice(n) {
  const line = el("li", `notice ${n.level}`);
  line.append(el("time", "mono", clock(n.time)), el("span", "what", n.text));
  line.dataset.words = n.text.toLowerCase();
  put(line);
}

const show = (f, data) => (paused ? waiting.push([f, data]) : f(data));

// The system as it stands.

function tag(state) {
  return el("span", `tag ${state}`, state);
}

function showSystem(s) {
  const state = byId("state");
  const whole = s.connected && s.leaders.length === 1 && s.nodes > 0 && s.fresh === s.nodes && !s.alarms.length;
  state.textContent = s.nodes ? `${s.fresh} of ${s.nodes} nodes fresh` : "no node answers";
  state.className = `pill ${whole ? "good" : s.alarms.some((a) => a.level === "bad") ? "bad" : "warn"}`;
  document.title = `${whole ? "" : "● "}${s.fresh}/${s.nodes} authfence`;
  byId("leader").textContent = s.leaders.map((l) => `${l.name} leads term ${l.term}, at ${l.position}`).join("; ");
  byId("heard").textContent = `as of ${new Date(s.time).toLocaleTimeString("en-GB")}`;

  const alarms = s.alarms.map((a) => el("li", a.level, a.text));
  const box = byId("alarms");
  box.hidden = !alarms.length;
  const before = [...box.firstElementChild.children].map((l) => l.textContent).join("\n");
  if (before !== s.alarms.map((a) => a.text).join("\n")) box.firstElementChild.replaceChildren(...alarms);

  const rows = [];
  for (const p of s.processes) {
    const row = el("tr");
    row.dataset.name = p.name;
    const name = el("th", "", p.name);
    name.scope = "row";
    row.append(name);
    const cell = (label, content) => {
      const td = el("td");
      td.dataset.label = label;
      td.append(content);
      row.append(td);
    };
    const node = p.role === "node";
    const caches = node && p.counts && "l1_hits" in p.counts;
    cell("", tag(p.state));
    cell("applied", el("span", "mono", p.position));
    cell("lag", node ? (p.lag ? `${p.lag}, ${ms(p.lag_ms)}` : "0") : "–");
    cell("lease", node ? (p.lease_ms > 0 ? ms(p.lease_ms) : "none") : "–");
    cell("entries", caches ? String((p.counts.keys ?? 0) + (p.counts.organizations ?? 0) + (p.counts.negative ?? 0)) : "–");
    cell("hits", p.hit_rate === undefined ? "–" : `${(100 * p.hit_rate).toFixed(1)} %`);
    cell("503", caches ? String(p.counts.unavailable ?? 0) : "–");
    cell("L2", caches ? (!p.counts.l2 ? "none" : p.counts.l2_open ? "away" : "ok") : "–");
    cell("version", p.version ?? "–");
    rows.push(row);
    if (p.reason || p.state === "silent") {
      row.className = "has-reason";
      const why = el("tr", "reason");
      const td = el("td", "", p.state === "silent" ? `last heard ${clock(p.last_heard)}${p.reason ? `, ${p.reason}` : ""}` : p.reason);
      td.colSpan = 10;
      why.append(td);
      rows.push(why);
    }
  }
  byId("nodes").tBodies[0].replaceChildren(...rows);
  showLatency(s.latency);
}

const svg = (tag, attributes) => {
  const e = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) e.setAttribute(name, value);
  return e;
};

function showLatency(l) {
  if (!l.count) return;
  const quantile = (name, v) => (v === undefined ? `${name} over 30 s` : `${name} below ${ms(v)}`);
  byId("quantiles").textContent = `${l.count} times, ${quantile("half", l.p50_ms)}, ${quantile("99 %", l.p99_ms)}`;
  const most = Math.max(...l.counts);
  const width = 380 / l.counts.length;
  const bars = l.counts.map((n, i) => {
    const height = n ? Math.max(3, (126 * n) / most) : 0;
    const bar = svg("rect", { x: i * width + 1, y: 130 - height, width: width - 2, height });
    if (i >= l.bounds_ms.length || l.bounds_ms[i] > 1000) bar.classList.add("slow");
    const title = svg("title", {});
    title.textContent = `${n} up to ${i < l.bounds_ms.length ? ms(l.bounds_ms[i]) : "more"}`;
    bar.append(title);
    return bar;
  });
  byId("histogram").replaceChildren(svg("line", { x1: 0, y1: 131, x2: 380, y2: 131 }), ...bars);
}

// The stream.

const stream = new EventSource("events");
const on = (name, f) => stream.addEventListener(name, (e) => f(JSON.parse(e.data)));
on("hello", () => {
  // Everything comes anew.
  waiting = [];
  lines.clear();
  list.replaceChildren();
  count();
  settled = false;
  setTimeout(() => { settled = true; }, 500);
});
on("system", showSystem);
on("change", (c) => show(showChange, c));
on("notice", (n) => show(showNotice, n));
stream.addEventListener("error", () => {
  byId("state").textContent = "the console is gone; this is how it was";
  byId("state").className = "pill bad";
});

// What a person does.

byId("filter").addEventListener("input", () => {
  for (const line of list.children) line.hidden = !matches(line);
  count();
});
function pause() {
  paused = !paused;
  byId("pause").setAttribute("aria-pressed", String(paused));
  byId("pause").textContent = paused ? "Go on" : "Pause";
  if (!paused) {
    const held = waiting.slice(-4 * kept);
    waiting = [];
    for (const [f, data] of held) f(data);
  }
}
byId("pause").addEventListener("click", pause);

const theme = {
  get: () => { try { return localStorage.getItem("theme"); } catch { return null; } },
  set: (t) => { document.documentElement.dataset.theme = t; try { localStorage.setItem("theme", t); } catch { /* for this page only */ } },
};
if (theme.get()) document.documentElement.dataset.theme = theme.get();
function otherTheme() {
  const now = document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  theme.set(now === "dark" ? "light" : "dark");
}
byId("theme").addEventListener("click", otherTheme);

document.addEventListener("keydown", (e) => {
  if (e.ctrlKey || e.metaKey || e.altKey) return;
  if (e.target.tagName === "INPUT") {
    if (e.key === "Escape") { e.target.value = ""; e.target.dispatchEvent(new Event("input")); e.target.blur(); }
    return;
  }
  switch (e.key) {
    case "/": byId("filter").focus(); e.preventDefault(); break;
    case "p": pause(); break;
    case "t": otherTheme(); break;
  }
});
