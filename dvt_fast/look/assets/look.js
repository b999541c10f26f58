// The page: which image, which patch, where the divider is; keys and pointers change these three, and all follows.

import { Look, ask } from "/data.js";
import { Tile, drawBar, number, paint } from "/tile.js";

const PARTS = ["raw", "clean", "offset"];
const ASK_EVERY = 200; // milliseconds, while an image is worked on
const $ = (id) => document.getElementById(id);
const all = (selector) => document.querySelectorAll(selector);

const tiles = {};
let images = []; // names
let current = -1; // the image asked for
let visit = 0; // counts the changes of `current`, so that a late answer knows itself
let look = null; // the image shown
let kept = null; // of it, the cosine of raw to clean
let patch = 0; // row * columns + column

// Which image.

async function start() {
  for (const figure of all(".tile:not(#image)")) tiles[figure.id] = new Tile(figure);
  listen();
  slide(50);
  history.replaceState(null, "", location.pathname + location.hash); // the token is in a cookie by now
  try {
    ({ images } = await (await ask("/api/images")).json());
  } catch (error) {
    return fail(error.message);
  }
  images.forEach((name, index) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = name;
    button.title = name;
    button.addEventListener("click", () => show(index));
    const item = document.createElement("li");
    item.append(button);
    $("list").firstElementChild.append(item);
  });
  for (const id of ["list", "previous", "next", "place"]) $(id).hidden = images.length < 2;
  showHash();
}

function showHash() {
  const wanted = Number(location.hash.slice(1)) - 1;
  show(images[wanted] === undefined ? 0 : wanted);
}

async function show(index) {
  if (index < 0 || index >= images.length || (index === current && look)) return; // one that failed is tried again
  current = index;
  const mine = ++visit;
  const left = () => mine !== visit;
  history.replaceState(null, "", `#${index + 1}`);
  document.title = `${images[index]} - dvt-fast look`;
  $("name").textContent = images[index];
  $("place").textContent = `${index + 1} of ${images.length}`;
  $("previous").disabled = index === 0;
  $("next").disabled = index === images.length - 1;
  $("list").querySelector("[aria-current]")?.removeAttribute("aria-current");
  const item = $("list").querySelectorAll("button")[index];
  item.setAttribute("aria-current", "true");
  reveal(item, $("list"));
  try {
    let state = await (await ask(`/api/images/${index}?again`)).json();
    while (!left() && (state.state === "waiting" || state.state === "working")) {
      wait(state);
      await new Promise((done) => setTimeout(done, ASK_EVERY));
      if (!left()) state = await (await ask(`/api/images/${index}`)).json();
    }
    if (left()) return;
    item.dataset.state = state.state;
    if (state.state === "failed") return fail(state.error);
    const picture = new Image();
    picture.src = `/api/images/${index}/picture`;
    const [data] = await Promise.all([ask(`/api/images/${index}/data`).then((r) => r.arrayBuffer()), picture.decode()]);
    if (!left()) draw(new Look(data), picture.src);
  } catch (error) {
    if (!left()) fail(error.message);
  }
}

// Scrolls `list` alone, where scrollIntoView would move the page, too.
function reveal(item, list) {
  const [top, bottom] = [item.offsetTop, item.offsetTop + item.offsetHeight];
  if (top < list.scrollTop) list.scrollTop = top;
  if (bottom > list.scrollTop + list.clientHeight) list.scrollTop = bottom - list.clientHeight;
}

function only(shown) {
  for (const id of ["waiting", "error", "content"]) $(id).hidden = id !== shown;
}

function wait({ state, done, total, what }) {
  $("doing").textContent = state === "waiting" ? "Waiting" : total ? `${done} of ${total} ${what}` : "Working";
  $("progress").max = total || 1;
  if (total) $("progress").value = done;
  else $("progress").removeAttribute("value");
  only("waiting");
}

function fail(text) {
  look = null;
  $("error").textContent = text;
  only("error");
}

function draw(next, source) {
  look = next;
  kept = look.kept();
  document.documentElement.style.setProperty("--aspect", Math.min(Math.max(look.aspect, 0.4), 2.5));
  for (const img of all("#picture, .under")) img.src = source;
  $("picture").alt = images[current];
  PARTS.forEach((part, index) => {
    const name = look.names[index];
    for (const element of all(`.name-${part}`)) element.textContent = name;
    for (const element of all(`.title-${part}`)) element.textContent = look.titles[index];
    tiles[`norm-${part}`].label(capital(name));
    tiles[`norm-${part}`].draw(look, look.part(look.norms, index), ...look.range, true);
    const canvas = part === "offset" ? tiles["colors-offset"].canvas : $(`colors-${part}`);
    paint(canvas, look, look.part(look.colors, index, 3));
    if (part === "offset") return;
    tiles[`similarity-${part}`].label(capital(name));
    tiles[`clusters-${part}`].label(capital(name));
    tiles[`clusters-${part}`].drawClusters(look, look.part(look.labels, index));
  });
  tiles.kept.label(`Raw to ${look.names[1]}`);
  tiles["colors-offset"].label(look.titles[2]);
  drawBar($("norm-bar"), look, ...look.range, true);
  $("about").textContent = look.about.join("  \u00b7  ");
  slide($("slider").value);
  only("content");
  choose(look.patch[0] * look.columns + look.patch[1]);
  if (document.activeElement === document.body) $("compare").focus({ preventScroll: true });
}

