import {
  type CheckedRunRequest,
  type LayerPlan,
  type LayerRange,
  type MoeModel,
  moeLayers,
  type RunRequest,
  type RunResult,
} from "@coppice/core";
import { fewRows, type Gpu } from "@coppice/kernels-webgpu";
import { attentionUse } from "./attention-block.js";
import { limitsOf } from "./attention-limits.js";
import { checkAttentionKernels } from "./check-attention-kernels.js";
import { checkBatch, checkGroupKernels } from "./check-kernels.js";
import { ExpertPool } from "./expert-pool.js";
import { recordGroup } from "./group-run.js";
import { countTogether, type GroupJob, isGroupable } from "./groupable.js";
import { wantedTargets } from "./head.js";
import type { BoundaryStore } from "./held-boundary.js";
import type { LayerWeights, ModelWeights, MoeWeights } from "./model-weights.js";
import { expertBytes } from "./moe-block.js";
import type { Operators } from "./operators.js";
import { pace } from "./pace.js";
import { type PlannedExperts, planExperts } from "./planned-experts.js";
import type { RotaryTables } from "./rotary-tables.js";
import type { QueueWork } from "./run-queue.js";
import type { RunnerSettings } from "./runner.js";
import type { Workspace } from "./workspace.js";

/** Up to so many rows, products in float16 are not those of matrix units. */
const fewHalfRows = 32;
/** Tokens of a group that is not made smaller for the sake of another one. */
const leastGroup = 2 * pace.batchTokens;
/** Bytes of merged experts that are kept for further plans. */
const mergedBytes = 256 * 1024 * 1024;

export interface RunGroupsContext {
  readonly gpu: Gpu;
  readonly model: MoeModel;
  readonly loaded: LayerRange;
  readonly weights: ModelWeights;
  readonly workspace: Workspace;
  readonly rotary: RotaryTables;
  readonly boundaries: BoundaryStore;
  readonly operators: Operators;
  readonly settings: RunnerSettings;
}

/** Which runs of a runner go together, and what they share. */
export class RunGroups implements QueueWork<GroupJob> {
  readonly #context: RunGroupsContext;
  readonly #pools: ReadonlyMap<number, ExpertPool>;
  /** By layer, the experts as they are stored. */
  readonly #whole = new Map<number, PlannedExperts>();
  readonly most: number;
  #isChecked = false;

  constructor(context: RunGroupsContext) {
    this.#context = context;
    const { gpu, model, weights } = context;
    const layers = moeLayers(model).flatMap(({ index, feedForward }) => {
      const moe = weights.layers.get(index)?.moe;
      return moe ? [{ index, feedForward, moe }] : [];
    });
    const bytes = mergedBytes / Math.max(1, layers.length);
    this.#pools = new Map(
      layers.map(({ index, feedForward, moe }) => [index, new ExpertPool(gpu, feedForward, moe, bytes)]),
    );
    const perToken = Math.max(
      1,
      ...layers.map(({ feedForward: { router, experts } }) =>
        Math.max(router.topK * model.hiddenSize, router.topK * (experts[0]?.width ?? 0)),
      ),
    );
    const room = Math.floor(Math.min(expertBytes, gpu.maxBindingBytes) / (4 * perToken));
    this.most = Math.max(1, Math.min(8 * pace.batchTokens, room));
  }

  /** A run that can be computed together with others; undefined: it cannot. @throws as `BoundaryStore.check` does */
  jobOf(
    request: RunRequest,
    checked: CheckedRunRequest,
    plans: ReadonlyMap<number, LayerPlan>,
  ): GroupJob | undefined {
    const { rows, targets, tokens, from } = checked;
    const { model, settings, boundaries, operators } = this.#context;
    if (!operators.independent || !rows || !targets || tokens > this.most) return undefined;
    if (!isGroupable(model, this.#pools, request, checked, plans)) return undefined;
    const wanted = wantedTargets(rows, targets);
    // Products of few rows sum in another order, and what a run gives must not depend on the others.
    const few = settings.half ? fewHalfRows : fewRows;
    // Here, so that a wrong one fails its own run alone.
    if (request.held) boundaries.check(request.held, from, 4 * tokens * model.hiddenSize);
    return Math.min(tokens, wanted.rows.length) > few ? { request, checked, plans, wanted } : undefined;
  }

  size({ checked }: GroupJob): number {
    return checked.tokens;
  }

  together(jobs: readonly GroupJob[]): number {
    const tokens = jobs.reduce((sum, job) => sum + this.size(job), 0);
    // Of no more than one group, half is computed while the rest is recorded.
    const most = Math.min(this.most, Math.max(leastGroup, Math.ceil(tokens / 2)));
    return countTogether(this.#pools, jobs, most);
  }

  async record(jobs: readonly GroupJob[]): Promise<() => Promise<RunResult[]>> {
    const { settings, ...context } = this.#context;
    const { gpu, model, loaded, weights } = context;
    gpu.throwIfFailed();
    const tokens = jobs.reduce((sum, { checked }) => sum + checked.tokens, 0);
    const rows = jobs.reduce((sum, { wanted }) => sum + wanted.rows.length, 0);
    if (!this.#isChecked) await checkGroupKernels(gpu, model, loaded);
    this.#isChecked = true;
    // Behind the last attention there are fewer rows.
    for (const count of [tokens, rows]) await checkBatch(gpu, model, loaded, count, settings);
    const limits = limitsOf(model, undefined);
    for (const { checked } of jobs) {
      const use = { ...attentionUse(model, checked, limits), tiles: true };
      await checkAttentionKernels(gpu, model, loaded, use);
    }
    for (const { index, feedForward } of model.layers) {
      if (feedForward.kind !== "moe" || this.#whole.has(index)) continue;
      const { moe } = weights.layers.get(index) as LayerWeights;
      this.#whole.set(index, await planExperts(gpu, feedForward, moe as MoeWeights, undefined));
    }
    try {
      return await recordGroup(
        { ...context, half: settings.half, pools: this.#pools, whole: this.#whole },
        jobs,
      );
    } catch (error) {
      // Merged experts that were placed may not have been made.
      for (const pool of this.#pools.values()) pool.forget();
      throw error;
    }
  }

  dispose(): void {
    for (const pool of this.#pools.values()) pool.dispose();
    for (const experts of this.#whole.values()) experts.dispose();
    this.#whole.clear();
  }
}
