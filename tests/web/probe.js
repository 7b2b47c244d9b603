// Questions that the tests ask of a page; the text of this file is put into each of them.

const deep = (root) => [...root.querySelectorAll("*")].flatMap((e) => [e, ...(e.shadowRoot ? deep(e.shadowRoot) : [])]);
const all = deep(document); // every element, those in shadow roots included

const counts = () => ({
  notUpgraded: all.filter((e) => e.localName.includes("-") && !customElements.get(e.localName)).length,
  ours: all.filter((e) => e.localName.startsWith("cutaway-")).length,
  labels: all.filter((e) => e.localName === "text").length,
});

// Texts and attributes that show a slip of the program.
const slips = () =>
  all
    .filter((e) => !["script", "style"].includes(e.localName))
    .flatMap((e) => [...[...e.attributes].map((a) => a.value), ...(e.children.length ? [] : [e.textContent])])
    .filter((text) => /\bNaN\b|undefined|\[object/.test(text))
    .slice(0, 5);

// Pairs of labels of one drawing that lie on each other; turned ones are left out.
const overlaps = () => {
  const found = [];
  for (const svg of all.filter((e) => e.localName === "svg")) {
    const texts = [...svg.querySelectorAll("text")].filter((t) => !t.hasAttribute("transform") && t.textContent.trim());
    const boxes = texts.map((t) => t.getBoundingClientRect());
    boxes.forEach((a, i) =>
      boxes.slice(i + 1).forEach((b, j) => {
        const across = Math.min(a.right, b.right) - Math.max(a.left, b.left);
        const down = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
        if (across > 1 && down > 3) found.push(`${texts[i].textContent} | ${texts[i + 1 + j].textContent}`);
      }),
    );
  }
  return found;
};

// Labels that reach beyond the window, or beyond the drawing where it scrolls.
const cut = () =>
  all
    .filter((e) => e.localName === "text")
    .filter((text) => {
      const box = text.getBoundingClientRect();
      const right = text.closest(".scroll") ? text.ownerSVGElement.getBoundingClientRect().right : innerWidth;
      return box.left < -0.5 || box.right > right + 2;
    })
    .map((text) => text.textContent);

const figures = () =>
  all
    .filter((e) => e.localName === "figure")
    .map((f) => ({
      name: f.getAttribute("aria-label"),
      number: f.querySelector(".number").textContent,
      title: f.querySelector(".title").textContent,
      sentence: f.querySelector(".sentence").textContent,
      legend: f.querySelector(".legend").textContent,
      rows: f.querySelectorAll("details table tbody tr").length,
      caption: f.querySelector("details table caption").textContent,
      charts: [...f.querySelectorAll("[role=application]")].map((c) => ({
        label: c.getAttribute("aria-label"),
        kind: c.getAttribute("aria-roledescription"),
        tab: c.tabIndex,
      })),
    }));

const focused = () => {
  let element = document.activeElement;
  while (element?.shadowRoot?.activeElement) element = element.shadowRoot.activeElement;
  return element?.getAttribute("aria-label") ?? element?.textContent ?? "";
};

const paint = document.createElement("canvas").getContext("2d", { willReadFrequently: true });

// Relative luminance and contrast of two CSS colours (WCAG 2).
const luminance = (color) => {
  paint.fillStyle = color;
  paint.fillRect(0, 0, 1, 1);
  const [r, g, b] = [...paint.getImageData(0, 0, 1, 1).data]
    .map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const contrast = (a, b) => {
  const [more, less] = [luminance(a), luminance(b)].sort((p, q) => q - p);
  return (more + 0.05) / (less + 0.05);
};

const themeContrasts = () => {
  const style = getComputedStyle(document.documentElement);
  const color = (name) => style.getPropertyValue(name).trim();
  const names = ["--ink", "--muted", "--accent", "--supported", "--refuted", "--inconclusive", "--invalid"];
  return Object.fromEntries(names.map((name) => [name, contrast(color(name), color("--paper"))]));
};

const cellContrasts = () => {
  const root = document.querySelector("cutaway-heat-map").shadowRoot;
  const texts = [...root.querySelectorAll("text")].filter((t) => t.style.fill);
  const rects = [...root.querySelectorAll("rect:not(.cursor)")];
  return rects.map((rect, i) => contrast(getComputedStyle(rect).fill, getComputedStyle(texts[i]).fill));
};
