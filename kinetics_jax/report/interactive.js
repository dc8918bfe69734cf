// The frontier to explore: traces from the page's JSON, filters, and the point that was touched last.
(() => {
  "use strict";
  const root = document.getElementById("explore");
  const data = JSON.parse(document.getElementById("explore-data").textContent);
  const plot = root.querySelector(".plot"), filters = root.querySelector(".filters"), said = root.querySelector("output");
  const darkness = window.matchMedia("(prefers-color-scheme: dark)");
  const hidden = { model: new Set(), attention: new Set() };

  function filter(heading, kind, entries) {
    const set = document.createElement("fieldset");
    set.appendChild(document.createElement("legend")).textContent = heading;
    for (const { name, shown, colour } of entries) {
      const label = document.createElement("label"), box = document.createElement("input");
      box.type = "checkbox";
      box.checked = true;
      box.dataset[kind] = name;
      box.addEventListener("change", () => {
        if (box.checked) hidden[kind].delete(name); else hidden[kind].add(name);
        draw();
      });
      label.append(box);
      if (colour) {
        const swatch = document.createElement("span");
        swatch.className = "swatch";
        swatch.style.background = colour;
        label.append(swatch);
      }
      label.append(shown);
      set.appendChild(label);
    }
    filters.appendChild(set);
  }

  function visible() {
    return data.lines.filter((line) => !hidden.model.has(line.model) && !hidden.attention.has(line.attention));
  }

  // Points that no other one matches in accuracy at less cost, by cost.
  function envelope(lines) {
    const points = lines.flatMap((line) => line.points).sort((a, b) => a.x - b.x || b.y - a.y);
    let best = -1;
    return points.filter((point) => point.y > best && ((best = point.y), true));
  }

  function traces(dark) {
    const colours = Object.fromEntries(data.models.map((model) => [model.name, dark ? model.dark : model.light]));
    const theme = data.themes[dark ? "dark" : "light"], lines = visible(), best = envelope(lines);
    const drawn = lines.map((line) => ({
      type: "scatter", mode: "lines+markers", showlegend: false,
      x: line.points.map((point) => point.x), y: line.points.map((point) => point.y),
      error_y: {
        type: "data", symmetric: false, thickness: 1, width: 0,
        array: line.points.map((point) => point.high - point.y),
        arrayminus: line.points.map((point) => point.y - point.low),
      },
      line: { color: colours[line.model], dash: line.dash, width: 1.6 },
      marker: { symbol: line.symbol, size: 9, color: colours[line.model] },
      customdata: line.points.map((point) => point.text),
      text: line.points.map((point) => point.text.slice(0, point.hover).join("<br>")),
      hovertemplate: "%{text}<extra></extra>",
    }));
    const under = {
      type: "scatter", mode: "lines", showlegend: false, hoverinfo: "skip",
      x: best.map((point) => point.x), y: best.map((point) => point.y),
      line: { color: theme.envelope, width: 6, shape: "hv" }, opacity: 0.4,
    };
    return [under, ...drawn];
  }

  function layout(dark) {
    const theme = data.themes[dark ? "dark" : "light"];
    const axis = { gridcolor: theme.faint, linecolor: theme.ink, zeroline: false, automargin: true, fixedrange: false };
    return {
      paper_bgcolor: theme.ground, plot_bgcolor: theme.ground, font: { color: theme.ink, size: 12 },
      margin: { l: 46, r: 12, t: 12, b: 44 }, hovermode: "closest", dragmode: "pan",
      hoverlabel: { align: "left", bgcolor: theme.ground, font: { color: theme.ink, size: 12 } },
      xaxis: { ...axis, type: "log", title: { text: "Cost per problem (Tera-eFLOPs)" } },
      yaxis: { ...axis, range: [-2, 104], title: { text: data.accuracy } },
    };
  }

  function draw() {
    const dark = darkness.matches;
    const options = { responsive: true, displaylogo: false, displayModeBar: false, scrollZoom: false };
    window.Plotly.react(plot, traces(dark), layout(dark), options);
  }

  filter("Models", "model", data.models.map(({ name, light, dark }) =>
    ({ name, shown: name, colour: darkness.matches ? dark : light })));
  filter("Attention", "attention", data.attentions.map(({ name, short }) => ({ name, shown: short })));
  draw();
  plot.on("plotly_click", (event) => {
    said.innerHTML = event.points[0].customdata.join("<br>");
  });
  darkness.addEventListener("change", draw);
})();
