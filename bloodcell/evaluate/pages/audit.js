// The maps of audit.html, the chosen image beside them, and the flag that overrules removals.
// The page's data is JSON in #page-data; whatever of it is text reaches the page as text, never as HTML.
"use strict";

const data = JSON.parse(document.getElementById("page-data").textContent);
const GRID = 65535, MARGIN = 20, PICTURES_BELOW = 60;
// Paul Tol's "muted" scheme: nine colours that people without red, green or blue cones tell apart. Shapes say it too.
const COLOURS = ["#332288", "#cc6677", "#117733", "#ddcc77", "#88ccee", "#882255", "#44aa99", "#999933", "#aa4499"];
const SHAPES = [
  "M6 1A5 5 0 1 0 6 11A5 5 0 1 0 6 1Z", "M1.5 1.5H10.5V10.5H1.5Z", "M6 .8L11.4 10.4H.6Z", "M6 0L12 6L6 12L0 6Z",
  "M6 11.2L.6 1.6H11.4Z"];
const colour = (label) => COLOURS[label % COLOURS.length];
const shape = (label) => SHAPES[label % SHAPES.length];
const figure = (number) => number.toLocaleString("en");
const element = (name, properties, ...children) => {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
};
const byId = (name) => document.getElementById(name);

// What was found, by index of the image.
const images = data.images;
const position = new Map(images.index.map((index, place) => [index, place]));
const removed = new Map(data.removed.map((finding) => [finding[0], finding]));
const suspects = new Map(), copies = new Map();
const collect = (where, index, what) => where.has(index) ? where.get(index).push(what) : where.set(index, [what]);
for (const finding of data.suspects) collect(suspects, finding[0], finding);
for (const [first, second, conflict, similarity] of data.pairs) {
  collect(copies, first, [second, conflict, similarity]);
  collect(copies, second, [first, conflict, similarity]);
}
const KEPT = 0, SUSPECT = 1, REMOVED = 2;
const status = images.index.map((index) => removed.has(index) ? REMOVED : suspects.has(index) ? SUSPECT : KEPT);
const labelOf = (index) => position.has(index) ? images.label[position.get(index)] : data.labels[index];

// ---- Overruling: a flag that grows with each "keep".

const asked = new Set(data.asked_to_keep);
let keep = new Set(asked);
const membersOf = (group) => {
  const members = [];
  for (const [first, last, step] of data.groups[group]) for (let i = first; i <= last; i += step) members.push(i);
  return members;
};
const isKept = (members) => members.every((index) => keep.has(index));
const toggleKeep = (members) => {
  const drop = isKept(members);
  for (const index of members) drop ? keep.delete(index) : keep.add(index);
  showKeep();
};
function ranges(indices) {  // as the flag takes them: 5,100-120
  const parts = [];
  for (let start = 0, end; start < indices.length; start = end) {
    for (end = start + 1; indices[end] === indices[end - 1] + 1;) end++;
    parts.push(end - start > 2 ? `${indices[start]}-${indices[end - 1]}` : indices.slice(start, end).join(","));
  }
  return parts.join(",");
}
function showKeep() {
  const chosen = [...keep].sort((a, b) => a - b);
  byId("overrule").hidden = chosen.length === asked.size && chosen.every((index) => asked.has(index));
  byId("keep-flag").value = `--audit_keep=${ranges(chosen)}`;
  byId("keep-count").textContent = `${figure(chosen.length)} ${chosen.length === 1 ? "image" : "images"} kept`;
  for (const button of document.querySelectorAll("button.keep")) {
    const on = isKept(button.dataset.group ? membersOf(button.dataset.group) : [Number(button.dataset.index)]);
    button.setAttribute("aria-pressed", on);
    button.textContent = on ? "will be kept" : "keep";
  }
}
document.addEventListener("click", ({target}) => {
  const button = target.closest("button");
  if (!button) return;
  if (button.classList.contains("keep"))
    toggleKeep(button.dataset.group ? membersOf(button.dataset.group) : [Number(button.dataset.index)]);
  if (button.classList.contains("go") && choose(Number(button.dataset.index)) && !byId("panel").contains(button))
    byId("maps").scrollIntoView({behavior: "smooth"});
});
byId("keep-clear").addEventListener("click", () => { keep = new Set(asked); showKeep(); });
byId("overrule").addEventListener("submit", (event) => event.preventDefault());
byId("keep-copy").addEventListener("click", async () => {
  byId("keep-flag").select();
  try { await navigator.clipboard.writeText(byId("keep-flag").value); } catch { document.execCommand("copy"); }
  byId("keep-copy").textContent = "copied";
  setTimeout(() => { byId("keep-copy").textContent = "copy"; }, 1500);
});
for (const button of document.querySelectorAll("button.go"))
  if (!position.has(Number(button.dataset.index))) button.disabled = true;

