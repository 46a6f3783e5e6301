"use strict";
// What the plots share: the page's data, its colours, and text that is never markup.
const Report = {
  // Whether the page goes to paper, which is light and so many pixels wide, margins left out.
  paper: false,
  PAPER: 660,
  // A plot of fewer pixels has shorter words.
  NARROW: 520,

  data: JSON.parse(document.getElementById("data").textContent),

  mib(bytes) {
    const found = bytes / 1048576;
    const digits = found >= 0.1 || !bytes ? 1 : 3;
    const scaled = found * 10 ** digits;
    // Halves go to the even side, as in the tables.
    const whole = scaled % 1 === 0.5 ? 2 * Math.round(scaled / 2) : Math.round(scaled);
    return (whole / 10 ** digits).toLocaleString("en-US", {
      minimumFractionDigits: digits,
      maximumFractionDigits: digits,
    });
  },

  colour(name) {
    return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  },

  hue(region) {
    return Report.colour(`hue-${region % 8}`);
  },

  // A colour of six digits, as the sheet has them, with an opacity.
  faint(colour, opacity) {
    const number = parseInt(colour.slice(1), 16);
    return `rgba(${number >> 16}, ${(number >> 8) & 255}, ${number & 255}, ${opacity})`;
  },

  // An element with text: [tag, class, text], or plain strings, in a row.
  write(place, parts) {
    place.replaceChildren(
      ...parts.map((part) => {
        if (typeof part === "string") return document.createTextNode(part);
        const [tag, name, text] = part;
        const made = document.createElement(tag);
        if (name) made.className = name;
        made.textContent = text;
        return made;
      }),
    );
  },

  // Call something now, and again whenever the colours change or the page is printed.
  withColours(draw) {
    draw();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
    addEventListener("beforeprint", draw);
    addEventListener("afterprint", draw);
  },

  width(place) {
    return Report.paper ? Report.PAPER : Math.max(200, Math.floor(place.clientWidth - 20));
  },

  // Room for an axis' numbers and no more, on a narrow page no word beside them.
  upright(place, label) {
    const size = (plot, ticks) =>
      14 + 7 * Math.max(1, ...(ticks || []).map((tick) => String(tick).length));
    if (Report.width(place) < Report.NARROW) return Report.axis({ size });
    return Report.axis({ label, labelSize: 22, size });
  },

  // Write text on a plot in the paper's colour all around it, so that no line runs through.
  say(ctx, text, x, y) {
    ctx.lineJoin = "round";
    ctx.lineWidth = 4 * devicePixelRatio;
    ctx.strokeStyle = Report.colour("paper");
    ctx.setLineDash([]);
    ctx.strokeText(text, x, y);
    ctx.fillText(text, x, y);
  },

  axis(more) {
    const font = '12px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif';
    const line = { stroke: Report.colour("line"), width: 1 };
    return {
      stroke: Report.colour("quiet"),
      font,
      labelFont: font,
      grid: line,
      ticks: { ...line, size: 4 },
      ...more,
    };
  },

  // Keep a plot as wide as its place.
  fitted(place, plot, height) {
    const watch = new ResizeObserver(() => {
      const width = Report.width(place);
      if (width !== plot.width) plot.setSize({ width, height });
    });
    watch.observe(place);
    return watch;
  },
};

document.addEventListener("toggle", (event) => {
  const region = event.target.dataset && event.target.dataset.region;
  if (region !== undefined && Report.highlight) {
    Report.highlight(event.target.open ? Number(region) : -1);
  }
}, true);

// Before all others that listen: they draw for paper, then.
addEventListener("beforeprint", () => {
  Report.paper = true;
  document.documentElement.classList.add("paper");
  for (const each of document.querySelectorAll("details.region")) each.open = true;
});

addEventListener("afterprint", () => {
  Report.paper = false;
  document.documentElement.classList.remove("paper");
});
