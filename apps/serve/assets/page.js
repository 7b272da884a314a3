import { drawingPad, paintBands, paintMap, paintPicture, paintWave } from "/draw.js";
import { asWav, record } from "/sound.js";

const $ = (id) => document.getElementById(id);
const element = (tag, className = "", text = "", ...children) => {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== "") made.textContent = text;
  made.append(...children);
  return made;
};
const percent = (share) => `${(100 * share).toFixed(1)} %`;
const ms = (value) => `${value < 1 ? value.toFixed(3) : value.toFixed(1)} ms`;
const NAMES = { audio: "Sound", image: "Picture", text: "Text" };
const CHOICES = { audio: "Choose a sound or drop it here", image: "Choose a picture or drop it here", text: "Choose a text file or drop it here" };
const ACCEPTS = { audio: "audio/*,.wav", image: "image/*", text: ".txt,text/plain" };
const LONGEST_RECORDING_S = 10, MOST_HISTORY = 30, MOST_BARS = 10;

// The token comes behind # in the link, which browsers send to nobody, and leaves the address bar at once.
const given = new URLSearchParams(location.hash.slice(1)).get("token");
if (given) {
  sessionStorage.setItem("token", given);
  history.replaceState(null, "", location.pathname);
}

async function api(path, body) {
  const token = sessionStorage.getItem("token");
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  let reply;
  try {
    reply = await fetch(path, body ? { method: "POST", body, headers } : { headers });
  } catch {
    throw new Error("the server does not answer: is it still running?");
  }
  const said = await reply.json().catch(() => ({ error: `the server is busy (${reply.status})` }));
  if (!reply.ok) throw new Error(said.error);
  return said;
}

const { models, limits, memory_mb } = await api("/api/bundles").catch((error) => {
  $("summary").textContent = "";
  tell(error);
  throw new Promise(() => {});
});
let kind = "", pad = null, asked = 0;

function tell(error) {
  $("problem").textContent = error ? error.message : "";
  $("problem").hidden = !error;
}

// ---- asking ----

async function ask(body, name) {
  const number = ++asked, begin = performance.now(), mine = kind;
  try {
    if (body.size > limits.body_bytes) throw new Error(`${name} is larger than ${Math.round(limits.body_bytes / 1048576)} MB`);
    const frame = mine === "image" && !$("frame-choice").hidden && $("frame").checked ? 1 : 0;
    const said = await api(`/api/predict?kind=${encodeURIComponent(mine)}&frame=${frame}`, body);
    const entry = { ...said, name, kind: mine, when: new Date(), round_ms: performance.now() - begin };
    if (number !== asked) return;  // a later one is on its way
    tell(null);
    show(entry);
    remember(entry);
  } catch (error) {
    if (number === asked) tell(error);
  }
}

async function take(file) {
  if (!file) return;
  if (kind !== "audio" || file.name.endsWith(".npy")) return ask(file, file.name);
  try {
    play(file);
    await ask(await asWav(file), file.name);
  } catch (error) {
    tell(error);
  }
}

function play(blob) {
  URL.revokeObjectURL($("player").src);
  $("player").src = URL.createObjectURL(blob);
  $("played").hidden = false;
}

// ---- showing ----

function show(entry) {
  const words = entry.answers.map(headline);
  const agree = words.every((word) => word === words[0]);
  $("agreement").textContent = words.length < 2 || entry.answers[0].task !== "classification" ? "" : agree ? "all agree" : "they differ";
  $("agreement").className = `badge ${agree ? "good" : "bad"}`;
  $("views").replaceChildren(...entry.views.map((view) => viewOf(view)));
  const inference = entry.answers.reduce((sum, answer) => sum + answer.inference_ms, 0);
  $("timing").textContent = `${entry.name}: inference ${ms(inference)}, in the server ${ms(entry.total_ms)}, there and back ${ms(entry.round_ms)}`;
  entry.answers.forEach((answer) => showAnswer($(`answer-${answer.model}`), answer, models[answer.model]));
}

// Labels by share; an object's own order is no help, it puts whole numbers first.
const likeliest = (shares) => Object.keys(shares).sort((one, other) => shares[other] - shares[one]);
const plain = (label) => label.replaceAll("_", " ");

const headline = (answer) => {
  if (answer.task === "classification") return answer.label;
  if (answer.task === "segmentation") return likeliest(answer.shares)[0];
  return Object.entries(answer.values).map(([name, value]) => `${name} ${value.toPrecision(4)}`).join(", ");
};

