// The live page. What others wrote (endpoints, statements, errors) is only ever put in as text.
"use strict";

const path = document.body.dataset.path;
const $ = (id) => document.getElementById(id);
const SIDE = 5; // seconds before and after a moment that belong to it

let latest = null; // the last state that the service sent
let chosen = null; // [since, until] of the time that is looked at; null while live
let oldest = 0;

// -- putting things on the page ----------------------------------------------------------------------------------------

function el(name, options = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(options)) {
    if (key === "class") made.className = value;
    else if (value !== null && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined).map((child) => (child instanceof Node ? child : String(child))));
  return made;
}

// Only what changed is put in anew, so that a reader, a selection or an open part is not disturbed.
const shown = new Map();
function show(id, facts, make) {
  const text = JSON.stringify(facts);
  if (shown.get(id) === text) return;
  shown.set(id, text);
  const made = make(facts);
  $(id).replaceChildren(...(Array.isArray(made) ? made : [made]));
}

// A sentence of the service's, in which `…` is code.
const prose = (text) => text.split("`").map((part, index) => (index % 2 ? el("code", {}, part) : part)).filter((part) => part !== "");

const none = (text) => el("p", { class: "none" }, text);

// `cards` makes a card of each row where the screen is narrow: with the columns' names, or "plain" without.
function table(columns, rows, cards = "") {
  const head = el("tr", {}, ...columns.map(([name, , options]) => el("th", { scope: "col", class: options?.number ? "number" : null }, name)));
  const body = rows.map((row) => el("tr", {}, ...columns.map(([name, value, options]) => {
    const content = value(row);
    const empty = content === null || content === undefined;
    const cell = el("td", { "data-label": name, class: [options?.number ? "number" : "", options?.mark?.(row) ?? "", empty ? "empty" : ""].join(" ").trim() || null });
    cell.append(content instanceof Node ? content : String(content ?? "–"));
    return cell;
  })));
  return el("table", { class: cards || null }, el("thead", {}, head), el("tbody", {}, ...body));
}

function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 0.001) return "< 1 ms";
  if (seconds < 1) return `${(seconds * 1000).toFixed(seconds < 0.01 ? 1 : 0)} ms`;
  if (seconds < 90) return `${seconds.toFixed(1)} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

const words = (name) => name.replaceAll("_", " ");

// -- the parts -----------------------------------------------------------------------------------------------------------

function verdictShown(title, verdict) {
  $("verdict-title").textContent = title;
  $("verdict").className = verdict.level;
  // Announced to screen readers when the kind of trouble changes, not with each figure in it.
  const kind = verdict.level + verdict.reasons.map((reason) => reason.runbook).join();
  $("headline").setAttribute("aria-live", shown.get("kind") === kind ? "off" : "polite");
  shown.set("kind", kind);
  show("headline", verdict.headline, (headline) => prose(headline));
  show("reasons", verdict.reasons, (reasons) => reasons.map((reason) => el("li", {},
    ...(reason.text === verdict.headline ? [] : [...prose(reason.text), " "]),
    reason.runbook ? el("span", { class: "todo" }, "What to do: ", el("code", {}, `steadypool why ${reason.runbook}`)) : null)));
}

const STATE_WORDS = { leased: "in use", stuck: "opening, slowly", silent: "asked, no answer", proving: "being asked", resetting: "being cleaned" };

function cells(connections, counts) {
  const limit = counts.size + Math.max(0, counts.max_overflow);
  $("counts").textContent = `${counts.leased} in use, ${counts.idle} idle, ${counts.opening} opening, ${counts.closing} closing; limit ${counts.size} + ${Math.max(0, counts.max_overflow)}`;
  const made = connections.slice(0, 200).map((each) => el("li", { class: each.state },
    el("div", {}, el("b", {}, `#${each.number} `), `${STATE_WORDS[each.state] ?? each.state} `, el("span", { class: "soft" }, duration(each.seconds))),
    each.holder ? el("div", { class: "who", title: each.holder }, each.holder) : null,
    el("div", { class: "soft" }, each.holder ? [each.workload, isLeak(each) ? "a leak?" : null, isIdle(each) ? "idle in transaction" : each.running ? "executing" : each.in_transaction ? "in transaction" : null].filter(Boolean).join(" · ") || "in use" : each.age !== null && each.age !== undefined ? `age ${duration(each.age)} · used ${each.leases}×${each.suspect ? " · suspect" : ""}` : "no answer yet")));
  for (let i = connections.length; i < Math.min(limit, 200); i += 1) {
    made.push(el("li", { class: "free" }, i < counts.size ? "not opened" : "overflow, not opened"));
  }
  $("cells").replaceChildren(...made);
}

const isLeak = (row) => row.leak && !row.running;
const isIdle = (row) => row.in_transaction && !row.running && row.quiet >= 1;

