"""How well the texts of a page can be read, in a real browser."""

# Of each text that is shown its contrast with what is behind it, as WCAG defines it.
_CONTRASTS = """selector => {
  const parse = text => {
    const [r, g, b, alpha] = text.match(/[\\d.]+/g).map(Number);
    return [[r, g, b], alpha ?? 1];
  };
  const over = (text, behind) => {
    const [color, alpha] = parse(text);
    return color.map((c, i) => alpha * c + (1 - alpha) * behind[i]);
  };
  const background = node => node
    ? over(getComputedStyle(node).backgroundColor, background(node.parentElement))
    : [255, 255, 255];
  const luminance = color => {
    const [r, g, b] = color.map(c => c / 255)
      .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const shown = [...document.querySelectorAll(selector)]
    .filter(node => node.getClientRects().length && node.textContent.trim());
  return shown.map(node => {
    const style = getComputedStyle(node);
    const behind = background(node);
    const ink = over(node.closest('svg') ? style.fill : style.color, behind);
    const [low, high] = [luminance(ink), luminance(behind)].sort((a, b) => a - b);
    return [node.textContent.trim(), (high + 0.05) / (low + 0.05)];
  });
}"""
# What WCAG's level AA asks of texts of usual size.
LEAST_CONTRAST = 4.5


def contrasts(page, selector: str) -> list[tuple[str, float]]:
    """Each text that a page of playwright's shows in such elements, and its contrast."""
    return [(text, contrast) for text, contrast in page.evaluate(_CONTRASTS, selector)]
