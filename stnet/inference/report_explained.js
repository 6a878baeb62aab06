// Where the model looked for a lesion: the frames of the clip with the points in them, part of its card.

const LARGEST_POINT = 1 / 55;  // radius of the heaviest point, in longer sides of the picture
const FAINTEST = { decoder: 0.6, encoder: 0.3 };  // those of the encoder are many and overlap
const PARTS = {
  decoder: "where the query of this detection sampled, in the decoder's last layer",
  encoder: "where the positions under the box sampled, in the encoder's last layer",
};

class Explained {
  constructor(player, lesion, stroke, element) {
    Object.assign(this, { player, lesion, stroke, element });
    element.hidden = !lesion.looked;
    if (!lesion.looked) return;
    this.buttons = [...element.querySelectorAll("[data-points]")];
    for (const button of this.buttons) {
      button.addEventListener("click", () => {
        this.show(button.dataset.points);
        player.refresh();
      });
    }
    this.show("decoder");
  }

  show(part) {
    const { element, lesion: { best, looked } } = this;
    for (const button of this.buttons) button.setAttribute("aria-pressed", String(button.dataset.points === part));
    const outside = 1 - looked[part].reduce((sum, one) => sum + one.share, 0);
    const missed = outside >= 0.005 ? ` ${percent(outside)} of the weight lies outside of the frames.` : "";
    element.querySelector('[data-part="told"]').textContent =
      `For frame ${best.number + 1}: ${PARTS[part]}. The area of a point is its weight.${missed}`;
    const tiles = looked.frames.map((frame, index) => this.tile(frame, looked[part][index], FAINTEST[part]));
    element.querySelector(".tiles").replaceChildren(...tiles);
  }

  tile({ number, own, box, image }, { share, points }, faintest) {
    const { player, stroke } = this, { video } = player, kind = own ? "own" : "other";
    const shown = image ?? player.images[video.numbers.indexOf(number)];
    const drawn = picture(video, shown, [0, 0, video.width, video.height], box, stroke, own);
    const largest = LARGEST_POINT * Math.max(video.width, video.height);
    const group = svg("g", { class: `points ${kind}` });
    for (let at = 0; at < points.length; at += 3) {
      const [cx, cy, weight] = points.slice(at, at + 3);
      const r = Math.max(largest / 7, largest * Math.sqrt(weight / 1000));
      const opacity = faintest + (0.8 - faintest) * weight / 1000;
      group.append(svg("circle", { cx, cy, r: r.toFixed(2), "fill-opacity": opacity.toFixed(2) }));
    }
    drawn.append(group);
    const button = make("button");
    button.type = "button";
    button.dataset.number = number;
    const again = !own && number === this.lesion.looked.frames[0].number;  // short videos repeat frames
    const name = `${own ? "own frame" : again ? "again frame" : "frame"} ${number + 1}`;
    button.setAttribute("aria-label", `Show ${name}, which has ${percent(share)} of the weight`);
    button.append(drawn, make("span", `text ${kind}`, `${name}: ${percent(share)}`));
    button.addEventListener("click", () => player.show(number));
    return button;
  }
}

function percent(share) { return `${Math.round(100 * share)} %`; }