// ---- Thumbnails: sheets are decoded when the first picture of them is looked at.

const sheets = data.sheets, perSheet = sheets.columns ** 2, decoded = new Map();
function drawPicture(context, place, x, y, width, height, whenReady) {
  const number = Math.floor(images.picture[place] / perSheet), cell = images.picture[place] % perSheet;
  if (!decoded.has(number)) {
    const sheet = new Image();
    sheet.src = sheets.uris[number];
    decoded.set(number, sheet);
  }
  const sheet = decoded.get(number);
  if (!sheet.complete) {
    sheet.addEventListener("load", whenReady, {once: true});
    return;
  }
  const {width: w, height: h, columns} = sheets;
  context.drawImage(sheet, cell % columns * w, Math.floor(cell / columns) * h, w, h, x, y, width, height);
}

// ---- The map.

const canvas = byId("map");
let map = data.maps[0], view = null, hovered = null, pinned = null, waiting = false;
const shown = {label: data.classes.map(() => true), status: [true, true, true]};
const visible = (i) => shown.label[images.label[map.image[i]]] && shown.status[status[map.image[i]]];
const screenX = (i) => map.x[i] * view.scale + view.x, screenY = (i) => map.y[i] * view.scale + view.y;
const largest = (values) => values.reduce((a, b) => Math.max(a, b), 0);

