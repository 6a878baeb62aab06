
"use strict";
const part = (id) => document.getElementById(id);
const { classes, facts } = JSON.parse(part("data").textContent);
const KEPT = 240;  // latencies in the curve
const RETRY = 1000;  // milliseconds until a server that does not answer is asked again
const latencies = [];
let shown = { sequence: -1 }, url = null;

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

const milliseconds = (seconds) => (seconds === undefined ? "\u2013" : `${(seconds * 1000).toFixed(seconds < 0.1 ? 1 : 0)} ms`);

function card(lesion) {
  const known = classes.find((one) => one.label === lesion.label) || { name: String(lesion.label), colour: "gray" };
  const item = element("li", undefined, lesion.found ? "" : "missed");
  item.style.setProperty("--colour", known.colour);
  const line = element("div");
  line.append(element("b", `#${lesion.lesion} ${known.name}`), ` ${lesion.score.toFixed(2)}`);
  const bar = element("div", undefined, "bar"), filled = element("span");
  filled.style.width = `${Math.round(lesion.score * 100)}%`;
  bar.append(filled);
  item.append(line, bar);
  const notes = [];
  if (lesion.size_mm) notes.push(`${lesion.size_mm[0].toFixed(1)} \u00d7 ${lesion.size_mm[1].toFixed(1)} mm`);
  if (!lesion.found) notes.push("missed in this frame");
  if (notes.length) item.append(element("div", notes.join(", "), "quiet small"));
  return item;
}

function showCurve() {
  const top = Math.max(...latencies, 1e-9);
  const points = latencies.map((value, place) => `${(place * 240) / (KEPT - 1)},${(58 - (value / top) * 55).toFixed(1)}`);
  part("curve").firstElementChild.setAttribute("points", points.join(" "));
  part("range").textContent = latencies.length ? `latest ${latencies.length} frames shown, up to ${milliseconds(top)}` : "";
}

function showState(name, text, reason) {
  part("state").className = `badge ${name}`;
  if (part("state").textContent !== text) part("state").textContent = text;
  part("reason").textContent = reason || "";
  part("reason").hidden = !reason;
  document.body.classList.toggle("stale", name !== "live");
  document.title = `${text} \u2013 stnet`;
}

function show(state) {
  const ended = state.state === "ended" && state.status;
  showState(ended && state.status === "ok" ? "ok" : state.state, ended ? `ended: ${state.status}` : state.state, state.reason);
  if (state.feed) part("feed").textContent = `${state.feed}, ${state.width} \u00d7 ${state.height}`;
  if (state.frame === undefined) return;
  part("place").textContent = `frame ${state.frame}, ${state.time.toFixed(2)} s`;
  part("median").textContent = milliseconds(state.latency_median);
  part("percentile").textContent = milliseconds(state.latency_percentile_99);
  part("rate").textContent = state.rate === undefined ? "\u2013" : `${state.rate.toFixed(1)}/s`;
  part("dropped").textContent = state.dropped;
  part("dropped").className = state.dropped ? "trouble" : "";
  part("lesions").replaceChildren(...state.lesions.map(card));
  part("none").hidden = state.lesions.length > 0;
  if (state.frame !== shown.frame) {
    latencies.push(state.latency);
    if (latencies.length > KEPT) latencies.shift();
    showCurve();
  }
}

async function showPicture(bytes) {
  const next = URL.createObjectURL(new Blob([bytes], { type: "image/jpeg" }));
  const picture = part("picture");
  picture.src = next;
  await picture.decode().catch(() => {});
  if (url) URL.revokeObjectURL(url);
  url = next;
  picture.hidden = false;
  part("empty").hidden = true;
}

async function follow() {
  for (;;) {
    try {
      const answer = await fetch(`next?after=${shown.sequence}`, { cache: "no-store" });
      if (!answer.ok) throw new Error(answer.status);
      const bytes = new Uint8Array(await answer.arrayBuffer());
      const end = bytes.indexOf(10);
      const state = JSON.parse(new TextDecoder().decode(bytes.subarray(0, end)));
      if (bytes.length > end + 1 && state.frame !== shown.frame) await showPicture(bytes.subarray(end + 1));
      show(state);
      shown = state;
    } catch (error) {
      if (shown.state !== "ended") showState("gone", "no answer", "The program does not answer: it has ended, or the connection is broken.");
      await new Promise((done) => setTimeout(done, RETRY));
    }
  }
}

for (const [title, text] of Object.entries(facts)) part("facts").append(element("dt", title), element("dd", text));
follow();
