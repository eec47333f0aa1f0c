import type { ExpertLog } from "./expert-log.js";

/** CSS pixels: one expert of one layer, the room between layers, the room for their numbers, and a token at least and at most. */
const lane = 5;
const gap = 6;
const gutter = 16;
const narrowest = 4;
const widest = 12;

/**
 * A chart with a column per token and a lane per expert, layer by layer: the expert that a token chose first is drawn
 * strong, the others of its choices weaker. The newest tokens are shown where there is no room for all.
 */
export class TokenChart {
  readonly #canvas: HTMLCanvasElement;
  #from = 0;
  #column = widest;

  /** @param pick called with the token that was clicked */
  constructor(canvas: HTMLCanvasElement, pick: (token: number) => void) {
    this.#canvas = canvas;
    canvas.addEventListener("click", ({ offsetX }) => {
      if (offsetX >= gutter) pick(this.#from + Math.floor((offsetX - gutter) / this.#column));
    });
  }

  /** Calls back when the chart has to be drawn anew though its data is the same. */
  onResize(redraw: () => void): void {
    new ResizeObserver(redraw).observe(this.#canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  }

  /** @param marked the token to point at */
  draw(log: ExpertLog, marked: number): void {
    const canvas = this.#canvas;
    const { layers, experts, tokens } = log;
    const band = experts * lane + gap;
    const [width, height] = [canvas.clientWidth, layers * band - gap];
    const scale = devicePixelRatio;
    canvas.style.height = `${height}px`;
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
    canvas.setAttribute(
      "aria-label",
      `Chart of ${tokens} tokens in ${layers} layers of ${experts} experts. The slider tells what each token chose, the table what all did.`,
    );
    const context = canvas.getContext("2d");
    if (!context || width === 0) return;
    const style = getComputedStyle(canvas);
    const color = (name: string) => style.getPropertyValue(name);
    const [lanes, first, second, ink] = [
      color("--lane"),
      color("--first"),
      color("--second"),
      color("--soft"),
    ];
    const room = width - gutter;
    this.#column = Math.min(widest, Math.max(narrowest, Math.floor(room / Math.max(1, tokens))));
    const shown = Math.min(tokens, Math.floor(room / this.#column));
    this.#from = Math.max(
      0,
      Math.min(tokens - shown, marked === tokens - 1 ? tokens : Math.max(0, marked - (shown >> 1))),
    );
    context.scale(scale, scale);
    context.font = `11px ${style.fontFamily}`;
    context.textBaseline = "middle";
    for (let layer = 0; layer < layers; layer++) {
      const top = layer * band;
      context.fillStyle = ink;
      context.fillText(String(layer + 1), 2, top + (band - gap) / 2);
      context.fillStyle = lanes;
      for (let expert = 0; expert < experts; expert++) {
        if (log.share(layer, expert) !== undefined)
          context.fillRect(gutter, top + expert * lane, room, lane - 1);
      }
      for (let i = 0; i < shown; i++) {
        for (const [rank, expert] of log.chosen(layer, this.#from + i).entries()) {
          context.fillStyle = rank === 0 ? first : second;
          context.fillRect(gutter + i * this.#column, top + expert * lane, this.#column - 1, lane - 1);
        }
      }
    }
    if (tokens === 0) return;
    context.strokeStyle = color("--ink");
    context.strokeRect(gutter + (marked - this.#from) * this.#column - 1, 0.5, this.#column + 1, height - 1);
  }
}
