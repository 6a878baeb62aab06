function addVideo(video, index) {
  const section = document.getElementById("video-template").content.cloneNode(true).firstElementChild;
  section.id = `section-${index}`;
  section.querySelector("h2").textContent = video.name;
  const badge = section.querySelector(".badge");
  badge.textContent = video.status;
  badge.classList.add(video.status === "ok" ? "ok" : "trouble");
  const shape = section.querySelector('[data-part="shape"]');
  const size = `${video.width} × ${video.height} pixels`;
  shape.textContent = video.frames > 1
    ? `${video.frames} frames, ${size}, ${video.fps} frames per second`
    : video.frames ? `1 frame, ${size}` : "No frame could be used.";
  if (video.region) {
    const [x, y, width, height] = video.region;
    if (width !== video.width || height !== video.height) {
      shape.textContent += `; scan region at ${x}, ${y} of frames of ${width} × ${height}`;
    }
  }
  const problems = section.querySelector(".problems");
  problems.hidden = !video.problems.length;
  for (const problem of video.problems) problems.append(make("li", "", problem));
  document.getElementById("videos").append(section);
  if (!video.frames) return;
  section.querySelector(".columns").hidden = false;
  players.push(new Player(video, read(`frames-${index}`), section));
}

function addOverview(videos) {
  const [head, body] = document.querySelectorAll("#overview thead, #overview tbody");
  const titles = ["Video", "Status", "Frames", "Lesions", ...run.classes.map((entry) => entry.name)];
  const row = make("tr");
  titles.forEach((title, column) => {
    const cell = make("th", ["", "", "number frames", "number frames"][column] ?? "number", title);
    cell.scope = "col";
    row.append(cell);
  });
  head.append(row);
  videos.forEach((video, index) => {
    const line = make("tr"), name = make("td"), link = make("a", "", video.name), status = make("td");
    link.href = `#section-${index}`;
    name.append(link);
    status.append(make("span", `badge ${video.status === "ok" ? "ok" : "trouble"}`, video.status));
    line.append(name, status);
    for (const count of [video.frames, video.lesionCount]) line.append(make("td", "number frames", String(count || 0)));
    run.classes.forEach((entry, column) => {
      line.append(make("td", "number", video.scores ? score(video.scores[column]) : "–"));
    });
    body.append(line);
  });
}

function onKey(event) {
  const player = active || players[0];
  if (!player || event.altKey || event.ctrlKey || event.metaKey) return;
  const target = event.target;
  const ownKeys = target.matches('input[type="range"]') && target.dataset.part !== "slider";
  const by = event.shiftKey ? 10 : 1;
  const last = player.images.length - 1;
  const moves = { ArrowLeft: player.position - by, ArrowRight: player.position + by, Home: 0, End: last };
  if (event.key in moves && !ownKeys) {
    player.pause();
    player.go(moves[event.key]);
  } else if (event.key === " " && !target.closest("button, summary, a, input[type='checkbox']")) {
    player.toggle();
  } else {
    return;
  }
  event.preventDefault();
}

const videos = [];
for (let index = 0, video; (video = read(`video-${index}`)); index += 1) videos.push(video);
videos.forEach(addVideo);
addOverview(videos);
const frames = videos.reduce((sum, video) => sum + (video.frames || 0), 0);
const plural = (count, what) => `${count} ${what}${count === 1 ? "" : "s"}`;
document.getElementById("about").textContent =
  `${plural(videos.length, "video")}, ${plural(frames, "frame")} · ${run.facts.Model} · ${run.facts.Date}`;
for (const [title, value] of Object.entries(run.facts)) {
  document.getElementById("facts").append(make("dt", "", title), make("dd", "", value));
}
document.addEventListener("keydown", onKey);