function fit() {
  const width = canvas.clientWidth, height = canvas.clientHeight, right = largest(map.x), bottom = largest(map.y);
  const scale = Math.min((width - 2 * MARGIN) / Math.max(right, 1), (height - 2 * MARGIN) / Math.max(bottom, 1));
  view = {scale, least: scale, x: (width - right * scale) / 2, y: (height - bottom * scale) / 2};
  redraw();
}
function zoom(factor, x = canvas.clientWidth / 2, y = canvas.clientHeight / 2) {
  const scale = Math.min(Math.max(view.scale * factor, view.least / 2), view.least * 2000), change = scale / view.scale;
  Object.assign(view, {scale, x: x - (x - view.x) * change, y: y - (y - view.y) * change});
  redraw();
}
// Points are drawn on a layer of their own: a pointer that passes over them only moves a ring above it.
const layer = element("canvas", {});
let stale = true;
function redraw() {
  stale = true;
  mark();
}
function mark() {
  if (!waiting) requestAnimationFrame(() => { waiting = false; draw(); });
  waiting = true;
}
function marker(label, size, ratio) {
  const made = element("canvas", {width: Math.ceil(size * ratio), height: Math.ceil(size * ratio)});
  const context = made.getContext("2d");
  context.scale(made.width / 12, made.height / 12);
  context.globalAlpha = .8;
  context.fillStyle = colour(label);
  context.fill(new Path2D(shape(label)));
  return made;
}
function draw() {
  const ratio = window.devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio))
    Object.assign(canvas, {width: Math.round(width * ratio), height: Math.round(height * ratio)});
  if (stale) reach = drawPoints(ratio, width, height);
  stale = false;
  const context = canvas.getContext("2d");
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.clearRect(0, 0, canvas.width, canvas.height);
  context.drawImage(layer, 0, 0);
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  for (const [chosen, thick] of [[pinned, 3], [hovered, 2]]) {
    const i = chosen === null ? -1 : map.image.indexOf(chosen);
    if (i < 0) continue;
    const circle = new Path2D();
    circle.arc(screenX(i), screenY(i), reach + 4, 0, 7);
    outline(context, circle, thick);
  }
}
let reach = 0;  // from a point's middle to the ring around it
function drawPoints(ratio, width, height) {
  Object.assign(layer, {width: canvas.width, height: canvas.height});  // which also clears it
  const context = layer.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  const inside = [[], [], []];
  for (let i = 0; i < map.image.length; i++) {
    const x = screenX(i), y = screenY(i);
    if (x > -30 && y > -30 && x < width + 30 && y < height + 30 && visible(i)) inside[status[map.image[i]]].push(i);
  }
  const points = inside.flat(), pictures = points.length <= PICTURES_BELOW && view.scale > 3 * view.least;
  const size = Math.min((map.image.length > 4000 ? 6 : 8) * Math.sqrt(Math.max(view.scale / view.least, 1)), 12);
  const markers = data.classes.map(() => null);
  for (const i of points) {
    const place = map.image[i], label = images.label[place];
    if (pictures) {
      const zoomed = 56 / Math.max(sheets.width, sheets.height), w = sheets.width * zoomed, h = sheets.height * zoomed;
      context.fillStyle = colour(label);
      context.fillRect(screenX(i) - w / 2 - 2, screenY(i) - h / 2 - 2, w + 4, h + 4);
      drawPicture(context, place, screenX(i) - w / 2, screenY(i) - h / 2, w, h, redraw);
    } else {
      const stamp = markers[label] ??= marker(label, size, ratio);
      context.setTransform(1, 0, 0, 1, 0, 0);  // on whole pixels a stamp is copied, not sampled
      context.drawImage(stamp, Math.round(screenX(i) * ratio - stamp.width / 2),
                        Math.round(screenY(i) * ratio - stamp.height / 2));
    }
  }
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  const around = pictures ? 38 : size / 2 + 2.5, arm = pictures ? 10 : size / 2 + 1;
  const crosses = new Path2D(), rings = new Path2D(), marked = new Set();
  const once = (i) => {  // 1,600 copies are one spot: a mark there is drawn once
    const spot = Math.round(screenX(i)) * 65536 + Math.round(screenY(i)) * 4 + status[map.image[i]];
    return !marked.has(spot) && marked.add(spot);
  };
  for (const i of inside[SUSPECT].filter(once)) {
    rings.moveTo(screenX(i) + around, screenY(i));
    rings.arc(screenX(i), screenY(i), around, 0, 7);
  }
  for (const i of inside[REMOVED].filter(once)) {
    const x = screenX(i), y = screenY(i);
    crosses.moveTo(x - arm, y - arm); crosses.lineTo(x + arm, y + arm);
    crosses.moveTo(x - arm, y + arm); crosses.lineTo(x + arm, y - arm);
  }
  outline(context, rings, 1.2);
  outline(context, crosses, 1.6);
  return around;
}
function outline(context, path, thick) {
  context.strokeStyle = "#fff"; context.lineWidth = thick + 2; context.stroke(path);
  context.strokeStyle = "#000"; context.lineWidth = thick; context.stroke(path);
}
function nearest(x, y, reach) {
  let best = null, least = reach ** 2;
  for (let i = 0; i < map.image.length; i++) {
    const distance = (screenX(i) - x) ** 2 + (screenY(i) - y) ** 2;
    // Of points on one spot the last one is drawn on top, removed ones above suspects above the others.
    const above = best !== null && distance === least && status[map.image[i]] >= status[map.image[best]];
    if ((distance < least || above) && visible(i)) { best = i; least = distance; }
  }
  return best;
}

// ---- The chosen image.

function icon(label) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  svg.setAttribute("viewBox", "0 0 12 12");
  svg.setAttribute("aria-hidden", "true");
  path.setAttribute("d", shape(label));
  path.setAttribute("fill", colour(label));
  svg.append(path);
  return svg;
}
const go = (index) => element("button", {type: "button", className: "go", textContent: `#${index}`,
                                         disabled: !position.has(index)});
