// Browses the episodes of a run. An index of them all is loaded at once, their texts piece by piece when they are wanted.
"use strict";
const ROW = 30, KEPT_PIECES = 24, MAX_TEXT = 20000, MAX_SIDE_BY_SIDE = 32;
const $ = (selector, within = document) => within.querySelector(selector);
const form = $("#filters"), list = $(".rows"), pane = $("#episode"), slider = $("#steps input"), canvas = $("#steps canvas");
const weights = JSON.parse(form.dataset.weights);
const waiting = new Map();
const kept = new Map(); // pieces, the one used last at the end
let index, count = 0, pieceOf, rowOf, shown = [], chosen = -1, steps = [], search = 0;
let shade = "none", beside = false;

// What the pieces call.
const posttrain = { take(name, data) { waiting.get(name)?.(data); waiting.delete(name); } };

async function load(name) {
  const data = await new Promise((resolve, reject) => {
    waiting.set(name, resolve);
    const script = document.createElement("script");
    script.src = `${form.dataset.folder}/${name}.js`;
    script.onerror = () => reject(new Error(`${script.getAttribute("src")} is not there; write the report again`));
    script.onload = () => script.remove();
    document.head.append(script);
  });
  const letters = atob(data), bytes = new Uint8Array(letters.length);
  for (let at = 0; at < letters.length; at++) bytes[at] = letters.charCodeAt(at);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

async function piece(number) {
  const name = index.pieces[number].name;
  const loaded = kept.get(name) ?? load(name);
  kept.delete(name);
  kept.set(name, loaded);
  if (kept.size > KEPT_PIECES) kept.delete(kept.keys().next().value);
  return loaded;
}
const episode = async (number) => (await piece(pieceOf[number]))[rowOf[number]];
const cell = (column, number) => index.columns[column][number];
const word = (column, number) => index.texts[column][cell(column, number)];

// Text that a model wrote may hide or reorder what stands beside it.
const visible = (text) => text.replace(/[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]/gu,
  (letter) => `⟨${letter.codePointAt(0).toString(16).padStart(4, "0")}⟩`);
const shortened = (text, limit = MAX_TEXT) => text.length <= limit ? text
  : `${text.slice(0, limit / 2)}\n… ${(text.length - limit).toLocaleString("en")} characters left out …\n${text.slice(-limit / 2)}`;
const figure = (value) => value == null ? "–" : String(Math.round(value * 1000) / 1000).replace("-", "−");
const seconds = (value) => value == null ? "–" : `${value.toFixed(value < 10 ? 3 : 1)} s`;
const plain = (value) => value == null ? "" : typeof value === "string" ? value : JSON.stringify(value);

function make(tag, className, ...content) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...content.filter((each) => each !== null && each !== undefined));
  return made;
}

// --- Filters ---

function conditions() {
  const value = (name) => form.elements[name].value;
  const tests = [];
  for (const name of ["stage", "task", "outcome", "stop"]) {
    const wanted = value(name) === "" ? -1 : Number(value(name)), column = index.columns[name];
    if (wanted >= 0) tests.push((number) => column[number] === wanted);
  }
  for (const name of ["calls", "total"]) {
    const [from, to] = [value(`${name}_from`), value(`${name}_to`)], column = index.columns[name];
    if (from !== "") tests.push((number) => column[number] !== null && column[number] >= Number(from));
    if (to !== "") tests.push((number) => column[number] !== null && column[number] <= Number(to));
  }
  return tests;
}

