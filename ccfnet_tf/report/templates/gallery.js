"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const data = JSON.parse($("data").textContent);
  const stage = $("stage"), wipe = $("wipe"), film = $("film"), strip = $("strip");
  const pictures = { left: stage.querySelector("img.left"), right: stage.querySelector("img.right") };
  const tags = { left: stage.querySelector(".tag.l"), right: stage.querySelector(".tag.r") };
  const chosen = { left: $("left-layer"), right: $("right-layer") };
  const exact = new Set(["label", "coarse", "refine", "errors"]);
  const onPaper = 6;
  let order = data.orders.worst, place = 0;

  const make = (tag, values = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), values);
    element.append(...children);
    return element;
  };
  const percent = (value) => (value === null ? "\u2013" : (100 * value).toFixed(1) + " %");
  const share = (count, image) => (image.pixels ? percent(count / image.pixels) : "\u2013");
  const image = () => data.images[order[place]];
  const source = (item, layer) => item.layers[data.layers.indexOf(layer)];
  const picture = (item, layer) => make("img", {
    src: source(item, layer), width: item.width, height: item.height,
    className: exact.has(layer) ? "exact" : "", alt: "",
  });

  function badge(item, sorting) {
    if (sorting === "corrected") return share(item.corrected, item);
    if (sorting === "spoiled") return share(item.spoiled, item);
    return percent(sorting === "risk" ? item.risk : item.accuracy);
  }

  function swatch(colour, name) {
    const square = make("i", { className: "swatch" });
    square.style.background = colour;
    return make("li", {}, square, name);
  }

  function showColours() {
    const sides = [chosen.left.value, chosen.right.value];
    const items = [];
    if (sides.some((name) => ["label", "coarse", "refine"].includes(name)))
      for (const id of image().classes) items.push(swatch(data.classes[id].colour, data.classes[id].name));
    if (sides.includes("errors"))
      for (const each of data.errors) items.push(swatch(each.colour, each.name));
    $("classes").replaceChildren(...items);
    $("scale").hidden = !sides.some((name) => data.maps.includes(name));
  }

  function showLayers() {
    const item = image();
    for (const side of ["left", "right"]) {
      const layer = chosen[side].value;
      pictures[side].src = source(item, layer);
      pictures[side].alt = `${layer} of ${item.name}`;
      pictures[side].classList.toggle("exact", exact.has(layer));
      tags[side].textContent = layer;
    }
    for (const button of strip.querySelectorAll("button"))
      button.setAttribute("aria-pressed", String(button.value === chosen.right.value));
    showColours();
  }

  function showImage() {
    const item = image();
    stage.style.aspectRatio = `${item.width} / ${item.height}`;
    stage.style.maxWidth = `calc(72vh * ${item.width / item.height})`;
    for (const side of ["left", "right"])
      Object.assign(pictures[side], { width: item.width, height: item.height });
    strip.replaceChildren(...data.layers.map((layer, number) => {
      const button = make("button", { type: "button", value: layer }, picture(item, layer), `${number + 1} ${layer}`);
      button.addEventListener("click", () => choose("right", layer));
      return make("li", {}, button);
    }));
    $("name").textContent = item.name;
    $("place").textContent = `${place + 1} of ${order.length}`;
    const facts = {
      "accuracy": percent(item.accuracy), "accuracy of coarse": percent(item.coarse),
      "corrected, of all pixels": share(item.corrected, item), "spoiled, of all pixels": share(item.spoiled, item),
      "mean risk": percent(item.risk),
    };
    $("facts").replaceChildren(...Object.entries(facts).map(([name, value]) =>
      make("div", {}, make("dt", { textContent: name }), make("dd", { textContent: value }))));
    showLayers();
    [...film.children].forEach((entry, number) => {
      const button = entry.firstChild;
      button.tabIndex = number === place ? 0 : -1;
      button.setAttribute("aria-current", String(number === place));
    });
    keepInSight();
  }

  function keepInSight() {
    const entry = film.children[place], box = film.getBoundingClientRect(), own = entry.getBoundingClientRect();
    if (own.top < box.top || own.bottom > box.bottom) film.scrollTop += own.top - box.top - box.height / 3;
    if (own.left < box.left || own.right > box.right) film.scrollLeft += own.left - box.left - box.width / 3;
  }

  function showFilm(sorting) {
    film.replaceChildren(...order.map((index, number) => {
      const item = data.images[index];
      const button = make("button", { type: "button", title: item.name }, picture(item, "image"),
        make("span", { textContent: badge(item, sorting) }));
      button.setAttribute("aria-label", `${item.name}, ${number + 1} of ${order.length}`);
      button.addEventListener("click", () => go(number));
      return make("li", {}, button);
    }));
  }

  function showPaper() {
    $("paper").replaceChildren(...order.slice(0, onPaper).map((index) => {
      const item = data.images[index];
      const cells = data.layers.map((layer) => make("span", {}, picture(item, layer), layer));
      return make("figure", {}, make("figcaption", { textContent: `${item.name}: accuracy ${percent(item.accuracy)}` }),
        make("div", {}, ...cells));
    }));
  }

  function sort(sorting) {
    order = data.orders[sorting];
    place = 0;
    showFilm(sorting);
    showPaper();
    showImage();
  }

  function go(number) {
    place = Math.min(Math.max(number, 0), order.length - 1);
    const inFilm = film.contains(document.activeElement);
    showImage();
    if (inFilm) film.children[place].firstChild.focus({ preventScroll: true });
  }

  function choose(side, layer) {
    chosen[side].value = layer;
    showLayers();
  }

  function moveLine(value) {
    wipe.value = String(Math.min(Math.max(value, 0), 100));
    stage.style.setProperty("--at", `${wipe.value}%`);
    wipe.setAttribute("aria-valuetext", `${wipe.value} % ${chosen.left.value}, the rest ${chosen.right.value}`);
  }

  function onKey(event) {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const typing = event.target instanceof HTMLSelectElement || event.target.type === "radio";
    const digit = /^(?:Digit|Numpad)([1-8])$/.exec(event.code);
    if (digit && !(event.target instanceof HTMLSelectElement)) {
      choose(event.shiftKey ? "left" : "right", data.layers[Number(digit[1]) - 1]);
    } else if (!typing && event.key === "ArrowUp") go(place - 1);
    else if (!typing && event.key === "ArrowDown") go(place + 1);
    else if (!typing && event.key === "ArrowLeft") moveLine(Number(wipe.value) - 2);
    else if (!typing && event.key === "ArrowRight") moveLine(Number(wipe.value) + 2);
    else if (!typing && event.key === "Home") moveLine(0);
    else if (!typing && event.key === "End") moveLine(100);
    else return;
    event.preventDefault();
  }

  chosen.left.value = "image";
  chosen.right.value = "refine";
  for (const select of Object.values(chosen)) select.addEventListener("change", showLayers);
  wipe.addEventListener("input", () => moveLine(Number(wipe.value)));
  for (const radio of document.querySelectorAll("input[name=order]"))
    radio.addEventListener("change", () => sort(radio.value));
  $("view").addEventListener("keydown", onKey);
  sort(document.querySelector("input[name=order]:checked").value);
  moveLine(50);
})();