function facts(place) {
  const index = images.index[place], label = images.label[place], lines = [];
  lines.push(element("p", {className: "title", textContent: `#${index}`}),
             element("p", {}, icon(label), ` ${data.classes[label]}`));
  const finding = ([, rule, word, score]) => `${data.rules[rule]}: ${data.words[word]} (score ${score})`;
  if (removed.has(index)) {
    const button = element("button", {type: "button", className: "keep", textContent: "keep"});
    button.dataset.index = index;
    lines.push(element("p", {}, element("b", {textContent: "Removed. "}), finding(removed.get(index))), button);
  } else {
    lines.push(element("p", {}, element("b", {textContent: "Kept."}), asked.has(index) ? " Because you asked." : ""));
  }
  for (const each of suspects.get(index) ?? []) lines.push(element("p", {textContent: `Suspect. ${finding(each)}`}));
  for (const [other, conflict, similarity] of (copies.get(index) ?? []).slice(0, 20)) {
    const button = go(other);
    button.dataset.index = other;
    lines.push(element("p", {}, conflict ? element("b", {textContent: "Label conflict: "}) : "",
                       similarity === 1 ? "equal pixels as " : `similarity ${similarity} with `, button,
                       ` ${data.classes[labelOf(other)]}`));
  }
  const here = map.image.indexOf(place);
  if (here >= 0) {
    const same = [];
    for (let i = 0; i < map.image.length; i++) if (map.x[i] === map.x[here] && map.y[i] === map.y[here]) same.push(i);
    if (same.length > 1) {
      const rank = same.indexOf(here), many = same.length;
      const next = (by) => images.index[map.image[same[(rank + by + many) % many]]];
      const step = (by, text, title) => {
        const button = element("button", {type: "button", className: "go", textContent: text, title});
        button.dataset.index = next(by);
        return button;
      };
      lines.push(element("p", {}, `${figure(rank + 1)} of ${figure(same.length)} at this very spot `,
                         step(-1, "\u2039", "the one before"), " ", step(1, "\u203a", "the next one")));
    }
  }
  return lines;
}
function showChosen() {
  const place = hovered ?? pinned, shot = byId("shot");
  shot.hidden = place === null;
  if (place === null) {
    byId("facts").replaceChildren(element("p", {className: "dim", textContent: "Nothing is chosen yet."}));
    return;
  }
  const paint = () => {
    if ((hovered ?? pinned) !== place) return;  // the pointer has moved on while the sheet was decoded
    Object.assign(shot, {width: sheets.width * 3, height: sheets.height * 3});
    drawPicture(shot.getContext("2d"), place, 0, 0, shot.width, shot.height, paint);
  };
  paint();
  byId("facts").replaceChildren(...facts(place));
  showKeep();
}
function choose(index) {
  if (!data.maps.length) return false;
  if (!position.has(index)) {
    pinned = hovered = null;
    showChosen();
    const exists = Number.isInteger(index) && index >= 0 && index < data.total;
    byId("facts").replaceChildren(element("p", {textContent: exists ?
      `#${index} is not among the images that are drawn; audit.json has what was found.` :
      `Expected an index from 0 to ${data.total - 1}.`}));
    redraw();
    return false;
  }
  pinned = position.get(index);
  hovered = null;
  byId("find-index").value = index;
  const i = map.image.indexOf(pinned), width = canvas.clientWidth, height = canvas.clientHeight;
  if (i >= 0) {  // bring it into sight
    const x = screenX(i), y = screenY(i);
    if (x < 5 || x > width - 5) view.x += width / 2 - x;
    if (y < 5 || y > height - 5) view.y += height / 2 - y;
  }
  showChosen();
  redraw();
  return true;
}
// The next point in a direction, in a quarter of the plane around it: near ones and straight ones first.
function neighbour(dx, dy) {
  const from = pinned === null ? -1 : map.image.indexOf(pinned);
  if (from < 0) return nearest(canvas.clientWidth / 2, canvas.clientHeight / 2, Infinity);
  let best = null, least = Infinity;
  for (let i = 0; i < map.image.length; i++) {
    const x = screenX(i) - screenX(from), y = screenY(i) - screenY(from);
    const ahead = x * dx + y * dy, aside = Math.abs(x * dy - y * dx);
    if (ahead > .5 && aside <= ahead && ahead + 2 * aside < least && visible(i)) {
      best = i;
      least = ahead + 2 * aside;
    }
  }
  return best;
}

// ---- Pointer, wheel and keys.