function showAnswer(place, answer, model) {
  const [bold, share] = place.querySelector(".said").children;
  const onScale = answer.ordinal_class !== undefined, [number] = Object.values(answer.values ?? {});
  bold.textContent = onScale ? number.toFixed(2) : answer.task === "regression" ? "" : plain(headline(answer));
  bold.classList.toggle("long", bold.textContent.length > 12);
  share.textContent = onScale ? `class ${answer.ordinal_class}` : answer.task === "classification" ? percent(answer.confidence) : "";
  const body = place.querySelector(".body");
  if (answer.task === "regression") {
    const rows = Object.entries(answer.values).map(([name, value]) => element("tr", "", "", element("td", "", name), element("td", "", `${value.toPrecision(5)} ${answer.units[name]}`)));
    body.replaceChildren(...(onScale ? [scale(number, answer.ordinal_class, model.ordinal)] : []), element("table", "", "", element("tbody", "", "", ...rows)));
  } else {
    showBars(body, answer.probabilities ?? answer.shares, model);
    if (answer.map) {
      const canvas = element("canvas", "map");
      paintMap(canvas, answer.map);
      body.append(canvas);
    }
  }
  place.querySelector(".took").textContent = `inference ${ms(answer.inference_ms)}`;
}

// The ordinal classes side by side, the number's own marked, and a needle where the number is between their centres.
function scale(number, own, centres) {
  const nearest = centres.findLastIndex((centre) => centre <= number), low = Math.min(Math.max(nearest, 0), centres.length - 2);
  const along = low + (number - centres[low]) / (centres[low + 1] - centres[low]);
  const needle = element("i", "needle");
  needle.style.left = `${100 * Math.min(1, Math.max(0, (along + 0.5) / centres.length))}%`;
  const classes = centres.map((centre) => element("span", centre === own ? "best" : "", String(centre)));
  return element("div", "scale", "", ...classes, needle);
}

// Few classes keep their order, so that builds compare at a glance; of many the likeliest are shown.
function showBars(body, shares, model) {
  const labels = model.labels.length <= MOST_BARS ? model.labels : likeliest(shares).slice(0, MOST_BARS);
  let list = body.querySelector(".bars");
  if (!list || list.children.length !== labels.length) {
    list = element("ol", model.labels.some((label) => label.length > 4) ? "bars wordy" : "bars");
    list.append(...labels.map(() => element("li", "", "", element("span", "label"), element("div", "track", "", element("div", "fill")), element("span", "share"))));
    body.replaceChildren(list);
  }
  const [best] = likeliest(shares);
  labels.forEach((label, k) => {
    const [name, track, share] = list.children[k].children;
    list.children[k].className = label === best ? "best" : "";
    name.textContent = plain(label);
    track.firstChild.style.width = `${100 * (shares[label] ?? 0)}%`;
    share.textContent = percent(shares[label] ?? 0);
  });
}

function viewOf(view) {
  const figure = element("figure", view.kind), caption = element("figcaption");
  if (view.kind === "spectrogram") {
    const wave = element("canvas", "wave"), bands = element("canvas", "bands");
    bands.setAttribute("role", "img");
    bands.setAttribute("aria-label", "Spectrogram");
    paintWave(wave, view.envelope, getComputedStyle(document.documentElement).getPropertyValue("--accent"));
    paintBands(bands, view);
    figure.append(wave, bands, element("div", "axis", "", element("span", "", "0 s"), element("span", "", `${view.seconds.toFixed(2)} s`)));
    caption.textContent = `0 to ${view.top_hz / 1000} kHz, ${view.range_db} dB`;
  } else if (view.kind === "picture") {
    const canvas = element("canvas");
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", "The picture as the student sees it");
    paintPicture(canvas, view);
    figure.append(canvas);
    caption.textContent = `${view.shape.join(" × ")} pixels`;
  } else if (view.kind === "tokens") {
    figure.append(element("ul", "tokens", "", ...view.tokens.map((token) => element("li", "", token))));
    caption.textContent = `${view.tokens.length} of at most ${view.most} tokens`;
  } else {
    caption.textContent = `an array of ${view.shape.join(" × ")}`;
  }
  figure.append(caption, ...view.notes.map((note) => element("p", "note", note)));
  return figure;
}

function remember(entry) {
  const thumb = element("canvas"), view = entry.views[0];
  thumb.setAttribute("aria-hidden", "true");
  if (view.kind === "spectrogram") paintBands(thumb, view);
  if (view.kind === "picture") paintPicture(thumb, view);
  const said = [...new Set(entry.answers.map(headline))].map(plain).join(" · ");
  const what = element("span", "what", "", element("span", "labels", said), element("span", "soft", `  ${entry.name}`));
  const slowest = Math.max(...entry.answers.map((answer) => answer.inference_ms));
  const button = element("button", "", "", thumb, what, element("time", "", `${ms(slowest)} · ${entry.when.toLocaleTimeString()}`));
  button.type = "button";
  button.addEventListener("click", () => { choose(entry.kind); show(entry); });
  $("history").prepend(element("li", "", "", button));
  while ($("history").children.length > MOST_HISTORY) $("history").lastChild.remove();
  $("past").hidden = false;
}

