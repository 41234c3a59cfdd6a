// The galleries of the report: a click on a cell of the confusion matrix shows the images behind it.
// The page's data is JSON in #page-data; whatever of it is text reaches the page as text, never as HTML.
"use strict";

const AT_ONCE = 60;  // images drawn at a time
const byId = (name) => document.getElementById(name);
const figure = (number) => number.toLocaleString("en");
const element = (name, properties, ...children) => {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
};

// What is wider than the window scrolls sideways; the keyboard has to reach it then.
function reachable() {
  for (const box of document.querySelectorAll(".scroll"))
    if (box.scrollWidth > box.clientWidth) {
      box.tabIndex = 0;
      box.setAttribute("role", "group");
      box.setAttribute("aria-label", "scrolls sideways");
    } else for (const name of ["tabindex", "role", "aria-label"]) box.removeAttribute(name);
}
addEventListener("resize", reachable);
for (const details of document.querySelectorAll("details")) details.addEventListener("toggle", reachable);
reachable();
addEventListener("beforeprint", () => { for (const details of document.querySelectorAll("details")) details.open = true; });

function galleries(data) {
  const cells = new Map();  // by "true,predicted": how many images there are, and which of them are here
  let next = 0;
  for (const [truth, predicted, images, shown] of data.cells) {
    const places = Array.from({length: shown}, (_, i) => next + i);
    cells.set(`${truth},${predicted}`, {truth, predicted, images, places});
    next += shown;
  }
  const cellOf = [...cells.values()].flatMap((cell) => cell.places.map(() => cell));
  const percent = (tenThousandths) => tenThousandths > 9990 && tenThousandths < 10000 ? "over 99.9%" :
    `${(tenThousandths / 100).toFixed(tenThousandths >= 9900 && tenThousandths < 10000 ? 1 : 0)}%`;

  // Sheets of thumbnails are decoded when the first picture of them is shown.
  const {sheets} = data, perSheet = sheets.columns ** 2, decoded = new Map();
  const sheetOf = (place) => {
    const number = Math.floor(place / perSheet);
    if (!decoded.has(number)) decoded.set(number, element("img", {src: sheets.uris[number]}));
    return decoded.get(number);
  };
  function draw(canvas, place) {
    const sheet = sheetOf(place), cell = place % perSheet, {width, height, columns} = sheets;
    const paint = () => canvas.getContext("2d").drawImage(
      sheet, cell % columns * width, Math.floor(cell / columns) * height, width, height, 0, 0, width, height);
    sheet.complete ? paint() : sheet.addEventListener("load", paint, {once: true});
  }
  function card(place) {
    const {truth, predicted} = cellOf[place], sure = percent(data.confidence[place]);
    const said = truth === predicted ? `${data.classes[predicted]}, right` :
      `${data.classes[predicted]}, truly ${data.classes[truth]}`;
    const canvas = element("canvas", {width: sheets.width, height: sheets.height});
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `${data.file[place]}: ${said}, ${sure} sure`);
    draw(canvas, place);
    const caption = element("figcaption", {}, element("b", {textContent: `${sure} sure`}),
                            element("span", {textContent: said}));
    if (data.classes.length > 1 && data.probability[place] >= 100)
      caption.append(element("span", {
        textContent: `then ${data.classes[data.second[place]]}, ${percent(data.probability[place])}`}));
    caption.append(element("span", {className: "file", textContent: data.file[place]}));
    const made = element("figure", {}, canvas, caption);
    made.dataset.place = place;
    return made;
  }

  let places = [], drawn = 0;
  function more() {
    const first = drawn;
    drawn = Math.min(drawn + AT_ONCE, places.length);
    byId("gallery-images").append(...places.slice(first, drawn).map(card));
    const left = places.length - drawn, button = byId("gallery-more").querySelector("button");
    if (!left) byId("gallery-more").replaceChildren();
    else {
      const text = `Show ${figure(Math.min(left, AT_ONCE))} more of ${figure(left)}`;
      if (button) button.textContent = text;
      else {
        const made = element("button", {type: "button", textContent: text});
        made.addEventListener("click", () => {
          const before = drawn;
          more();
          if (!byId("gallery-more").firstChild) {  // the focus would be lost with the button
            const at = byId("gallery-images").children[before];
            at.tabIndex = -1;
            at.focus();
          }
        });
        byId("gallery-more").append(made);
      }
    }
  }
  function show(title, note, chosen) {
    places = chosen;
    drawn = 0;
    byId("gallery-head").replaceChildren(element("h3", {textContent: title}),
                                         element("p", {className: "small", textContent: note}));
    byId("gallery-images").replaceChildren();
    byId("gallery-more").replaceChildren();
    more();
  }
  function press(matches) {
    for (const button of document.querySelectorAll("button[aria-pressed]"))
      button.setAttribute("aria-pressed", matches(button));
  }
  function showCell(truth, predicted) {
    const cell = cells.get(`${truth},${predicted}`);
    const images = cell ? cell.images : null, here = cell ? cell.places : [];
    const right = truth === predicted, name = data.classes[truth];
    const what = right ? `${name} named rightly` : `${name} taken for ${data.classes[predicted]}`;
    const order = right ? "The least sure first." : "The surest first.";
    const part = !here.length ? "These images are not in this page, so that it stays small." :
      here.length < images ? `${order} ${figure(here.length)} of ${figure(images)} are in this page.` : order;
    show(`${images === null ? "" : `${figure(images)} \u00d7 `}${what}`, part, here);
    press((button) => Number(button.dataset.true) === truth && Number(button.dataset.predicted) === predicted);
  }
  function showWrong() {
    const wrong = cellOf.flatMap((cell, place) => cell.truth === cell.predicted ? [] : [place]);
    wrong.sort((a, b) => data.confidence[b] - data.confidence[a]);
    show(`${figure(wrong.length)} mistakes`, "The surest first.", wrong);
    press((button) => button.dataset.all === "wrong");
  }

  document.addEventListener("click", ({target}) => {
    const button = target.closest("button[aria-pressed]");
    if (!button) return;
    if (button.dataset.all) showWrong();
    else showCell(Number(button.dataset.true), Number(button.dataset.predicted));
    const {top} = byId("gallery").getBoundingClientRect();
    if (top > innerHeight - 160) scrollBy({top: top - innerHeight * .45});  // the matrix stays in sight where it can
  });
  // Arrow keys go to the next cell that has images, in their direction.
  document.addEventListener("keydown", (event) => {
    const step = {ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0]}[event.key];
    const from = event.target.closest?.(".confusion button");
    if (!step || !from || event.ctrlKey || event.metaKey || event.altKey) return;
    const at = (button) => [Number(button.dataset.true), Number(button.dataset.predicted)];
    const [row, column] = at(from);
    let best = null, least = Infinity;
    for (const button of document.querySelectorAll(".confusion button")) {
      const [r, c] = at(button), ahead = (r - row) * step[0] + (c - column) * step[1];
      const aside = Math.abs((r - row) * step[1]) + Math.abs((c - column) * step[0]);
      if (ahead > 0 && aside === 0 && ahead < least) [best, least] = [button, ahead];
    }
    event.preventDefault();
    if (best) best.focus();
  });
  const worst = [...cells.values()].filter((cell) => cell.truth !== cell.predicted)
    .reduce((best, cell) => !best || cell.images > best.images ? cell : best, null) ?? cells.values().next().value;
  if (worst) showCell(worst.truth, worst.predicted);
}

const embedded = byId("page-data");
if (embedded) galleries(JSON.parse(embedded.textContent));
