"use strict";

const SVG = "http://www.w3.org/2000/svg";
const run = read("run");
const classes = new Map(run.classes.map((entry) => [entry.label, entry]));
const players = [];
let active = null;

function read(id) {
  const block = document.getElementById(id);
  return block ? JSON.parse(block.textContent) : null;
}

function svg(name, attributes, text) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

function make(name, className, text) {
  const element = document.createElement(name);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

function clock(seconds) {
  const minutes = Math.floor(seconds / 60);
  return minutes ? `${minutes}:${(seconds - 60 * minutes).toFixed(2).padStart(5, "0")} min` : `${seconds.toFixed(2)} s`;
}

function score(value) { return value.toFixed(2); }

function className(label) { return classes.has(label) ? classes.get(label).name : String(label); }

function colour(label) { return classes.has(label) ? classes.get(label).colour : "rgb(240, 228, 66)"; }

function swatch(entry) {
  const dot = make("span", "dot");
  dot.style.background = entry.colour;
  return dot;
}

const WIDEST = 0.6;  // share of the picture that a label may take where a shorter one says nearly the same

// What is told of each box: [x0, y0, x1, y1, score, class, lesion]; without a score where a lesion was missed in passing.
// Rows of one box (of several classes) are one mark; a lesion's counts as one that reaches the run's threshold.
function marksOf(boxes, video, threshold) {
  const marks = new Map();
  for (const [x0, y0, x1, y1, value, label, lesion] of boxes) {
    const left = Math.max(0, x0), top = Math.max(0, y0);
    const width = Math.min(video.width, x1) - left, height = Math.min(video.height, y1) - top;
    if (width <= 0 || height <= 0) continue;
    const key = [x0, y0, x1, y1].join(), known = marks.get(key);
    const told = lesion === null || known ? value ?? 0 : Math.max(value ?? 0, run.threshold);
    if (told < threshold) continue;
    if (known) { known.classes.push([label, value]); continue; }
    const sure = value !== null && value >= run.threshold;
    marks.set(key, { left, top, width, height, lesion, label, sure, classes: [[label, value]] });
  }
  return [...marks.values()];
}

// What a label can say, the shortest at the end.
function labelTexts({ lesion, classes }) {
  const number = lesion === null ? "" : `#${lesion} `, best = classes[0][1];
  const told = classes.map(([label, value]) => className(label) + (value === null ? "" : ` ${score(value)}`));
  const brief = best === null ? "" : score(best);
  return [...new Set([number + told.join(", "), number + told[0], (number + brief).trim(), number.trim()])].filter((text) => text);
}

// The first free place around a box, then above and below it, for the longest text that has one; none covers another.
function freePlace(mark, sizes, high, taken, video) {
  const { left, top, width, height } = mark, bottom = top + height, right = left + width;
  for (const [index, wide] of sizes.entries()) {
    if (wide > video.width * (index < sizes.length - 1 ? WIDEST : 1) || high > video.height) continue;
    const spots = [];
    if (top >= high) spots.push([left, top - high]);
    spots.push([left, top]);
    if (bottom + high <= video.height) spots.push([left, bottom]);
    spots.push([left, bottom - high]);
    if (right + wide <= video.width) spots.push([right, top]);
    if (left >= wide) spots.push([left - wide, top]);
    for (let step = 2; step * high <= video.height; step += 1) spots.push([left, top - step * high], [left, bottom + (step - 1) * high]);
    for (const [wantedX, wantedY] of spots) {
      const x = Math.max(0, Math.min(wantedX, video.width - wide)), y = Math.max(0, Math.min(wantedY, video.height - high));
      if (taken.every((other) => x >= other.x + other.wide || other.x >= x + wide || y >= other.y + high || other.y >= y + high)) {
        return { index, x, y, wide };
      }
    }
  }
  return null;
}

function edge(mark) {
  const { left: x, top: y, width, height } = mark;
  return svg("rect", { class: mark.sure ? "edge" : "edge unsure", x, y, width, height, stroke: colour(mark.label) });
}

function drawBoxes(target, video, boxes, threshold) {
  target.setAttribute("viewBox", `0 0 ${video.width} ${video.height}`);
  target.replaceChildren();
  // Before the first picture is there, there is no room to draw in; the observer of the size calls again.
  if (!target.clientWidth || !target.clientHeight) return;
  // Letters of 14 pixels on the screen, whatever the frame's own size.
  const scale = Math.max(video.width / target.clientWidth, video.height / target.clientHeight);
  const size = 14 * scale, high = size * 1.35;
  const marks = marksOf(boxes, video, threshold);
  for (const mark of [...marks].reverse()) {
    const group = svg("g", { class: "box" });
    group.append(edge(mark));
    target.append(group);
  }
  const taken = [], probe = svg("text", { "font-size": size });
  target.append(probe);
  for (const mark of marks) {
    const texts = labelTexts(mark);
    const sizes = texts.map((text) => {
      probe.textContent = text;
      return probe.getComputedTextLength() + size * 0.6;
    });
    const place = freePlace(mark, sizes, high, taken, video);
    if (!place) continue;
    taken.push(place);
    const group = svg("g", { class: "label" });
    group.append(
      svg("rect", { x: place.x, y: place.y, width: place.wide, height: high, fill: colour(mark.label) }),
      svg("text", { "font-size": size, x: place.x + size * 0.3, y: place.y + size }, texts[place.index]),
    );
    target.append(group);
  }
  probe.remove();
}
