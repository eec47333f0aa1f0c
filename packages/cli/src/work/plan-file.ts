import { type MoeModel, type Plan, parsePlan } from "@coppice/core";
import { writeFileAtomic } from "@coppice/core/node";
import type { CliContext } from "../context.js";
import { readJsonFile } from "./text-file.js";

/**
 * Most plans hold a few numbers per expert and stay below 10 MB. Changes of down projections take 2.7 bytes per weight, 10 MB
 * for the demo model; no runtime of JavaScript has strings much longer than this.
 */
export const planBytes = 500_000_000;

/**
 * Reads a plan file and checks it against the model. A `result.json` or `coppice.json` that holds a plan under
 * `plan` is accepted as well.
 * @throws COPPICE_IO_READ, COPPICE_PLAN_INVALID, COPPICE_PLAN_KEEP, COPPICE_PLAN_MODEL, COPPICE_PLAN_RECORD
 */
export async function readPlan(path: string, model: MoeModel, context: CliContext): Promise<Plan> {
  const value = await readJsonFile(context.path(path), planBytes, "COPPICE_PLAN_INVALID", context.signal);
  return parsePlan(unwrap(value), model);
}

/** Writes a plan file, which appears complete or not at all. @throws COPPICE_IO_WRITE, COPPICE_IO_NO_SPACE */
export async function writePlan(path: string, plan: Plan): Promise<void> {
  await writeFileAtomic(path, `${JSON.stringify(plan)}\n`);
}

function unwrap(value: unknown): unknown {
  if (typeof value !== "object" || value === null || !("plan" in value)) return value;
  return "format" in value && value.format === "coppice.plan" ? value : value.plan;
}
