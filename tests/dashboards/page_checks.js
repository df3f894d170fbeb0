// Of every visible text on the page: its contrast with what lies behind it, by WCAG 2.2 (1.4.3).
() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (text) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = text;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3])).concat(1);
  const luminance = (colour) => {
    const [r, g, b] = colour.map((x) => x / 255).map((x) => (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const small = 40; // pixels: what is higher holds its text, also where it is scrolled out of sight
  const lies = (node, x, y) => {
    const box = node.getBoundingClientRect();
    return box.height > small || (box.left <= x && x <= box.right && box.top <= y && y <= box.bottom);
  };
  const chain = (node) => (node ? [...chain(node.parentElement), node] : []);
  const behind = (nodes) => nodes.reduce((below, node) => over(rgba(getComputedStyle(node).backgroundColor), below), [255, 255, 255, 1]);
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode.textContent.trim();
    const node = walker.currentNode.parentElement;
    if (!text || !node || !node.checkVisibility({ opacityProperty: true, visibilityProperty: true })) continue;
    const box = node.getBoundingClientRect();
    if (box.width < 2 || box.height < 2 || node.closest("canvas, [aria-hidden='true'], :disabled")) continue;
    const nodes = chain(node);
    const style = getComputedStyle(node);
    // A slider's number stands above its thumb, which is its parent: only what is really behind it counts.
    const below = behind(nodes.filter((one) => lies(one, box.left + box.width / 2, box.top + box.height / 2)));
    const opacity = nodes.reduce((product, one) => product * Number(getComputedStyle(one).opacity), 1);
    const ink = rgba(style.color);
    const own = over([ink[0], ink[1], ink[2], ink[3] * opacity], below);
    const [high, low] = [luminance(own), luminance(below)].sort((a, b) => b - a);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    found.push({ text: text.slice(0, 40), ratio: (high + 0.05) / (low + 0.05), least: large ? 3 : 4.5 });
  }
  return found;
}
