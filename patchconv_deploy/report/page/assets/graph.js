"use strict";
// The graph: boxes laid out by dagre, drawn by Cytoscape; an open box holds a layout of its own.
(() => {
  const place = document.getElementById("graph-plot");
  const about = document.getElementById("graph-about");
  const search = document.getElementById("graph-search");
  const { nodes, boxes, edges, shared, again } = Report.data.plots.drawing;
  const { regions } = Report.data;
  const FONT = '"system-ui", "Segoe UI", Roboto, "DejaVu Sans", sans-serif';
  const TITLE = 22;
  const READABLE = 1;
  const inside = boxes.map(() => []);
  nodes.forEach((node, number) => inside[node[4]].push(number));
  const open = new Set();
  let extent = null;
  const layouts = new Map();
  const several = new Set(shared);

  const many = (count, word) => `${count.toLocaleString("en-US")} ${word}${count === 1 ? "" : "s"}`;

  // What a region runs and another one draws: it does not read that, it makes it again.
  const repeated = again.map((numbers) => new Set(numbers));
  const boxOf = new Map();
  boxes.forEach(([, region], box) => {
    if (region >= 0) boxOf.set(region, box);
  });

  // Between boxes one edge a pair; within a box all of them.
  const between = new Map();
  const within = boxes.map(() => []);
  function join(a, b, from, name, bytes, made) {
    const key = `${a}-${b}`;
    const held = between.get(key) || { a, b, names: new Map() };
    held.names.set(`${from} ${name}`, [name, bytes, made]);
    between.set(key, held);
  }
  edges.forEach(([from, to, bytes, name], number) => {
    const [a, b] = [nodes[from][4], nodes[to][4]];
    if (a === b) {
      within[a].push(number);
    } else {
      const region = boxes[b][1];
      join(a, b, from, name, bytes, region >= 0 && repeated[region].has(from));
    }
    // What it makes again it makes from what is read there.
    repeated.forEach((numbers, region) => {
      if (!numbers.has(to) || numbers.has(from) || !boxOf.has(region)) return;
      const box = boxOf.get(region);
      if (a !== box) join(a, box, from, name, bytes, false);
    });
  });

  function lines(box) {
    const [kind, region] = boxes[box];
    const count = inside[box].length;
    if (kind === "region") {
      const cut = regions[region];
      return [`${cut.id} · ${many(cut.count, "node")}`, `${cut.form} × ${cut.splits}`];
    }
    if (kind === "stretch") return [many(count, "node"), "as they are"];
    return nodeLines(inside[box][0]);
  }

  function nodeLines(number) {
    const [label, op, shape] = nodes[number];
    const first = op === "input" || op === "output" ? label : op;
    return shape ? [first, shape] : [first];
  }

  function sized(words) {
    const longest = Math.max(...words.map((word) => word.length));
    return {
      width: Math.min(190, Math.max(70, 6.6 * longest + 20)),
      height: 14 * words.length + 12,
    };
  }

  function lay(items, pairs) {
    const graph = new dagre.graphlib.Graph();
    const ranker = items.length > 250 ? "longest-path" : "network-simplex";
    graph.setGraph({ rankdir: "TB", nodesep: 22, edgesep: 12, ranksep: 30, ranker });
    graph.setDefaultEdgeLabel(() => ({}));
    for (const [id, size] of items) graph.setNode(String(id), { ...size });
    for (const [a, b] of pairs) graph.setEdge(String(a), String(b));
    dagre.layout(graph);
    return graph;
  }

  // A layout of what is in a box, its top left at nought.
  function innerLayout(box) {
    if (!layouts.has(box)) {
      const items = inside[box].map((number) => [number, sized(nodeLines(number))]);
      const pairs = within[box].map((number) => edges[number].slice(0, 2));
      const graph = lay(items, pairs);
      const { width, height } = graph.graph();
      layouts.set(box, { graph, width: width + 24, height: height + 24 + TITLE });
    }
    return layouts.get(box);
  }

  // Where an edge bends, as Cytoscape wants it: along the line between the ends, and beside it.
  function bends(from, to, points) {
    const [dx, dy] = [to.x - from.x, to.y - from.y];
    const length = Math.hypot(dx, dy);
    const inner = points.slice(1, -1);
    if (!length || !inner.length) return {};
    const weights = [];
    const distances = [];
    for (const point of inner) {
      const [px, py] = [point.x - from.x, point.y - from.y];
      weights.push((px * dx + py * dy) / (length * length));
      distances.push((px * -dy + py * dx) / length);
    }
    if (Math.max(...distances.map(Math.abs)) < 1.5) return {};
    return { weights: weights.join(" "), distances: distances.join(" ") };
  }

  const thick = (bytes) => 1 + Math.min(4, Math.max(0, Math.log10(1 + bytes / 65536)));

  function edgeElement(id, source, target, route, more) {
    const bent = bends(route.from, route.to, route.points);
    return {
      group: "edges",
      data: { id, source, target, ...bent, ...more },
      classes: bent.weights ? "bent" : "",
      selectable: true,
    };
  }

  function nodeElement(id, words, size, position, more, classes) {
    const data = { id, label: words.join("\n"), w: size.width, h: size.height, ...more };
    return { group: "nodes", data, position: { x: position.x, y: position.y }, classes };
  }

  function elements() {
    const found = [];
    const items = boxes.map((_, box) => {
      const size = open.has(box) ? innerLayout(box) : sized(lines(box));
      return [box, { width: size.width, height: size.height }];
    });
    const pairs = [...between.values()].map(({ a, b }) => [a, b]);
    const top = lay(items, pairs);
    extent = top.graph();
    boxes.forEach(([kind, region], box) => {
      const at = top.node(String(box));
      const more = { box, hue: region >= 0 ? Report.hue(region) : null };
      const words = open.has(box) ? [lines(box)[0]] : lines(box);
      const classes = `${kind}${open.has(box) ? " open" : ""}`;
      found.push(nodeElement(`b${box}`, words, at, at, more, classes));
      if (open.has(box)) found.push(...innerElements(box, at));
    });
    for (const { a, b, names } of between.values()) {
      const bytes = [...names.values()].reduce((sum, entry) => sum + entry[1], 0);
      const made = [...names.values()].every((entry) => entry[2]);
      const route = {
        from: top.node(String(a)),
        to: top.node(String(b)),
        points: top.edge(String(a), String(b)).points,
      };
      const more = { thick: thick(bytes), key: `${a}-${b}` };
      const element = edgeElement(`e${a}-${b}`, `b${a}`, `b${b}`, route, more);
      if (made) element.classes += " again";
      found.push(element);
    }
    return found;
  }

  function innerElements(box, at) {
    const { graph, width, height } = innerLayout(box);
    const left = at.x - width / 2 + 12;
    const top = at.y - height / 2 + 12 + TITLE;
    const moved = (point) => ({ x: point.x + left, y: point.y + top });
    const found = inside[box].map((number) => {
      const own = graph.node(String(number));
      return nodeElement(`n${number}`, nodeLines(number), own, moved(own), { number }, "inner");
    });
    const seen = new Set();
    for (const number of within[box]) {
      const [a, b, bytes] = edges[number];
      if (seen.has(`${a}-${b}`)) continue;
      seen.add(`${a}-${b}`);
      const route = {
        from: moved(graph.node(String(a))),
        to: moved(graph.node(String(b))),
        points: graph.edge(String(a), String(b)).points.map(moved),
      };
      const more = { thick: thick(bytes), inner: number };
      found.push(edgeElement(`i${number}`, `n${a}`, `n${b}`, route, more));
    }
    return found;
  }

  const style = () => {
    const [ink, paper, edge, quiet, grey] = ["ink", "paper", "edge", "quiet", "box"].map(
      Report.colour,
    );
    const hue = (element) => element.data("hue");
    return [
      {
        selector: "node",
        style: {
          shape: "round-rectangle", "corner-radius": 6, width: "data(w)", height: "data(h)",
          label: "data(label)", "text-wrap": "wrap", "text-valign": "center", "font-size": 11,
          "font-family": FONT, color: ink, "background-color": paper, "border-width": 1,
          "border-color": edge, "min-zoomed-font-size": 5, "line-height": 1.15,
        },
      },
      { selector: ".stretch", style: { "background-color": grey, "border-color": edge } },
      {
        selector: ".input, .output",
        style: { "border-style": "dashed", color: quiet, "background-color": paper },
      },
      {
        selector: ".region",
        style: {
          "background-color": hue, "border-color": hue, color: paper, "font-weight": 600,
        },
      },
      {
        selector: ".open",
        style: {
          "text-valign": "top", "text-margin-y": TITLE - 3, "background-opacity": 0.14,
          color: ink, "z-index": 1,
        },
      },
      { selector: ".region.open", style: { "border-width": 1.5 } },
      { selector: ".inner", style: { "z-index": 3 } },
      {
        selector: "edge",
        style: {
          width: "data(thick)", "line-color": edge, "target-arrow-color": edge,
          "target-arrow-shape": "triangle", "arrow-scale": 0.7, "curve-style": "straight",
          "z-index": 2,
        },
      },
      {
        selector: "edge.bent",
        style: {
          "curve-style": "round-segments", "segment-weights": "data(weights)",
          "segment-distances": "data(distances)", "segment-radii": 14,
          "edge-distances": "node-position",
        },
      },
      { selector: "edge.again", style: { "line-style": "dashed", "line-dash-pattern": [5, 4] } },
      {
        selector: ":selected",
        style: { "border-width": 2.5, "border-color": ink, "line-color": ink, "target-arrow-color": ink },
      },
    ];
  };

  const cy = cytoscape({
    container: place,
    elements: elements(),
    style: style(),
    layout: { name: "preset" },
    minZoom: 0.02,
    maxZoom: 3,
    autoungrabify: true,
    boxSelectionEnabled: false,
    hideEdgesOnViewport: edges.length > 1500,
    textureOnViewport: nodes.length > 600,
    userZoomingEnabled: false,
  });
  Report.graph = cy;

  // The page scrolls over the graph until the graph was clicked.
  place.addEventListener("pointerdown", () => cy.userZoomingEnabled(true));
  place.addEventListener("pointerleave", () => cy.userZoomingEnabled(false));

  // Show all of it, or from its top on so much that it can be read.
  function fit(least = 0) {
    const [wide, tall] = [extent.width + 48, extent.height + 48];
    const zoom = Math.min(1.15, cy.width() / wide, cy.height() / tall);
    cy.zoom(Math.max(zoom, least));
    const top = (cy.height() - tall * cy.zoom()) / 2;
    cy.pan({
      x: (cy.width() - extent.width * cy.zoom()) / 2,
      y: Math.max(top, 0) + 24 * cy.zoom(),
    });
  }

  // Where the upper edge of a box is on the screen.
  function edgeOf(box) {
    const node = cy.getElementById(`b${box}`);
    const { x, y } = node.renderedPosition();
    return { x, y: y - (node.data("h") * cy.zoom()) / 2 };
  }

  // Draw anew; the upper edge of what was clicked stays where it is.
  function redraw(box) {
    const was = box === undefined ? null : edgeOf(box);
    cy.batch(() => {
      cy.elements().remove();
      cy.add(elements());
    });
    if (was) {
      const now = edgeOf(box);
      cy.panBy({ x: was.x - now.x, y: was.y - now.y });
      cy.getElementById(`b${box}`).select();
    }
  }

  function toggle(box) {
    if (!["region", "stretch"].includes(boxes[box][0])) return;
    if (!open.delete(box)) open.add(box);
    redraw(box);
  }

  function show(title, pairs, hue) {
    const list = document.createElement("dl");
    for (const [term, text] of pairs) {
      const [dt, dd] = [document.createElement("dt"), document.createElement("dd")];
      [dt.textContent, dd.textContent] = [term, text];
      list.append(dt, dd);
    }
    Report.write(about, [["h3", "", title]]);
    if (hue) about.firstChild.style.color = hue;
    about.append(list);
  }

  function tellNode(number) {
    const [label, op, shape, bytes, box] = nodes[number];
    const region = boxes[box][1];
    const pairs = [["operator", op]];
    if (shape) pairs.push(["shape", shape]);
    if (bytes) pairs.push(["bytes", `${Report.mib(bytes)} MiB`]);
    if (region >= 0) pairs.push(["region", regions[region].id]);
    if (several.has(number)) pairs.push(["", "runs in other regions, too"]);
    const reads = edges.filter((edge) => edge[1] === number).map((edge) => edge[3]);
    const makes = edges.filter((edge) => edge[0] === number).map((edge) => edge[3]);
    if (reads.length) pairs.push(["reads", [...new Set(reads)].join(", ")]);
    if (makes.length) pairs.push(["makes", [...new Set(makes)].join(", ")]);
    show(label, pairs);
  }

  function tellBox(box) {
    const [kind, region, title] = boxes[box];
    if (!["region", "stretch"].includes(kind)) {
      tellNode(inside[box][0]);
      return;
    }
    const count = new Map();
    for (const number of inside[box]) {
      const op = nodes[number][1];
      count.set(op, (count.get(op) || 0) + 1);
    }
    const ops = [...count].sort((a, b) => b[1] - a[1]).map(([op, times]) => `${times} ${op}`);
    const pairs = [["nodes", title], ["operators", ops.join(", ")]];
    if (region < 0) {
      show(`${many(inside[box].length, "node")} as they are`, pairs);
      return;
    }
    const cut = regions[region];
    pairs.unshift(["form", `${cut.form}: ${cut.form_words}`], ["patches", String(cut.splits)]);
    pairs.splice(2, 0, ["work", cut.recompute]);
    if (cut.windows) {
      pairs.splice(3, 0, ["window", `${cut.windows.height} of ${cut.windows.rows} rows`]);
      pairs.splice(4, 0, ["halo", `${cut.windows.halo} rows`]);
    }
    if (repeated[region].size) {
      const said = `${many(repeated[region].size, "node")} that other regions draw`;
      pairs.push(["runs again", said]);
    }
    show(`Region ${cut.id}`, pairs, Report.hue(region));
    if (Report.highlight) Report.highlight(region);
  }

  function tellEdge(edge) {
    const key = edge.data("key");
    const held = key
      ? [...between.get(key).names.values()]
      : [[edges[edge.data("inner")][3], edges[edge.data("inner")][2], false]];
    const pairs = held.map(([name, bytes, made]) => [
      bytes ? `${Report.mib(bytes)} MiB` : "",
      made ? `${name} (not read: made again)` : name,
    ]);
    show(held.length > 1 ? `${held.length} tensors` : "Tensor", pairs);
  }

  cy.on("tap", "node", (event) => {
    const { box, number } = event.target.data();
    if (number !== undefined) {
      tellNode(number);
    } else {
      tellBox(box);
      toggle(box);
    }
  });
  cy.on("tap", "edge", (event) => tellEdge(event.target));

  const actions = {
    fit: () => fit(),
    in: () => cy.zoom({ level: cy.zoom() * 1.35, renderedPosition: { x: cy.width() / 2, y: cy.height() / 2 } }),
    out: () => cy.zoom({ level: cy.zoom() / 1.35, renderedPosition: { x: cy.width() / 2, y: cy.height() / 2 } }),
    close() {
      open.clear();
      redraw();
      fit(READABLE);
    },
    open() {
      boxes.forEach(([kind], box) => {
        if (kind === "region" || kind === "stretch") open.add(box);
      });
      redraw();
      fit(READABLE);
    },
  };
  for (const button of document.querySelectorAll("[data-graph]")) {
    button.addEventListener("click", () => actions[button.dataset.graph]());
  }

  let matches = [];
  let turn = 0;
  function find() {
    const wanted = search.value.trim().toLowerCase();
    matches = wanted
      ? nodes.flatMap((node, number) => (node[0].toLowerCase().includes(wanted) ? [number] : []))
      : [];
    turn = 0;
    go();
  }
  function go() {
    cy.elements().unselect();
    if (!matches.length) {
      if (search.value.trim()) Report.write(about, [["p", "quiet", "No node is named like that."]]);
      return;
    }
    const number = matches[turn % matches.length];
    const box = nodes[number][4];
    const single = !["region", "stretch"].includes(boxes[box][0]);
    if (!single && !open.has(box)) {
      open.add(box);
      redraw();
    }
    const element = cy.getElementById(single ? `b${box}` : `n${number}`);
    element.select();
    cy.zoom(Math.max(cy.zoom(), 0.9));
    cy.center(element);
    tellNode(number);
    const rest = document.createElement("p");
    rest.className = "quiet";
    rest.textContent = `${(turn % matches.length) + 1} of ${matches.length}; Enter for the next`;
    about.append(rest);
  }
  let timer = 0;
  search.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(find, 250);
  });
  search.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && matches.length) {
      turn += 1;
      go();
    }
  });

  // On paper all of the graph stands as a picture; the canvas would be drawn too late.
  function picture() {
    for (const old of document.querySelectorAll(".graph-picture")) old.remove();
    if (!Report.paper) return;
    const image = document.createElement("img");
    image.className = "graph-picture";
    image.alt = "The model's graph";
    image.src = cy.png({ full: true, maxWidth: 1600, maxHeight: 4000, bg: "#ffffff" });
    place.after(image);
  }

  let begun = false;
  Report.withColours(() => {
    if (!begun) {
      begun = true;
      return;
    }
    redraw();
    cy.style(style());
    picture();
  });
  document.getElementById("graph-again").hidden = !cy.edges(".again").length;
  fit(READABLE);
})();
