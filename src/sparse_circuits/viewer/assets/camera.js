// Pan and zoom. Both only move and scale a layer that is already painted, so their cost does not grow with the graph;
// when a zoom has come to rest, the drawing gets its new size and is sharp again.

const LEAST = 0.08, MOST = 4, REST = 160;

/** Moves `board` (with a drawing of `size()` in it) inside `frame`; `resize(zoom)` paints the drawing at its size. */
export class Camera {
  constructor(frame, board, { size, resize, moved }) {
    Object.assign(this, { frame, board, size, resize, moved, x: 0, y: 0, zoom: 1, painted: 1, fingers: new Map() });
    frame.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    frame.addEventListener("pointerdown", (event) => this.down(event));
    frame.addEventListener("pointermove", (event) => this.drag(event));
    for (const name of ["pointerup", "pointercancel"]) frame.addEventListener(name, (event) => this.up(event));
  }

  apply() {
    const scale = this.zoom === this.painted ? "" : ` scale(${this.zoom / this.painted})`;
    this.board.style.transform = `translate3d(${Math.round(this.x)}px, ${Math.round(this.y)}px, 0)${scale}`;
    this.moved(this);
  }

  /** Paint the drawing at the size that it is shown at. */
  sharpen() {
    clearTimeout(this.rests);
    if (this.painted === this.zoom) return;
    this.painted = this.zoom;
    this.resize(this.zoom);
    this.apply();
  }

  pan(dx, dy) {
    this.x += dx;
    this.y += dy;
    this.apply();
  }

  /** Zoom by a factor around a point of the frame. */
  zoomBy(factor, cx = this.frame.clientWidth / 2, cy = this.frame.clientHeight / 2) {
    const zoom = Math.min(MOST, Math.max(LEAST, this.zoom * factor));
    const real = zoom / this.zoom;
    this.x = cx - (cx - this.x) * real;
    this.y = cy - (cy - this.y) * real;
    this.zoom = zoom;
    this.apply();
    clearTimeout(this.rests);
    this.rests = setTimeout(() => this.sharpen(), REST);
  }

  /** Show all of the drawing; `inset` is what lies over the frame's left side. */
  fit(inset = 0) {
    const { width, height } = this.size();
    const room = this.frame.clientWidth - inset;
    this.zoom = Math.min(1.25, Math.max(LEAST, Math.min(room / width, this.frame.clientHeight / height)));
    this.x = inset + (room - width * this.zoom) / 2;
    this.y = (this.frame.clientHeight - height * this.zoom) / 2;
    this.apply();
    this.sharpen();
  }

  /** Bring a point of the drawing into sight, if it isn't. */
  reveal(x, y) {
    const px = this.x + x * this.zoom, py = this.y + y * this.zoom, edge = 70;
    const dx = px < edge * 2 ? edge * 2 - px : Math.min(0, this.frame.clientWidth - edge - px);
    const dy = py < edge ? edge - py : Math.min(0, this.frame.clientHeight - edge - py);
    if (dx || dy) this.pan(dx, dy);
  }

  wheel(event) {
    event.preventDefault();
    const box = this.frame.getBoundingClientRect();
    if (event.ctrlKey || event.metaKey || !event.shiftKey && event.deltaX === 0) {
      this.zoomBy(Math.exp(-Math.max(-120, Math.min(120, event.deltaY)) * 0.0025), event.clientX - box.left, event.clientY - box.top);
    } else this.pan(-event.deltaX, -event.deltaY);
  }

  down(event) {
    if (event.button !== 0) return;
    this.fingers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    this.travelled = 0;
  }

  drag(event) {
    const finger = this.fingers.get(event.pointerId);
    if (!finger) return;
    const dx = event.clientX - finger.x, dy = event.clientY - finger.y;
    this.travelled += Math.abs(dx) + Math.abs(dy);
    if (this.travelled < 4) return;
    if (!this.frame.hasPointerCapture(event.pointerId)) this.frame.setPointerCapture(event.pointerId);
    if (this.fingers.size === 2) {
      const [other] = [...this.fingers].filter(([id]) => id !== event.pointerId).map(([, at]) => at);
      const before = Math.hypot(finger.x - other.x, finger.y - other.y) || 1;
      const after = Math.hypot(event.clientX - other.x, event.clientY - other.y);
      const box = this.frame.getBoundingClientRect();
      this.zoomBy(after / before, (event.clientX + other.x) / 2 - box.left, (event.clientY + other.y) / 2 - box.top);
    } else this.pan(dx, dy);
    this.fingers.set(event.pointerId, { x: event.clientX, y: event.clientY });
  }

  up(event) {
    this.fingers.delete(event.pointerId);
  }

  /** Whether the pointer has just dragged, so that the click that ends it means nothing. */
  get hasDragged() {
    return this.travelled >= 4;
  }
}
