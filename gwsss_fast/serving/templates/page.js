"use strict";

const READOUTS = ["initial", "graph", "ensemble"];
const TYPES = ["image/jpeg", "image/png", "image/webp", "image/bmp"];
const MOST_BYTES = Number(document.querySelector("main").dataset.bytes);

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function swatch(color) {
  const made = element("span", { className: "swatch" });
  made.style.background = color;
  return made;
}

function percent(share) {
  const value = 100 * share;
  return value > 0 && value < 0.1 ? "< 0.1 %" : `${value.toFixed(1)} %`;
}

function fileOf(base64) {
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  return new Blob([bytes], { type: "image/png" });
}

// Object URLs of one result; they are let go when the next one is shown.
function shelf() {
  const urls = [];
  return {
    put(blob) {
      urls.push(URL.createObjectURL(blob));
      return urls[urls.length - 1];
    },
    clear() {
      urls.splice(0).forEach((url) => URL.revokeObjectURL(url));
    },
  };
}

function complaint(images, fewest, most) {
  if (images.length < fewest || images.length > most) {
    return most === 1 ? "Choose one image." : `Choose ${fewest} to ${most} images.`;
  }
  const other = images.find((image) => !TYPES.includes(image.type));
  if (other) return `${other.name} is not a JPEG, PNG, WebP or BMP file.`;
  const size = images.reduce((sum, image) => sum + image.size, 0);
  return size > MOST_BYTES ? `That is ${(size / 1e6).toFixed(1)} MB, more than ${MOST_BYTES / 1e6} MB.` : "";
}

async function post(url, field, images, signal) {
  const form = new FormData();
  for (const image of images) form.append(field, image, "image");
  let response;
  try {
    response = await fetch(url, { method: "POST", body: form, signal });
  } catch (error) {
    throw signal.aborted ? error : new Error("The server does not answer.");
  }
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) {
    const text = answer.error || `the server answered with status ${response.status}`;
    throw new Error(`${text[0].toUpperCase()}${text.slice(1)}.`);
  }
  return answer;
}

// One section of the page: files come in by its input or are dropped, `show` puts the answer into its result.
function connect(section, { url, field, fewest, most, show }) {
  const [input, drop, status, result] = ["input[type=file]", ".drop", ".status", ".result"].map((selector) =>
    section.querySelector(selector),
  );
  const blobs = shelf();
  let running = null;

  function say(text, bad = false) {
    status.textContent = text;
    status.classList.toggle("bad", bad);
  }

  async function start(list) {
    const images = [...list];
    input.value = ""; // so that the same file can be chosen again
    running?.abort();
    const own = (running = new AbortController());
    result.hidden = true;
    const wrong = complaint(images, fewest, most);
    if (wrong) {
      say(wrong, true);
      return;
    }
    say(images.length === 1 ? `Computing ${images[0].name} …` : `Computing ${images.length} images …`);
    section.setAttribute("aria-busy", "true");
    try {
      const answer = await post(url, field, images, own.signal);
      if (own.signal.aborted) return;
      blobs.clear();
      await show(result, images, answer, blobs);
      result.hidden = false;
      const what = images.length === 1 ? images[0].name : `${images.length} images`;
      say(`${what}: ${answer.seconds.toFixed(2)} s`);
    } catch (error) {
      if (!own.signal.aborted) say(error.message, true);
    } finally {
      if (running === own) section.removeAttribute("aria-busy");
    }
  }

  input.addEventListener("change", () => input.files.length && start(input.files));
  drop.addEventListener("dragover", (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
  drop.addEventListener("dragleave", () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    start(event.dataTransfer.files);
  });
  const slider = section.querySelector("input[type=range]");
  const follow = () => {
    section.style.setProperty("--opacity", slider.value / 100);
    section.querySelector("output").textContent = `${slider.value} %`;
  };
  slider.addEventListener("input", follow);
  follow();
}

async function load(image, url, text) {
  image.alt = text;
  image.src = url;
  await image.decode().catch(() => {});
}

async function showMask(result, [file], answer, blobs) {
  const mask = blobs.put(fileOf(answer.mask));
  const names = answer.objects.map((item) => item.class);
  const photo = result.querySelector(".photo");
  await load(photo, blobs.put(file), `the image ${file.name}`);
  const [width, height] = answer.size;
  photo.parentElement.style.maxWidth = `${(75 * width) / height}vh`; // as much as a screen holds
  await load(result.querySelector(".mask"), mask, `mask: ${names.join(", ") || "background alone"}`);
  const rows = answer.objects.map((item) =>
    element(
      "tr",
      {},
      element("th", { scope: "row" }, swatch(item.color), item.class),
      element("td", {}, percent(item.share)),
      element("td", {}, item.area.toLocaleString("en")),
      element("td", {}, item.score === null ? "–" : item.score.toFixed(2)),
    ),
  );
  if (!rows.length) rows.push(element("tr", {}, element("td", { colSpan: 4 }, "No class was found.")));
  result.querySelector("tbody").replaceChildren(...rows);
  Object.assign(result.querySelector(".button"), {
    href: mask,
    download: `${file.name.replace(/\.[^.]*$/, "")}_mask.png`,
  });
}

function figure(caption, ...layers) {
  return element("figure", {}, element("div", { className: "view" }, ...layers), element("figcaption", {}, caption));
}

// Small copies: a photograph stands in the page once for each map.
async function thumbnails(files) {
  const made = [];
  for (const file of files) {
    const image = element("img");
    const url = URL.createObjectURL(file);
    await load(image, url, "");
    const scale = Math.min(1, 320 / Math.max(image.naturalWidth, image.naturalHeight, 1));
    const [width, height] = [image.naturalWidth, image.naturalHeight].map((side) => Math.max(1, side * scale));
    made.push(() => {
      const canvas = element("canvas", { width, height });
      canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", file.name);
      return canvas;
    });
    setTimeout(() => URL.revokeObjectURL(url), 60000);
  }
  return made;
}

async function showMaps(result, files, answer, blobs) {
  const photos = await thumbnails(files);
  const parts = [];
  for (const found of answer.classes) {
    const count = found.images.length;
    parts.push(element("h3", {}, swatch(found.color), `${found.class} in ${count} of ${files.length} images`));
    for (const row of found.images) {
      const maps = READOUTS.map((readout) => {
        const map = element("img", { alt: `${readout} map of ${found.class}`, src: blobs.put(fileOf(row[readout])) });
        return figure(readout, photos[row.image](), map);
      });
      const photo = figure(files[row.image].name, photos[row.image]());
      parts.push(element("div", { className: "strip" }, photo, ...maps));
    }
  }
  result.querySelector(".classes").replaceChildren(...parts);
}

for (const name of ["dragover", "drop"]) {
  window.addEventListener(name, (event) => event.preventDefault()); // a file beside the field would leave the page
}
connect(document.querySelector("#single"), {
  url: "segment",
  field: "image",
  fewest: 1,
  most: 1,
  show: showMask,
});
const group = document.querySelector("#group");
if (group.querySelector(".drop")) {
  connect(group, {
    url: "group",
    field: "images",
    fewest: Number(group.dataset.fewest),
    most: Number(group.dataset.most),
    show: showMaps,
  });
}
