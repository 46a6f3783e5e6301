"use strict";
// Memory over the run: both runs over the share of steps that are done, the regions below.
(() => {
  const place = document.getElementById("memory-plot");
  if (!place) return;
  const { before, after, measured } = Report.data.plots;
  const COLUMNS = 2400;
  const HEIGHT = 340;
  const readout = document.getElementById("memory-readout");
  const runs = after ? [before, after] : [before];
  const names = ["before", "after"];
  const word = (name) => (after ? name : "as it is,");
  let marked = -1;
  let plot = null;
  let watch = null;

  const at = (run, column) => Math.floor(((column + 0.5) / COLUMNS) * run.bytes.length);
  const columns = [
    Array.from({ length: COLUMNS }, (_, column) => (100 * column) / COLUMNS),
    ...runs.map((run) =>
      Array.from({ length: COLUMNS }, (_, column) => run.bytes[at(run, column)] / 1048576),
    ),
  ];
  const highest = Math.max(...columns.slice(1).flat(), ...measured.map((m) => m.bytes / 1048576));

  function tell(run, name, step) {
    const region = run.regions[step];
    const where = region < 0 ? "" : `R${region + 1} `;
    return [
      ["b", name, word(name)],
      ` ${Report.mib(run.bytes[step])} MiB while ${where}${run.labels[step]} runs`,
    ];
  }

  function rest() {
    const parts = runs.flatMap((run, number) => [
      ...tell(run, names[number], run.peak),
      number + 1 < runs.length ? "; " : ".",
    ]);
    Report.write(readout, ["Peak ", ...parts]);
  }

  function hover(u) {
    const column = u.cursor.idx;
    if (column === null || column === undefined || u.cursor.left < 0) return rest();
    const parts = runs.flatMap((run, number) => [
      ...tell(run, names[number], at(run, column)),
      number + 1 < runs.length ? "; " : "",
    ]);
    return Report.write(readout, [`${columns[0][column].toFixed(1)} %: `, ...parts]);
  }

  // The regions of the result as a strip below, the one in question as a band.
  function strip(u) {
    if (!after) return;
    const { ctx } = u;
    const { top, height } = u.bbox;
    const thick = 5 * devicePixelRatio;
    let begin = 0;
    for (let column = 1; column <= COLUMNS; column += 1) {
      const region = after.regions[at(after, begin)];
      if (column < COLUMNS && after.regions[at(after, column)] === region) continue;
      if (region >= 0) {
        const left = u.valToPos((100 * begin) / COLUMNS, "x", true);
        const right = u.valToPos((100 * column) / COLUMNS, "x", true);
        if (right > u.bbox.left && left < u.bbox.left + u.bbox.width) {
          const from = Math.max(left, u.bbox.left);
          const wide = Math.min(right, u.bbox.left + u.bbox.width) - from;
          ctx.fillStyle = Report.hue(region);
          ctx.fillRect(from, top + height - thick, wide, thick);
          if (region === marked) {
            ctx.fillStyle = Report.faint(Report.hue(region), 0.2);
            ctx.fillRect(from, top, wide, height);
          }
        }
      }
      begin = column;
    }
  }

  function marks(u) {
    const { ctx } = u;
    const ratio = devicePixelRatio;
    ctx.save();
    ctx.font = `600 ${12 * ratio}px system-ui, sans-serif`;
    [ctx.textAlign, ctx.textBaseline] = ["left", "alphabetic"];
    const narrow = u.width < Report.NARROW;
    const { left, top, width, height } = u.bbox;
    // What was written already: left, right, upper and lower edge.
    const taken = [];
    const room = (text, x, y) => [x, x + ctx.measureText(text).width, y - 12 * ratio, y + 3 * ratio];
    const free = ([a, b, c, d]) =>
      a >= left && b <= left + width && c >= top - 8 * ratio && d <= top + height &&
      !taken.some(([e, f, g, h]) => a < f && b > e && c < h && d > g);
    // Write at the first of some places that is free, or at none.
    const say = (text, places) => {
      const found = places.find(([x, y]) => free(room(text, x, y)));
      if (!found) return false;
      taken.push(room(text, ...found));
      Report.say(ctx, text, ...found);
      return true;
    };
    const side = (from, to) => Math.max(...columns.slice(1).flatMap((c) => c.slice(from, to)));
    const first = side(0, COLUMNS * 0.4) < side(COLUMNS * 0.6, COLUMNS);
    const lines = measured.map((line) => ({ ...line, y: u.valToPos(line.bytes / 1048576, "y", true) }));
    for (const line of lines) {
      ctx.strokeStyle = Report.colour(line.when);
      ctx.lineWidth = 1.2 * ratio;
      ctx.setLineDash([5 * ratio, 4 * ratio]);
      ctx.beginPath();
      ctx.moveTo(left, line.y);
      ctx.lineTo(left + width, line.y);
      ctx.stroke();
    }
    const spots = runs.map((run) => ({
      x: u.valToPos((100 * (run.peak + 0.5)) / run.bytes.length, "x", true),
      y: u.valToPos(run.bytes[run.peak] / 1048576, "y", true),
    }));
    // Peaks stand where they are, so they are written first; lines have all their length.
    runs.forEach((run, number) => {
      const { x, y } = spots[number];
      if (x < left || x > left + width) return;
      ctx.fillStyle = Report.colour(names[number]);
      ctx.beginPath();
      ctx.arc(x, y, 3.5 * ratio, 0, 2 * Math.PI);
      ctx.fill();
      const text = `${Report.mib(run.bytes[run.peak])} MiB`;
      const before = x - 8 * ratio - ctx.measureText(text).width;
      const ahead = x + 8 * ratio;
      const clear = lines.some((line) => Math.abs(line.y - y) < 14 * ratio) ? 21 : 4;
      const places = [[ahead, y - clear * ratio], [before, y - clear * ratio]];
      if (x > left + 0.8 * width) places.reverse();
      say(text, [...places, [ahead, y + 16 * ratio], [before, y + 16 * ratio]]);
    });
    for (const line of lines) {
      ctx.fillStyle = Report.colour(line.when);
      const short = `${narrow ? "" : `${line.when}, `}${line.kind}: ${Report.mib(line.bytes)} MiB`;
      const at = (text) => {
        const ends = [left + 6 * ratio, left + width - 6 * ratio - ctx.measureText(text).width];
        if (!first) ends.reverse();
        const middle = left + (width - ctx.measureText(text).width) / 2;
        return [...ends, middle].flatMap((x) => [[x, line.y - 5 * ratio], [x, line.y + 14 * ratio]]);
      };
      const long = `${short} (${line.options})`;
      if (narrow || !say(long, at(long))) say(short, at(short));
    }
    ctx.restore();
  }

  function draw() {
    if (watch) watch.disconnect();
    if (plot) plot.destroy();
    const series = runs.map((run, number) => {
      const colour = Report.colour(names[number]);
      return {
        label: number ? "after" : after ? "before" : "as it is",
        stroke: colour,
        fill: Report.faint(colour, 0.16),
        width: 1.5,
        paths: uPlot.paths.stepped({ align: 1 }),
        points: { show: false },
      };
    });
    const options = {
      width: Report.width(place),
      height: HEIGHT,
      cursor: { y: false, points: { show: false }, drag: { x: true, y: false } },
      padding: [10, 14, 0, 0],
      legend: { live: false, show: runs.length > 1 },
      scales: {
        // All of it, or what was dragged over.
        x: { time: false, range: (u, from, to) => [from, to >= 99.95 ? 100 : to] },
        y: { range: [0, 1.1 * highest] },
      },
      axes: [
        Report.axis({ label: "steps done, %", labelSize: 18, size: 30 }),
        Report.upright(place, "activations, MiB"),
      ],
      series: [{ label: "steps" }, ...series],
      hooks: { setCursor: [hover], draw: [strip, marks] },
    };
    plot = new uPlot(options, columns, place);
    watch = Report.fitted(place, plot, HEIGHT);
  }

  Report.highlight = (region) => {
    marked = region;
    if (plot) plot.redraw(false);
  };
  Report.withColours(draw);
  rest();
})();