// Which patch.

function choose(wanted) {
  patch = wanted;
  const [row, column] = [Math.floor(patch / look.columns), patch % look.columns];
  const near = [0, 1].map((index) => look.similarity(index, patch));
  const low = Math.min(look.similar, ...near.map((values) => percentile(values, 2)));
  ["raw", "clean"].forEach((part, i) => tiles[`similarity-${part}`].draw(look, near[i], low, 1));
  tiles.kept.draw(look, kept, low, 1);
  drawBar($("similarity-bar"), look, low, 1);
  for (const mark of all(".mark")) {
    mark.style.left = `${(100 * column) / look.columns}%`;
    mark.style.top = `${(100 * row) / look.rows}%`;
    mark.style.width = `${100 / look.columns}%`;
    mark.style.height = `${100 / look.rows}%`;
  }
  $("chosen").textContent = `Patch: row ${row}, column ${column}`;
  PARTS.forEach((part, i) => ($(`norm-of-${part}`).textContent = number(look.part(look.norms, i)[patch])));
  $("cosine-kept").textContent = kept[patch].toFixed(3);
  $("mean-raw").textContent = mean(near[0]).toFixed(3);
  $("mean-clean").textContent = mean(near[1]).toFixed(3);
  read(patch);
}

function read(at) {
  for (const tile of Object.values(tiles)) tile.read(at);
}

function move(rows, columns) {
  const row = Math.floor(patch / look.columns) + rows;
  const column = (patch % look.columns) + columns;
  if (row >= 0 && row < look.rows && column >= 0 && column < look.columns) choose(row * look.columns + column);
}

// The patch under the pointer.
function under(event, frame) {
  const box = frame.getBoundingClientRect();
  const at = (place, start, size, count) => Math.min(Math.max(Math.floor(((place - start) / size) * count), 0), count - 1);
  const row = at(event.clientY, box.top, box.height, look.rows);
  return row * look.columns + at(event.clientX, box.left, box.width, look.columns);
}

// Where the divider is: `percent` of the width, from the left, is raw.

function slide(percent) {
  const place = Math.min(Math.max(Number(percent), 0), 100);
  $("slider").value = place;
  $("slider").setAttribute("aria-valuetext", `${Math.round(place)} % raw`);
  $("compare").style.setProperty("--divider", `${place}%`);
}

const KEYS = {
  n: () => show(current + 1),
  p: () => show(current - 1),
  r: () => slide(100),
  c: () => slide(0),
  b: () => slide(50),
  x: () => slide(Number($("slider").value) > 50 ? 0 : 100),
  o: () => $("over").click(),
  f: () => $("compare").focus(),
  "?": () => $("keys").showModal(),
};
const ARROWS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

function listen() {
  $("previous").addEventListener("click", KEYS.p);
  $("next").addEventListener("click", KEYS.n);
  $("help").addEventListener("click", KEYS["?"]);
  $("slider").addEventListener("input", () => slide($("slider").value));
  $("over").addEventListener("change", () => $("compare").classList.toggle("over", $("over").checked));
  addEventListener("hashchange", showHash);
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || $("keys").open) return;
    const arrow = event.target === $("compare") && look ? ARROWS[event.key] : undefined;
    const action = arrow ? () => move(...arrow) : KEYS[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  });
  for (const frame of all(".frame")) {
    frame.addEventListener("pointerdown", (event) => {
      if (!look || event.button !== 0 || event.target === $("divider")) return;
      event.preventDefault(); // no selection of text, no dragging of the picture
      choose(under(event, frame));
      $("compare").focus({ preventScroll: true });
    });
    frame.addEventListener("pointermove", (event) => {
      if (!look || event.target === $("divider")) return;
      const at = under(event, frame);
      if (event.buttons & 1 && event.pointerType === "mouse" && at !== patch) choose(at);
      else read(at);
    });
    frame.addEventListener("pointerleave", () => look && read(patch));
  }
  $("divider").addEventListener("pointerdown", (event) => {
    event.preventDefault();
    $("divider").setPointerCapture(event.pointerId);
    $("slider").focus({ preventScroll: true });
  });
  $("divider").addEventListener("pointermove", (event) => {
    if (!$("divider").hasPointerCapture(event.pointerId)) return;
    const box = $("compare").getBoundingClientRect();
    slide((100 * (event.clientX - box.left)) / box.width);
  });
}

const capital = (text) => text[0].toUpperCase() + text.slice(1);
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

// As NumPy has it: linear between the two nearest.
function percentile(values, percent) {
  const sorted = values.slice().sort();
  const place = (percent / 100) * (sorted.length - 1);
  const [below, above] = [sorted[Math.floor(place)], sorted[Math.ceil(place)]];
  return below + (above - below) * (place % 1);
}

start();