function listen() {
  const pointers = new Map();
  let moved = 0, spread = 0;
  const at = (event) => {
    const box = canvas.getBoundingClientRect();
    return [event.clientX - box.left - canvas.clientLeft, event.clientY - box.top - canvas.clientTop];
  };
  const hover = (i) => {
    const place = i === null ? null : map.image[i];
    if (place === hovered) return;
    hovered = place;
    showChosen();
    mark();
  };
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, at(event));
    if (pointers.size === 1) moved = 0;
    spread = 0;
  });
  canvas.addEventListener("pointermove", (event) => {
    const [x, y] = at(event), before = pointers.get(event.pointerId);
    if (!before) {
      if (event.pointerType !== "touch") hover(nearest(x, y, 14));
      return;
    }
    pointers.set(event.pointerId, [x, y]);
    moved += Math.abs(x - before[0]) + Math.abs(y - before[1]);
    if (moved < 5) return;
    view.x += (x - before[0]) / pointers.size;
    view.y += (y - before[1]) / pointers.size;
    if (pointers.size === 2) {
      const [a, b] = [...pointers.values()], now = Math.hypot(a[0] - b[0], a[1] - b[1]);
      if (spread) zoom(now / spread, (a[0] + b[0]) / 2, (a[1] + b[1]) / 2);
      spread = now;
    }
    redraw();
  });
  canvas.addEventListener("pointerup", (event) => {
    if (pointers.size === 1 && moved < 5) {
      const i = nearest(...at(event), event.pointerType === "touch" ? 26 : 14);
      hovered = null;
      if (i !== null) choose(images.index[map.image[i]]);
    }
    pointers.delete(event.pointerId);
  });
  canvas.addEventListener("pointercancel", (event) => pointers.delete(event.pointerId));
  canvas.addEventListener("pointerleave", () => hover(null));
  canvas.addEventListener("wheel", (event) => {
    // The page scrolls under a pointer that only passes by, and when there is nothing left to zoom out of.
    const out = event.deltaY > 0 && view.scale <= view.least / 2;
    if (!event.ctrlKey && (document.activeElement !== canvas || out)) return;
    event.preventDefault();
    zoom(Math.exp(-Math.max(-200, Math.min(200, event.deltaY)) / 300), ...at(event));
  }, {passive: false});
  const arrows = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};
  canvas.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (arrows[event.key]) {
      const i = neighbour(...arrows[event.key]);
      if (i !== null) choose(images.index[map.image[i]]);
    } else if (event.key === "+" || event.key === "=") zoom(2);
    else if (event.key === "-") zoom(.5);
    else if (event.key === "0") fit();
    else return;
    event.preventDefault();
  });
  for (const button of document.querySelectorAll(".zoom button"))
    button.addEventListener("click", () => Number(button.dataset.zoom) ? zoom(Number(button.dataset.zoom)) : fit());
  byId("find").addEventListener("submit", (event) => {
    event.preventDefault();
    choose(byId("find-index").valueAsNumber);
  });
  byId("find-index").addEventListener("input", () => choose(byId("find-index").valueAsNumber));
  const tabs = [...document.querySelectorAll("[role=tab]")];
  const open = (tab) => {
    for (const each of tabs) {
      each.setAttribute("aria-selected", each === tab);
      each.tabIndex = each === tab ? 0 : -1;
    }
    byId("stage").setAttribute("aria-labelledby", tab.id);
    map = data.maps[Number(tab.dataset.map)];
    hovered = null;
    fit();
    showChosen();
  };
  tabs.forEach((tab, i) => {
    tab.addEventListener("click", () => open(tab));
    tab.addEventListener("keydown", (event) => {
      const by = {ArrowLeft: -1, ArrowRight: 1}[event.key];
      if (!by) return;
      const next = tabs[(i + by + tabs.length) % tabs.length];
      next.focus();
      open(next);
    });
  });
  let width = canvas.clientWidth;
  new ResizeObserver(() => {
    if (canvas.clientWidth !== width) fit(); else redraw();
    width = canvas.clientWidth;
  }).observe(canvas);
}
function legend() {
  const boxes = [];
  const box = (values, key, ...text) => {
    const input = element("input", {type: "checkbox", checked: true});
    input.addEventListener("change", () => { values[key] = input.checked; redraw(); });
    return [input, element("label", {}, input, " ", ...text)];
  };
  const counts = data.classes.map(() => 0), states = [0, 0, 0];
  images.label.forEach((label, place) => { counts[label]++; states[status[place]]++; });
  data.classes.forEach((name, label) => {
    const [input, line] = box(shown.label, label, icon(label), ` ${name} (${figure(counts[label])})`);
    boxes.push(input);
    byId("legend").append(line);
  });
  const all = element("button", {type: "button", textContent: "all or none"});
  all.addEventListener("click", () => {
    const on = !boxes.every((input) => input.checked);
    boxes.forEach((input, label) => { input.checked = shown.label[label] = on; });
    redraw();
  });
  byId("legend").append(all, element("hr"));
  [["kept", KEPT], ["\u25cb suspects", SUSPECT], ["\u00d7 removed", REMOVED]].forEach(([name, key]) =>
    byId("legend").append(box(shown.status, key, `${name} (${figure(states[key])})`)[1]));
}

if (data.maps.length) {
  legend();
  fit();
  listen();
  showChosen();
}
showKeep();
