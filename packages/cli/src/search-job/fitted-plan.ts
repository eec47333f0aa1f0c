import { existsSync } from "node:fs";
import { CoppiceError, type MoeModel, type Plan, parsePlan } from "@coppice/core";
import type { LayerReconstruction } from "@coppice/reconstruct";
import * as v from "valibot";
import { planBytes } from "../work/plan-file.js";
import { readTextFile } from "../work/text-file.js";
import type { CrossFitted } from "./cross-fitted.js";
import type { FitTexts } from "./fit-texts.js";

/** What is kept of a fit, so that a run that is given again does not repeat it. */
export interface FittedPlan {
  /** Key of the plan that was fitted. */
  readonly from: string;
  readonly plan: Plan;
  /** Fitness on the samples that judge, before anything was fitted. */
  readonly before: number;
  readonly layers: readonly LayerReconstruction[];
  /** What was fitted to, and how many tokens of it. */
  readonly texts: FitTexts["by"];
  readonly tokens: number;
  /** Present where the search samples themselves were fitted to, but for plain text. */
  readonly crossFitted?: CrossFitted | undefined;
}

const whole = v.pipe(v.number(), v.safeInteger(), v.minValue(0));
/** Plans that failed score -Infinity, which JSON writes as null. */
const score = v.pipe(
  v.nullable(v.number()),
  v.transform((value) => value ?? Number.NEGATIVE_INFINITY),
);
const schema = v.strictObject({
  from: v.string(),
  plan: v.unknown(),
  before: score,
  layers: v.array(
    v.strictObject({
      layer: whole,
      choice: v.nullable(v.strictObject({ target: v.picklist(["layer", "stream"]), ridge: v.number() })),
      score,
    }),
  ),
  texts: v.picklist(["samples", "written"]),
  tokens: whole,
  crossFitted: v.optional(
    v.strictObject({ value: v.number(), low: v.number(), high: v.number(), samples: whole }),
  ),
});

/**
 * What an earlier process fitted to the plan with key `from`; undefined when it fitted nothing, or another plan.
 * @throws COPPICE_RUN_FILE when the file is damaged, COPPICE_IO_READ, COPPICE_ABORTED
 */
export async function readFittedPlan(
  path: string,
  from: string,
  model: MoeModel,
  signal?: AbortSignal,
): Promise<FittedPlan | undefined> {
  // It is written at the end of a fit.
  if (!existsSync(path)) return undefined;
  const text = await readTextFile(path, planBytes, "COPPICE_RUN_FILE", signal);
  try {
    const fitted = v.parse(schema, JSON.parse(text), { abortEarly: true });
    return fitted.from === from ? { ...fitted, plan: parsePlan(fitted.plan, model) } : undefined;
  } catch (cause) {
    const place = v.isValiError(cause) ? `${v.getDotPath(cause.issues[0]) ?? "its top"}: ` : "";
    throw new CoppiceError("COPPICE_RUN_FILE", `${path} is damaged: ${place}${(cause as Error).message}`, {
      cause,
      hint: "delete this file alone; the same command then fits the plan again and continues",
      details: { path },
    });
  }
}
