import type { TensorRef } from "@coppice/core";
import { paddingObstacle } from "../output/padding.js";
import type { FamilyDescription } from "./family.js";

/**
 * Why layers of different numbers of experts cannot be filled up for stock runtimes; undefined when they can, exactly.
 * Supposes router biases and corrections that are stored in float32 or bfloat16, as published ones are.
 */
export function familyPaddingObstacle({ router, layouts }: FamilyDescription): string | undefined {
  const [layout] = layouts;
  const stored: TensorRef = { name: "", dtype: "F32", shape: [], file: "", begin: 0, end: 0 };
  return paddingObstacle({
    order: router.order,
    weight: stored,
    topK: 1,
    ...(layout?.correction && { correction: stored }),
    ...(layout?.routerBias && { bias: stored }),
  });
}

/** How far the logits of a checkpoint may be from those of its original under the plan that made it. */
export interface VerifyTolerance {
  readonly tolerance: number;
  /** Why it is not zero. */
  readonly reason: string;
}

/**
 * Original under a plan and written checkpoint route among the same experts and store the same values, so in exact
 * arithmetic nothing differs. In float32 a backend may sum in another order when matrices have other shapes.
 * @returns undefined for families that are not executed, whose files are compared tensor by tensor
 */
export function verifyTolerance({ editOnly, router }: FamilyDescription): VerifyTolerance | undefined {
  if (editOnly !== undefined) return undefined;
  const sums = "float32 sums of other shapes round differently";
  if (router.order === "sparsemixer") {
    return {
      tolerance: 1e-4,
      reason: `${sums}; a logit at the very edge of the router's tolerance may then fall to either side`,
    };
  }
  return {
    tolerance: 1e-4,
    reason: `${sums}; logits that tie to the last bit may then be chosen differently`,
  };
}
