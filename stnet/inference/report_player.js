// 1st, 2nd, 3rd, 4th, 11th, 21st, 112th
function ordinal(number) {
  const teens = number % 100 > 10 && number % 100 < 14;
  return number + (teens ? "th" : ["th", "st", "nd", "rd"][number % 10] ?? "th");
}

const PLOT = { left: 42, right: 472, top: 8, bottom: 166 };

class Player {
  constructor(video, frames, section) {
    this.video = video;
    this.images = frames.slice(1);
    this.section = section;
    section.classList.toggle("still", video.frames === 1);  // what only moves in time is not shown
    this.position = 0;
    this.extra = null;  // a strongest frame that is not among those of the slider
    this.timer = null;
    this.part = (name) => section.querySelector(`[data-part="${name}"]`);
    this.image = section.querySelector(".screen img");
    this.overlay = section.querySelector(".screen svg");
    this.slider = this.part("slider");
    this.chart = section.querySelector(".chart");
    this.prepareControls();
    this.drawVerdict();
    this.drawChart();
    this.drawStrongest();
    this.cards = lesionCards(this);
    const best = video.strongest.length ? Math.round(video.strongest[0].number / video.stride) : 0;
    this.go(best);
  }

  prepareControls() {
    const { video, section } = this;
    this.image.width = video.width;
    this.image.height = video.height;
    this.slider.max = this.images.length - 1;
    this.slider.setAttribute("aria-label", `Frame of ${video.name}`);
    this.slider.addEventListener("input", () => this.go(Number(this.slider.value)));
    this.part("back").addEventListener("click", () => this.step(-1));
    this.part("forward").addEventListener("click", () => this.step(1));
    this.part("play").addEventListener("click", () => this.toggle());
    const threshold = this.part("threshold");
    this.threshold = run.threshold;  // that of the control is rounded to one of its steps
    threshold.value = run.threshold;
    threshold.addEventListener("input", () => {
      this.threshold = Number(threshold.value);
      this.refresh();
      this.markThreshold();
    });
    this.part("show").addEventListener("change", () => this.refresh());
    new ResizeObserver(() => this.refresh()).observe(this.overlay);
    for (const event of ["pointerdown", "focusin"]) section.addEventListener(event, () => { active = this; });
    const [wide, high] = video.shownSize;
    const notes = [];
    if (video.stride > 1) notes.push(`every ${ordinal(video.stride)} frame`);
    if (wide < video.width) notes.push(`pictures scaled from ${video.width} × ${video.height} to ${wide} × ${high} pixels`);
    this.part("reduced").textContent = notes.length
      ? `To keep this page small it shows ${notes.join(" and ")}; scores and boxes are those of the original frames.`
      : "";
  }

  step(by) { this.go(this.position + by); }

  go(position) {
    this.position = Math.max(0, Math.min(this.images.length - 1, position));
    this.extra = null;
    this.refresh();
  }

  current() {
    if (this.extra) return this.extra;
    const { video, position } = this;
    return {
      number: video.numbers[position], time: video.times[position], boxes: video.boxes[position],
      image: this.images[position],
    };
  }

  refresh() {
    const { threshold } = this, { number, time, boxes, image } = this.current();
    const place = `Frame ${number + 1} of ${this.video.frames} · ${clock(time)}`;
    this.image.src = `data:image/jpeg;base64,${image}`;
    this.image.alt = `${place} of ${this.video.name}`;
    drawBoxes(this.overlay, this.video, this.part("show").checked ? boxes : [], threshold);
    this.slider.value = this.position;
    this.slider.setAttribute("aria-valuetext", place);
    this.part("place").textContent = place;
    this.part("threshold-value").textContent = score(threshold);
    this.section.dataset.frame = number;
    this.mark(number);
  }

  toggle() {
    if (this.timer === null) this.play(); else this.pause();
  }

  play() {
    if (this.position === this.images.length - 1) this.go(0);
    const next = () => {
      const { position, video } = this;
      if (position === this.images.length - 1) { this.pause(); return; }
      const wait = 1000 * (video.times[position + 1] - video.times[position]);
      this.timer = setTimeout(() => { this.step(1); next(); }, Math.max(15, wait));
    };
    next();
    this.showPlaying();
  }

  pause() {
    clearTimeout(this.timer);
    this.timer = null;
    this.showPlaying();
  }

  showPlaying() {
    const playing = this.timer !== null;
    this.part("play").textContent = playing ? "Pause" : "Play";
    this.part("play").setAttribute("aria-pressed", String(playing));
  }

  drawVerdict() {
    const verdict = this.section.querySelector(".verdict");
    run.classes.forEach((entry, index) => {
      const name = make("span");
      name.append(swatch(entry), entry.name);
      const track = make("div", "track"), bar = make("div");
      bar.style.background = entry.colour;
      bar.style.width = `${100 * this.video.scores[index]}%`;
      track.append(bar);
      verdict.append(name, track, make("strong", "", score(this.video.scores[index])));
    });
    const still = this.video.frames === 1;
    this.part("verdict").textContent = still ? "Score of the image" : "Score of the video";
    const count = Math.max(1, Math.floor(run.strongestShare * this.video.frames));
    const what = count === 1 ? "The highest score of any frame" : `Mean of the ${count} highest frame scores`;
    const rule = still ? "The highest score of each class" : `${what}, class by class (a tenth of the frames)`;
    this.part("rule").textContent = `${rule}. Not a probability of disease.`;
  }