const HOLDERS = [
  ["Who", (row) => row.holder],
  ["Workload", (row) => row.workload],
  ["Held for", (row) => duration(row.seconds) + (isLeak(row) ? " – a leak?" : ""), { number: true, mark: (row) => (isLeak(row) ? "bad" : "") }],
  ["Connection", (row) => `#${row.number}`, { number: true }],
  ["Transaction", (row) => (isIdle(row) ? `idle in transaction for ${duration(row.quiet)}` : row.in_transaction ? "open" : "none"), { mark: (row) => (isIdle(row) ? "flag" : "") }],
  ["Statement", (row) => (row.running ? el("span", {}, `runs for ${duration(row.executing)}${row.usually !== undefined && row.executing > 10 * row.usually ? ` (usually ${duration(row.usually)})` : ""}: `, el("code", {}, row.running)) : row.statement ? el("span", {}, "last: ", el("code", {}, row.statement)) : "none yet")],
];

function holdersShown(connections, more) {
  const held = connections.filter((each) => each.holder).sort((a, b) => b.seconds - a.seconds);
  $("holders-count").textContent = held.length ? `${held.length + more}, longest first` : "";
  $("holders").replaceChildren(held.length ? table(HOLDERS, held.slice(0, 40), "cards") : none("Nobody."));
}

function waitersShown(waiters, total) {
  $("waiters-count").textContent = total ? `${total}, longest first` : "";
  const columns = [
    ["Who", (row) => row.holder],
    ["Workload", (row) => row.workload],
    ["Waited", (row) => duration(row.seconds), { number: true }],
    ["Time left", (row) => {
      if (row.left === null) return "no end";
      const whole = row.left + row.seconds;
      return el("span", {}, el("meter", { min: 0, max: whole, value: row.left, low: whole / 4, "aria-hidden": "true" }), ` ${duration(row.left)}`);
    }],
  ];
  $("waiters").replaceChildren(waiters.length ? table(columns, waiters, "cards") : none("Nobody."));
}

function latencyShown(latency, span) {
  for (const each of document.querySelectorAll(".span")) each.textContent = span;
  const rows = Object.entries(latency).map(([name, figures]) => ({ name, ...figures }));
  show("latency", rows, () => table([
    ["", (row) => row.name],
    ...["p50", "p95", "p99"].map((name) => [name, (row) => duration(row[name]), { number: true }]),
    ["times", (row) => row.count, { number: true }],
  ], rows));
}

function failuresShown(failures, columns) {
  const names = { connect_failures: "failed attempts to connect", connect_errors: "callers without a connection: database" };
  show("failures", failures, () => table([
    ["Cause", (row) => names[row.cause] ?? words(row.cause)],
    ...columns.map((name) => [name, (row) => row[name], { number: true, mark: (row) => (row[name] ? "bad" : "") }]),
  ], failures));
}

function journalShown(notes) {
  show("journal", notes, () => (notes.length ? table([
    ["When", (row) => clock(row.at) + (row.until - row.at >= 1 ? `–${clock(row.until)}` : ""), { mark: () => "when" }],
    ["What", (row) => words(row.kind) + (row.count > 1 ? ` ${row.count}×` : ""), { mark: () => "when" }],
    ["Text", (row) => el("span", {}, ...prose(row.text))],
  ], [...notes].reverse(), "cards plain") : none("Nothing of note.")));
}

