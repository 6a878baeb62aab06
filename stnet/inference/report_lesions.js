// A card for each lesion of a video: where it is best seen, how it looked over time, its score and its size.

const CARDS_AT_FIRST = 6;
const CHART_HEIGHT = 120;

// The pieces of a curve [x, y] without gaps.
function pieces(points) {
  const found = [[]];
  for (const point of points) {
    if (point === null) found.push([]); else found.at(-1).push(point);
  }
  return found.filter((piece) => piece.length);
}

// 1, 2 or 5 times a power of ten, not below the value.
function roundedUp(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((factor) => factor * power).find((step) => step >= value * 0.999);
}

// A curve over the frames of a lesion, drawn anew at the size that it has on the screen.
class Curve {
  constructor(chart, lesion, title, series, unit, show) {
    Object.assign(this, { chart, lesion, series, unit, number: null });
    const values = series.flatMap((one) => one.values.filter((value) => value !== null));
    this.most = unit ? roundedUp(Math.max(...values, 1e-3)) : 1;
    const told = series.map((one) => {
      const known = one.values.filter((value) => value !== null);
      return known.length ? `${one.name} ${Math.min(...known)} to ${Math.max(...known)}` : one.name;
    });
    chart.setAttribute("aria-label", `${title} of lesion ${lesion.number} over time: ${told.join(", ")} ${unit}`);
    chart.addEventListener("pointerdown", (event) => {
      const area = chart.getBoundingClientRect();
      const share = (event.clientX - area.left - this.left) / (this.right - this.left);
      show(Math.round(lesion.first + Math.max(0, Math.min(1, share)) * (lesion.last - lesion.first)));
    });
    new ResizeObserver(() => this.draw()).observe(chart);
  }

  x(number) {
    const { first, last } = this.lesion;
    return this.left + (this.right - this.left) * (last > first ? (number - first) / (last - first) : 0.5);
  }

  y(value) { return CHART_HEIGHT - 24 - (CHART_HEIGHT - 32) * value / this.most; }

  draw() {
    const { chart, lesion, series, unit, most } = this, width = chart.clientWidth;
    if (!width) return;
    this.left = 50;
    this.right = width - 4;
    chart.setAttribute("viewBox", `0 0 ${width} ${CHART_HEIGHT}`);
    chart.replaceChildren();
    for (const share of [0, 0.5, 1]) {
      const height = this.y(most * share);
      const text = `${Number((most * share).toPrecision(3))}${share === 1 && unit ? ` ${unit}` : ""}`;
      chart.append(
        svg("line", { class: "grid", x1: this.left, x2: this.right, y1: height, y2: height }),
        svg("text", { x: this.left - 5, y: height + 4, "text-anchor": "end" }, text),
      );
    }
    chart.append(
      svg("text", { x: this.left, y: CHART_HEIGHT - 6 }, clock(lesion.firstTime)),
      svg("text", { x: this.right, y: CHART_HEIGHT - 6, "text-anchor": "end" }, clock(lesion.lastTime)),
    );
    for (const { values, stroke } of series) {
      const points = values.map((value, index) => (
        value === null ? null : [this.x(lesion.curve.frames[index]).toFixed(1), this.y(value).toFixed(1)]
      ));
      for (const piece of pieces(points)) {
        chart.append(piece.length > 1
          ? svg("polyline", { class: "curve", stroke, points: piece.join(" ") })
          : svg("circle", { cx: piece[0][0], cy: piece[0][1], r: 2, fill: stroke }));
      }
    }
    this.marker = svg("line", { class: "marker", y1: this.y(most), y2: this.y(0) });
    chart.append(this.marker);
    this.mark(this.number);
  }

  mark(number) {
    this.number = number;
    if (!this.marker) return;
    const inside = number !== null && number >= this.lesion.first && number <= this.lesion.last;
    this.marker.setAttribute("visibility", inside ? "visible" : "hidden");
    this.marker.setAttribute("x1", this.x(number));
    this.marker.setAttribute("x2", this.x(number));
  }
}

class LesionCard {
  constructor(player, lesion) {
    this.player = player;
    this.lesion = lesion;
    this.element = document.getElementById("lesion-template").content.cloneNode(true).firstElementChild;
    this.part = (name) => this.element.querySelector(`[data-part="${name}"]`);
    this.entry = classes.get(lesion.label) ?? { label: lesion.label, name: String(lesion.label), colour: colour(lesion.label) };
    this.head();
    this.best();
    this.film();
    this.charts = this.curves();
    this.explained = new Explained(player, lesion, this.entry.colour, this.part("looked"));
  }

  head() {
    const { lesion, entry } = this, { best } = lesion;
    this.part("name").append(swatch(entry), `#${lesion.number} ${entry.name} ${score(lesion.score)}`);
    const others = run.classes.filter((one) => one.label !== lesion.label);
    this.part("others").textContent = others.map((one) => `${one.name} ${score(lesion.classScores[one.label - 1])}`).join(", ");
    const seen = `frames ${lesion.first + 1} to ${lesion.last + 1}, ${clock(lesion.firstTime)} to ${clock(lesion.lastTime)}`;
    const facts = this.player.video.frames === 1 ? [["Size", sizeText(best)]] : [
      ["Seen", seen],
      ["Found in", `${lesion.count} ${lesion.count === 1 ? "frame" : "frames"}`],
      ["Best in", `frame ${best.number + 1}, ${clock(best.time)}`],
      ["Size there", sizeText(best)],
    ];
    for (const [title, value] of facts) this.part("facts").append(make("dt", "", title), make("dd", "", value));
  }

