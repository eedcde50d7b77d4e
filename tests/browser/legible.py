"""Whether what a page shows can be read, by the contrast that WCAG 2 asks for (AA)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Locator

# Colours are drawn and read back, since a browser gives them in many notations.
ILLEGIBLE = """root => {
  const pen = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const over = colours => {
    pen.clearRect(0, 0, 1, 1);
    for (const colour of ["white", ...colours]) {
      pen.fillStyle = colour;
      pen.fillRect(0, 0, 1, 1);
    }
    return [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const luminance = colour => {
    const [red, green, blue] = colour.map(part => part / 255)
      .map(part => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const contrast = element => {
    const grounds = [];
    for (let one = element; one; one = one.parentElement) grounds.unshift(getComputedStyle(one).backgroundColor);
    const [dark, light] = [over(grounds), over([...grounds, getComputedStyle(element).color])]
      .map(luminance).sort((a, b) => a - b);
    return (light + 0.05) / (dark + 0.05);
  };
  const hasText = element => [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
  return [...root.querySelectorAll("*")]
    .filter(element => hasText(element) && element.checkVisibility() && !element.matches(":disabled, style, script"))
    .filter(element => contrast(element) < 4.5)
    .map(element => `${contrast(element).toFixed(1)}: ${element.textContent.trim().slice(0, 80)}`);
}"""


def illegible(root: Locator) -> list[str]:
    """Gives the texts below an element whose contrast is too low, each with its contrast."""
    return list(root.evaluate(ILLEGIBLE))
