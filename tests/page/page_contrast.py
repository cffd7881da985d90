"""JavaScript that says how well texts stand out from what lies under them (WCAG 2, relative luminance)."""

FUNCTIONS = """
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (color) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data; return [r, g, b, a / 255];
  };
  const over = ([r, g, b, a], below) => [r, g, b].map((x, i) => x * a + below[i] * (1 - a));
  const ground = (node) =>
    node ? over(rgba(getComputedStyle(node).backgroundColor), ground(node.parentElement)) : [255, 255, 255];
  const luminance = (rgb) => rgb.map((x) => x / 255).map((x) => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4)
    .reduce((sum, x, i) => sum + x * [0.2126, 0.7152, 0.0722][i], 0);
  const contrast = (a, b) => {
    const [light, dark] = [luminance(a), luminance(b)].sort((x, y) => y - x);
    return (light + 0.05) / (dark + 0.05);
  };
"""

CONTRASTS = (
    "() => {"
    + FUNCTIONS
    + """
  const own = (node) => [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
  const found = [];
  for (const node of document.querySelectorAll("#app *, #tip *")) {
    const sign = node.matches(".sign");
    if ((!own(node) && !sign) || !node.getClientRects().length || node.closest("[disabled], .unseen")) continue;
    const style = getComputedStyle(node, sign ? "::before" : null);
    const color = node instanceof SVGElement ? style.fill : style.color;
    const behind = ground(node);
    const kind = node.matches(".mark") ? "mark" : "text";
    found.push([kind, contrast(over(rgba(color), behind), behind), node.outerHTML.slice(0, 120)]);
  }
  return found;
}"""
)
