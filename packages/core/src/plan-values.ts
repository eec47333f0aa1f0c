import { CoppiceError } from "./errors.js";

// Untrusted values of a plan file; messages name where they stand. `fail` makes the errors of other kinds of plans.

export function record(
  value: unknown,
  where: string,
  keys: readonly string[],
  fail = invalid,
): Record<string, unknown> {
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw fail(`${where} is ${show(value)}, expected an object`);
  }
  const unknown = Object.keys(value).find((key) => !keys.includes(key));
  if (unknown !== undefined) {
    throw fail(`${where} has the unknown key ${show(unknown)}; known are ${keys.join(", ")}`);
  }
  return value as Record<string, unknown>;
}

export function array(value: unknown, where: string, fail = invalid): unknown[] {
  if (!Array.isArray(value)) throw fail(`${where} is ${show(value)}, expected an array`);
  return value;
}

export function integer(value: unknown, where: string, fail = invalid): number {
  if (!Number.isSafeInteger(value)) throw fail(`${where} is ${show(value)}, expected an integer`);
  return value as number;
}

export function show(value: unknown): string {
  return (JSON.stringify(value) ?? String(value)).slice(0, 80);
}

export function invalid(message: string): CoppiceError {
  return new CoppiceError("COPPICE_PLAN_INVALID", `not a usable plan: ${message}`);
}

/** Largest magnitude of a coefficient; beyond it float32 products lose all precision. */
const coefficientLimit = 1e6;

export function coefficients(value: unknown, where: string, count: number, per: string): number[] {
  const cells = array(value, where);
  if (cells.length !== count) {
    throw invalid(`${where} has ${cells.length} values, expected ${count}, one per ${per}`);
  }
  return cells.map((cell, i) => coefficient(cell, `${where}[${i}]`));
}

export function coefficient(value: unknown, where: string): number {
  if (typeof value !== "number" || !(Math.abs(value) <= coefficientLimit)) {
    throw invalid(`${where} is ${show(value)}, expected a number within ±${coefficientLimit}`);
  }
  return value;
}