function list(id, pairs) {
  show(id, pairs, () => pairs.filter(([, value]) => value !== null && value !== undefined && value !== "").flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
}

function livePartsShown(state) {
  const lastWake = state.journal.findLast((note) => note.kind === "wake_up");
  list("breaker", [
    ["State", state.closed ? "the pool is closed" : state.breaker === "open" ? "open: one attempt at a time" : state.breaker],
    ["Last failure", state.counts.last_connect_failure],
    ["Last wake-up", lastWake ? `${clock(lastWake.at)}: ${lastWake.text}` : "none in the journal"],
  ]);
  const listener = state.listener;
  list("listener", !listener ? [["State", "nobody listens"]] : [
    ["State", listener.state],
    ["Channels", listener.channels.join(", ")],
    ["Subscribers", `${listener.subscribers}, ${listener.behind} behind`],
    ["Last heartbeat", listener.lag === null ? null : `answered in ${duration(listener.lag)}`],
    ["Silent for", listener.silent_for === null ? null : `about ${duration(Math.round(listener.silent_for))}`],
    ["Connects, gaps", `${listener.connects}, ${listener.gaps}`],
    ["Last error", listener.last_error],
  ]);
  show("workloads", state.workloads, (rows) => (rows.length ? table([
    ["Name", (row) => row.name],
    ["Holds", (row) => row.held, { number: true, mark: (row) => (row.max_connections !== null && row.held >= row.max_connections ? "bad" : "") }],
    ["Ceiling", (row) => row.max_connections ?? "none", { number: true }],
    ["Statement limit", (row) => (row.statement_timeout === null ? "general" : duration(row.statement_timeout)), { number: true }],
  ], rows) : none("None declared.")));
  const shared = state.shared;
  list("shared", !shared ? [["State", "not used"]] : [
    ["Connections", `${shared.connections} of ${shared.most_connections}, window ${shared.window} statements each`],
    ["On their way", shared.in_flight],
    ["Waiting for their turn", shared.queued],
    ["Statements", `${shared.statements}, of them ${shared.alone} on a connection of their own`],
    ["Sent again, withdrawn", `${shared.repeated}, ${shared.withdrawn}`],
    ["Refused", shared.refused],
    ["Offences, collateral", `${shared.offences}, ${shared.collateral}`],
  ]);
  show("leaks", state.leaks, (rows) => (rows.length ? rows.map((leak) => el("details", {},
    el("summary", {}, `${clock(leak.at)} · #${leak.connection} held for ${duration(leak.seconds)} by ${leak.holder}${leak.workload ? ` (${leak.workload})` : ""}`),
    el("pre", { tabindex: "0" }, leak.stack || "where it was acquired is not known"))) : none("None.")));
}

const STATEMENTS = [
  ["Statement", (row) => el("code", {}, row.fingerprint)],
  ["Times", (row) => row.count, { number: true }],
  ["In all", (row) => duration(row.total), { number: true }],
  ["Longest", (row) => duration(row.max), { number: true }],
];
const STATEMENTS_LIVE = [
  ...STATEMENTS,
  ["p95", (row) => duration(row.p95), { number: true }],
  ["Rows", (row) => row.rows, { number: true }],
  ["Errors", (row) => row.errors, { number: true, mark: (row) => (row.errors ? "bad" : "") }],
  ["Last", (row) => clock(row.last), { mark: () => "when" }],
];

function statementsShown(rows, columns, span) {
  $("statements-span").textContent = span;
  show("statements", rows, () => (rows.length ? table(columns, rows, "cards") : none("None.")));
}

// -- live ----------------------------------------------------------------------------------------------------------------

function stateShown(state) {
  latest = state;
  $("pool").textContent = state.pool;
  document.title = `${state.verdict.level === "good" ? "" : "▲ "}${state.pool} · steadypool`;
  plots.limit = state.limits.utilization * 100;
  plots.notes = state.journal;
  plots.append(state.points);
  scrubberShown();
  show("alerts", state.alerts.map((alert) => [alert.name, alert.message, Math.round(alert.since)]),
    () => state.alerts.map((alert) => el("li", {}, `since ${clock(alert.since)}: `, ...prose(alert.message))));
  $("raised").hidden = !state.alerts.length;
  livePartsShown(state);
  if (chosen) return;
  verdictShown("Now", state.verdict);
  $("verdict-span").textContent = "the last 5 seconds";
  $("of-now").hidden = true;
  cells(state.connections, state.counts);
  holdersShown(state.connections, 0);
  waitersShown(state.waiters, state.counts.all_waiting);
  latencyShown(state.latency, "last 60 s");
  failuresShown(state.failures, ["minute", "hour", "total"]);
  journalShown(state.journal.slice(-20));
  statementsShown(state.statements, STATEMENTS_LIVE, "since the recording began");
}

function follow() {
  const events = new EventSource(`${path}/events`);
  let heard = 0;
  events.onmessage = (event) => {
    heard = Date.now();
    const state = JSON.parse(event.data);
    $("feed").className = state.running ? "" : "lost";
    $("feed").textContent = state.running ? `live, ${clock(state.at)}` : "the service is stopping: this is the last state";
    stateShown(state);
  };
  setInterval(() => {
    if (Date.now() - heard < 4000) return;
    $("feed").className = "lost";
    $("feed").textContent = latest ? `no word from the service since ${clock(latest.at)}` : "no word from the service yet";
    // After an answer that is no stream (a restart, a 503) the browser does not try again by itself.
    if (events.readyState === EventSource.CLOSED) { events.close(); setTimeout(() => location.reload(), 5000); }
  }, 2000);
}

// -- the past ------------------------------------------------------------------------------------------------------------

async function look(since, until) {
  chosen = [since, until];
  plots.selected = chosen;
  plots.redraw();
  history.replaceState(null, "", `#${since}-${until}`);
  $("live").setAttribute("aria-pressed", "false");
  scrubberShown();
  const answer = await fetch(`${path}/moment.json?since=${since}&until=${until}`);
  if (!answer.ok || !chosen || chosen[0] !== since || chosen[1] !== until) return;
  pastShown(await answer.json());
}

function pastShown(past) {
  const title = `${clock(past.since)} to ${clock(past.until)}`;
  verdictShown(`Then: ${title}`, past.verdict);
  $("verdict-span").textContent = "";
  $("of-now").hidden = false;
  const moment = past.moment ?? { connections: [], waiters: [], more: { connections: 0, waiters: 0 } };
  const figures = past.figures;
  const leased = Math.max(figures.peak, figures.leased);
  $("counts").textContent = past.recorded ? `up to ${leased} in use; limit ${figures.size} + ${Math.max(0, figures.overflow)}${past.moment ? `; at ${clock(moment.at)}, when it was worst:` : ""}` : "nothing was recorded";
  $("cells").replaceChildren(...moment.connections.map((each) => el("li", { class: each.state },
    el("div", {}, el("b", {}, `#${each.number} `), `${STATE_WORDS[each.state] ?? each.state} `, el("span", { class: "soft" }, duration(each.seconds))),
    el("div", { class: "who", title: each.holder ?? "" }, each.holder ?? ""))));
  if (past.recorded && !past.moment) $("cells").replaceChildren(el("li", { class: "free" }, "nobody held one for long, nobody waited"));
  holdersShown(moment.connections, moment.more.connections);
  waitersShown(moment.waiters, moment.waiters.length + moment.more.waiters);
  latencyShown(past.latency, title);
  failuresShown(past.failures, ["count"]);
  journalShown(past.journal);
  statementsShown(past.statements, STATEMENTS, `that ended from ${clock(past.since - (past.since % 60), false)} on`);
}

function live() {
  chosen = null;
  plots.selected = null;
  plots.redraw();
  history.replaceState(null, "", location.pathname);
  $("live").setAttribute("aria-pressed", "true");
  if (latest) stateShown(latest);
}

// "14:03" is the whole minute, "14:03:20" the seconds around it; a time that is still to come was yesterday.
function parse(text) {
  const match = /^\s*(\d{1,2})[:.](\d{2})(?:[:.](\d{2}))?\s*$/.exec(text);
  if (!match || match[1] > 23 || match[2] > 59 || (match[3] ?? 0) > 59) return null;
  const when = new Date();
  when.setHours(match[1], match[2], match[3] ?? 0, 0);
  if (when.getTime() > Date.now()) when.setDate(when.getDate() - 1);
  const at = when.getTime() / 1000;
  return match[3] === undefined ? [at, at + 60] : [at - SIDE, at + SIDE];
}

function lookAtTime() {
  const found = parse($("time").value);
  $("time-help").className = found ? "" : "wrong";
  $("time-help").textContent = found ? "" : "a time is written 14:03 or 14:03:20";
  $("time").setAttribute("aria-invalid", String(!found));
  if (found) look(...found);
}

function around(at) {
  const minute = Math.floor(at / 60) * 60;
  return plots.range > 3600 ? [minute, minute + 60] : [at - SIDE, at + SIDE];
}

function scrubberShown() {
  const scrub = $("scrub"), end = Math.floor(latest?.at ?? Date.now() / 1000);
  scrub.min = Math.max(oldest, end - plots.range);
  scrub.max = end;
  scrub.step = plots.range > 3600 ? 60 : 1;
  if (document.activeElement !== scrub || !chosen) scrub.value = chosen ? (chosen[0] + chosen[1]) / 2 : end;
  scrub.setAttribute("aria-valuetext", chosen ? `${clock(chosen[0])} to ${clock(chosen[1])}` : "live");
}

async function loadSeries() {
  const range = Number(document.querySelector("input[name=range]:checked").value);
  const end = latest?.at ?? Date.now() / 1000;
  const answer = await fetch(`${path}/series.json?span=${range > 3600 ? 60 : 1}&since=${Math.floor(end - range)}`);
  if (!answer.ok) return;
  const columns = await answer.json();
  oldest = columns.at[0] ?? end;
  plots.load(columns, range);
  scrubberShown();
}

const plots = new Plots($("plots"), (at) => look(...around(at)));
$("no-plots").hidden = plots.available;
$("zone").textContent = `times are of this browser (${Intl.DateTimeFormat().resolvedOptions().timeZone})`;
$("go").addEventListener("click", lookAtTime);
$("time").addEventListener("keydown", (event) => { if (event.key === "Enter") lookAtTime(); });
$("live").addEventListener("click", live);
$("scrub").addEventListener("input", () => look(...around(Number($("scrub").value))));
for (const each of document.querySelectorAll("input[name=range]")) each.addEventListener("change", loadSeries);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => plots.rebuild());
setInterval(() => { if (plots.range > 3600) loadSeries(); }, 60_000);
const linked = /^#(\d+)-(\d+)$/.exec(location.hash);
loadSeries().then(() => { if (linked) look(Number(linked[1]), Number(linked[2])); });
follow();
