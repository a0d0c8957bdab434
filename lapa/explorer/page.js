// Keys and clicks go to the server as actions; the time from a press to the picture is measured.
let lapaPressed = 0;
window.lapaTimes = [];
function lapaDo(action) {
  lapaPressed = performance.now();
  emitEvent("lapa", action);
}
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || event.isComposing) return;
  const focus = document.activeElement ? document.activeElement.tagName : "";
  if (["INPUT", "TEXTAREA", "SELECT"].includes(focus)) {
    if (event.key === "Escape") document.activeElement.blur();
    return;
  }
  if (focus === "BUTTON" && (event.key === " " || event.key === "Enter")) return;
  const key = (event.shiftKey && event.key.length > 1 ? "Shift+" : "") + event.key;
  if (!LAPA_KEYS.has(key)) return;
  event.preventDefault();
  if (event.repeat && lapaPressed) return; // a held key waits for its picture
  lapaDo("key:" + key);
});
document.addEventListener("mousedown", (event) => {
  if (event.target.closest("[data-do]")) event.preventDefault(); // the keys stay with the page
});
document.addEventListener("click", (event) => {
  const target = event.target.closest("[data-do]");
  if (target && !target.disabled) lapaDo(target.dataset.do);
});
document.addEventListener("load", (event) => {
  if (!lapaPressed || !event.target.classList.contains("now")) return;
  const passed = Math.round(performance.now() - lapaPressed);
  lapaPressed = 0;
  window.lapaTimes.push(passed);
  const shown = document.getElementById("lapa-ms");
  if (shown) shown.textContent = passed + " ms";
}, true);
