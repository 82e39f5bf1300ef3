"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);

  // --- arrays -------------------------------------------------------------------------------------------------------

  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const float32 = (text) => new Float32Array(bytes(text).buffer);

  function float16(text) {
    const codes = new Uint16Array(bytes(text).buffer);
    return Float32Array.from(codes, (code) => {
      const exponent = (code >> 10) & 31, fraction = code & 1023, sign = code >> 15 ? -1 : 1;
      if (exponent === 0) return sign * fraction * 2 ** -24;
      if (exponent === 31) return fraction ? NaN : sign * Infinity;
      return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
    });
  }

  const logCodes = (text) => Float32Array.from(bytes(text), (code) => (code ? 2 ** ((code - 128) / 15.875) : 0));

  // --- colour -------------------------------------------------------------------------------------------------------

  function ramps() {
    const style = getComputedStyle(document.documentElement);
    const stop = (name) => {
      const hex = parseInt(style.getPropertyValue(name).trim().slice(1), 16);
      return [hex >> 16, (hex >> 8) & 255, hex & 255];
    };
    const text = (name) => style.getPropertyValue(name).trim();
    return {
      low: ["--low-0", "--low-1", "--low-2"].map(stop), high: ["--high-0", "--high-1", "--high-2"].map(stop),
      ink: text("--ink"), muted: text("--muted"), green: text("--green"), soft: text("--soft"),
    };
  }

  function mix(stops, t) {
    const at = Math.min(Math.max(t, 0), 1) * (stops.length - 1), i = Math.min(Math.floor(at), stops.length - 2);
    const channel = (k) => Math.round(stops[i][k] + (stops[i + 1][k] - stops[i][k]) * (at - i));
    return `rgb(${channel(0)},${channel(1)},${channel(2)})`;
  }

  const colourOf = (theme, value, threshold, top) => value > threshold
    ? mix(theme.high, (value - threshold) / (top - threshold)) : mix(theme.low, value / threshold);

  const short = (value) => Number(value).toLocaleString("en", { maximumSignificantDigits: 4 });

  // --- a heat map that can be pointed at and walked through ---------------------------------------------------------

  const maps = [];
  const GUTTER = 34, BAND = 9, AXIS = 20;

  function heatMap(parent, options) {
    const canvas = document.createElement("canvas");
    canvas.tabIndex = 0;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", options.label);
    parent.append(canvas);
    const map = { canvas, ...options, cursor: null };
    const cellAt = (event) => {
      const box = canvas.getBoundingClientRect();
      const col = Math.floor(((event.clientX - box.left - GUTTER) / (box.width - GUTTER)) * map.cols);
      const row = Math.floor((event.clientY - box.top - BAND) / map.rowHeight);
      return col >= 0 && col < map.cols && row >= 0 && row < map.rows ? [row, col] : null;
    };
    const go = (cell) => {
      map.cursor = cell;
      draw(map);
      if (cell) map.read(...cell);
    };
    canvas.addEventListener("pointermove", (event) => go(cellAt(event)));
    canvas.addEventListener("pointerleave", () => go(null));
    canvas.addEventListener("pointerdown", (event) => {
      const cell = cellAt(event);
      go(cell);
      if (cell && map.choose) map.choose(...cell);
    });
    canvas.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
      if (event.key === "Enter" && map.choose && map.cursor) map.choose(...map.cursor);
      if (!step) return;
      event.preventDefault();
      const [row, col] = map.cursor || [0, 0];
      const next = map.cursor ? [row + step[0], col + step[1]] : [0, 0];
      go([Math.min(Math.max(next[0], 0), map.rows - 1), Math.min(Math.max(next[1], 0), map.cols - 1)]);
    });
    maps.push(map);
    return map;
  }

  function draw(map) {
    const { canvas, rows, cols } = map, scale = window.devicePixelRatio || 1;
    const width = canvas.clientWidth, theme = ramps();
    map.rowHeight = map.height ? map.height / rows : Math.min(18, Math.max(5, 320 / rows));
    const height = BAND + rows * map.rowHeight + AXIS;
    canvas.style.height = `${height}px`;
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
    const pen = canvas.getContext("2d"), cell = (width - GUTTER) / cols;
    pen.scale(scale, scale);
    const gapX = cell > 6 ? 1 : 0, gapY = map.rowHeight > 6 ? 1 : 0, bleed = 0.4;
    for (let row = 0; row < rows; row++) {
      for (let col = 0; col < cols; col++) {
        pen.fillStyle = colourOf(theme, map.value(row, col), map.threshold, map.top);
        pen.fillRect(GUTTER + col * cell, BAND + row * map.rowHeight,
          cell - gapX + (gapX ? 0 : bleed), map.rowHeight - gapY + (gapY ? 0 : bleed));
      }
    }
    pen.fillStyle = theme.green;
    for (let col = 0; map.band && col < cols; col++) {
      if (map.band(col)) pen.fillRect(GUTTER + col * cell, 1, cell + (gapX ? -gapX : bleed), 5);
    }
    axes(pen, map, theme, cell, width);
    pen.strokeStyle = theme.ink;
    pen.lineWidth = 1.5;
    if (map.chosen && map.chosen() !== null) {
      pen.strokeRect(GUTTER - 1, BAND + map.chosen() * map.rowHeight - 0.75, width - GUTTER, map.rowHeight + 0.5);
    }
    if (map.cursor) {
      const [row, col] = map.cursor;
      pen.strokeRect(GUTTER + col * cell - 1, BAND + row * map.rowHeight - 1, cell + 1.5, map.rowHeight + 1.5);
    }
  }

  function axes(pen, map, theme, cell, width) {
    pen.fillStyle = theme.muted;
    pen.font = "11.5px system-ui, sans-serif";
    pen.textAlign = "right";
    pen.textBaseline = "middle";
    const every = (pixels, size) => [1, 2, 5, 10, 20, 50, 100].find((n) => n * size >= pixels) || 200;
    const rowStep = every(15, map.rowHeight);
    for (let row = 0; row < map.rows; row += rowStep) {
      pen.fillText(map.rowName(row), GUTTER - 6, BAND + (row + 0.5) * map.rowHeight);
    }
    pen.textBaseline = "top";
    pen.textAlign = "center";
    const steps = [1, 2, 4, 5, 8, 10, 16, 32, 64, 128];
    const colStep = steps.find((n) => n * cell >= 30 && (n >= 4 || map.cols < 40)) || 256;
    for (let col = 0; col < map.cols; col += colStep) {
      pen.fillText(map.colName(col), Math.min(GUTTER + (col + 0.5) * cell, width - 9), BAND + map.rows * map.rowHeight + 5);
    }
  }

  // --- Q, K and V ---------------------------------------------------------------------------------------------------

  const decode = data.code === "f16" ? float16 : logCodes;
  const tensors = data.maps.map((map) => ({ ...map, ratio: decode(map.ratio), mean: float32(map.mean) }));
  const layers = [...new Set(tensors.flatMap((tensor) => tensor.layers))].sort((a, b) => a - b);
  const never = data.never && bytes(data.never.flags);
  const slider = $("layer");
  const layerNow = () => layers[Number(slider.value)];

  function neverTurns(tensor, layer, dim) {
    const row = tensor.layers.indexOf(layer);
    return never !== null && tensor.name !== "value" && row >= 0 && never[row * data.never.dims + dim] === 1;
  }

  function ratioAt(tensor, layer, head, dim) {
    const row = tensor.layers.indexOf(layer);
    return row < 0 ? 0 : tensor.ratio[(row * tensor.heads + head) * tensor.dims + dim];
  }

  function readMap(tensor, layer, head, dim) {
    const ratio = ratioAt(tensor, layer, head, dim);
    const norm = ratio * tensor.mean[tensor.layers.indexOf(layer) * tensor.heads + head];
    const out = $("map-readout"), strong = document.createElement("b");
    strong.textContent = `${tensor.name}, layer ${layer}, head ${head}, dim ${dim}`;
    let text = `: norm ${short(norm)}, ${short(ratio)} × its head's mean`;
    text += ratio > data.lam ? " – massive" : "";
    text += neverTurns(tensor, layer, dim) ? "; this dim never completes a turn" : "";
    out.replaceChildren(strong, text);
    Object.assign(out.dataset, { tensor: tensor.name, layer, head, dim, norm, ratio });
  }

  function showMaps() {
    const top = Math.max(2 * data.lam, ...tensors.map((tensor) => tensor.ratio.reduce((a, b) => Math.max(a, b), 0)));
    $("map-top").textContent = short(Math.round(top));
    for (const tensor of tensors) {
      const overview = document.createElement("div"), detail = document.createElement("div");
      detail.className = "detail";
      for (const [box, what] of [[overview, "layers × dims"], [detail, `${tensor.heads} heads × ${tensor.dims} dims`]]) {
        const title = document.createElement("p"), note = document.createElement("span");
        title.className = "panel-title";
        note.textContent = ` – ${what}`;
        title.append(tensor.name, note);
        box.append(title);
      }
      $("overview").append(overview);
      $("detail").append(detail);
      const best = tensor.layers.map((layer) => Array.from({ length: tensor.dims }, (_, dim) => {
        let head = 0;
        for (let h = 1; h < tensor.heads; h++) {
          if (ratioAt(tensor, layer, h, dim) > ratioAt(tensor, layer, head, dim)) head = h;
        }
        return head;
      }));
      const common = { cols: tensor.dims, threshold: data.lam, top, colName: String };
      heatMap(overview, {
        ...common, rows: tensor.layers.length, height: Math.min(300, Math.max(90, 8 * tensor.layers.length)),
        label: `${tensor.name}: layers by dims, the largest head of each`,
        value: (row, dim) => ratioAt(tensor, tensor.layers[row], best[row][dim], dim),
        rowName: (row) => String(tensor.layers[row]),
        band: (dim) => neverTurns(tensor, layerNow(), dim),
        chosen: () => { const row = tensor.layers.indexOf(layerNow()); return row < 0 ? null : row; },
        read: (row, dim) => readMap(tensor, tensor.layers[row], best[row][dim], dim),
        choose: (row) => { slider.value = layers.indexOf(tensor.layers[row]); slide(); },
      });
      heatMap(detail, {
        ...common, rows: tensor.heads, label: `${tensor.name}: heads by dims of the chosen layer`,
        value: (head, dim) => ratioAt(tensor, layerNow(), head, dim),
        rowName: String,
        band: (dim) => neverTurns(tensor, layerNow(), dim),
        read: (head, dim) => readMap(tensor, layerNow(), head, dim),
      }).canvas.dataset.tensor = tensor.name;
    }
    slider.addEventListener("input", slide);
    slide();
  }

  function slide() {
    $("layer-name").textContent = layerNow();
    slider.setAttribute("aria-valuetext", `layer ${layerNow()}`);
    drawAll();
  }

  // --- sinks --------------------------------------------------------------------------------------------------------

  function showSinks() {
    const { layers: at, heads, strength: text } = data.sinks, strength = float16(text);
    heatMap($("sink-map"), {
      rows: heads, cols: at.length, threshold: data.sinkThreshold, top: 1, label: "attention to the first token",
      value: (head, col) => strength[col * heads + head], rowName: String, colName: (col) => String(at[col]),
      read: (head, col) => {
        const share = strength[col * heads + head], strong = document.createElement("b");
        strong.textContent = `layer ${at[col]}, head ${head}`;
        $("sink-readout").replaceChildren(strong, `: ${(100 * share).toFixed(1)}% of attention on the first token`);
      },
    });
  }

  const drawAll = () => maps.forEach(draw);
  if (tensors.length) showMaps();
  if (data.sinks) showSinks();
  drawAll();
  window.addEventListener("resize", drawAll);
  window.addEventListener("beforeprint", drawAll);
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
})();