async function apply() {
  const mine = ++search, tests = conditions(), found = [], step = steps[Number(slider.value) - 1];
  const all = [];
  for (let number = 0; number < count; number++) if (tests.every((test) => test(number))) all.push(number);
  drawSteps(all);
  for (const number of all) if (step === undefined || cell("step", number) === step) found.push(number);
  const text = form.elements.text.value.trim().toLowerCase();
  if (!text) return show(found, "");
  const hits = [], places = new Map();
  for (const number of found) {
    if (!places.has(pieceOf[number])) places.set(pieceOf[number], []);
    places.get(pieceOf[number]).push(number);
  }
  let looked = 0;
  for (const [place, numbers] of places) {
    const rows = await piece(place);
    if (mine !== search) return; // another search has begun
    hits.push(...numbers.filter((number) => textOf(rows[rowOf[number]]).toLowerCase().includes(text)));
    show(hits, ++looked < places.size ? ` · searched ${looked} of ${places.size} files` : "");
    if (looked % 8 === 0) await new Promise((go) => setTimeout(go));
  }
  if (!places.size) show([], "");
}

function textOf(row) {
  const said = row.messages.flatMap((message) => message.content.map((block) => block.text ?? ""));
  const failed = (row.failures ?? []).map((failure) => `${failure.tool}: ${failure.reason}`);
  return [row.sample_id, plain(row.ground_truth), ...said, ...failed].join("\n");
}

function show(found, remark) {
  const order = form.elements.sort.value, column = index.columns[order.replace("-", "")];
  const sign = order.startsWith("-") ? -1 : 1, last = (value) => value ?? sign * Infinity;
  shown = order ? found.slice().sort((a, b) => sign * (last(column[a]) - last(column[b])) || a - b) : found;
  const right = found.filter((number) => word("outcome", number) === "right").length;
  const share = found.length ? ` · ${(100 * right / found.length).toFixed(1)} % right` : "";
  const broken = index.broken ? ` · ${index.broken} lines could not be read` : "";
  $("#found").textContent = `${found.length.toLocaleString("en")} of ${count.toLocaleString("en")} episodes${share}${broken}${remark}`;
  $(".spacer", list).style.height = `${shown.length * ROW}px`;
  drawRows();
}

function drawRows() {
  const first = Math.max(0, Math.floor(list.scrollTop / ROW) - 6);
  const last = Math.min(shown.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + 6);
  for (const old of list.querySelectorAll(".entry")) old.remove();
  for (let at = first; at < last; at++) {
    const number = shown[at], step = cell("step", number), failed = cell("failed", number);
    const where = make("span", "", `${visible(word("task", number))} `,
      make("small", "", `${step ? `step ${step}` : "evaluation"} · ${visible(word("sample", number))}`));
    where.title = `${visible(word("stage", number))} · ended by ${visible(word("stop", number))}`;
    const row = make("div", `entry${number === chosen ? " chosen" : ""}`, make("i", `dot ${word("outcome", number)}`), where,
      make("span", "figure", figure(cell("total", number))),
      make("span", `figure${failed ? " down" : ""}`, `${cell("calls", number)} ⚒`),
      make("span", "figure", make("small", "", `${(cell("tokens", number) ?? 0).toLocaleString("en")} t`)));
    row.style.top = `${at * ROW}px`;
    row.dataset.number = number;
    list.append(row);
  }
}

function drawSteps(numbers) {
  const sums = new Map(steps.map((step) => [step, [0, 0]]));
  for (const number of numbers) {
    const sum = sums.get(cell("step", number)), total = cell("total", number);
    if (sum && total !== null) { sum[0] += total; sum[1] += 1; }
  }
  const means = steps.map((step) => { const [sum, many] = sums.get(step); return many ? sum / many : null; });
  const known = means.filter((mean) => mean !== null), low = Math.min(0, ...known), high = Math.max(low + 1e-9, ...known);
  const scale = window.devicePixelRatio || 1, width = canvas.clientWidth, height = 56, ink = canvas.getContext("2d");
  canvas.width = width * scale; canvas.height = height * scale; ink.scale(scale, scale);
  const style = getComputedStyle(document.body), at = Number(slider.value) - 1, wide = width / Math.max(1, steps.length);
  means.forEach((mean, place) => {
    if (mean === null) return;
    ink.fillStyle = style.getPropertyValue(place === at ? "--c1" : "--c0");
    const tall = 2 + (height - 4) * (mean - low) / (high - low);
    ink.fillRect(place * wide, height - tall, Math.max(1, wide - (wide > 4 ? 1 : 0)), tall);
  });
  const step = steps[at], mean = means[at];
  $("#steps output").textContent = !steps.length ? "no training steps"
    : step === undefined ? `all steps · bars: mean reward, ${figure(low)} to ${figure(known.length ? high : null)}` : `step ${step} · mean reward ${figure(mean)}`;
}