function buildCard(model, number) {
  const facts = element("div", "facts");
  facts.append(element("span", "badge plain", model.precision));
  if (model.gate) facts.append(element("span", `badge ${model.gate === "passed" ? "good" : "bad"}`, `gate ${model.gate}`));
  if (model.size_bytes) facts.append(element("span", "badge", `${(model.size_bytes / 1e6).toFixed(2)} MB`));
  if (typeof model.score === "number") facts.append(element("span", "badge", `${model.metric} ${model.metric === "accuracy" ? percent(model.score) : model.score.toPrecision(4)}`));
  if (model.p90_ms) facts.append(element("span", "badge", `p90 ${ms(model.p90_ms)} when packed`));
  const card = element("article", "card build", "", element("h3", "", `${model.bundle}: ${model.build}`), element("p", "path soft small", model.path), facts);
  card.append(element("div", "said", "", element("b", "", "–"), element("span")), element("div", "body"), element("p", "took soft small"));
  card.append(...model.notes.map((note) => element("p", "note", note)));
  card.id = `answer-${number}`;
  return card;
}

// ---- choosing what to try ----

function choose(wanted) {
  if (wanted === kind) return;
  kind = wanted;
  const mine = models.map((model, number) => [model, number]).filter(([model]) => model.kind === kind);
  document.querySelectorAll("[data-for]").forEach((part) => { part.hidden = part.dataset.for !== kind; });
  $("drawing").hidden = !mine.some(([model]) => model.draws);
  $("frame-choice").hidden = $("drawing").hidden;
  $("frame").checked = mine.some(([model]) => model.finds_digits);
  $("played").hidden = true;
  $("file").accept = ACCEPTS[kind] ? `${ACCEPTS[kind]},.npy` : ".npy";
  $("drop-text").textContent = CHOICES[kind] ?? "Choose an .npy file or drop it here";
  $("answers").replaceChildren(...mine.map(([model, number]) => buildCard(model, number)));
  $("views").replaceChildren(element("p", "soft", "Nothing yet."));
  $("agreement").textContent = $("timing").textContent = "";
  document.querySelectorAll("#kinds button").forEach((button) => button.setAttribute("aria-pressed", String(button.dataset.kind === kind)));
  tell(null);
}

let recording = null;
async function toggleRecording() {
  const button = $("record");
  if (recording) {
    const stopped = recording;
    recording = null;
    button.classList.remove("recording");
    $("record-text").textContent = "Record";
    const sound = await stopped.stop();
    $("level").value = 0;
    play(sound);
    return ask(sound, "the microphone");
  }
  button.disabled = true;
  try {
    recording = await record(LONGEST_RECORDING_S, (peak) => { $("level").value = peak; }, () => { if (recording) toggleRecording(); });
    button.classList.add("recording");
    $("record-text").textContent = "Stop";
    $("microphone").hidden = true;
  } catch (error) {
    $("microphone").textContent = `No microphone: ${error.message}`;
    $("microphone").hidden = false;
  } finally {
    button.disabled = false;
  }
}

$("record").addEventListener("click", toggleRecording);
pad = drawingPad($("pad"), async () => ask(await pad.picture(), "the drawing"));
$("clear").addEventListener("click", () => pad.clear());
$("frame").addEventListener("change", async () => { if (!pad.empty) ask(await pad.picture(), "the drawing"); });
$("say").addEventListener("submit", (event) => { event.preventDefault(); ask(new Blob([$("text").value]), `“${$("text").value.slice(0, 60)}”`); });
$("text").addEventListener("keydown", (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("say").requestSubmit(); });
$("file").addEventListener("change", () => { take($("file").files[0]); $("file").value = ""; });
$("forget").addEventListener("click", () => { $("history").replaceChildren(); $("past").hidden = true; });
for (const name of ["dragover", "dragleave", "drop"])
  document.addEventListener(name, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", name === "dragover");
    if (name === "drop") take(event.dataTransfer.files[0]);
  });

const kinds = [...new Set(models.map((model) => model.kind))];
$("kinds").append(...kinds.map((name) => {
  const button = element("button", "", NAMES[name] ?? name);
  button.type = "button";
  button.dataset.kind = name;
  button.addEventListener("click", () => choose(name));
  return button;
}));
$("kinds").hidden = kinds.length < 2;
$("summary").textContent = `${models.length} ${models.length === 1 ? "build" : "builds side by side"}`;
$("foot").textContent = `Nothing is kept, nothing leaves ${location.hostname}.` + (memory_mb.now ? ` The server takes ${Math.round(memory_mb.now)} MB.` : "");
choose(kinds[0]);
document.documentElement.dataset.ready = "yes";
