// A small chart of the last minutes, as SVG.

const SVG = "http://www.w3.org/2000/svg";
const [WIDTH, HEIGHT] = [150, 34];

function shape(name, attributes) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

/** Keeps the last `most` values of one or two lines and draws them. A missing value makes a gap. */
export class Chart {
  #lines;
  #most;
  #paths;
  #area;

  constructor(label, lines = 1, most = 150) {
    this.#most = most;
    this.#lines = Array.from({ length: lines }, () => []);
    const box = { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none" };
    this.element = shape("svg", { ...box, role: "img", "aria-label": label });
    this.#area = shape("path", { class: "area" });
    const thin = { "vector-effect": "non-scaling-stroke" };
    this.#paths = this.#lines.map((_, index) => shape("path", { class: `line line-${index}`, ...thin }));
    this.element.append(this.#area, ...this.#paths);
  }

  push(...values) {
    this.#lines.forEach((line, index) => {
      line.push(Number.isFinite(values[index]) ? values[index] : null);
      if (line.length > this.#most) line.shift();
    });
    const top = Math.max(1e-9, ...this.#lines.flat().map((value) => value ?? 0));
    const x = (at, line) => (WIDTH * (this.#most - line.length + at)) / (this.#most - 1);
    const y = (value) => HEIGHT - 1.5 - ((HEIGHT - 4) * value) / top;
    this.#lines.forEach((line, index) => {
      let drawn = "";
      let area = "";
      let begun = null;
      line.forEach((value, at) => {
        if (value === null) {
          begun = null;
          return;
        }
        const point = `${x(at, line).toFixed(1)} ${y(value).toFixed(1)}`;
        drawn += `${begun === null ? "M" : "L"}${point}`;
        begun ??= x(at, line);
        const next = line[at + 1] ?? null;
        if (next === null) return;
        // The area is drawn piece by piece, so that it has the same gaps as the line.
        const end = `${x(at + 1, line).toFixed(1)} ${y(next).toFixed(1)}`;
        area += `M${x(at, line).toFixed(1)} ${HEIGHT}L${point}L${end}V${HEIGHT}Z`;
      });
      this.#paths[index].setAttribute("d", drawn);
      if (index === 0) this.#area.setAttribute("d", area);
    });
  }
}