// --- One episode ---

async function choose(number) {
  chosen = number;
  history.replaceState(null, "", `#${number}`);
  drawRows();
  const row = await episode(number).catch((error) => error);
  if (number !== chosen) return;
  if (row instanceof Error) return pane.replaceChildren(make("p", "failure", row.message));
  const numbers = beside ? await group(number) : [number];
  const sheets = await Promise.all(numbers.map(async (each) => sheet(each, await episode(each))));
  if (number === chosen) pane.replaceChildren(toolbar(row), make("div", numbers.length > 1 ? "side" : "", ...sheets));
}

async function group(number) {
  const same = ["stage", "step", "task", "group"], found = [number];
  for (let each = 0; each < count && found.length < MAX_SIDE_BY_SIDE; each++) {
    if (each !== number && pieceOf[each] === pieceOf[number] && same.every((name) => cell(name, each) === cell(name, number))) found.push(each);
  }
  return found;
}

function toolbar(row) {
  const toggle = make("button", "", "its group side by side");
  toggle.setAttribute("aria-pressed", String(beside));
  toggle.onclick = () => { beside = !beside; choose(chosen); };
  const picker = make("select", "");
  for (const name of ["none", ...Object.keys(SHADES)]) picker.append(new Option(`shade: ${name}`, name, false, name === shade));
  picker.onchange = () => { shade = picker.value; choose(chosen); };
  const has = row.tokens?.length ? null : make("span", "note", "no figures of tokens were recorded");
  return make("div", "bar-top", make("b", "", `${visible(row.stage)} · ${row.step ? `step ${row.step}` : "evaluation"} · ${visible(row.task)}`),
    make("span", "sample", visible(row.sample_id)), make("span", "grow"), shade === "none" ? null : has, picker, toggle);
}

function sheet(number, row) {
  const outcome = word("outcome", number), file = index.pieces[pieceOf[number]].file;
  const made = make("article", `sheet${number === chosen && beside ? " chosen" : ""}`,
    make("header", "", make("span", `badge ${outcome}`, outcome), make("span", "", `reward ${figure(row.reward?.total)}`),
      row.advantage == null ? null : make("span", row.advantage > 0 ? "up" : "down", `advantage ${figure(row.advantage)}`),
      make("span", "sample", `episode ${row.episode} · ended by ${visible(row.stop_reason || "–")} · ${row.num_tokens ?? "–"} tokens, ${row.num_sampled ?? "–"} sampled · version ${row.version ?? "–"}`)),
    answers(row));
  const turns = { number: 0, images: 0 };
  row.messages.forEach((message, place) => {
    const said = turn(row, message, turns);
    if (!beside || number === chosen || place >= row.num_prompt_messages) made.append(said); // the prompt is the same
  });
  if (row.tool_calls.length) made.append(calls(row));
  if (row.failures?.length) made.append(failures(row));
  if (row.reward) made.append(rewards(row));
  const link = make("a", "", `${file}:${cell("line", number)}`);
  link.href = `./${file.split("/").map(encodeURIComponent).join("/")}`;
  const raw = make("details", "raw", make("summary", "", "raw row"), make("p", "note", link));
  raw.ontoggle = () => { if (raw.open && !$("pre", raw)) raw.append(make("pre", "", visible(shortened(JSON.stringify(row, null, 1))))); };
  made.append(raw);
  return made;
}

const answers = (row) => row.ground_truth == null ? null
  : make("p", "note", "right answer: ", make("b", "", visible(shortened(plain(row.ground_truth), 400))));

