"use strict";
// Values: see pack() of attention.py. Ranges, then bytes; pairs receiver by receiver without an image itself.
function startPanel(panel) {
  const height = Number(panel.dataset.height), width = Number(panel.dataset.width);
  const views = [...panel.querySelectorAll(".view")];
  const images = views.length, positions = height * width, pairs = images * (images - 1);
  const bytes = Uint8Array.from(atob(panel.querySelector(".values").textContent.trim()), c => c.charCodeAt(0));
  const ranges = new Float32Array(bytes.buffer, 0, pairs * positions * 2);
  const levels = bytes.subarray(ranges.byteLength);
  const stretch = document.getElementById("stretch");
  let receiver = 0, position = Number(panel.dataset.start);

  const pairOf = sender => receiver * (images - 1) + (sender < receiver ? sender : sender - 1);

  function drawMark(canvas) {
    // Some pixels a cell, so that the frame of the marked cell is thin.
    const cell = 12, context = canvas.getContext("2d");
    canvas.width = width * cell;
    canvas.height = height * cell;
    const x = (position % width) * cell, y = Math.floor(position / width) * cell;
    context.fillStyle = "rgba(0, 0, 0, 0.25)";
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.clearRect(x, y, cell, cell);
    context.lineWidth = 2;
    context.strokeStyle = "#ffffff";
    context.strokeRect(x - 1, y - 1, cell + 2, cell + 2);
    context.strokeStyle = "#e02020";
    context.strokeRect(x + 1, y + 1, cell - 2, cell - 2);
  }

  function drawHeat(canvas, row, top) {
    canvas.width = width;
    canvas.height = height;
    const context = canvas.getContext("2d"), pixels = context.createImageData(width, height);
    const low = ranges[2 * row], high = ranges[2 * row + 1];
    for (let n = 0; n < positions; n++) {
      const level = levels[row * positions + n] / 255;
      const value = stretch.checked ? level : (low + level * (high - low)) / top;
      const colour = 3 * Math.round(63 * Math.min(Math.max(value, 0), 1));
      pixels.data.set([PALETTE[colour], PALETTE[colour + 1], PALETTE[colour + 2], 110 + 120 * value], 4 * n);
    }
    context.putImageData(pixels, 0, 0);
  }

  function draw() {
    const rows = views.map((_, sender) => sender === receiver ? -1 : pairOf(sender) * positions + position);
    const top = Math.max(...rows.filter(row => row >= 0).map(row => ranges[2 * row + 1]), 1e-9);
    views.forEach((view, image) => {
      const canvas = view.querySelector("canvas"), row = rows[image];
      view.classList.toggle("receiver", image === receiver);
      const output = view.parentElement.querySelector("output");
      if (row < 0) {
        drawMark(canvas);
        output.textContent = `row ${Math.floor(position / width) + 1}, column ${position % width + 1}`;
      } else {
        drawHeat(canvas, row, top);
        output.textContent = `${ranges[2 * row].toFixed(2)}–${ranges[2 * row + 1].toFixed(2)} ×`;
      }
    });
  }

  function select(image, row, column) {
    receiver = image;
    position = Math.min(Math.max(row, 0), height - 1) * width + Math.min(Math.max(column, 0), width - 1);
    draw();
  }

  views.forEach((view, image) => {
    view.addEventListener("click", event => {
      const box = view.getBoundingClientRect();
      select(image, Math.floor((event.clientY - box.top) / box.height * height),
        Math.floor((event.clientX - box.left) / box.width * width));
    });
    view.addEventListener("keydown", event => {
      const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
      if (!move) return;
      event.preventDefault();
      select(image, Math.floor(position / width) + move[0], position % width + move[1]);
    });
  });
  stretch.addEventListener("change", draw);
  draw();
}

function drawScale() {
  const context = document.getElementById("scale").getContext("2d"), pixels = context.createImageData(64, 1);
  for (let n = 0; n < 64; n++) pixels.data.set([...PALETTE.slice(3 * n, 3 * n + 3), 255], 4 * n);
  context.putImageData(pixels, 0, 0);
}

document.querySelectorAll(".attention").forEach(startPanel);
drawScale();
