import type { ActivationSpec } from "@coppice/core";
import { linear } from "./linear.js";
import type { Scratch } from "./scratch.js";
import type { Mlp } from "./weights.js";

/**
 * The MLP of the first `rows` rows of x [rows, hidden] into y [rows, hidden]; `ActivationSpec` has the formulas.
 * @returns the hidden units, which down multiplies, [rows, width]; left over until the next call
 */
export function runMlp(
  mlp: Mlp,
  x: Float32Array,
  rows: number,
  hidden: number,
  y: Float32Array,
  scratch: Scratch,
): Float32Array {
  const { width } = mlp;
  const up = scratch.take("up", rows * width);
  linear(x, rows, mlp.up, hidden, width, up, mlp.upBias);
  let gate = up;
  if (mlp.gate) {
    gate = scratch.take("gate", rows * width);
    linear(x, rows, mlp.gate, hidden, width, gate, mlp.gateBias);
  }
  activate(mlp.activation, gate, up);
  linear(up, rows, mlp.down, width, hidden, y, mlp.downBias);
  return up;
}

/** Writes what goes down into `up`. */
function activate(activation: ActivationSpec, gate: Float32Array, up: Float32Array): void {
  switch (activation.kind) {
    case "silu":
      for (let i = 0; i < up.length; i++) {
        const value = gate[i] as number;
        up[i] = (value / (1 + Math.exp(-value))) * (up[i] as number);
      }
      return;
    case "relu2":
      for (let i = 0; i < up.length; i++) up[i] = Math.max(0, up[i] as number) ** 2;
      return;
    case "clamped-swiglu": {
      const { limit, alpha } = activation;
      for (let i = 0; i < up.length; i++) {
        const g = Math.min(gate[i] as number, limit);
        const u = Math.min(limit, Math.max(-limit, up[i] as number));
        up[i] = (u + 1) * (g / (1 + Math.exp(-alpha * g)));
      }
    }
  }
}