function turn(row, message, turns) {
  const said = make("div", "said");
  const tokens = message.role === "assistant" ? row.tokens?.[turns.number++] : null;
  for (const block of message.content) {
    if (block.type === "image") {
      const place = turns.images++;
      said.append(image(block.image, row.boxes.filter((box) => box.image === place)));
    }
    else if (block.type === "video") said.append(make("span", "image-place", `video ${visible(plain(block.video))}`));
    else if (tokens && shade !== "none") said.append(shaded(block.text ?? "", tokens, row.advantage));
    else said.append(...texts(block.text ?? "", message.role));
  }
  const wrap = message.role === "system" ? make("div", "said", make("details", "", make("summary", "", "instructions and tools"), said)) : said;
  return make("div", `turn ${message.role}`, make("div", "role", message.role), wrap);
}

function image(path, boxes) {
  const picture = make("img");
  picture.loading = "lazy";
  picture.alt = path;
  picture.src = path.startsWith("/") ? `file://${path.split("/").map(encodeURIComponent).join("/")}` : `./${path.split("/").map(encodeURIComponent).join("/")}`;
  const frame = make("div", "frame", picture, ...boxes.map((box) => {
    const edge = make("i", `zoomed${box.ok ? "" : " failed"}`, make("b", "", String(box.number)));
    edge.style.cssText = `left:${box.x / 10}%;top:${box.y / 10}%;width:${box.width / 10}%;height:${box.height / 10}%`;
    return edge;
  }));
  picture.onerror = () => frame.replaceWith(make("div", "missing", `${visible(path)} is not here`));
  return frame;
}

function texts(text, role) {
  const parts = role === "assistant" ? text.split(/(<tool_call>[^]*?(?:<\/tool_call>|$)|<think>[^]*?(?:<\/think>|$))/) : [text];
  return parts.filter((part) => part.trim()).map((part) => {
    const kind = part.startsWith("<tool_call>") ? "call" : part.startsWith("<think>") && role === "assistant" ? "think" : "";
    const made = make(kind ? "pre" : "p", kind, ...marked(visible(shortened(part.replace(/^\n+|\n+$/g, "")))));
    made.dir = "auto";
    return made;
  });
}

function marked(text) {
  const wanted = form.elements.text.value.trim().toLowerCase();
  if (!wanted) return [text];
  const parts = [], low = text.toLowerCase();
  let from = 0;
  for (let at = low.indexOf(wanted); at >= 0 && low.length === text.length; at = low.indexOf(wanted, from)) {
    parts.push(text.slice(from, at), make("mark", "", text.slice(at, at + wanted.length)));
    from = at + wanted.length;
  }
  return [...parts, text.slice(from)];
}

// --- Figures of tokens ---

const SHADES = {
  "log-prob": { key: "logprobs", worst: -5, text: (value) => `log-prob ${figure(value)} (${(100 * Math.exp(value)).toFixed(1)} %)` },
  entropy: { key: "entropies", worst: 3, text: (value) => `entropy ${figure(value)} nats` },
  advantage: { key: "advantages", worst: 2, text: (value) => `advantage ${figure(value)}` },
};

function shaded(text, tokens, advantage) {
  const { key, worst, text: told } = SHADES[shade], letters = [...text], made = make("div", "tokens");
  const values = tokens[key] ?? (key === "advantages" && advantage != null ? tokens.lengths.map(() => advantage) : null);
  made.dir = "auto";
  let at = 0;
  tokens.lengths.forEach((length, place) => {
    const span = make("span", "", visible(letters.slice(at, at + length).join(""))), value = values?.[place];
    at += length;
    if (value != null) {
      const share = Math.min(1, Math.abs(value / worst));
      const colour = key === "advantages" ? (value > 0 ? "--good" : "--bad") : "--c1";
      span.style.background = `color-mix(in srgb, var(${colour}) ${Math.round(70 * share)}%, transparent)`;
      span.title = told(value);
    }
    made.append(span);
  });
  made.append(visible(letters.slice(at).join("")));
  return made;
}

