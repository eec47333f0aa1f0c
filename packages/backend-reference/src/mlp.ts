import { linear } from "./linear.js";
import type { Scratch } from "./scratch.js";
import type { GatedMlp } from "./weights.js";

/** `down(silu(gate(x)) * up(x))` of the first `rows` rows of x [rows, hidden] into y [rows, hidden]. */
export function gatedMlp(
  mlp: GatedMlp,
  x: Float32Array,
  rows: number,
  hidden: number,
  y: Float32Array,
  scratch: Scratch,
): void {
  const { width } = mlp;
  const gate = scratch.take("gate", rows * width);
  const up = scratch.take("up", rows * width);
  linear(x, rows, mlp.gate, hidden, width, gate);
  linear(x, rows, mlp.up, hidden, width, up);
  for (let i = 0; i < gate.length; i++) {
    const value = gate[i] as number;
    gate[i] = (value / (1 + Math.exp(-value))) * (up[i] as number);
  }
  linear(gate, rows, mlp.down, width, hidden, y);
}
