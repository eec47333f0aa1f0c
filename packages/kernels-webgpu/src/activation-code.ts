import type { ActivationSpec } from "@coppice/core";

/** Kinds of `ActivationSpec`, and `none` for a projection. */
export type ActivationKind = ActivationSpec["kind"] | "none";

/** True where a gate is multiplied with up. */
export const isGated = (activation: ActivationKind) =>
  activation === "silu" || activation === "clamped-swiglu";

/** WGSL of `fn activate(g, u) -> f32`, with the formulas of `ActivationSpec`; `p.limit` and `p.alpha` are its numbers. */
export function activationCode(activation: ActivationKind): string {
  const body = {
    none: "return u;",
    // Of a very negative g the exponential is infinite and the quotient 0, as it should be.
    silu: "return g / (1.0 + exp(-g)) * u;",
    relu2: "let r = max(u, 0.0); return r * r;",
    "clamped-swiglu": `let limited = min(g, p.limit);
  return (clamp(u, -p.limit, p.limit) + 1.0) * limited / (1.0 + exp(-p.alpha * limited));`,
  }[activation];
  return `fn activate(g: f32, u: f32) -> f32 {\n  ${body}\n}`;
}

/** The numbers of an activation as uniform values. */
export function activationParams(activation: ActivationSpec | undefined): { limit: number; alpha: number } {
  return activation?.kind === "clamped-swiglu" ? activation : { limit: 0, alpha: 0 };
}
