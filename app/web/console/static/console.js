// Adds to the pages what needs a script; each of them works without. No text of the server is ever evaluated.
"use strict";

(() => {
  const STEPS = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];

  // As app/web/console/rendering.py writes it.
  function duration(seconds) {
    const [size, unit] = STEPS.find(([size]) => seconds >= size) || STEPS[3];
    const value = seconds / size;
    return `${value >= 9.95 ? value.toFixed(0) : value.toFixed(1).replace(/\.0$/, "")} ${unit}`;
  }

  function showTimes() {
    const now = Date.now();
    for (const element of document.querySelectorAll("time[datetime]")) {
      const seconds = Math.round((now - Date.parse(element.dateTime)) / 1000);
      if (Number.isNaN(seconds)) continue;
      const text = seconds === 0 ? "now" : seconds > 0 ? `${duration(seconds)} ago` : `in ${duration(-seconds)}`;
      if (element.textContent !== text) element.textContent = text;
    }
  }

  setInterval(() => { if (!document.hidden) showTimes(); }, 10_000);

  // Curves: the server draws them, too; here they have axes, and the values under the pointer.
  const drawn = new Set();

  function shown(value, unit) {
    if (unit !== "s" || value === 0) return String(value);
    return value < 1 ? `${Math.round(value * 1e6) / 1e3} ms` : duration(value);
  }

  function drawCurves() {
    for (const chart of drawn) {
      if (!chart.root.isConnected) { chart.destroy(); drawn.delete(chart); }
    }
    if (typeof uPlot === "undefined") return;
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    for (const element of document.querySelectorAll("[data-curve]")) {
      const data = JSON.parse(element.dataset.curve);
      const names = JSON.parse(element.dataset.names);
      const axis = { stroke: colour("--quiet"), grid: { stroke: colour("--rule"), width: 1 }, ticks: { show: false } };
      const time = { ...axis, values: (self, at) => at.map((second) => new Date(second * 1000).toISOString().slice(11, 16)) };
      element.replaceChildren();
      element.removeAttribute("data-curve");
      const chart = new uPlot({
        width: element.clientWidth,
        height: element.clientHeight,
        legend: { show: false },
        cursor: { y: false },
        scales: { y: { range: (self, min, max) => [0, max > 0 ? max * 1.05 : 1] } },
        axes: [time, { ...axis, size: 52, values: (self, found) => found.map((value) => shown(value, element.dataset.unit)) }],
        series: [{}, ...names.map((label, index) => ({
          label, stroke: colour(`--line-${index + 1}`), width: 1.5, dash: [[], [5, 3], [2, 2]][index]
        }))],
      }, data, element);
      chart.root.setAttribute("aria-hidden", "true");
      drawn.add(chart);
    }
  }

  addEventListener("resize", () => {
    for (const chart of drawn) {
      const element = chart.root.parentElement;
      if (element) chart.setSize({ width: element.clientWidth, height: element.clientHeight });
    }
  });
  document.addEventListener("htmx:afterSwap", drawCurves);
  document.addEventListener("DOMContentLoaded", drawCurves);

  // Live parts: they can be paused, and they wait while text in them is selected.
  let isPaused = false;

  for (const button of document.querySelectorAll("[data-pause]")) {
    button.hidden = false;
    button.addEventListener("click", () => {
      isPaused = !isPaused;
      for (const each of document.querySelectorAll("[data-pause]")) {
        each.setAttribute("aria-pressed", String(isPaused));
        each.textContent = isPaused ? "Continue updates" : "Pause updates";
      }
      if (!isPaused) location.reload();
    });
  }

  document.addEventListener("htmx:sseBeforeMessage", (event) => {
    const selection = document.getSelection();
    const isSelected = selection !== null && selection.type === "Range" && event.target.contains(selection.anchorNode);
    if (isPaused || isSelected) event.preventDefault();
  });

  // The server ends the stream of a session that has ended: the page loads itself anew, which leads to the log-in.
  document.addEventListener("htmx:sseClose", (event) => {
    if (event.detail.type === "message") location.reload();
  });
})();