  x(number) { return PLOT.left + (PLOT.right - PLOT.left) * (this.video.frames > 1 ? number / (this.video.frames - 1) : 0.5); }

  y(value) { return PLOT.bottom - (PLOT.bottom - PLOT.top) * value; }

  drawChart() {
    const { chart, video } = this;
    const legend = this.section.querySelector(".legend");
    for (const value of [0, 0.25, 0.5, 0.75, 1]) {
      chart.append(
        svg("line", { class: "grid", x1: PLOT.left, x2: PLOT.right, y1: this.y(value), y2: this.y(value) }),
        svg("text", { x: PLOT.left - 6, y: this.y(value) + 4, "text-anchor": "end" }, String(value)),
      );
    }
    chart.append(
      svg("text", { x: PLOT.left, y: 183 }, "0 s"),
      svg("text", { x: PLOT.right, y: 183, "text-anchor": "end" }, clock(video.duration)),
    );
    this.thresholdLine = svg("line", { class: "threshold", x1: PLOT.left, x2: PLOT.right });
    this.marker = svg("line", { class: "marker", y1: PLOT.top, y2: PLOT.bottom });
    chart.append(this.thresholdLine);
    const { step, scores } = video.curve;
    this.dots = run.classes.map((entry, index) => {
      const points = scores.map((row, i) => {
        const number = Math.min(i * step + (step - 1) / 2, video.frames - 1);
        return `${this.x(number).toFixed(1)},${this.y(row[index]).toFixed(1)}`;
      });
      chart.append(svg("polyline", { class: "curve", stroke: entry.colour, points: points.join(" ") }));
      const name = make("span");
      name.append(swatch(entry), entry.name);
      legend.append(name);
      return svg("circle", { r: 4, fill: entry.colour, stroke: "#000" });
    });
    chart.append(this.marker, ...this.dots);
    const ranges = run.classes.map((entry, index) => {
      const top = Math.max(...scores.map((row) => row[index]));
      return `${entry.name} up to ${score(top)}`;
    });
    chart.setAttribute("aria-label", `Best score of each frame over time: ${ranges.join(", ")}.`);
    const seek = (event) => {
      const area = chart.getBoundingClientRect();
      const share = ((event.clientX - area.left) * 480 / area.width - PLOT.left) / (PLOT.right - PLOT.left);
      this.go(Math.round(Math.max(0, Math.min(1, share)) * (video.frames - 1) / video.stride));
    };
    chart.addEventListener("pointerdown", (event) => { chart.setPointerCapture(event.pointerId); seek(event); });
    chart.addEventListener("pointermove", (event) => { if (event.buttons) seek(event); });
    this.markThreshold();
  }

  markThreshold() {
    const height = this.y(this.threshold);
    this.thresholdLine.setAttribute("y1", height);
    this.thresholdLine.setAttribute("y2", height);
  }

  mark(number) {
    const { step, scores } = this.video.curve;
    const row = scores[Math.floor(number / step)];
    this.marker.setAttribute("x1", this.x(number));
    this.marker.setAttribute("x2", this.x(number));
    this.dots.forEach((dot, index) => {
      dot.setAttribute("cx", this.x(number));
      dot.setAttribute("cy", this.y(row[index]));
    });
    for (const button of this.section.querySelectorAll(".strongest button")) {
      button.setAttribute("aria-current", String(Number(button.dataset.number) === number));
    }
    for (const card of this.cards) card.mark(number);
  }

  // A frame of the video: that of the slider, the nearest one of those shown, or one that is kept beside them.
  show(number, extra = null) {
    this.pause();
    const at = this.video.numbers.indexOf(number);
    this.go(at >= 0 ? at : Math.round(number / this.video.stride));
    if (at < 0 && extra) {
      this.extra = extra;
      this.refresh();
    }
  }

  outlines(boxes) {
    const { width, height } = this.video;
    const overlay = svg("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
    const group = svg("g", { class: "box" });
    group.append(...marksOf(boxes, this.video, run.threshold).reverse().map(edge));
    overlay.append(group);
    return overlay;
  }

  drawStrongest() {
    const list = this.section.querySelector(".strongest");
    this.part("strong").hidden = !this.video.strongest.length;
    for (const frame of this.video.strongest) {
      const at = this.video.numbers.indexOf(frame.number);
      const image = frame.image === null ? this.images[at] : frame.image;
      const button = make("button");
      button.type = "button";
      button.dataset.number = frame.number;
      const thumb = make("span", "thumb"), picture = make("img");
      picture.src = `data:image/jpeg;base64,${image}`;
      picture.alt = "";
      thumb.append(picture, this.outlines(frame.boxes));
      const best = frame.scores.indexOf(Math.max(...frame.scores));
      const text = make("span", "text");
      text.append(swatch(run.classes[best]), `${run.classes[best].name} ${score(frame.scores[best])}`, make("br"));
      text.append(make("span", "quiet", `frame ${frame.number + 1} · ${clock(frame.time)}`));
      button.append(thumb, text);
      button.addEventListener("click", () => this.show(frame.number, { ...frame, image }));
      list.append(button);
    }
  }
}
