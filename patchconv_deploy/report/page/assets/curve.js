"use strict";
// Predicted memory against predicted time.
(() => {
  const place = document.getElementById("curve-plot");
  if (!place) return;
  const { points, weighed, taken, budget } = Report.data.curve;
  const HEIGHT = 340;
  const readout = document.getElementById("curve-readout");
  const all = [
    ...points.map((plan) => ({ plan, series: 1 })),
    ...weighed.map((plan) => ({ plan, series: 2 })),
    ...(taken ? [{ plan: taken, series: 3 }] : []),
  ];
  all.sort((a, b) => a.plan.time - b.plan.time || b.plan.peak - a.plan.peak);
  // Of what there is none there is no series, and no word in the legend.
  const there = [1, 2, 3].filter((number) => all.some((entry) => entry.series === number));
  const columns = [
    all.map((entry) => entry.plan.time),
    ...there.map((number) =>
      all.map((entry) => (entry.series === number ? entry.plan.peak / 1048576 : null)),
    ),
  ];
  let plot = null;
  let watch = null;

  function tell(plan, word) {
    const what = plan.regions
      ? `${plan.regions} region${plan.regions > 1 ? "s" : ""}, ${plan.form}, ` +
        `at most ${plan.patches} patches`
      : "the model as it is";
    Report.write(readout, [
      ["b", "", word],
      ` ${what}: ${Report.mib(plan.peak)} MiB running, ${plan.work.toFixed(3)}x the work, ${plan.time.toFixed(3)}x the time, ` +
        `whole process ${Report.mib(plan.process)} MiB`,
    ]);
  }

  function rest() {
    if (taken) tell(taken, "Taken:");
    else Report.write(readout, ["Nothing was taken."]);
  }

  function hover(u) {
    const { left, top } = u.cursor;
    if (left === undefined || left < 0) return rest();
    let best = null;
    let least = 45;
    for (const entry of all) {
      const x = u.valToPos(entry.plan.time, "x") - left;
      const y = u.valToPos(entry.plan.peak / 1048576, "y") - top;
      const far = Math.hypot(x, y);
      if (far < least) [best, least] = [entry, far];
    }
    if (!best) return rest();
    return tell(best.plan, best.series === 3 ? "Taken:" : best.series === 1 ? "Best:" : "Weighed:");
  }

  function limit(u) {
    if (!budget) return;
    const y = u.valToPos(budget / 1048576, "y", true);
    if (y < u.bbox.top || y > u.bbox.top + u.bbox.height) return;
    const { ctx } = u;
    const ratio = devicePixelRatio;
    ctx.save();
    ctx.strokeStyle = ctx.fillStyle = Report.colour("bad");
    ctx.setLineDash([5 * ratio, 4 * ratio]);
    ctx.beginPath();
    ctx.moveTo(u.bbox.left, y);
    ctx.lineTo(u.bbox.left + u.bbox.width, y);
    ctx.stroke();
    ctx.font = `${12 * ratio}px system-ui, sans-serif`;
    ctx.textAlign = "right";
    const said = `budget ${Report.mib(budget)} MiB`;
    Report.say(ctx, said, u.bbox.left + u.bbox.width - 4 * ratio, y - 6 * ratio);
    ctx.restore();
  }

  function draw() {
    if (watch) watch.disconnect();
    if (plot) plot.destroy();
    const strong = Report.colour("after");
    const quiet = Report.colour("quiet");
    const alone = { paths: () => null };
    const series = [
      {
        label: "least found",
        stroke: strong,
        width: 1.6,
        spanGaps: true,
        paths: uPlot.paths.stepped({ align: 1 }),
        points: { show: true, size: 7, fill: strong },
      },
      {
        label: "weighed",
        ...alone,
        stroke: Report.faint(quiet, 0.7),
        points: { show: true, size: 5, fill: Report.faint(quiet, 0.35), stroke: "transparent" },
      },
      {
        label: "taken",
        ...alone,
        stroke: Report.colour("before"),
        points: { show: true, size: 15, width: 2.5, fill: "transparent" },
      },
    ];
    const xs = columns[0];
    const room = 0.04 * Math.max(0.02, xs[xs.length - 1] - xs[0]);
    const highest = Math.max(...all.map((entry) => entry.plan.peak)) / 1048576;
    const options = {
      width: Report.width(place),
      height: HEIGHT,
      cursor: { points: { show: false }, drag: { x: false, y: false } },
      legend: { live: false },
      scales: {
        x: { time: false, range: [xs[0] - room, xs[xs.length - 1] + room] },
        y: { range: [0, 1.08 * highest] },
      },
      axes: [
        Report.axis({
          label: "predicted time, of the original's",
          labelSize: 18,
          size: 30,
          values: (u, ticks) => ticks.map((tick) => `${tick}x`),
        }),
        Report.upright(place, "running, MiB"),
      ],
      series: [{ label: "time" }, ...there.map((number) => series[number - 1])],
      hooks: { setCursor: [hover], draw: [limit] },
    };
    plot = new uPlot(options, columns, place);
    watch = Report.fitted(place, plot, HEIGHT);
  }

  Report.withColours(draw);
  rest();
})();
