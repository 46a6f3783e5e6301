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
      ["b", name, name],
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
    ctx.lineJoin = "round";
    // Text has the paper's colour around it, so that lines do not run through.
    const say = (text, x, y) => {
      ctx.lineWidth = 4 * ratio;
      ctx.strokeStyle = Report.colour("paper");
      ctx.strokeText(text, x, y);
      ctx.fillText(text, x, y);
    };
    const side = (from, to) => Math.max(...columns.slice(1).flatMap((c) => c.slice(from, to)));
    const left = side(0, COLUMNS * 0.4) < side(COLUMNS * 0.6, COLUMNS);
    for (const line of measured) {
      const y = u.valToPos(line.bytes / 1048576, "y", true);
      ctx.strokeStyle = ctx.fillStyle = Report.colour(line.when);
      ctx.lineWidth = 1.2 * ratio;
      ctx.setLineDash([5 * ratio, 4 * ratio]);
      ctx.beginPath();
      ctx.moveTo(u.bbox.left, y);
      ctx.lineTo(u.bbox.left + u.bbox.width, y);
      ctx.stroke();
      ctx.setLineDash([]);
      ctx.textAlign = left ? "left" : "right";
      const x = left ? u.bbox.left + 6 * ratio : u.bbox.left + u.bbox.width - 6 * ratio;
      const said = `${line.when}, ${line.kind}: ${Report.mib(line.bytes)} MiB (${line.options})`;
      say(said, x, y - 5 * ratio);
    }
    runs.forEach((run, number) => {
      const share = (100 * (run.peak + 0.5)) / run.bytes.length;
      const x = u.valToPos(share, "x", true);
      const y = u.valToPos(run.bytes[run.peak] / 1048576, "y", true);
      if (x < u.bbox.left || x > u.bbox.left + u.bbox.width) return;
      ctx.fillStyle = Report.colour(names[number]);
      ctx.beginPath();
      ctx.arc(x, y, 3.5 * ratio, 0, 2 * Math.PI);
      ctx.fill();
      const right = x > u.bbox.left + 0.8 * u.bbox.width;
      ctx.textAlign = right ? "right" : "left";
      const beside = (right ? -8 : 8) * ratio;
      say(`${Report.mib(run.bytes[run.peak])} MiB`, x + beside, y - 4 * ratio);
    });
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
      scales: { x: { time: false, range: [0, 100] }, y: { range: [0, 1.1 * highest] } },
      axes: [
        Report.axis({ label: "steps done, %", labelSize: 18, size: 30 }),
        Report.axis({ label: "activations, MiB", labelSize: 22, size: 58 }),
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