function calls(row) {
  const head = make("tr", "", ...["", "tool", "arguments", "images", "time", "outcome"].map((text) => make("th", "", text)));
  return make("table", "calls", head, ...row.tool_calls.map((call, place) => make("tr", "", make("td", "", String(place + 1)),
    make("td", "", visible(call.name || "?")), make("td", "", visible(shortened(plain(call.arguments), 400))),
    make("td", "", String(call.images)), make("td", "figure", seconds(call.seconds)),
    make("td", call.ok ? "" : "bad", call.ok ? "served" : visible(shortened(call.error || "failed", 400))))));
}

function failures(row) {
  const head = make("tr", "", ...["failure of the world", "time", "what happened"].map((text) => make("th", "", text)));
  return make("table", "calls failures", head, ...row.failures.map((failure) => make("tr", "", make("td", "", visible(failure.tool || "?")),
    make("td", "figure", seconds(failure.seconds)), make("td", "bad", visible(shortened(failure.reason, 400))))));
}

function rewards(row) {
  const named = weights[row.task] ?? {}, names = [...new Set([...Object.keys(row.reward.values), ...Object.keys(row.reward.errors)])];
  const body = names.map((name) => make("tr", "", make("th", "", visible(name)), make("td", "", figure(row.reward.values[name])),
    make("td", "weight", named[name] == null ? "" : `× ${figure(named[name])}`),
    make("td", "weight", visible(shortened([row.reward.errors[name], row.reward.notes[name]].filter(Boolean).join(" · "), 400)))));
  return make("table", "rewards", ...body);
}

// --- Beginning ---

function offer(name) {
  const select = form.elements[name];
  select.append(new Option("all", ""));
  index.texts[name].forEach((text, number) => select.append(new Option(visible(text || "–"), number)));
}

async function begin() {
  index = await load("index");
  count = index.columns.line.length;
  pieceOf = new Uint32Array(count); rowOf = new Uint32Array(count);
  let at = 0;
  index.pieces.forEach(({ rows }, number) => { for (let row = 0; row < rows; row++, at++) { pieceOf[at] = number; rowOf[at] = row; } });
  ["stage", "task", "outcome", "stop"].forEach(offer);
  steps = [...new Set(index.columns.step)].filter((step) => step > 0).sort((a, b) => a - b);
  slider.max = steps.length;
  await apply();
  document.body.dataset.ready = count; // for those who wait for the page
  if (/^#\d+$/.test(location.hash) && Number(location.hash.slice(1)) < count) choose(Number(location.hash.slice(1)));
}

let drawing = 0;
list.onscroll = () => { cancelAnimationFrame(drawing); drawing = requestAnimationFrame(drawRows); };
list.onclick = (event) => { const row = event.target.closest(".entry"); if (row) choose(Number(row.dataset.number)); };
list.onkeydown = (event) => {
  const move = { ArrowDown: 1, ArrowUp: -1 }[event.key], at = shown.indexOf(chosen) + move;
  if (!move || !(at in shown)) return;
  event.preventDefault();
  list.scrollTop = Math.min(at * ROW, Math.max(list.scrollTop, (at + 1) * ROW - list.clientHeight));
  choose(shown[at]);
};
let typing = 0;
form.oninput = (event) => { clearTimeout(typing); typing = setTimeout(apply, event.target.name === "text" ? 250 : 0); };
form.onreset = () => { slider.value = 0; setTimeout(apply); };
form.onsubmit = (event) => event.preventDefault();
slider.oninput = apply;
canvas.onclick = (event) => { slider.value = 1 + Math.floor(event.offsetX / canvas.clientWidth * steps.length); apply(); };
window.onresize = () => { drawRows(); apply(); };
begin().catch((error) => { $("#found").textContent = error.message; });