  best() {
    const { player, lesion } = this, { best } = lesion, { video } = player;
    const button = this.part("best"), at = video.numbers.indexOf(best.shown);
    const image = best.image ?? player.images[at];
    button.append(picture(video, image, [0, 0, video.width, video.height], best.box, this.entry.colour, true));
    button.setAttribute("aria-label", `Show frame ${best.shown + 1}, in which lesion ${lesion.number} is seen best`);
    const extra = { number: best.shown, time: best.time, boxes: best.boxes, image };
    button.addEventListener("click", () => player.show(best.shown, extra));
  }

  // Crops of one size, so that growth can be seen.
  film() {
    const { player, lesion } = this, { video } = player;
    const side = 1.5 * Math.max(...lesion.film.map(({ box }) => Math.max(box[2] - box[0], box[3] - box[1])));
    for (const { number, box, found } of lesion.film) {
      const at = video.numbers.indexOf(number);
      const corner = [0, 1].map((axis) => {
        const most = [video.width, video.height][axis] - side, start = (box[axis] + box[axis + 2] - side) / 2;
        return most < 0 ? most / 2 : Math.max(0, Math.min(most, start));
      });
      const button = make("button");
      button.type = "button";
      button.dataset.number = number;
      button.setAttribute("aria-label", `Show frame ${number + 1}`);
      button.append(picture(video, player.images[at], [...corner, side, side], box, this.entry.colour, found));
      if (video.frames > 1) button.append(make("span", "text quiet", clock(video.times[at])));
      button.addEventListener("click", () => player.show(number));
      this.part("film").append(button);
    }
  }

  curves() {
    const { lesion, entry } = this, { scores, widths, depths, unit } = lesion.curve;
    const sides = [
      { name: "width", values: widths, stroke: "#e8edf3" }, { name: "depth extent", values: depths, stroke: "#c79bff" },
    ];
    for (const { name, stroke } of sides) {
      const item = make("span");
      item.append(swatch({ colour: stroke }), name);
      this.part("sides").append(item);
    }
    const show = (number) => this.player.show(number);
    const ofScore = [{ name: entry.name, values: scores, stroke: entry.colour }];
    return [
      new Curve(this.part("scores"), lesion, "Score", ofScore, "", show),
      new Curve(this.part("sizes"), lesion, "Size", sides, unit, show),
    ];
  }

  mark(number) {
    for (const curve of this.charts) curve.mark(number);
    for (const button of this.element.querySelectorAll(".film button")) {
      button.setAttribute("aria-current", String(Number(button.dataset.number) === number));
    }
  }
}

function sizeText({ size, box }) {
  if (!size) return `${Math.round(box[2] - box[0])} × ${Math.round(box[3] - box[1])} pixels; their size is unknown`;
  const [width, depth, top] = size;
  return `${width.toFixed(1)} × ${depth.toFixed(1)} mm (width × depth)${top === null ? "" : `, top ${top.toFixed(1)} mm deep`}`;
}

// A part of a frame, x y width height in its pixels, with a box where there is one.
function picture(video, image, part, box, stroke, sure) {
  const drawn = svg("svg", { viewBox: part.join(" "), "aria-hidden": "true" });
  drawn.append(
    svg("image", { href: `data:image/jpeg;base64,${image}`, width: video.width, height: video.height, preserveAspectRatio: "none" }),
  );
  if (box) {
    const [x, y, right, bottom] = box;
    drawn.append(svg("rect", { class: sure ? "edge" : "edge unsure", x, y, width: right - x, height: bottom - y, stroke }));
  }
  return drawn;
}

// The cards of a video, best score first; where there are many, the others wait behind a button.
function lesionCards(player) {
  const { lesions, lesionCount } = player.video, part = player.section.querySelector(".lesions");
  part.hidden = !lesions.length;
  if (!lesions.length) return [];
  const list = part.querySelector(".cards"), more = part.querySelector("button.more"), cards = [];
  const add = (some) => {
    for (const lesion of some) {
      cards.push(new LesionCard(player, lesion));
      list.append(cards.at(-1).element);
    }
  };
  const what = lesionCount === 1 ? "1 lesion" : `${lesionCount} lesions, the highest score first`;
  const left = lesionCount - lesions.length;
  part.querySelector('[data-part="count"]').textContent = left ? `${what}; ${left} more are in lesions.csv` : what;
  add(lesions.slice(0, CARDS_AT_FIRST));
  more.hidden = lesions.length <= CARDS_AT_FIRST;
  more.textContent = `Show ${lesions.length - CARDS_AT_FIRST} more`;
  more.addEventListener("click", () => {
    add(lesions.slice(CARDS_AT_FIRST));
    more.hidden = true;
    player.refresh();
  });
  return cards;
}
